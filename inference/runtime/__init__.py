"""Errors, warnings, signals, streams, devices and processes."""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from inference.runtime.command import (
        is_first_process,
        report,
        report_failure,
        run_command,
        status_of,
    )
    from inference.runtime.console import open_console
    from inference.runtime.devices import (
        LONGEST_WAIT,
        Processes,
        Progress,
        choose_device,
        compute_exactly,
        computes_bf16,
        keep_freed_memory,
        progress_bar,
        to_device,
        warn_of_emulation,
    )
    from inference.runtime.errors import ArtifactError, BaseModelError, DrawWarning, InputError
    from inference.runtime.extras import require
    from inference.runtime.failures import (
        describe_worker_fault,
        free_descriptors,
        is_system_fault,
        keys_named,
        memory_explained,
        naming,
    )
    from inference.runtime.paths import check_readable
    from inference.runtime.registry import register
    from inference.runtime.signals import STOP_SIGNALS, Interrupted, Stopped, StopSignals
    from inference.runtime.speed import arrange, choose_kernels, compile_denoiser, uncompiled
    from inference.runtime.text import number, output, printable, without_passwords
    from inference.runtime.version import clone, describe_version, git, limner_version
    from inference.runtime.warnings import quiet_libraries

__all__ = [
    "LONGEST_WAIT", "STOP_SIGNALS", "ArtifactError", "BaseModelError", "DrawWarning", "InputError",
    "Interrupted", "Processes", "Progress", "StopSignals", "Stopped", "arrange", "check_readable",
    "choose_device", "choose_kernels", "clone", "compile_denoiser", "compute_exactly",
    "computes_bf16", "describe_version", "describe_worker_fault", "free_descriptors", "git",
    "is_first_process", "is_system_fault", "keep_freed_memory", "keys_named", "limner_version",
    "memory_explained", "naming", "number", "open_console", "output", "printable", "progress_bar",
    "quiet_libraries", "register", "report", "report_failure", "require", "run_command",
    "status_of", "to_device", "uncompiled", "warn_of_emulation", "without_passwords",
]  # fmt: skip

__getattr__ = lazy(__name__, __file__)
