"""Long clips: the model sees overlapping windows, whose predictions are blended at every step.

As MultiDiffusion does it in space (Bar-Tal et al. 2023, arXiv 2302.08113), in time.
"""

from collections.abc import Sequence


def windows(total: int, length: int, overlap: int, multiple: int = 1) -> list[slice]:
    """Return windows of latent frames that cover a clip, from its beginning; the last ends with it.

    Args:
        total: latent frames of the clip, padding included.
        length: latent frames of a window.
        overlap: latent frames that neighbours share, at least; below `length`.
        multiple: divisor of `total` and `length`; windows begin at its multiples.
    """
    if length >= total:
        return [slice(0, total)]
    step = max((length - overlap) // multiple * multiple, multiple)
    starts = [*range(0, total - length, step), total - length]
    return [slice(start, start + length) for start in starts]


def blend_weights(places: Sequence[slice]) -> list[list[float]]:
    """Return the weight of each window in each of its latent frames; those of a frame add up to 1.

    Towards a neighbour weights fall linearly over the shared frames.
    """
    raw = []
    for number, place in enumerate(places):
        length = place.stop - place.start
        before = places[number - 1].stop - place.start if number else 0
        after = place.stop - places[number + 1].start if number + 1 < len(places) else 0
        raw.append(
            [min(1.0, (n + 1) / (before + 1), (length - n) / (after + 1)) for n in range(length)]
        )
    sums = [0.0] * places[-1].stop
    for place, weights in zip(places, raw, strict=True):
        for frame, weight in zip(range(place.start, place.stop), weights, strict=True):
            sums[frame] += weight
    return [
        [weight / sums[frame] for frame, weight in enumerate(weights, start=place.start)]
        for place, weights in zip(places, raw, strict=True)
    ]
