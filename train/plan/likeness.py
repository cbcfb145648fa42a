"""Near-duplicate search by perceptual hashes, without comparing all pairs."""

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

NEAR = 8
"""Bits of 128 by which near-duplicates may differ."""
FEWEST = 12
"""Hashes with fewer ones, or fewer zeros, contain too little of an image: it counts as plain."""
COMPARISONS = 8
"""Limit of comparisons for each choice of parts: this many per image, and COMPARISONS_AT_LEAST."""
COMPARISONS_AT_LEAST = 1_000_000
AGREEING = 3
"""Parts of the hash in which two must be equal to be compared."""


class Alike(NamedTuple):
    """Images that look alike."""

    groups: list[list[int]]
    """Indices of each group, ascending; at least two."""
    plain: int
    """Images whose hashes contain too little, which are omitted."""
    is_complete: bool
    """Whether no comparison was omitted; see `COMPARISONS`."""


def alike(hashes: np.ndarray, distance: int = NEAR) -> Alike:
    """Return groups of images of which each differs in few bits from another one of its group.

    The 128 bits are distributed over distance + 3 parts: of two hashes that differ in no more bits
    than `distance`, at least three parts are equal (pigeonhole principle; Norouzi et al. 2012,
    "Fast search in Hamming space with multi-index hashing"). Only images that share three parts are
    compared, which are found by sorting.

    Args:
        hashes: (n, 2), uint64.
        distance: bits that may differ.
    """
    bits = np.unpackbits(np.ascontiguousarray(hashes).view(np.uint8).reshape(-1, 16), axis=1)
    ones = bits.sum(axis=1, dtype=np.int64)
    informative = np.flatnonzero((ones >= FEWEST) & (ones <= bits.shape[1] - FEWEST))
    kept, own = np.unique(hashes[informative], axis=0, return_inverse=True)
    found, is_complete = [np.empty((0, 2), np.int64)], True
    for pairs, is_all in near_pairs(kept, distance):
        found.append(pairs)
        is_complete &= is_all
    ends = np.concatenate(found)
    graph = coo_array((np.ones(len(ends), bool), (ends[:, 0], ends[:, 1])), (len(kept),) * 2)
    groups = connected_components(graph, directed=False)[1][own.reshape(-1)]
    return Alike(_members(groups, informative), len(hashes) - len(informative), is_complete)


def near_pairs(hashes: np.ndarray, distance: int) -> Iterator[tuple[np.ndarray, bool]]:
    """Yield pairs (k, 2) of different hashes that are near, some of them several times.

    With each, whether all that share its three parts have been compared.
    """
    if len(hashes) < 2:
        return
    bits = np.unpackbits(np.ascontiguousarray(hashes).view(np.uint8).reshape(-1, 16), axis=1)
    number = distance + AGREEING
    # Neighbouring bits are often equal (a plain background): each part has bits from all over.
    parts = np.stack([_number(bits[:, part::number]) for part in range(number)], axis=1)
    for chosen in combinations(range(number), AGREEING):
        keys = np.zeros(len(hashes), np.uint64)
        for part in chosen:
            keys = keys << np.uint64(16) | parts[:, part]
        order = np.argsort(keys, kind="stable")
        yield _near_in_runs(hashes, keys[order], order, distance)


def _near_in_runs(
    hashes: np.ndarray, keys: np.ndarray, order: np.ndarray, distance: int
) -> tuple[np.ndarray, bool]:
    """Compare those of equal keys with each other: with the next one, the next but one, …."""
    found: list[np.ndarray] = []
    starts = np.arange(len(keys))
    left = max(COMPARISONS_AT_LEAST, COMPARISONS * len(keys))
    for offset in range(1, len(keys)):
        starts = starts[starts + offset < len(keys)]
        starts = starts[keys[starts] == keys[starts + offset]]
        if not len(starts) or left < 0:
            break
        left -= len(starts)
        one, two = order[starts], order[starts + offset]
        apart = np.bitwise_count(hashes[one] ^ hashes[two]).sum(axis=1, dtype=np.int64)
        near = apart <= distance
        found.append(np.stack([one[near], two[near]], axis=1))
    return np.concatenate([np.empty((0, 2), np.int64), *found]), left >= 0 or not len(starts)


def _number(bits: np.ndarray) -> np.ndarray:
    """Return rows of up to 16 bits as numbers, uint64."""
    weights = np.left_shift(np.uint64(1), np.arange(bits.shape[1], dtype=np.uint64))
    return (bits * weights).sum(axis=1, dtype=np.uint64)


def equal(values: Sequence[bytes]) -> list[list[int]]:
    """Return groups of indices with the same value; at least two, ascending."""
    places: dict[bytes, list[int]] = {}
    for index, value in enumerate(values):
        places.setdefault(value, []).append(index)
    return [group for group in places.values() if len(group) > 1]


def _members(groups: np.ndarray, indices: np.ndarray) -> list[list[int]]:
    """Return the indices of each group with more than one, in the order of their first ones."""
    order = np.argsort(groups, kind="stable")
    ends = np.flatnonzero(np.diff(groups[order])) + 1
    found = [indices[part].tolist() for part in np.split(order, ends) if len(part) > 1]
    return sorted(found)
