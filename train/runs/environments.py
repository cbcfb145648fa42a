"""environment.json: data about a run's images, and the environments in which it was trained.

On the top level are the facts about images and the present environment; `environments` lists all
of them, each with the step at which it began. Runs of earlier versions have no such list: the top
level is their only environment.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inference.parallel import job_here
from train.common import RunDirectoryError

ENVIRONMENTS = "environments"

DECIDING = ("limner", "device", "gpu", "threads", "processes", "parallel", "packages")
"""What the bytes of a result depend on, beside recipe and data."""

KEYS = (*DECIDING, "git_commit", "git_changed_files", "command", "python", "platform")


PARALLEL = ("strategy", "cpu_offload", "context")
"""Keys of `parallel` that an environment lists: they change rounding, and may change."""


def parallel_in(recipe: Any) -> dict[str, Any]:
    """Return how processes divide the work, as an environment lists it.

    Args:
        recipe: the values of a recipe.yaml.
    """
    values = recipe.get("parallel") if isinstance(recipe, dict) else None
    return {"parallel": {key: values[key] for key in PARALLEL}} if values else {}


def data_sizes(content: Mapping[str, Any]) -> list[int]:
    """Return how many processes had examples of their own, in each environment of a run."""
    return [
        max(1, one["processes"] // one.get("parallel", {}).get("context", 1))
        for one in environments(content)
        if isinstance(one.get("processes"), int)
    ]


def read_environment(path: Path) -> dict[str, Any]:
    """Return the content of an environment.json.

    Raises:
        RunDirectoryError: it does not exist, or is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not content:
            raise ValueError("expected a mapping that is not empty")
        known = environments(content)
        steps = [one.get("step") if isinstance(one, dict) else None for one in known]
        if not known or not all(isinstance(step, int) for step in steps):
            raise ValueError(f"{ENVIRONMENTS}: expected a list of mappings, each with its step")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise RunDirectoryError(
            f"{path}: damaged or lost ({why}): what the run was trained with is unknown. Restore "
            "it from a copy; or overwrite=true starts over and renames this run"
        ) from error
    return content


def is_of_earlier_start(path: Path) -> bool:
    """Return whether the run of an environment.json was trained by an earlier start of this job."""
    job = job_here()
    return job is not None and path.is_file() and job.follows(read_environment(path).get("job", ""))


def environments(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the environments of a run, each with the step at which it began."""
    if ENVIRONMENTS in content:
        return list(content[ENVIRONMENTS])
    return [{"step": 0} | {key: content[key] for key in KEYS if key in content}]


def continued(
    before: Mapping[str, Any] | None, now: Mapping[str, Any], step: int
) -> list[dict[str, Any]]:
    """Return the environments of a run that continues in one at a step.

    An environment is listed again only if something in it is different. Those that began later are
    dropped: their steps are repeated.
    """
    known = [one for one in environments(before or {}) if before and one["step"] < step]
    present = {"step": step} | {key: now[key] for key in KEYS if key in now}
    if known and known[-1] | {"step": step} == present:
        return known
    return [*known, present]


def changes_since(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what the result depends on and is different: `threads: 1 became 2`."""
    last = environments(before)[-1]
    lines = []
    for key in DECIDING:
        old, new = last.get(key), now.get(key)
        if key in last and isinstance(old, dict) and isinstance(new, dict):
            lines += [
                f"{name}: {old[name]} became {new.get(name)}"
                for name in old
                if old[name] != new.get(name)
            ]
        elif key in last and old != new:
            lines.append(f"{key}: {old} became {new}")
    return lines
