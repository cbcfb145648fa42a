"""Clips: CogVideoX (Yang et al. 2024, arXiv 2408.06072) as a base model, and drawing with it."""
