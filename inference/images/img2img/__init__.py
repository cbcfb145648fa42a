"""What stands between pictures and latents: img2img, inpainting, hires fix, tiling.

Pure operations, after A1111 1.10.1 (`modules/img2img.py`, `processing.py`, `masking.py`,
`images.py`), whose option names they keep. Pictures are Pillow's; masks are of mode "L" and white
(255) where the picture is painted anew; latent masks are 1 there.
"""
