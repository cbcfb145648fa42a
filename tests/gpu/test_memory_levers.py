# SPDX-License-Identifier: Apache-2.0
"""Where weights lie in each phase, and that results do not depend on it."""

from __future__ import annotations

import gc
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.checkpoint import checkpoint

from inference.artifacts import Embedding, Hypernetwork, HypernetworkSpec, Lora, LoraSpec
from inference.clips import draw_clips, expand
from inference.clips.command import draw_recipe
from inference.config import (
    BaseModelConfig,
    ClipConfig,
    HiresConfig,
    ImageConfig,
    MemoryConfig,
    draw_schema,
)
from inference.deforum.loop import ModelGenerator
from inference.deforum.loop.generator import FrameRequest
from inference.images import Levers, draw, draw_images
from inference.memory import MemoryPlan, Placement, Swapping
from inference.models.cogvideox import load_video_model
from inference.models.stable_diffusion import load_base_model
from inference.recipe import load_recipe
from tests.inference.models.cogvideox.models import make_video_model, write_video_folder
from train.__main__ import planned_peaks
from train.config import TrainRecipe
from train.trainer import Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore"),
]

DEVICE = torch.device("cuda:0")


class Block(nn.Module):
    """A frozen layer with a trained one beside it."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        source = torch.Generator().manual_seed(seed)
        self.frozen = nn.Linear(width, width, bias=False).requires_grad_(False)
        self.frozen.weight.data = torch.randn(width, width, generator=source) / width**0.5
        self.register_buffer("shift", torch.randn(width, generator=source))
        self.down, self.up = (nn.Parameter(torch.randn(width, generator=source)) for _ in "ab")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.frozen(x) + self.shift) + (x * self.down).sum(-1, True) * self.up


def gradients(blocks: list[Block], steps: int = 2) -> tuple[list[bytes], int]:
    """Return the gradients of some steps, and the peak of memory."""
    for block in blocks:
        for parameter in (block.down, block.up):
            parameter.data = parameter.data.to(DEVICE)
    found: list[bytes] = []
    torch.cuda.reset_peak_memory_stats()
    for step in range(steps):
        source = torch.Generator().manual_seed(step)
        x = torch.randn(2, blocks[0].down.numel(), generator=source).to(DEVICE)
        for block in blocks:
            x = checkpoint(block.__call__, x, use_reentrant=False)  # type: ignore[assignment]
        x.square().mean().backward()
        for block in blocks:
            assert block.down.grad is not None
            found.append(block.down.grad.cpu().numpy().tobytes())
            block.down.grad = block.up.grad = None
        with torch.no_grad():
            for block in blocks:
                x = block(x)
        found.append(x.cpu().numpy().tobytes())
    return found, torch.cuda.max_memory_allocated()


def test_swapped_blocks_compute_the_same_with_less_memory() -> None:
    width, count, swapped = 64, 8, 6
    plain = [Block(width, seed) for seed in range(count)]
    start = torch.cuda.memory_allocated()
    for one in plain:
        one.to(DEVICE)
    expected, whole = gradients(plain)
    own = 4 * width * (width + 1)
    plain.clear()
    blocks = [Block(width, seed) for seed in range(count)]
    for block in blocks[:2]:
        block.to(DEVICE)
    swapping = Swapping(blocks[2:], DEVICE)
    before = [id(one.frozen.weight) for one in blocks]
    found, peak = gradients(blocks)
    assert found == expected
    assert [id(one.frozen.weight) for one in blocks] == before
    assert all(one.frozen.weight.device.type == "cpu" for one in blocks[2:])
    assert all(one.frozen.weight.is_pinned() for one in blocks[2:])
    assert whole - start >= count * own
    assert whole - peak == pytest.approx((swapped - 2) * own, rel=0.3)
    swapping.release()
    assert "forward" not in vars(blocks[3])


def test_weights_are_back_on_the_host_after_a_fault() -> None:
    class Faulty(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            assert self.weight.device.type == "cuda"
            raise KeyError

    layers = [Faulty(4, 4).requires_grad_(False), nn.Linear(4, 4).requires_grad_(False)]
    swapping = Swapping(layers, DEVICE)
    before = layers[0].weight
    with pytest.raises(KeyError):
        layers[0](torch.ones(1, 4, device=DEVICE))
    assert layers[0].weight is before
    assert before.device.type == "cpu"
    assert swapping.ahead is not None  # of the second, which a later call drops
    found = layers[1](torch.ones(1, 4, device=DEVICE)).cpu()
    assert torch.allclose(found, layers[1].bias + layers[1].weight.sum(1))
    assert swapping.ahead is None


def test_group_of_parts_move_and_trained_weights_stay() -> None:
    parts = {name: nn.Linear(4, 4).requires_grad_(False) for name in ("text", "net", "vae")}
    trained = nn.Parameter(torch.zeros(4, device=DEVICE))
    parts["net"].register_parameter("trained", trained)
    groups = {
        "text_encoders": {"text": parts["text"]},
        "denoiser": {"net": parts["net"]},
        "vae": {"vae": parts["vae"]},
    }
    placement = Placement(groups, [], DEVICE, MemoryPlan("model_offload"))

    def here() -> set[str]:
        return {name for name, part in parts.items() if part.weight.device.type == "cuda"}

    x = torch.ones(1, 4, device=DEVICE)
    with torch.inference_mode():
        assert here() == set()
        parts["text"](torch.ones(1, 4))  # an input on the CPU
        assert here() == {"text"}
        parts["net"](x)
        assert here() == {"net"}
    placement.settle(["net"])
    parts["vae"](x)
    assert here() == {"net", "vae"}
    placement.settle(["net"])
    assert here() == {"net"}
    with placement.alone():
        parts["vae"](x)
        assert here() == {"vae"}
        assert trained.device.type == "cuda"
    assert here() == {"net"}
    parts["net"](x.requires_grad_(True)).sum().backward()  # no tensor of inference mode
    placement.release()
    assert not {"forward"} & {*vars(parts["vae"])}


# ---- training


def trained(recipe: TrainRecipe) -> tuple[Trainer, bytes]:
    """Return the trainer after its run, and the bytes of the artifact's weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(recipe)
        trainer.train()
    tensors = [p.detach().cpu().float().numpy().tobytes() for p in trainer.objective.parameters()]
    return trainer, b"".join(tensors)


