"""Latents and prompt embeddings kept on disk by content, and prefetch threads."""
