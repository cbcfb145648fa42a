"""All schedules of an animation, computed before its first frame."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.deforum.schedules.schedules import evaluate, evaluate_text
from inference.deforum.settings import (
    GATES,
    INT_SCHEDULES,
    KEYS,
    SCHEDULE,
    TEXT_SCHEDULES,
    sampler_name,
)
from inference.runtime import InputError

if TYPE_CHECKING:
    from inference.deforum.settings import Settings

SCHEDULES = tuple(name for name, key in KEYS.items() if key.kind == SCHEDULE)
"""The keys whose value is a schedule."""


@dataclass
class Schedules:
    """The values of all schedules at all frames, by key: `schedules.zoom[frame]`.

    Numbers are floats, those of `INT_SCHEDULES` integers; `TEXT_SCHEDULES` are texts. Schedules of
    features that are off are computed only on access, so that errors in them do not matter.
    """

    settings: Settings
    variables: Mapping[str, np.ndarray]
    """Names in formulas besides `t`, `s`, `max_f`: one value per frame."""
    given: Mapping[str, list[Any]]
    """Values that replace a schedule (Parseq's)."""
    computed: dict[str, list[Any]] = field(default_factory=dict)
    networks: dict[str, list[float]] = field(default_factory=dict)
    """Strengths of networks, by name."""

    @classmethod
    def of(cls, settings: Settings) -> Schedules:
        """Compute the schedules of an animation.

        Args:
            settings: with the run's seed drawn, if schedules use `s`.

        Raises:
            InputError: a schedule that is on, or the file of `audio_path` or `parseq_manifest`, is
                invalid.
        """
        from inference.deforum.schedules.variables import frame_variables
        from inference.deforum.settings import managed_values

        schedules = cls(settings, frame_variables(settings), managed_values(settings))
        for key in SCHEDULES:
            if settings[GATES[key]] if key in GATES else True:
                schedules[key]
        for name, text in settings["network_schedules"].items():
            schedules.networks[name] = schedules.evaluated(f"network_schedules.{name}", text)
        return schedules

    def __getitem__(self, key: str) -> list[Any]:
        if key not in self.computed:
            if key not in SCHEDULES:
                raise KeyError(key)
            self.computed[key] = self.compute(key)
        return self.computed[key]

    def __getattr__(self, key: str) -> list[Any]:
        if key not in SCHEDULES:
            raise AttributeError(key)
        return self[key]

    def at(self, frame: int) -> At:
        """Return the values at one frame, as attributes or by key."""
        return At(self, frame)

    def compute(self, key: str) -> list[Any]:
        """Return the values of one schedule."""
        values = self.given.get(key) or self.evaluated(key, self.settings[key])
        if key == "sampler_schedule" and self.settings[GATES[key]]:
            return self.samplers(values)
        return [int(value) for value in values] if key in INT_SCHEDULES else values

    def evaluated(self, key: str, text: str) -> list[Any]:
        """Return the values of a schedule's text.

        Raises:
            InputError: it is invalid; the message starts with the settings' file.
        """
        frames, seed = self.settings["max_frames"], self.settings["seed"]
        read = evaluate_text if key in TEXT_SCHEDULES else evaluate
        try:
            return list(read(key, text, frames, seed, self.variables))
        except InputError as error:
            raise self.settings.error(str(error)) from None

    def samplers(self, names: list[str]) -> list[str]:
        """Return samplers by their names in A1111 or Limner.

        Raises:
            InputError: a name is unknown.
        """
        found: dict[str, str] = {}
        for frame, name in enumerate(names):
            try:
                found[name] = found.get(name) or sampler_name(name)
            except ValueError as error:
                raise self.settings.error(f"sampler_schedule, frame {frame}: {error}") from None
        return [found[name] for name in names]


@dataclass(frozen=True)
class At(Mapping[str, Any]):
    """The values of all schedules at one frame, as attributes or by key."""

    schedules: Schedules
    frame: int

    def __getitem__(self, key: str) -> Any:
        return self.schedules[key][self.frame]

    def __getattr__(self, key: str) -> Any:
        return getattr(self.schedules, key)[self.frame]

    def __iter__(self) -> Iterator[str]:
        return iter(SCHEDULES)

    def __len__(self) -> int:
        return len(SCHEDULES)
