"""Batches, counter-based randomness, distributed helpers and training errors."""
