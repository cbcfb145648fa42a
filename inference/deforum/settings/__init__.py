"""Settings files of Deforum and its relatives become typed settings."""
