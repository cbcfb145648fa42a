"""Dry run: what a run would cost, computed before it begins."""
