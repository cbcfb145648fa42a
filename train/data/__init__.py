"""Pictures and captions become examples, examples become batches."""
