"""Every objective on the SDXL layout: what is trained, its conditioning, and previews."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from inference.artifacts.base import load_artifact
from inference.config.images import ImageConfig
from inference.config.models import BaseModelConfig
from inference.images.drawing import draw
from inference.media.grid import grid_cells
from inference.models.stable_diffusion.loading import load_base_model
from inference.runtime.errors import InputError
from train.config.data import DataConfig
from train.config.examples import Size
from train.config.recipe import TrainRecipe
from train.data.examples.picture_buckets import Place
from train.data.examples.transforms import crop_image
from train.objectives.loading import build_objective, enable_gradient_checkpointing
from train.optimization.accelerator import build_accelerator
from train.optimization.strategies.ddp import DataParallel
from train.trainer import Trainer

MakeRecipe = Callable[..., TrainRecipe]


@pytest.fixture
def recipe(make_recipe: MakeRecipe, tiny_sdxl_folder: Path) -> MakeRecipe:
    """The tiny recipe on the tiny SDXL."""
    return lambda *overrides: make_recipe(f"base_model.path={tiny_sdxl_folder}", *overrides)


IMAGES = [
    'sampling.images.one={prompt: "red x", seed: 3, cfg_scale: 3}',
    "sampling.images.two={prompt: cyan x, seed: 4, width: 24, negative_prompt: blue}",
    "sampling.settings={steps: 2, cfg_scale: 1.5}",
]
REQUESTS = [
    ImageConfig(prompt="red x", seed=3, cfg_scale=3, steps=2),
    ImageConfig(prompt="cyan x", seed=4, width=24, negative_prompt="blue", steps=2, cfg_scale=1.5),
]
TEXTS = {"unet", "text_encoder", "text_encoder_2"}
LORA = "objective={type: lora, rank: 2, train_text_encoder: true}"
TEXT_TO_IMAGE = "objective={type: text_to_image, train_text_encoder: true}"


def bytes_of(images: list[Image.Image]) -> list[tuple[tuple[int, int], bytes]]:
    return [(image.size, image.convert("RGB").tobytes()) for image in images]


@pytest.mark.parametrize(
    ("objective", "precision", "trained"),
    [
        (LORA, "fp32", TEXTS),
        pytest.param("objective={type: lora, rank: 2}", "bf16", {"unet"}, marks=pytest.mark.slow),
        pytest.param(TEXT_TO_IMAGE, "fp32", TEXTS, marks=pytest.mark.slow),
        ("objective={type: textual_inversion, token: x}", "bf16", {"embedding"}),
        pytest.param(
            "objective={type: hypernetwork, activation_func: relu}",
            "fp32",
            {"hypernetwork"},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["lora", "lora bf16", "text_to_image", "textual_inversion bf16", "hypernetwork"],
)
def test_last_grid_is_what_the_artifact_draws(
    objective: str, precision: str, trained: set[str], recipe: MakeRecipe, tiny_sdxl_folder: Path
) -> None:
    """Pixel for pixel, on a base model loaded again; each part of the objective has moved."""
    trainer = Trainer(
        recipe(objective, f"mixed_precision={precision}", "max_train_steps=2", *IMAGES)
    )
    before = {name: value.clone() for name, value in trainer.objective.state_dict().items()}
    path = trainer.train()
    moved = {
        name.partition(".")[0]
        for name, value in trainer.objective.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert moved == trained
    base_row, last_row = grid_cells(Image.open(trainer.run.folder.grid(2)))
    base = load_base_model(BaseModelConfig(path=str(tiny_sdxl_folder)), precision)
    assert bytes_of([drawing.image for drawing in draw(base, REQUESTS)]) == bytes_of(base_row)
    load_artifact(path).attach(base)
    assert bytes_of([drawing.image for drawing in draw(base, REQUESTS)]) == bytes_of(last_row)
    assert not set(bytes_of(base_row)) & set(bytes_of(last_row))


def test_a_run_over_both_text_encoders_goes_on_exactly(recipe: MakeRecipe) -> None:
    """Though the first one's last layer has neither gradients nor moments; it stays as it is."""
    rates = "optimizer.learning_rates={text_encoder: 1.0e-3, text_encoder_2: 2.0e-3}"

    def run(name: str, *overrides: str) -> tuple[Trainer, Path]:
        trainer = Trainer(recipe(TEXT_TO_IMAGE, rates, f"name={name}", *overrides))
        assert {g["name"]: g["lr"] for g in trainer.optimization.optimizer.param_groups} == {
            "unet": 1e-2, "text_encoder": 1e-3, "text_encoder_2": 2e-3,
        }  # fmt: skip
        before = trainer.base.parts["text_encoder"].state_dict()
        frozen = {k: v.clone() for k, v in before.items() if "layers.1." in k or "final" in k}
        path = trainer.train()
        after = trainer.base.parts["text_encoder"].state_dict()
        assert frozen
        assert all(torch.equal(after[key], value) for key, value in frozen.items())
        return trainer, path

    whole, _ = run("whole", "max_train_steps=3")
    run("cut", "max_train_steps=1")
    cut, _ = run("cut", "max_train_steps=3", "resume=true")
    ends = [load_file(t.run.folder.checkpoint(3) / "trained.safetensors") for t in (whole, cut)]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


