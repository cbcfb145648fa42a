"""The run directory: checkpoints, manifests, comparison."""
