"""The frame loop: one frame after another, each from the one before."""
