"""Training of inpainting models and of SDXL's refiner: the loss, what is saved, exact resume."""

import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from inference.artifacts.base import load_artifact
from inference.config.images import ImageConfig
from inference.config.models import BaseModelConfig
from inference.images.drawing import draw
from inference.media.grid import grid_cells
from inference.models.stable_diffusion.loading import load_base_model
from inference.recipe.layers import RecipeError
from inference.recipe.loader import RecipeWarning
from tests.tiny_variants import ZERO_SNR
from train.common import derive_seed
from train.config.recipe import TrainRecipe
from train.data.pictures import random_mask
from train.families.stable_diffusion import TRAINING
from train.plan.plan import plan_run
from train.trainer import Trainer

MakeRecipe = Callable[..., TrainRecipe]
MakeVariant = Callable[..., Path]

IMAGES = [
    'sampling.images.one={prompt: "red x", seed: 3, cfg_scale: 3}',
    "sampling.settings={steps: 2}",
]
REQUEST = ImageConfig(prompt="red x", seed=3, cfg_scale=3, steps=2)
LORA = "objective={type: lora, rank: 2, train_text_encoder: true}"
WORD = "objective={type: textual_inversion, token: x}"
HYPERNETWORK = "objective={type: hypernetwork, activation_func: relu}"
DREAMBOOTH = "objective={type: dreambooth, train_text_encoder: true, save_as: safetensors}"
WHOLE = "objective={type: text_to_image}"


def first_batch(trainer: Trainer) -> Any:
    """Return the first micro-batch as the loss sees it."""
    stage = trainer.stages[0]
    trainer.enter(stage)
    batch = next(trainer.data.batches(trainer.examples, stage, 0, trainer.layout))
    trainer.caches.add_prompts(batch)
    return batch


# ----------------------------------------------------------------- the loss, by diffusers' formulas


def encoded(folder: Path, trainer: Trainer, prompts: list[str]) -> tuple[Tensor, Tensor | None]:
    """Return prompt embeddings and pooled ones, as diffusers' pipelines encode them."""
    states, pooled = [], None
    kinds = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
    names = [name for name in kinds if (folder / name).is_dir()]
    tokenizers: list[Any] = trainer.base.tokenizers  # type: ignore[assignment]
    for name, tokenizer in zip(names, tokenizers, strict=True):
        ids = tokenizer(prompts, padding="max_length", max_length=77, return_tensors="pt").input_ids
        encoder: Any = kinds[name].from_pretrained(folder / name)
        output = encoder(ids, output_hidden_states=True)
        if "text_encoder_2" not in names:
            return output.last_hidden_state, None
        states.append(output.hidden_states[-2])
        pooled = output.get("text_embeds")
    return torch.cat(states, dim=-1), pooled


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "inpaints", "prediction"),
    [
        ("sd", True, ZERO_SNR),
        ("sdxl", True, "v_prediction"),
        ("refiner", False, "epsilon"),
        pytest.param("sd", True, "epsilon", marks=pytest.mark.slow),
        pytest.param("sdxl", True, "epsilon", marks=pytest.mark.slow),
        pytest.param("sdxl", True, ZERO_SNR, marks=pytest.mark.slow),
        pytest.param("refiner", False, ZERO_SNR, marks=pytest.mark.slow),
    ],
)
def test_the_loss_is_that_of_a_bare_loop(
    kind: str, inpaints: bool, prediction: str, make_recipe: MakeRecipe, tiny_variant: MakeVariant
) -> None:
    """One step of a loop of diffusers' parts, with the same noise, timesteps and masks."""
    folder = tiny_variant(kind, inpaints, prediction)
    options = ["data.latent_sampling=deterministic", "train_batch_size=3"]
    if kind == "refiner":
        options.append("data.aesthetic_score=7.5")
    trainer = Trainer(make_recipe(f"base_model.path={folder}", *options))
    batch, denoising = first_batch(trainer), trainer.objective.denoising
    batch["timesteps"] = timesteps = torch.tensor([999, 500, 3])
    ours = denoising.loss(batch)

    vae: Any = AutoencoderKL.from_pretrained(folder / "vae")
    unet: Any = UNet2DConditionModel.from_pretrained(folder / "unet")
    noise_scheduler: Any = DDPMScheduler.from_pretrained(folder / "scheduler")
    pixels = torch.stack([pixels_of(name) for name in batch["names"]])
    latents = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
    noise = denoising.noise(batch["positions"], latents)
    seen = noise_scheduler.add_noise(latents, noise, timesteps)
    if inpaints:
        seeds = [derive_seed(trainer.recipe.seed, "inpainting mask", n) for n in batch["positions"]]
        masks = torch.stack([random_mask(Random(seed), 16, 16) for seed in seeds])
        masked = vae.encode(pixels * (masks < 0.5)).latent_dist.mode() * vae.config.scaling_factor
        small = torch.nn.functional.interpolate(masks, size=(4, 4))
        seen = torch.cat([seen, small, masked], dim=1)
    states, pooled = encoded(folder, trainer, batch["prompts"])
    last = [7.5] if kind == "refiner" else [16, 16]
    numbers = torch.tensor([[16.0, 16, 0, 0, *last]] * 3)
    extra = None if pooled is None else {"text_embeds": pooled, "time_ids": numbers}
    prediction_ = unet(seen, timesteps, states, added_cond_kwargs=extra).sample
    target = noise
    if prediction != "epsilon":
        target = noise_scheduler.get_velocity(latents, noise, timesteps)
    theirs = (prediction_ - target).square().mean((1, 2, 3))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def pixels_of(name: str) -> Tensor:
    array = np.asarray(Image.open(name).convert("RGB"), np.float32)
    return torch.from_numpy(array).permute(2, 0, 1) / 127.5 - 1