def test_ddp_is_told_of_layers_without_gradients(recipe: MakeRecipe, tiny_sdxl: Any) -> None:
    for objective, expected in ((LORA, True), ("objective={type: lora, rank: 1}", False)):
        made = recipe(objective)
        built = build_objective(made, tiny_sdxl)
        accelerator = build_accelerator(made)
        DataParallel(made, accelerator).prepare(built, torch.optim.SGD(built.parameters()))
        assert accelerator.ddp_handler is not None
        assert accelerator.ddp_handler.find_unused_parameters is expected
        built.artifact().detach()


def test_checkpointing_reaches_both_text_encoders(recipe: MakeRecipe, tiny_sdxl: Any) -> None:
    enable_gradient_checkpointing(build_objective(recipe(LORA), tiny_sdxl))
    for encoder in tiny_sdxl.text_encoders.values():
        assert any(getattr(part, "gradient_checkpointing", False) for part in encoder.modules())


def test_a_picture_cannot_carry_the_pair(recipe: MakeRecipe, tiny_sdxl: Any) -> None:
    made = recipe("objective={type: textual_inversion, token: x, save_as: png}")
    with pytest.raises(InputError, match=r"objective\.save_as: .* SDXL has two"):
        build_objective(made, tiny_sdxl)


# ------------------------------------------------------------------------------- size conditions


def sizes(path: Path, seed: int = 0, **options: Any) -> list[int]:
    config = DataConfig(path="", **options)
    return crop_image(path, config, Place(Size(16, 16)), random.Random(seed)).sizes.tolist()


def test_sizes_of_an_example(tmp_path: Path) -> None:
    """A file of 64 x 32 (height x width) becomes 32 x 16, and the middle 16 rows are cut out."""
    path = tmp_path / "tall.png"
    Image.new("RGB", (32, 64)).save(path)
    assert sizes(path) == [64, 32, 8, 0, 16, 16]
    assert sizes(path, resize="none") == [64, 32, 24, 8, 16, 16]
    turned = Image.new("RGB", (64, 32))
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned upright by a quarter
    turned.save(tmp_path / "turned.png", exif=exif)
    assert sizes(tmp_path / "turned.png") == [64, 32, 8, 0, 16, 16]


def test_a_mirrored_cut_is_counted_from_the_other_side(tmp_path: Path) -> None:
    """What is shown is, by its sizes, to be found in the mirrored picture."""
    path = tmp_path / "wide.png"
    picture = Image.effect_noise((40, 16), 80).convert("RGB")
    picture.save(path)
    mirrored = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    lefts = set()
    for seed in range(4):
        config = DataConfig(path="", crop="random", flip=1.0, resize="none")
        square = crop_image(path, config, Place(Size(16, 16)), random.Random(seed))
        left = int(square.sizes[3])
        lefts.add(left)
        shown = ((square.pixels + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        assert shown.tobytes() == mirrored.crop((left, 0, left + 16, 16)).tobytes()
    assert len(lefts) > 1


@pytest.mark.parametrize("options", [[], ["data={crop: random, flip: 0.5, cached_crops: 0}"]])
def test_the_unet_is_told_the_sizes_of_each_example(
    options: list[str], recipe: MakeRecipe, tmp_path: Path
) -> None:
    """With and without cache; as a function of (seed, epoch, picture)."""
    for number in range(3):
        image = Image.effect_noise((16 + 8 * number, 16), 50)
        image.save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text("a")
    more = ["train_batch_size=3", "max_train_steps=2", f"output_dir={tmp_path}/.runs"]
    made = recipe(f"data.path={tmp_path}", *more, *options)
    trainer, reported = Trainer(made), []
    trainer.base.denoiser.register_forward_pre_hook(
        lambda _, __, named: reported.append(named["added_cond_kwargs"]["time_ids"]),
        with_kwargs=True,
    )
    trainer.train()
    assert len(reported) == 2
    for epoch, seen in enumerate(reported):
        order = [trainer.examples.stream[position] for position in range(3 * epoch, 3 * epoch + 3)]
        expected: list[Tensor] = [trainer.examples.crop(index, e).sizes for e, index in order]
        assert seen.dtype == torch.float32
        assert seen.tolist() == torch.stack(expected).tolist()
        assert {row[1] for row in seen.tolist()} == {16, 24, 32}
    assert bool(trainer.examples.latents) == (not options)
