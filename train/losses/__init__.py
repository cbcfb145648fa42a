"""Losses: a batch becomes one loss per example."""
