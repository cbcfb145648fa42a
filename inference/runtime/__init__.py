"""Errors, warnings, signals, devices and processes."""
