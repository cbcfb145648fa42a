"""Pictures and captions become examples, examples become batches."""

from train.data import streaming as streaming
