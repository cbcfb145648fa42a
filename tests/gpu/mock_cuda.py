# SPDX-License-Identifier: Apache-2.0
"""A mock CUDA device for a CPU-only build of PyTorch: call `install()` before torch is imported.

Tensors have `device="cuda:0"`; autograd, autocast("cuda"), GradScaler, generators and pinned memory
work; CPU kernels compute (see mock_cuda.cpp). Faults of a first run on a GPU are raised here too:
tensors on two devices, CPU generators, `.numpy()` of a CUDA tensor, mixed dtypes. Every operation
that makes the host wait for the GPU is recorded in `SYNCS`, with its place in the code.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import traceback
import types
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILD = Path(os.environ.get("MOCK_CUDA_BUILD", Path.home() / ".cache" / "mock_cuda"))
NAME = "mock_cuda_ext"

SYNCS: list[tuple[str, str, int, str]] = []
"""(kind, operation, bytes, "file:line function" of up to three callers) of each wait."""
LAUNCHES: Counter[str] = Counter()
CALLERS = (
    "/inference/", "/train/", "/diffusers/", "/accelerate/", "/transformers/", "/peft/",
    "/torchsde/", "/bitsandbytes/", "/torch/optim", "/torch/amp", "/torch/nn/utils",
)  # fmt: skip
"""Parts of the paths whose frames `SYNCS` names."""

ext: Any = None
"""The extension, once it is installed."""


def torch_folder() -> Path:
    """Return torch's package folder, without importing torch."""
    spec = importlib.util.find_spec("torch")
    assert spec and spec.origin
    return Path(spec.origin).parent


def torch_is_cuda_build() -> bool:
    """Whether the installed torch was built with CUDA or ROCm; the mock needs a CPU-only build."""
    version = (torch_folder() / "version.py").read_text()
    return re.search(r"^(cuda|hip)\b[^=\n]*= *['\"]", version, re.MULTILINE) is not None


def missing() -> str | None:
    """Return what the mock device lacks here, as one line; None if it can be built."""
    compiler = os.environ.get("CXX", "c++")
    headers = Path(sysconfig.get_paths()["include"])
    if sys.platform != "linux":
        return "it is built on Linux only"
    if torch_is_cuda_build():
        return "it needs a CPU-only build of torch; `make test-gpu` runs its tests on the GPU"
    if not built().is_file() and shutil.which(compiler) is None:
        return f"it needs a C++ compiler ({compiler}). Remedy on Debian: apt install g++"
    if not built().is_file() and not (headers / "Python.h").is_file():
        return f"it needs {headers}/Python.h. Remedy on Debian: apt install python3-dev"
    return None


def built() -> Path:
    """Return where the extension is kept, keyed by the source and torch's version."""
    torch_version = (torch_folder() / "version.py").read_text()
    source = b"".join((HERE / name).read_bytes() for name in ("mock_cuda.cpp", "mock_nccl.hpp"))
    digest = hashlib.sha256(source + torch_version.encode()).hexdigest()[:12]
    return BUILD / digest / f"{NAME}.so"


def build() -> Path:
    """Return the extension; compile it at first (15 s)."""
    target = built()
    if target.is_file():
        return target
    if reason := missing():
        sys.exit(f"The mock CUDA device: {reason}")
    compiler = os.environ.get("CXX", "c++")
    target.parent.mkdir(parents=True, exist_ok=True)
    include, lib = torch_folder() / "include", torch_folder() / "lib"
    unfinished = target.with_suffix(f".{os.getpid()}.so")
    command = [
        compiler, "-shared", "-fPIC", "-std=c++20", "-O1", "-w",
        f"-DTORCH_EXTENSION_NAME={NAME}", f"-I{include}",
        f"-I{include}/torch/csrc/api/include", f"-I{sysconfig.get_paths()['include']}",
        str(HERE / "mock_cuda.cpp"), "-o", str(unfinished),
        f"-L{lib}", "-lc10", "-ltorch_cpu", "-ltorch", "-ltorch_python",
    ]  # fmt: skip
    subprocess.run(command, check=True)
    unfinished.replace(target)
    return target


def place() -> str:
    """Return where this happens: the innermost callers of interest, up to three."""
    found = []
    for frame in reversed(traceback.extract_stack()[:-2]):
        if any(part in frame.filename for part in CALLERS):
            name = frame.filename.removeprefix(f"{ROOT}/").rpartition("site-packages/")[2]
            found.append(f"{name}:{frame.lineno} {frame.name}")
            if len(found) >= int(os.environ.get("MOCK_CUDA_DEPTH", "3")):
                break
    return " < ".join(found)


