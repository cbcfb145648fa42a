"""Read and write pictures, grids and videos."""
