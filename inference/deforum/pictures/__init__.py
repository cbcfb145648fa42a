"""Colour, masks, noise and sharpening of frames."""
