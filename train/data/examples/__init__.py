"""Examples: buckets, transforms, latents, and the stream of batches."""
