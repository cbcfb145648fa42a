"""Stable Diffusion 1.x, 2.x and XL: detect, load, write, encode prompts, key maps."""
