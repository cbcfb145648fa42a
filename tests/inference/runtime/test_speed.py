"""Levers of speed: what each one sets, where it is refused, and results within rounding."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from inference.config import BaseModelConfig, ClipsRecipe, ImageConfig, SpeedConfig
from inference.config.recipes import AnimationRecipe, ImagesRecipe
from inference.images import draw
from inference.models.stable_diffusion.model import BaseModel
from inference.runtime import DrawWarning, InputError
from inference.runtime.speed import (
    SWITCHES,
    arrange,
    choose_kernels,
    compile_denoiser,
    keep_compiled_code,
    repeated_blocks,
    uncompiled,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def kept_switches() -> Iterator[None]:
    """Restore PyTorch's own switches after a test."""
    cuda: Any = torch.backends.cuda
    cudnn: Any = torch.backends.cudnn
    kernels = {"flash": cuda.flash_sdp_enabled(), "efficient": cuda.mem_efficient_sdp_enabled(),
               "cudnn": cuda.cudnn_sdp_enabled()}  # fmt: skip
    kept = cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    yield
    for name, switch in SWITCHES.items():
        vars(cuda)[switch](kernels[name])
    cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = kept


def switches() -> dict[str, bool]:
    cuda: Any = torch.backends.cuda
    return {
        "flash": cuda.flash_sdp_enabled(),
        "efficient": cuda.mem_efficient_sdp_enabled(),
        "cudnn": cuda.cudnn_sdp_enabled(),
        "math": cuda.math_sdp_enabled(),
        "tf32": cuda.matmul.allow_tf32,
        "benchmark": bool(torch.backends.cudnn.benchmark),
    }


@pytest.mark.usefixtures("kept_switches")
def test_kernels_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    before = switches()
    choose_kernels(SpeedConfig(), GPU, DrawWarning)
    assert switches() == before
    choose_kernels(SpeedConfig(tf32=True, cudnn_benchmark=True), GPU, DrawWarning)
    assert switches() == before | {"tf32": True, "benchmark": True}
    for name in SWITCHES:
        choose_kernels(SpeedConfig(attention=name), GPU, DrawWarning)  # type: ignore[arg-type]
        chosen = {other: other in (name, "math") for other in [*SWITCHES, "math"]}
        assert {key: switches()[key] for key in chosen} == chosen
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "T4")
    with pytest.warns(DrawWarning, match=r"^speed.tf32: has no effect on T4"):
        choose_kernels(SpeedConfig(tf32=True), GPU, DrawWarning)


@pytest.mark.usefixtures("kept_switches")
@pytest.mark.parametrize(
    ("levers", "key"),
    [
        ({"tf32": True}, "tf32"),
        ({"cudnn_benchmark": True}, "cudnn_benchmark"),
        ({"attention": "efficient"}, "attention"),
        ({"attention": "cudnn"}, "attention"),
    ],
)
def test_what_cpus_lack_is_named_and_changes_nothing(levers: dict[str, Any], key: str) -> None:
    before = switches()
    with pytest.warns(DrawWarning, match=rf"^speed.{key}: .*has no effect on cpu"):
        choose_kernels(SpeedConfig(**levers), CPU, DrawWarning)
    assert switches() == before


@pytest.mark.parametrize(
    ("levers", "recipe", "key"),
    [
        ({"attention": "flash"}, {"deterministic": True}, "speed.attention"),
        ({"cudnn_benchmark": True}, {"deterministic": True}, "speed.cudnn_benchmark"),
        ({"compile": "blocks"}, {"deterministic": True}, "speed.compile"),
        (
            {"compile": "whole"},
            {"base_model": BaseModelConfig(quantization="nf4")},
            "speed.compile",
        ),
        ({"attention": "math"}, {"deterministic": True}, None),
        ({"tf32": True, "channels_last": True}, {"deterministic": True}, None),
    ],
)
def test_conflicts_are_refused(
    levers: dict[str, Any], recipe: dict[str, Any], key: str | None
) -> None:
    made = AnimationRecipe(settings_file="x", speed=SpeedConfig(**levers), **recipe)
    found = [name for name, _ in made.faults() if name.startswith("speed.")]
    assert found == ([key] if key else [])


@pytest.mark.parametrize("kind", ["fp8", "int8", "nf4"])
@pytest.mark.parametrize("made", [ImagesRecipe, ClipsRecipe])
def test_loras_are_not_merged_into_quantized_weights(
    made: type[ImagesRecipe] | type[ClipsRecipe], kind: Any
) -> None:
    recipe = made(base_model=BaseModelConfig(path="x", quantization=kind))
    assert "speed.merge_lora" not in dict(recipe.faults())
    recipe.speed.merge_lora = True
    assert f"base_model.quantization: {kind}" in dict(recipe.faults())["speed.merge_lora"]


