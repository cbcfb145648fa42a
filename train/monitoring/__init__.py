"""Logging: TensorBoard, preview grids, validation."""
