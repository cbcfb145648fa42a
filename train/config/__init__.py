"""Typed options of training; imports neither torch nor diffusers."""
