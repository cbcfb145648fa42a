"""The version of this Limner: of the clone it runs from, else of the installed distribution."""

import subprocess
import tomllib
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = Path(__file__).parents[2]
"""The folder that holds the packages `train` and `inference`."""

UNKNOWN = "0+unknown"
"""Version of packages that were copied without their metadata."""


@cache
def limner_version() -> str:
    """Return the version, such as `0.1.0`.

    In a clone the metadata of an installed Limner may be of another version, or of another clone,
    so `pyproject.toml` decides.
    """
    declared = _pyproject_version()
    if declared is not None:
        return declared
    try:
        return version("limner")
    except PackageNotFoundError:
        return UNKNOWN


def clone() -> Path | None:
    """Return the clone (or unpacked source distribution) of the packages; None if installed."""
    return None if _pyproject_version() is None else PACKAGES


def describe_version() -> str:
    """Return the version, the commit if this is a clone with git, and where the packages lie."""
    commit = git("rev-parse", "--short", "HEAD") if clone() else None
    at = f"commit {commit}, " if commit else ""
    return f"{limner_version()} ({at}{PACKAGES})"


def git(*arguments: str) -> str | None:
    """Return what git prints about the clone of this file; None without git or a clone."""
    try:
        result = subprocess.run(
            ["git", "-C", str(PACKAGES), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()


@cache
def _pyproject_version() -> str | None:
    """Return the version in Limner's pyproject.toml beside the packages; None if there is none."""
    try:
        project = tomllib.loads((PACKAGES / "pyproject.toml").read_text("utf-8"))["project"]
        return project["version"] if project["name"] == "limner" else None
    except (OSError, KeyError, tomllib.TOMLDecodeError, UnicodeDecodeError):
        return None
