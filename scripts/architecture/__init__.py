"""Measures of the architecture: `python -m scripts.architecture`."""
