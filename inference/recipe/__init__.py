"""Load a YAML recipe into typed dataclasses."""
