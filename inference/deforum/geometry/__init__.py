"""Cameras, warps, depth and optical flow."""
