"""Programs for developers of Limner: `python -m scripts.<folder>.<name>`."""