# -------------------------------------------------------------------------------------- objectives


@pytest.mark.parametrize(
    ("kind", "objective", "precision"),
    [
        ("sd", LORA, "fp32"),
        ("refiner", WORD, "bf16"),
        pytest.param("sdxl", WORD, "fp32", marks=pytest.mark.slow),
        pytest.param("refiner", LORA, "fp32", marks=pytest.mark.slow),
        pytest.param("sd", WORD, "bf16", marks=pytest.mark.slow),
        pytest.param("sd", HYPERNETWORK, "fp32", marks=pytest.mark.slow),
        pytest.param("sd", DREAMBOOTH, "fp32", marks=pytest.mark.slow),
        pytest.param("sd", WHOLE, "fp32", marks=pytest.mark.slow),
        pytest.param("sdxl", LORA, "bf16", marks=pytest.mark.slow),
        pytest.param("sdxl", DREAMBOOTH, "fp32", marks=pytest.mark.slow),
        pytest.param("sdxl", HYPERNETWORK, "fp32", marks=pytest.mark.slow),
        pytest.param("refiner", HYPERNETWORK, "fp32", marks=pytest.mark.slow),
        pytest.param("refiner", DREAMBOOTH, "fp32", marks=pytest.mark.slow),
        pytest.param("refiner", WHOLE, "fp32", marks=pytest.mark.slow),
    ],
)
def test_runs_go_on_exactly_and_draw_what_they_save(
    kind: str,
    objective: str,
    precision: str,
    make_recipe: MakeRecipe,
    tiny_variant: MakeVariant,
    pictures: Path,
    tmp_path: Path,
) -> None:
    """Stopped after one of two steps; the last grid is what a fresh process would draw."""
    folder = tiny_variant(kind, kind != "refiner", "v_prediction")
    data = [f"data.path={pictures}"]
    if objective == DREAMBOOTH:
        shutil.copytree(pictures, tmp_path / "class")
        data = [
            "data.path=null",
            f"data.concepts.it={{instance_data_dir: {pictures}, class_data_dir: {tmp_path}/class, "
            "instance_token: sks, class_token: number, num_class_images_per: 1}",
            "loss.prior=prediction",
            "loss.prior_copy=true",
        ]
    shared = [
        f"base_model.path={folder}",
        objective,
        f"mixed_precision={precision}",
        *data,
        *IMAGES,
    ]

    def run(name: str, *more: str) -> tuple[Trainer, Path]:
        trainer = Trainer(make_recipe(*shared, f"name={name}", *more))
        return trainer, trainer.train()

    whole, path = run("whole", "max_train_steps=2")
    run("cut", "max_train_steps=1")
    cut, _ = run("cut", "max_train_steps=2", "resume=true")
    ends = [load_file(t.run.folder.checkpoint(2) / "trained.safetensors") for t in (whole, cut)]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])

    base = load_base_model(BaseModelConfig(path=str(folder)), precision)
    _, last_row = grid_cells(Image.open(whole.run.folder.grid(2)))
    [before] = draw(base, [REQUEST])
    load_artifact(path).attach(base)
    [after] = draw(base, [REQUEST])
    assert after.image.tobytes() == last_row[0].convert("RGB").tobytes()
    assert after.image.tobytes() != before.image.tobytes()


