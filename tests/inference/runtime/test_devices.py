"""What a GPU is asked for: formats that it computes by itself, and exact algorithms."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from inference.runtime.devices import EXACT_CUBLAS, compute_exactly, prepare_drawing
from inference.runtime.errors import DrawWarning, InputError

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
CAPABILITIES = {"V100": (7, 0), "T4": (7, 5), "A100": (8, 0), "RTX 4090": (8, 9)}


@pytest.fixture(params=CAPABILITIES)
def card(request: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """A GPU by its compute capability."""
    capability = CAPABILITIES[request.param]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: request.param)
    return request.param


@pytest.mark.parametrize(
    ("precision", "vae_precision", "keys"),
    [
        ("bf16", "fp32", "precision"),
        ("fp16", "bf16", "base_model.vae_precision"),
        ("bf16", None, "precision"),
        ("bf16", "bf16", "precision, base_model.vae_precision"),
        ("fp16", None, None),
        ("fp32", "fp32", None),
    ],
)
def test_bf16_that_is_only_emulated_is_reported(
    card: str, precision: str, vae_precision: str | None, keys: str | None
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert prepare_drawing(CUDA, precision, vae_precision, False) == CUDA
        prepare_drawing(CPU, precision, vae_precision, False)
    told = [str(one.message) for one in caught if one.category is DrawWarning]
    if keys is None or card in ("A100", "RTX 4090"):
        assert told == []
        return
    assert len(told) == 1 and told[0].startswith(f"{keys}: bf16: {card} (compute capability 7.")
    assert all(f"{key}=fp16" in told[0] for key in keys.split(", "))


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The settings of exact computation as a function; restored afterwards."""
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)

    def read() -> tuple[bool, ...]:
        return (
            torch.are_deterministic_algorithms_enabled(),
            cudnn.deterministic,
            not cudnn.benchmark,
            cuda.math_sdp_enabled(),
            not cuda.flash_sdp_enabled(),
            not cuda.mem_efficient_sdp_enabled(),
            not cuda.cudnn_sdp_enabled(),
        )

    before = cudnn.deterministic, cudnn.benchmark
    fused = [cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.cudnn_sdp_enabled()]
    yield read
    torch.use_deterministic_algorithms(False)
    cudnn.deterministic, cudnn.benchmark = before
    cuda.enable_flash_sdp(fused[0])
    cuda.enable_mem_efficient_sdp(fused[1])
    cuda.enable_cudnn_sdp(fused[2])


def test_exact_computation_on_a_gpu(
    settings: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import os

    assert not all(settings())
    prepare_drawing(CUDA, "fp32", None, True)
    assert all(settings()) and os.environ["CUBLAS_WORKSPACE_CONFIG"] in EXACT_CUBLAS
    price = capsys.readouterr().err
    assert price.startswith("draw: deterministic: ") and "heads x tokens²" in price
    prepare_drawing(CUDA, "fp32", None, True, is_first=False)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    with pytest.raises(InputError, match=r"is ':0:0'; .* Unset the variable"):
        compute_exactly(CUDA, DrawWarning)


def test_other_devices_stay_as_they_are(settings: Any) -> None:
    """Their bytes do too: on a CPU the fused kernels have the same switches."""
    before = settings()
    for device, word in ((CPU, "on a CPU"), (torch.device("mps"), "on mps")):
        with pytest.warns(DrawWarning, match=f"deterministic: has no effect {word}"):
            assert compute_exactly(device, DrawWarning) is None
    assert settings() == before
