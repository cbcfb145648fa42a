"""Bytes on disk: atomic writes, hashes, tensors, file name patterns."""
