"""Builders of the embedded models and their data sets."""
