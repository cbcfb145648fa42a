"""Errors, warnings, signals, devices and processes."""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from inference.runtime.console import open_console
    from inference.runtime.devices import Processes, Progress, choose_device, progress_bar
    from inference.runtime.errors import ArtifactError, BaseModelError, DrawWarning, InputError
    from inference.runtime.extras import require
    from inference.runtime.registry import register
    from inference.runtime.signals import Interrupted, StopSignals
    from inference.runtime.text import number, output, printable, without_passwords
    from inference.runtime.version import clone, describe_version, git, limner_version
    from inference.runtime.warnings import quiet_libraries

__all__ = [
    "ArtifactError",
    "BaseModelError",
    "DrawWarning",
    "InputError",
    "Interrupted",
    "Processes",
    "Progress",
    "StopSignals",
    "choose_device",
    "clone",
    "describe_version",
    "git",
    "limner_version",
    "number",
    "open_console",
    "output",
    "printable",
    "progress_bar",
    "quiet_libraries",
    "register",
    "require",
    "without_passwords",
]

__getattr__ = lazy(__name__, __file__)
