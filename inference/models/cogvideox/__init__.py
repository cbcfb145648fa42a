"""CogVideoX (Yang et al. 2024, arXiv 2408.06072): detect, load, encode prompts, latents of clips."""
