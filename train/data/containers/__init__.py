"""Folders, tars, zips and tables that hold examples."""
