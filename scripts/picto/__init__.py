"""Builders of the embedded models and their datasets."""