def test_damaged_compiled_code_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor.exc import InductorError

    from inference.runtime.command import describe_failure

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/cache/code")
    message = describe_failure(InductorError(ImportError("a.so: file too short"), None))
    assert message is not None and "a.so: file too short; delete /cache/code," in message


def test_levers_without_effect_are_named() -> None:
    recipe = ImagesRecipe(base_model=BaseModelConfig(attention="eager"))
    recipe.speed.attention, recipe.speed.merge_lora = "math", True
    assert {"speed.attention", "speed.merge_lora"} <= {key for key, _ in recipe.idle()}


def drawn(base: BaseModel) -> torch.Tensor:
    import numpy as np

    image = ImageConfig(prompt="a", negative_prompt="b", seed=1, steps=2, width=16, height=16)
    (drawing,) = draw(base, [image])
    return torch.from_numpy(np.asarray(drawing.image).astype(np.float32))


def test_channels_last_changes_strides_alone(tiny_base: BaseModel) -> None:
    before = drawn(tiny_base)
    kept = {name: value.clone() for name, value in tiny_base.unet.state_dict().items()}
    arrange((tiny_base.unet, tiny_base.vae), SpeedConfig(channels_last=True))
    weight = tiny_base.unet.conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    assert all(
        torch.equal(value, kept[name]) for name, value in tiny_base.unet.state_dict().items()
    )
    assert (drawn(tiny_base) - before).abs().max() <= 1


class Toy(nn.Module):
    """Two equal blocks behind a layer."""

    _repeated_blocks = ("ToyBlock",)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.blocks = nn.ModuleList([ToyBlock(), ToyBlock()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return x


class ToyBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.gelu(self.inner(x)) + x


def test_blocks_are_those_that_a_network_names(tiny_base: BaseModel) -> None:
    names = {type(one).__name__ for one in repeated_blocks(tiny_base.unet)}
    assert names == {"BasicTransformerBlock"}
    assert len(repeated_blocks(Toy())) == 2
    with pytest.raises(InputError, match="names no repeated blocks; take whole"):
        repeated_blocks(nn.Linear(2, 2))


def test_compiling_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(InputError, match=r"^speed.compile: needs a C\+\+ compiler"):
        compile_denoiser(Toy(), SpeedConfig(compile="whole"), CPU)
    import inference.runtime.speed as module

    monkeypatch.setattr(module, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"^speed.compile: needs Triton"):
        compile_denoiser(Toy(), SpeedConfig(compile="whole"), GPU)


COMPILED = """
import os, sys, torch
from inference.config import SpeedConfig
from inference.runtime.speed import compile_denoiser, uncompiled
from tests.inference.runtime.test_speed import Toy, CPU
how = sys.argv[1]
torch.manual_seed(0)
net, x = Toy(), torch.randn(3, 4)
plain = net(x).detach()
names = [*net.state_dict()]
speed = SpeedConfig(compile=how)
compile_denoiser(net, speed, CPU)
torch._dynamo.reset()
torch._dynamo.utils.counters.clear()
fast = net(x)
fast.sum().backward()
graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
assert graphs >= 1, graphs
assert torch.allclose(fast, plain, atol=1e-5), (fast - plain).abs().max()
assert [*net.state_dict()] == names
assert net.first.weight.grad is not None
with uncompiled(speed), torch.no_grad():
    assert torch.equal(net(x), plain)
assert any(os.scandir(os.environ["TORCHINDUCTOR_CACHE_DIR"]))
print("compiled", graphs)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["whole", "blocks"])
def test_compiled_networks_keep_values_and_names(how: str, tmp_path: Path) -> None:
    """In a process of its own: compiling changes PyTorch's global state."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    environment.pop("TORCHINDUCTOR_CACHE_DIR", None)
    done = subprocess.run(
        [sys.executable, "-c", COMPILED, how],
        env=environment, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.stdout.startswith("compiled"), done.stderr
    assert (tmp_path / "limner" / "inductor").is_dir()


def test_compiled_code_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """PyTorch writes its temporary folder into the variable; a folder of the user's stays."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    temporary, own = Path(tempfile.gettempdir()) / "torchinductor_me", tmp_path / "own"
    for before, after in ((None, "limner/inductor"), (temporary, "limner/inductor"), (own, "own")):
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
        if before is not None:
            monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(before))
        keep_compiled_code()
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / after)


def test_nothing_is_compiled_by_default() -> None:
    net = Toy()
    compile_denoiser(net, SpeedConfig(), CPU)
    assert net._compiled_call_impl is None
    with uncompiled(SpeedConfig()):
        assert net(torch.zeros(1, 4)).shape == (1, 4)
