"""Gradients become new weights: optimizer, LR schedule, EMA, guards, training state."""