@pytest.fixture(scope="module")
def video_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video_folder(make_video_model("5b"), tmp_path_factory.mktemp("video"))


COMMON = [
    "mixed_precision=bf16",
    "gradient_checkpointing=true",
    "max_train_steps=2",
    "validation={split: 0.3, every_n_steps: 1}",
]
PICTURES = ["sampling.images.one={prompt: 'red, number', seed: 1, steps: 2}"]
CLIPS = ["sampling.clips.one={prompt: 'red', seed: 3, steps: 2}"]
WAYS = {
    "none": ["memory=none"],
    "parts": ["memory=model_offload"],
    "swap": ["memory={offload: none, blocks_to_swap: 0.5}"],
    "all": ["memory={offload: model_offload, blocks_to_swap: 0.99}"],
}


@pytest.mark.parametrize("kind", ["tiny", "sdxl", "sdxl_text", "clips"])
def test_training_does_not_depend_on_where_weights_lie(
    kind: str,
    make_recipe: Callable[..., TrainRecipe],
    make_clip_recipe: Callable[..., TrainRecipe],
    tiny_base_folder: Path,
    tiny_sdxl_folder: Path,
    video_folder: Path,
) -> None:
    make, shown = (make_clip_recipe, CLIPS) if kind == "clips" else (make_recipe, PICTURES)
    folders = {"tiny": tiny_base_folder, "sdxl": tiny_sdxl_folder, "clips": video_folder}
    folder, text = folders[kind.partition("_")[0]], str(kind.endswith("text")).lower()
    objective = f"objective={{type: lora, rank: 2, train_text_encoder: {text}}}"
    results: dict[str, tuple[bytes, list[bytes]]] = {}
    for name, way in WAYS.items():
        own = [f"base_model.path={folder}", objective, f"name={name}"]
        recipe = make(*own, *COMMON, *shown, *way)
        trainer, weights = trained(recipe)
        grids = sorted(trainer.run.folder.samples.rglob("*.png"))
        results[name] = weights, [np.asarray(Image.open(one)).tobytes() for one in grids]
        assert grids
        swapped = [b for b in trainer.base.blocks() if "forward" in vars(b)]
        assert bool(swapped) == (name in ("swap", "all"))
        assert trainer.run.folder.recorded("memory").startswith(trainer.memory.offload)
    assert len({weights for weights, _ in results.values()}) == 1
    assert len({tuple(grids) for _, grids in results.values()}) == 1


