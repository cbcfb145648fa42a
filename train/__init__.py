"""Train: from a recipe to a run directory and an artifact."""
