"""Typed options of drawing; imports neither torch nor diffusers."""