class Watch:
    """Notes which parts lie on the device whenever one works."""

    def __init__(self, base: Any) -> None:
        self.seen: dict[str, set[frozenset[str]]] = {}
        watched = {name: part for name, part in base.parts.items() if name != "vae"}
        watched |= {"encoder": base.vae.encoder, "decoder": base.vae.decoder}
        for word, part in watched.items():
            for module in part.modules():
                if not any(True for _ in module.children()):
                    module.register_forward_pre_hook(lambda *_, word=word: self.note(word, base))

    def note(self, word: str, base: Any) -> None:
        self.seen.setdefault(word, set()).add(on_device(base))


def on_device(base: Any) -> frozenset[str]:
    places = {name: next(part.parameters()).device.type for name, part in base.parts.items()}
    return frozenset(name for name, place in places.items() if place == "cuda")


@pytest.mark.parametrize("kind", ["sdxl", "clips"])
def test_parts_on_the_device_in_each_phase_of_training(
    kind: str,
    make_recipe: Callable[..., TrainRecipe],
    make_clip_recipe: Callable[..., TrainRecipe],
    tiny_sdxl_folder: Path,
    video_folder: Path,
) -> None:
    make, shown = (make_clip_recipe, CLIPS) if kind == "clips" else (make_recipe, PICTURES)
    folder = video_folder if kind == "clips" else tiny_sdxl_folder
    base = f"base_model.path={folder}"
    trainer = Trainer(make(base, "objective={type: lora, rank: 2}", *COMMON, *shown))
    watch = Watch(trainer.base)
    assert on_device(trainer.base) == frozenset()
    trainer.train()
    denoiser = trainer.base.denoiser_name
    assert watch.seen["encoder"] == {frozenset(["vae"])}
    assert watch.seen["decoder"] == {frozenset(["vae"])}
    assert watch.seen[denoiser] == {frozenset([denoiser])}
    for name in trainer.base.text_encoders:
        assert all(here <= {*trainer.base.text_encoders} for here in watch.seen[name])
    assert on_device(trainer.base) == {denoiser}


@pytest.mark.parametrize("kind", ["sdxl", "clips"])
def test_parts_on_the_device_in_each_phase_of_drawing(
    kind: str, tiny_sdxl_folder: Path, video_folder: Path
) -> None:
    if kind == "clips":
        video = load_video_model(BaseModelConfig(path=str(video_folder)))
        video.place(DEVICE, MemoryPlan("model_offload"))
        watch = Watch(video)
        clip = ClipConfig(prompt="red", steps=2, width=32, height=32, frames=9, seed=1)
        draw_clips(video, expand(video, [clip, clip]))
        base: Any = video
    else:
        base = load_base_model(BaseModelConfig(path=str(tiny_sdxl_folder)))
        base.place(DEVICE, MemoryPlan("model_offload"))
        watch = Watch(base)
        hires = HiresConfig(upscaler="Lanczos", upscale=1.5)  # through the VAE, twice
        draw(base, [ImageConfig(prompt="red", steps=2, width=32, height=32, hires=hires)] * 2, 1)
        assert watch.seen["encoder"] == {frozenset(["vae"])}
    assert watch.seen["decoder"] == {frozenset(["vae"])}
    assert watch.seen[base.denoiser_name] == {frozenset([base.denoiser_name])}
    for name in base.text_encoders:
        assert all(here <= {*base.text_encoders} for here in watch.seen[name])


