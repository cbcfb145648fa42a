"""What every model family must answer, and the families."""
