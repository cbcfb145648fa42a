"""Inference: from an artifact and a recipe to pictures."""
