"""UniPC: Zhao et al. 2023, arXiv 2302.04867; by lambda = -log sigma, with clean latents."""

from __future__ import annotations

from collections.abc import Sequence
from math import expm1, factorial, log
from typing import TYPE_CHECKING

from inference.sampling.base import Sampling, UniPCVariant, towards
from inference.sampling.entries import stepwise
from inference.sampling.schedules import unipc_levels

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


@stepwise("UniPC", own_schedule=unipc_levels, is_scaled=True, aliases=("unipc",))
def unipc(run: Sampling, x: Tensor) -> Tensor:
    """Predict each step from the last evaluations, then correct it by the one at its end.

    That evaluation is also the next step's first, so each costs one. The last step is not
    corrected; to sigma 0 it ends at the clean latent (algorithms 1 and 2; A1111 1.10.1
    `modules/models/diffusion/uni_pc/uni_pc.py`).
    """
    sigmas = run.sigmas
    steps = len(sigmas) - 1
    if steps < 1:
        return x / run.options.scale_of(sigmas[-1])
    highest = min(run.options.unipc_order, steps)
    seen = [(sigmas[0], run.denoiser(x, sigmas[0]))]  # newest first
    for step in range(1, steps + 1):
        run.report(step - 1, seen[0][1])
        sigma = sigmas[step]
        if sigma == 0:
            x = seen[0][1]
            break
        order = min(highest, step)
        if run.options.unipc_lower_order_final and step >= highest:
            order = min(order, steps + 1 - step)
        predict = Step(seen[:order], sigma, run.options.unipc_variant)
        trial = predict.predicted(x)
        if step < steps:
            denoised = run.denoiser(trial, sigma)
            x = predict.corrected(x, denoised)
            seen = [(sigma, denoised), *seen[: highest - 1]]
        else:
            x = trial
    return x / run.options.scale_of(sigmas[-1])


class Step:
    """A step from the newest of the evaluations to a sigma above 0, with as many as its order.

    Args:
        seen: (sigma, clean latent) of the last evaluations, newest first.
        sigma: where the step goes.
        variant: bh1 and bh2 (section 3.2 with B(h) = h or e^h - 1), or vary_coeff (appendix C; its
            corrector leaves out a part, and is of order 1, in UniPC's own code and so in A1111).
    """

    def __init__(
        self, seen: Sequence[tuple[float, Tensor]], sigma: float, variant: UniPCVariant
    ) -> None:
        self.variant = variant
        newest, self.newest = seen[0]
        self.ratio = sigma / newest
        self.length = -log(newest / sigma)  # below 0, as for the prediction of clean latents
        self.places = [log(newest / other) / -self.length for other, _ in seen[1:]]
        self.slopes = [
            (value - self.newest) / place
            for (_, value), place in zip(seen[1:], self.places, strict=True)
        ]

    def predicted(self, x: Tensor) -> Tensor:
        """Return x at the step's end, by the evaluations before it."""
        shares = self.shares(self.places) if self.places else []
        if len(self.places) == 1 and self.variant != "vary_coeff":
            shares = [0.5 * self.unit]
        return self.moved(x, self.slopes, shares)

    def corrected(self, x: Tensor, denoised: Tensor) -> Tensor:
        """Return x at the step's end, also by the evaluation there."""
        places = [*self.places, 1.0]
        shares = self.shares(places)
        if self.places and self.variant == "vary_coeff":
            shares = self.incomplete_shares(places)
        if not self.places and self.variant != "vary_coeff":
            shares = [0.5 * self.unit]
        return self.moved(x, [*self.slopes, denoised - self.newest], shares)

    def moved(self, x: Tensor, slopes: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
        """Return the step of order 1, less the slopes' shares."""
        x = towards(self.newest, x, self.ratio)
        for slope, share in zip(slopes, shares, strict=True):
            x = x - slope * share
        return x

    @property
    def unit(self) -> float:
        """Return B(h)."""
        return self.length if self.variant == "bh1" else expm1(self.length)

    def shares(self, places: Sequence[float]) -> list[float]:
        """Return the weight of each slope, exact for polynomials of the degree of their number."""
        import numpy as np

        count = len(places)
        phis = phi_functions(self.length, count)
        if self.variant == "vary_coeff":
            return (phis @ taylor_inverse(places)).tolist()
        rows = np.stack([np.power(places, power) for power in range(count)])
        aims = [phi * factorial(power + 1) for power, phi in enumerate(phis)]
        return np.linalg.solve(rows, aims).tolist()

    def incomplete_shares(self, places: Sequence[float]) -> list[float]:
        """Return the weights of vary_coeff's corrector, with the terms that its code leaves out."""
        phis, inverse = phi_functions(self.length, len(places)), taylor_inverse(places)
        return [*(phis[:-1] @ inverse[:-1, :-1]).tolist(), phis[-1] * inverse[-2, -1]]


def taylor_inverse(places: Sequence[float]) -> np.ndarray:
    """Return the map from differences to derivatives: the inverse of place^k / (k + 1)!."""
    import numpy as np

    columns = [np.power(places, power) / factorial(power + 1) for power in range(len(places))]
    return np.linalg.inv(np.stack(columns, axis=1))


def phi_functions(length: float, count: int) -> np.ndarray:
    """Return h phi_2(h) … h phi_{count + 1}(h), with phi_{k + 1}(h) = (phi_k(h) - 1 / k!) / h."""
    import numpy as np

    value = expm1(length)
    values = []
    for power in range(1, count + 1):
        value = value / length - 1 / factorial(power)
        values.append(value)
    return np.array(values)
