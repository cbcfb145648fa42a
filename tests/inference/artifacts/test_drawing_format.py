"""What a GPU is asked for: formats that it computes by itself, and exact algorithms."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from inference.artifacts.drawing_format import prepare_drawing, trained_in
from inference.config.models import ArtifactConfig, BaseModelConfig
from inference.config.recipes import ImagesRecipe
from inference.models.folder import FACTS
from inference.runtime.devices import EXACT_CUBLAS, compute_exactly
from inference.runtime.errors import DrawWarning, InputError

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


def recipe(
    precision: Any = "fp32", vae_precision: Any = None, is_exact: bool = False, *artifacts: Path
) -> ImagesRecipe:
    named = {one.stem: ArtifactConfig(path=str(one)) for one in artifacts}
    return ImagesRecipe(
        base_model=BaseModelConfig(vae_precision=vae_precision),
        artifacts={**named, "none": None},
        precision=precision,
        deterministic=is_exact,
    )


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
        for device in (CUDA, CPU):
            assert prepare_drawing(recipe(precision, vae_precision), device) == precision
    told = [str(one.message) for one in caught if one.category is DrawWarning]
    if keys is None or card in ("A100", "RTX 4090"):
        assert told == []
        return
    assert len(told) == 1 and told[0].startswith(f"{keys}: bf16: {card} (compute capability 7.")
    assert all(f"{key}=fp16" in told[0] for key in keys.split(", "))


@pytest.mark.parametrize("recorded", ["no", "bf16", "fp16", None, "double"])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_automatic_precision(
    card: str, kind: str, recorded: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the artifact was trained in, else what the card computes; fp32 on a CPU."""
    metadata = {"a": "b"} if recorded is None else {"ss_mixed_precision": recorded}
    first, path = tmp_path / "embedding.pt", tmp_path / "it.safetensors"
    if kind == "file":
        save_file({"x": torch.zeros(1)}, path, metadata)
    else:
        path = tmp_path / "it"
        path.mkdir()
        (path / FACTS).write_text(json.dumps({"metadata": metadata}))
    own = "bf16" if card in ("A100", "RTX 4090") else "fp16"
    known = {"no": "fp32", "bf16": "bf16", "fp16": "fp16"}
    wanted = known.get(str(recorded), own)
    made = recipe("auto", "fp32", False, first, path)
    assert prepare_drawing(made, CPU) == "fp32" and capsys.readouterr().err == ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DrawWarning)
        assert prepare_drawing(made, CUDA) == wanted
    why = f"in which {path.name} was trained" if recorded in known else "which this GPU computes"
    assert capsys.readouterr().err.startswith(f"draw: precision: {wanted}, {why}")
    assert trained_in(path) == known.get(str(recorded))


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The settings of exact computation as a function; restored afterwards."""
    cuda: Any = torch.backends.cuda
    cudnn: Any = torch.backends.cudnn
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
    prepare_drawing(recipe(is_exact=True), CUDA)
    assert all(settings()) and os.environ["CUBLAS_WORKSPACE_CONFIG"] in EXACT_CUBLAS
    price = capsys.readouterr().err
    assert price.startswith("draw: deterministic: ") and "heads x tokens²" in price
    prepare_drawing(recipe(is_exact=True), CUDA, is_first=False)
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
