"""Clips: what CogVideoX models (Yang et al. 2024, arXiv 2408.06072) need beyond pictures."""
