from collections import Counter
from itertools import pairwise

import pytest
import torch

from train.data.examples.stream import MicroBatches
from train.losses.timesteps import stratified_timesteps

SEED = 7


def of_step(step: int, per_step: int, low: int = 0, high: int = 1000, first: int = 0) -> list[int]:
    begin = first + step * per_step
    positions = list(range(begin, begin + per_step))
    return stratified_timesteps(SEED, positions, per_step, low, high, first).tolist()


def strata(timesteps: list[int], per_step: int, low: int, high: int) -> list[int]:
    """Which stratum each sorted timestep must be of: it has to touch [i, i + 1) x span / K."""
    span = high - low
    for stratum, timestep in enumerate(sorted(timesteps)):
        begin, end = stratum * span, (stratum + 1) * span
        assert (timestep - low + 1) * per_step > begin, (stratum, timestep)
        assert (timestep - low) * per_step < end, (stratum, timestep)
    return sorted(timesteps)


@pytest.mark.parametrize(
    ("per_step", "low", "high"),
    [(1, 0, 1000), (4, 0, 1000), (7, 0, 1000), (64, 0, 1000), (6, 20, 981), (1500, 0, 1000)],
)
def test_each_step_has_one_timestep_in_each_stratum(per_step: int, low: int, high: int) -> None:
    for step in range(20 if per_step < 100 else 1):
        timesteps = of_step(step, per_step, low, high)
        assert len(timesteps) == per_step
        strata(timesteps, per_step, low, high)
        assert low <= min(timesteps) and max(timesteps) < high


@pytest.mark.parametrize("per_step", [1, 4, 7])
def test_all_timesteps_are_equally_likely(per_step: int) -> None:
    """Chi squared over 50 bins, 49 degrees of freedom: 99.9 % of fair samples stay under 85.4."""
    steps = 6000 // per_step
    timesteps = [t for step in range(steps) for t in of_step(step, per_step)]
    counts = torch.bincount(torch.tensor(timesteps) // 20, minlength=50).double()
    expected = len(timesteps) / 50
    assert ((counts - expected).square() / expected).sum() < 85.4


def test_every_timestep_is_drawn_where_their_number_does_not_divide():
    """7 strata of 10 timesteps, where whole ones would leave 3 of them out."""
    drawn = Counter(t for step in range(400) for t in of_step(step, 7, 0, 10))
    assert sorted(drawn) == list(range(10))
    assert max(drawn.values()) < 1.3 * min(drawn.values())


def test_no_place_in_the_step_is_tied_to_a_stratum():
    first_of_steps = [of_step(step, 4)[0] // 250 for step in range(400)]
    assert all(80 < count < 120 for count in Counter(first_of_steps).values())
    together = Counter(first == second for first, second in pairwise(first_of_steps))
    assert 70 < together[True] < 130  # a quarter of 399: the deal changes from step to step


def test_the_mean_over_a_step_varies_less():
    """Of a loss that grows with the timestep: 1 / 4 as far at 4 examples, 1 / 8 at 8."""
    for per_step in (4, 8):
        means = [sum(of_step(step, per_step)) / per_step for step in range(300)]
        spread = torch.tensor(means).std().item()
        independent = 1000 / 12**0.5 / per_step**0.5
        assert spread == pytest.approx(independent / per_step, rel=0.15)


def run(ranks: int, accumulation: int, batch: int, start: int = 0, classes: bool = False):
    """position -> timestep, as the processes of a run of 6 steps see them."""
    per_step = ranks * accumulation * batch
    seen: dict[int, int] = {}
    for rank in range(ranks):
        for positions in MicroBatches(batch, accumulation, rank, ranks, start, 6, classes):
            timesteps = stratified_timesteps(SEED, positions, per_step, 0, 1000)
            assert timesteps.dtype == torch.int64
            seen |= dict(zip(positions, timesteps.tolist(), strict=True))
    return seen


def test_processes_and_accumulation_share_the_strata():
    alone = run(1, 4, 2)
    assert run(2, 2, 2) == run(4, 1, 2) == run(1, 1, 8) == alone
    for step in range(6):
        strata([alone[step * 8 + place] for place in range(8)], 8, 0, 1000)


def test_a_resumed_run_goes_on_with_the_same():
    whole = run(2, 2, 2)
    assert run(2, 2, 2, start=4) == {p: t for p, t in whole.items() if p >= 4 * 8}


def test_class_pictures_share_the_strata_at_places_of_their_own():
    seen = run(1, 2, 2, classes=True)
    own = {~position: t for position, t in seen.items() if position < 0}
    training = {position: t for position, t in seen.items() if position >= 0}
    assert own.keys() == training.keys() and own != training
    for step in range(6):
        strata([own[step * 4 + place] for place in range(4)], 4, 0, 1000)
    assert all(own[position] // 250 == training[position] // 250 for position in own)


def test_stages_begin_steps_of_another_size_anywhere():
    strata(of_step(3, 4, first=33), 4, 0, 1000)
    assert stratified_timesteps(1, [33], 4, 0, 1000, 33) != stratified_timesteps(
        2, [33], 4, 0, 1000, 33
    )


def test_known_draws():
    """They must never change: runs are resumed with them."""
    assert of_step(0, 4) == [53, 413, 554, 944]
    assert of_step(5, 4) == [876, 128, 585, 368]
