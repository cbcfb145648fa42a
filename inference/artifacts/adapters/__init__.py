"""Adapters: trained layers beside those of a base model, one file each."""