def install(
    devices: int = 1,
    memory: int = 24 * 2**30,
    name: str = "Mock RTX",
    capability: tuple[int, int] = (8, 9),
) -> Any:
    """Create the device and patch torch.cuda to report it; call it before torch is imported."""
    global ext
    if ext is not None:
        return ext
    assert "torch" not in sys.modules, "install() must come before `import torch`"
    file = build()
    ctypes.CDLL(str(torch_folder() / "lib" / "libtorch_python.so"), ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(file), ctypes.RTLD_GLOBAL)
    import torch

    spec = importlib.util.spec_from_file_location(NAME, file)
    assert spec and spec.loader
    ext = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(ext)
    assert ext.has_hooks()
    ext.set_num_devices(devices)
    with contextlib.suppress(ImportError):
        _patch_bitsandbytes(torch)  # before the others: it looks for a GPU when imported
    _patch(torch, devices, memory, name, capability)
    record_syncs()
    return ext


def record_syncs(on: bool = True) -> None:
    """Record waits of the host in `SYNCS`, or stop recording them."""
    ext.on_sync(
        (lambda kind, what, size: SYNCS.append((kind, what, size, place()))) if on else None
    )


def _patch(torch: Any, devices: int, memory: int, name: str, capability: tuple[int, int]) -> None:
    """Make torch.cuda report the mock devices."""
    _patch_availability(torch.cuda)
    _patch_device_selection(torch, devices)
    _patch_memory_statistics(torch.cuda, memory)
    _patch_properties(torch.cuda, memory, name, capability)
    _patch_generators(torch.cuda, devices)
    _patch_streams(torch.cuda)
    _patch_storages(torch.UntypedStorage)


def _patch_availability(cuda: Any) -> None:
    """Report CUDA as available and initialized."""
    cuda._lazy_init = lambda: None
    cuda._initialized = True
    cuda._is_in_bad_fork = lambda: False
    cuda.is_available = lambda: True
    cuda.is_initialized = lambda: True


def _patch_device_selection(torch: Any, devices: int) -> None:
    """Count the devices; read and set the current one."""
    cuda = torch.cuda
    cuda.device_count = lambda: devices
    cuda.current_device = lambda: ext.current_device()
    cuda.set_device = lambda device: ext.set_device(_index_of(device))
    cuda._get_device_index = lambda device, *_, **__: _index_of(device)
    cuda.device = cuda._DeviceGuard = _Device
    cuda._exchange_device = cuda._maybe_exchange_device = _exchange
    torch.accelerator.set_device_index = cuda.set_device
    torch.accelerator.device_count = lambda: devices


def _patch_memory_statistics(cuda: Any, memory: int) -> None:
    """Report the extension's allocations as those of a caching allocator that keeps nothing."""
    cuda.empty_cache = lambda: None
    cuda.ipc_collect = lambda: None
    cuda.mem_get_info = lambda device=None: (memory - ext.bytes_now(), memory)
    cuda.memory_allocated = lambda device=None: ext.bytes_now()
    cuda.max_memory_allocated = lambda device=None: ext.bytes_peak()
    cuda.memory_reserved = lambda device=None: ext.bytes_now()
    cuda.max_memory_reserved = lambda device=None: ext.bytes_peak()
    cuda.reset_peak_memory_stats = lambda device=None: ext.reset_peak()
    cuda.reset_max_memory_allocated = lambda device=None: ext.reset_peak()
    cuda.memory_stats = lambda device=None: {}


def _patch_properties(cuda: Any, memory: int, name: str, capability: tuple[int, int]) -> None:
    """Report the name, memory and compute capability of each device."""
    properties = types.SimpleNamespace(
        name=name,
        major=capability[0],
        minor=capability[1],
        total_memory=memory,
        multi_processor_count=128,
        warp_size=32,
    )
    cuda.get_device_properties = lambda device=None: properties
    cuda.get_device_name = lambda device=None: name
    cuda.get_device_capability = lambda device=None: capability
    cuda.is_bf16_supported = lambda including_emulation=True: capability >= (8, 0)
    cuda.get_arch_list = lambda: ["sm_89"]


