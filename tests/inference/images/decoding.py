"""What pictures are decoded from: pixels are too coarse for what changes little."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from torch import Tensor

from inference.images import drawing


@contextmanager
def decoded_latents() -> Iterator[list[Tensor]]:
    """A list to which everything that is decoded is added."""
    decoded: list[Tensor] = []
    to_images = drawing.to_images

    def keep(base, latents):
        decoded.append(latents)
        return to_images(base, latents)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "to_images", keep)
        yield decoded