@pytest.mark.slow
def test_a_whole_refiner_is_opened_by_diffusers(
    make_recipe: MakeRecipe, tiny_variant: MakeVariant
) -> None:
    """As an image-to-image pipeline without the first text encoder; single files as well."""
    from diffusers import DiffusionPipeline

    options = [f"base_model.path={tiny_variant('refiner')}", "max_train_steps=1"]
    path = Trainer(make_recipe(*options, WHOLE)).train()
    pipe: Any = DiffusionPipeline.from_pretrained(path, local_files_only=True)
    assert type(pipe).__name__ == "StableDiffusionXLImg2ImgPipeline"
    assert pipe.text_encoder is None
    assert pipe.config.requires_aesthetics_score
    again = load_base_model(BaseModelConfig(path=str(path)))
    assert torch.equal(again.unet.conv_in.weight, pipe.unet.conv_in.weight)


# ------------------------------------------------------------------------------------------- masks


def test_random_masks_are_whole_boxes_or_strokes() -> None:
    masks = [random_mask(Random(seed), 32, 48) for seed in range(400)]
    assert all(mask.shape == (1, 32, 48) for mask in masks)
    assert {value for mask in masks for value in mask.unique().tolist()} == {0, 1}
    shares = [mask.mean().item() for mask in masks]
    assert 0.2 < sum(share == 1 for share in shares) / len(shares) < 0.3
    assert 0.2 < sum(shares) / len(shares) < 0.6
    assert min(shares) > 0
    assert torch.equal(masks[7], random_mask(Random(7), 32, 48))
    boxes = sum(is_box(mask[0]) for mask in masks if mask.mean() < 1)
    assert 40 < boxes < 200  # a third of half of them are single boxes; the others are not


def is_box(mask: Tensor) -> bool:
    rows, columns = mask.amax(1), mask.amax(0)
    return bool((mask == rows[:, None] * columns).all())


def test_masks_change_with_the_epoch_and_latents_stay_cached(
    make_recipe: MakeRecipe, tiny_variant: MakeVariant
) -> None:
    """The whole image is not encoded again, but its masked part is, in every step."""
    found = {}
    path = f"base_model.path={tiny_variant('sd', True)}"
    for cache in ("auto", "off"):
        trainer = Trainer(make_recipe(path, f"data.cache={cache}", f"name={cache}"))
        batch = first_batch(trainer)
        assert ("pixels" in batch) == (cache == "off")
        found[cache] = (batch, trainer.objective.denoising.loss(batch).detach())
        examples = trainer.examples
    assert torch.equal(found["auto"][0]["masked_pixels"], found["off"][0]["masked_pixels"])
    torch.testing.assert_close(found["auto"][1], found["off"][1], rtol=0, atol=1e-5)
    masks = {examples[position]["inpainting_mask"].numpy().tobytes() for position in range(80)}
    assert len(masks) > 30
    assert TRAINING.idle_parts(trainer.base, True) == ["text_encoder"]  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_plan_knows_that_masked_images_are_encoded_in_every_step(
    make_recipe: MakeRecipe, tiny_variant: MakeVariant
) -> None:
    """The VAE stays on the device, and its memory counts in the steps."""
    plans = {
        inpaints: plan_run(make_recipe(f"base_model.path={tiny_variant('sd', inpaints)}"))
        for inpaints in (False, True)
    }
    assert [plans[key].cache.masked for key in (False, True)] == [0, 8]
    assert [plans[key].memory.aside for key in (False, True)] == [
        ["text_encoder", "vae"],
        ["text_encoder"],
    ]
    memory = plans[True].memory
    assert memory.activations >= memory.needs["latents"]
    assert plans[False].memory.activations < memory.activations