def test_a_resumed_run_may_lie_elsewhere(
    make_recipe: Callable[..., TrainRecipe], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["objective={type: lora, rank: 2}", "saving.save_every_n_steps=1"]
    _, expected = trained(make_recipe(*options, "max_train_steps=2", "name=whole"))
    trained(make_recipe(*options, "max_train_steps=1", "memory=none"))
    capsys.readouterr()
    swap = ["gradient_checkpointing=false", "memory=model_offload"]
    _, found = trained(make_recipe(*options, *swap, "max_train_steps=2", "resume=true"))
    assert "memory: none became model_offload" in "".join(capsys.readouterr())
    assert found == expected


def test_auto_takes_what_fits(make_recipe: Callable[..., TrainRecipe]) -> None:
    recipe = make_recipe("objective={type: lora, rank: 2}")
    roomy = Trainer(recipe, reckon=lambda _: {"none": 2**30, "model_offload": 2**29})
    assert roomy.memory.summary == "none"
    assert on_device(roomy.base) == frozenset(roomy.base.parts)
    short = Trainer(recipe, reckon=lambda _: {"none": 2**40, "model_offload": 2**30})
    assert short.memory.summary == "model_offload"
    assert short.memory.reason.startswith("about 1.0 of 2")
    planned = Trainer(recipe, reckon=planned_peaks)
    assert planned.memory.summary == "none"


# ---- drawing

DRAWN = {
    "none": "none",
    "parts": "model_offload",
    "layers": "sequential_offload",
    "swap": "{offload: none, blocks_to_swap: 3}",
    "parts_swap": "{offload: model_offload, blocks_to_swap: 0.5, vae_slicing: true}",
}


def save_lora(lora: Lora, path: Path) -> None:
    """Save a LoRA that changes what is drawn."""
    for layer in lora.layers.values():
        for parameter in layer.parameters():
            parameter.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    lora.save(path, torch.float32, {})


@pytest.fixture(scope="module")
def networks(tiny_sdxl_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a LoRA."""
    folder = tmp_path_factory.mktemp("networks")
    base = load_base_model(BaseModelConfig(path=str(tiny_sdxl_folder)))
    lora = Lora.create(base, LoraSpec(2, 2, 0, None, True), 0)
    save_lora(lora, folder / "plain.safetensors")
    spec = HypernetworkSpec(weight_initialization="XavierNormal", is_layer_norm=True)
    Hypernetwork.create(base, spec, None, 3).save(folder / "net.pt", torch.float32, {})
    Embedding.create(base, "zyx", "cat", 2).save(folder / "zyx.safetensors", torch.float32, {})
    return folder


PEAKS: dict[str, int] = {}


def drawn(recipe: Path, overrides: list[str], out: Path, by: Callable[[Any], None]) -> list[bytes]:
    gc.collect()  # of earlier models
    start = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    by(load_recipe(recipe, draw_schema, [*overrides, f"output_dir={out}"]))
    PEAKS[out.name] = torch.cuda.max_memory_allocated() - start
    files = sorted(one for one in out.iterdir() if one.suffix in (".png", ".webp"))
    return [one.read_bytes() for one in files]


def test_pictures_do_not_depend_on_where_weights_lie(
    tiny_sdxl_folder: Path, networks: Path, tmp_path: Path
) -> None:
    Image.fromarray(np.full((32, 32, 3), 120, np.uint8)).save(tmp_path / "init.png")
    (tmp_path / "pictures.yaml").write_text(
        f"base_model: {{path: {tiny_sdxl_folder}}}\nprecision: bf16\nartifact_dirs: [{networks}]\n"
        "vae_tiling: false\n"
        f"artifacts: {{one: {{path: {networks}/plain.safetensors, strength: 0.5}}}}\n"
        "settings: {steps: 2, width: 32, height: 32, seed: 3}\nimages:\n"
        "  plain: {prompt: '<lora:plain:0.7> <hypernet:net:0.6> red zyx', negative_prompt: lime}\n"
        "  larger: {prompt: red, hires: {upscaler: Lanczos, upscale: 1.5, steps: 1}}\n"
        f"  over: {{prompt: red, img2img: {{init_image: {tmp_path}/init.png}}}}\n",
        encoding="utf-8",
    )
    found = {
        name: drawn(tmp_path / "pictures.yaml", [f"memory={way}"], tmp_path / name, draw_images)
        for name, way in DRAWN.items()
    }
    assert PEAKS["layers"] < PEAKS["parts_swap"] < PEAKS["parts"] < PEAKS["none"]
    assert PEAKS["swap"] < PEAKS["none"]
    assert len(found["none"]) == 4
    for name, pictures in found.items():
        assert pictures == found["none"], name


@pytest.mark.parametrize("cache", ["none", "pab"])
def test_clips_do_not_depend_on_where_weights_lie(
    cache: str, video_folder: Path, tmp_path: Path
) -> None:
    base = load_video_model(BaseModelConfig(path=str(video_folder)))
    save_lora(Lora.create(base, LoraSpec(2, 2, 0, None, False), 0), tmp_path / "look.safetensors")
    (tmp_path / "clip.yaml").write_text(
        f"type: clip\nbase_model: {{path: {video_folder}}}\nprecision: bf16\nformats: [webp]\n"
        f"artifacts: {{one: {{path: {tmp_path}/look.safetensors}}}}\ncache: {cache}\n"
        "settings: {steps: 2, frames: 9, height: 32, width: 32}\ncontact_sheet: false\n"
        "clips: {one: {prompt: red, seed: 3, negative_prompt: lime}}\n",
        encoding="utf-8",
    )
    ways = {**DRAWN, "groups": "group_offload"}
    ways["swap"] = "{offload: none, blocks_to_swap: 1}"
    found = {
        name: drawn(tmp_path / "clip.yaml", [f"memory={way}"], tmp_path / name, draw_recipe)
        for name, way in ways.items()
    }
    assert PEAKS["parts"] < PEAKS["swap"] < PEAKS["none"]
    assert len(found["none"]) == 1
    for name, clips in found.items():
        assert clips == found["none"], name


@pytest.mark.parametrize("memory", ["none", "model_offload", "sequential_offload"])
def test_a_checkpoint_schedule_holds_one_model(
    memory: Any, tiny_base_folder: Path, tmp_path: Path
) -> None:
    for name in ("first", "second"):
        shutil.copytree(tiny_base_folder, tmp_path / name)
    base_model = BaseModelConfig(path=str(tmp_path / "first"))
    levers = Levers(MemoryConfig(offload=memory))
    frames, held = [], []
    generator = ModelGenerator(base_model, {}, [tmp_path], "fp32", "cuda", 1, levers, (16, 16))
    for name in (None, "second", None):
        request = FrameRequest(0, "red", "", 16, 16, seed=1, steps=2, checkpoint=name)
        frames.append(generator.generate(request).tobytes())
        gc.collect()
        held.append(torch.cuda.memory_allocated())
    assert held[0] == held[1] == held[2]
    assert len({*frames}) == 1
    assert generator.base.device.type == "cuda"
