"""Deforum animations: a settings file in, a video out (Deforum for A1111 3.0)."""
