"""Errors, warnings, signals, devices and processes."""

from inference.runtime.devices import Processes, Progress, choose_device, progress_bar
from inference.runtime.errors import ArtifactError, BaseModelError, DrawWarning, InputError
from inference.runtime.signals import Interrupted, StopSignals
from inference.runtime.text import number
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
    "number",
    "progress_bar",
    "quiet_libraries",
]
