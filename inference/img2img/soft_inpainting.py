"""Soft inpainting: a mask that is not rounded and opens as the noise recedes.

After the extension that A1111 1.10.1 ships (`extensions-builtin/soft-inpainting`): its blending of
latents. Its second half, which widens the final overlay by how much the latents changed, is not
here; the overlay goes by the blurred mask.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.linalg import vector_norm


@dataclass(frozen=True)
class SoftInpainting:
    """The extension's options and defaults."""

    mask_blend_power: float = 1.0
    """"Schedule bias", 0 … 8: how strongly the mask depends on sigma."""
    mask_blend_scale: float = 0.5
    """"Preservation strength", 0 … 8: larger keeps more of the original."""
    inpaint_detail_preservation: float = 4.0
    """"Transition contrast boost", 1 … 32: larger keeps the contrast of the stronger side."""

    def mask_at(self, mask: Tensor, sigma: float) -> Tensor:
        """The soft latent mask (0 … 1, any shape) as it holds at a sigma above 0.

        mask ** (sigma ** power * scale): 0 and 1 stay; what is between is low while there is much
        noise, and near 1 at the end.
        """
        return mask ** (sigma**self.mask_blend_power * self.mask_blend_scale)

    def blend(self, denoised: Tensor, init_latents: Tensor, mask: Tensor, sigma: float) -> Tensor:
        """In place of `latents.blend_latents`, in every step but not on the final latents.

        Mixes the vectors over the channels linearly, and then gives them a length between the two,
        since a mean of two different latents is shorter than either: pictures would go grey.

        Args:
            denoised: the expected clean latents, (b, c, h, w).
            init_latents: (b, c, h, w), or one for all.
            mask: the soft latent mask, (1, 1, h, w), 1 where painted anew.
            sigma: of this step, above 0.

        Returns:
            (b, c, h, w) in the number format of `denoised`.
        """
        share = self.mask_at(mask, sigma).double()
        old, new = init_latents.double(), denoised.double()
        mixed = old * (1 - share) + new * share
        power = self.inpaint_detail_preservation
        wanted = (_length(old) ** power * (1 - share) + _length(new) ** power * share) ** (
            1 / power
        )
        return (mixed * (wanted / (_length(mixed) + 1e-5))).to(denoised.dtype)


def _length(latents: Tensor) -> Tensor:
    """(b, 1, h, w)."""
    return vector_norm(latents, dim=1, keepdim=True)