def test_given_masks_are_repainted(
    make_recipe: MakeRecipe, tiny_variant: MakeVariant, pictures: Path, tmp_path: Path
) -> None:
    """The white part of data.masks, mirrored with its image; the loss counts there too."""
    for path in pictures.glob("*.png"):
        mask = Image.new("L", (16, 16), 0)
        mask.paste(255, (0, 0, 8, 12))
        (tmp_path / "masks").mkdir(exist_ok=True)
        mask.save(tmp_path / "masks" / path.name)
    options = [
        f"base_model.path={tiny_variant('sd', True)}",
        f"data.masks={{path: {tmp_path}/masks, unmasked_weight: 0.5}}",
        "data.inpainting_masks=files",
        "data.flip=1",
    ]
    batch = first_batch(Trainer(make_recipe(*options)))
    expected = [[0, 0, 1, 1]] * 3 + [[0, 0, 0, 0]]
    assert batch["inpainting_mask"][:, 0].tolist() == [expected] * 2
    assert batch["mask"][0, 0].tolist() == [[0.5, 0.5, 1, 1]] * 3 + [[0.5] * 4]
    left = torch.stack([pixels_of(name).flip(-1) for name in batch["names"]])
    left[:, :, :12, 8:] = 0
    torch.testing.assert_close(batch["masked_pixels"], left)


def test_keys_of_other_models_are_reported(
    make_recipe: MakeRecipe, tiny_variant: MakeVariant
) -> None:
    with pytest.raises(
        RecipeError, match=r"data\.inpainting_masks: files are those of data\.masks"
    ):
        make_recipe("data.inpainting_masks=files")
    clips = ["data.clips={frames: 9}", "data.inpainting_masks=random", "data.aesthetic_score=5"]
    with pytest.warns(RecipeWarning) as caught:
        make_recipe(*clips)
    said = " ".join(str(one.message) for one in caught)
    assert "inpainting_masks: has no effect" in said
    assert "aesthetic_score: has no effect" in said
    with pytest.warns(RecipeWarning, match=r"data\.inpainting_masks: has no effect"):
        Trainer(make_recipe("data.inpainting_masks=random"))
    with pytest.warns(RecipeWarning, match=r"data\.aesthetic_score: has no effect"):
        Trainer(
            make_recipe(f"base_model.path={tiny_variant('sd', True)}", "data.aesthetic_score=5")
        )


def test_subsets_have_scores_of_their_own(
    make_recipe: MakeRecipe, tiny_variant: MakeVariant, pictures: Path, tmp_path: Path
) -> None:
    shutil.copytree(pictures, tmp_path / "better")
    options = [
        f"base_model.path={tiny_variant('refiner')}",
        "data.path=null",
        f"data.subsets.usual.path={pictures}",
        f"data.subsets.better={{path: {tmp_path}/better, aesthetic_score: 8}}",
        "data.aesthetic_score=5",
        "train_batch_size=16",
    ]
    batch = first_batch(Trainer(make_recipe(*options)))
    scores = {
        ("better" in name, *sizes)
        for name, sizes in zip(batch["names"], batch["sizes"].tolist(), strict=True)
    }
    assert scores == {(False, 16, 16, 0, 0, 5), (True, 16, 16, 0, 0, 8)}