def _patch_generators(cuda: Any, devices: int) -> None:
    """Create the default generators; seed them, read and set their states."""
    generators = tuple(ext.default_generator(number) for number in range(devices))
    cuda.default_generators = generators

    def manual_seed(seed: int) -> None:
        generators[ext.current_device()].manual_seed(int(seed))

    def manual_seed_all(seed: int) -> None:
        for generator in generators:
            generator.manual_seed(int(seed))

    def get_rng_state(device: Any = "cuda") -> Any:
        return generators[_index_of(device)].get_state()

    def get_rng_state_all() -> list[Any]:
        return [generator.get_state() for generator in generators]

    def set_rng_state(state: Any, device: Any = "cuda") -> None:
        generators[_index_of(device)].set_state(state)

    def set_rng_state_all(states: Any) -> None:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)

    for function in (
        manual_seed,
        manual_seed_all,
        get_rng_state,
        get_rng_state_all,
        set_rng_state,
        set_rng_state_all,
    ):
        setattr(cuda, function.__name__, function)
        setattr(cuda.random, function.__name__, function)


def _patch_storages(storage: Any) -> None:
    """Resize storages of the device, as FSDP does to free and to refill them."""
    kept = storage.resize_

    def resize(self: Any, size: int) -> Any:
        if self.device.type != "cuda":
            return kept(self, size)
        ext.resize_storage(self, size)
        return self

    storage.resize_ = resize


def _patch_streams(cuda: Any) -> None:
    """Replace streams and events by ones that have nothing to order; their waits are recorded."""
    cuda.synchronize = lambda device=None: _wait("torch.cuda.synchronize")
    cuda.Event, cuda.Stream = _Event, _Stream
    cuda.current_stream = cuda.default_stream = lambda device=None: _Stream()
    cuda.stream = lambda stream: contextlib.nullcontext()


def _patch_bitsandbytes(torch: Any) -> None:
    """Multiply INT8 matrices exactly under autocast too, as CUDA's kernel does.

    The fallback multiplies in floats: autocast would make them fp16, and products overflow. It is
    not compiled either, as CUDA's is not: that takes 25 s in each process.
    """
    compiled, torch.compile = torch.compile, _left_as_it_is
    try:
        from bitsandbytes.backends.default import ops
    finally:
        torch.compile = compiled

    multiply = ops._int8_linear_matmul_impl

    def multiply_exactly(*matrices: Any) -> Any:
        with torch.autocast("cuda", enabled=False):
            return multiply(*matrices)

    ops._int8_linear_matmul_impl = multiply_exactly


def _left_as_it_is(function: Any = None, **_: Any) -> Any:
    """Return what torch.compile was given, also where it is a decorator with options."""
    return (lambda decorated: decorated) if function is None else function


def _index_of(device: Any = None) -> int:
    """Return the index of a device, by default of the current one."""
    import torch

    if device is None:
        return ext.current_device()
    if isinstance(device, int):
        return device
    found = torch.device(device).index
    return ext.current_device() if found is None else found


def _exchange(device: int) -> int:
    """Set the current device and return the one before."""
    before = ext.current_device()
    ext.set_device(device)
    return before


def _wait(what: str) -> None:
    """Record an explicit wait of the host."""
    SYNCS.append(("wait", what, 0, place()))


class _Device:
    """The current device within a block; see torch.cuda.device."""

    def __init__(self, device: Any) -> None:
        self.index, self.before = _index_of(device) if device is not None else -1, -1

    def __enter__(self) -> None:
        self.before = ext.current_device()
        ext.set_device(self.index)

    def __exit__(self, *_: Any) -> None:
        ext.set_device(self.before)


class _Event:
    """An event that has always happened."""

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def record(self, *_: Any) -> None: ...
    def wait(self, *_: Any) -> None: ...
    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        _wait("Event.synchronize")

    def elapsed_time(self, _: Any) -> float:
        return 1.0


class _Stream:
    """A stream in which nothing is pending."""

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_: Any) -> None: ...
    def wait_stream(self, *_: Any) -> None: ...
    def wait_event(self, *_: Any) -> None: ...
    def record_event(self, *_: Any) -> _Event:
        return _Event()

    def synchronize(self) -> None:
        _wait("Stream.synchronize")

    def query(self) -> bool:
        return True


@contextlib.contextmanager
def launches_counted() -> Iterator[Counter[str]]:
    """Count operations by name within the block."""
    LAUNCHES.clear()
    ext.on_launch(lambda name: LAUNCHES.update([name]))
    try:
        yield LAUNCHES
    finally:
        ext.on_launch(None)


if __name__ == "__main__":  # compile it for later
    if missing() is None:
        build()
