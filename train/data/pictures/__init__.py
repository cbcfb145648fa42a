"""Read, probe and index picture files."""
