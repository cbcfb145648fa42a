"""VAEs that replace a base model's own, in every form in which they are distributed."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from safetensors.torch import load_file, save_file

from inference.artifacts.base import load_artifact
from inference.config.models import BaseModelConfig
from inference.config.recipes import draw_schema
from inference.files.hashes import sha256
from inference.images.infotext.describe import vae_parameters
from inference.images.redraw import recipe_from_infotext
from inference.inspect import inspect
from inference.models.base import vae_of
from inference.models.families import skeleton
from inference.models.finding import is_vae, vae_form
from inference.models.names import check_vae
from inference.models.stable_diffusion.loading import load_base_model
from inference.models.stable_diffusion.vae import read_vae
from inference.recipe.layers import RecipeError
from inference.recipe.loader import load_mapping
from inference.runtime.errors import ArtifactError, BaseModelError, DrawWarning

FORMS = (
    "ldm.safetensors", "ldm.vae.pt", "ldm.CKPT", "prefixed.safetensors", "vae_prefix.safetensors",
    "checkpoint.safetensors", "diffusers.safetensors", "old_names.bin", "folder", "model_folder",
)  # fmt: skip
SCALE = 0.5
"""The tiny base model's `scaling_factor`."""
MID = "mid_block.attentions.0"
LDM = (
    (r"mid_block.resnets.0.", "mid.block_1."),
    (r"mid_block.resnets.1.", "mid.block_2."),
    (r"mid_block.attentions.0.group_norm", "mid.attn_1.norm"),
    (r"mid_block.attentions.0.to_([qkv])", r"mid.attn_1.\1"),
    (r"mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out"),
    (r"down_blocks.(\d).resnets.", r"down.\1.block."),
    (r"down_blocks.(\d).downsamplers.0.conv", r"down.\1.downsample.conv"),
    *((rf"up_blocks.{i}.resnets.", f"up.{2 - i}.block.") for i in range(3)),
    *((rf"up_blocks.{i}.upsamplers.0.conv", f"up.{2 - i}.upsample.conv") for i in range(3)),
    (r"conv_norm_out", "norm_out"),
    (r"conv_shortcut", "nin_shortcut"),
)
"""diffusers' names and those of latent-diffusion, written out for three levels."""


def ldm_name(name: str) -> str:
    for ours, theirs in LDM:
        name = re.sub(ours, theirs, name)
    return name


@pytest.fixture(scope="module")
def own(tiny_base_folder):
    """The tiny base model's VAE."""
    return AutoencoderKL.from_pretrained(tiny_base_folder / "vae", local_files_only=True)


@pytest.fixture(scope="module")
def trained(own):
    """Another VAE of its sizes."""
    generator = torch.Generator().manual_seed(7)
    return {
        key: value + 0.1 * torch.randn(value.shape, generator=generator)
        for key, value in own.state_dict().items()
    }


@pytest.fixture
def write(tiny_base_folder, trained, tmp_path):
    """A function that writes the VAE in one of FORMS, and returns its path."""

    def written(form: str) -> Path:
        path = tmp_path / form
        ldm = {}
        for key, value in trained.items():
            is_layer = f"{MID}.to_" in key and key.endswith("weight")
            ldm[ldm_name(key)] = value[..., None, None] if is_layer else value
        if form.startswith("ldm"):
            ldm |= {"loss.logvar": torch.zeros(()), "model_ema.decay": torch.ones(())}
            if form.endswith(".safetensors"):
                save_file(ldm, path)
            else:
                torch.save({"state_dict": ldm, "global_step": 5}, path)
        elif form.startswith(("prefixed", "vae_prefix", "checkpoint")):
            prefix = "vae." if form.startswith("vae") else "first_stage_model."
            others = {"model.diffusion_model.out.2.bias": torch.ones(4)}
            content = {prefix + key: value for key, value in ldm.items()}
            save_file(content | (others if form.startswith("checkpoint") else {}), path)
        elif form == "diffusers.safetensors":
            save_file(trained, path)
        elif form == "old_names.bin":
            old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
            content = dict(trained)
            for new, before in old.items():
                content = {k.replace(f"{MID}.{new}", f"{MID}.{before}"): v
                           for k, v in content.items()}  # fmt: skip
            torch.save(content, path)
        else:
            inner = path / "vae" if form == "model_folder" else path
            shutil.copytree(tiny_base_folder / "vae", inner)
            save_file(trained, inner / "diffusion_pytorch_model.safetensors")
        return path

    return written


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read(form, write, trained, own):
    path = str(write(form))
    vae = read_vae(path, own)
    assert vae.state_dict().keys() == trained.keys()
    for key, value in vae.state_dict().items():
        assert torch.equal(value, trained[key]), key
    assert vae.config.scaling_factor == SCALE
    planned = read_vae(path, own, without_weights=True)
    assert {parameter.device.type for parameter in planned.parameters()} == {"meta"}


def test_a_base_model_is_loaded_and_planned_with_it(write, trained, tiny_base_folder):
    config = BaseModelConfig(path=str(tiny_base_folder), vae=str(write("prefixed.safetensors")))
    base = load_base_model(config)
    assert all(torch.equal(v, trained[key]) for key, v in base.vae.state_dict().items())
    assert not any(parameter.requires_grad for parameter in base.vae.parameters())
    assert not base.vae.training
    assert skeleton(config, "fp32").vae.device.type == "meta"
    half = load_base_model(replace(config, vae_precision="bf16"))
    assert half.vae.dtype == torch.bfloat16


def test_it_changes_what_is_decoded_and_encoded(write, tiny_base, tiny_base_folder):
    base = load_base_model(BaseModelConfig(str(tiny_base_folder), vae=str(write("ldm.vae.pt"))))
    latents = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert not torch.allclose(
            base.decode_latents(latents), tiny_base.decode_latents(latents), atol=1e-3
        )
        pixels = latents[:, :3].clamp(-1, 1).repeat(1, 1, 4, 4)
        ours, others = base.encode_images(pixels)[0], tiny_base.encode_images(pixels)[0]
        assert not torch.allclose(ours, others, atol=1e-3)


@pytest.mark.parametrize("form", FORMS)
def test_infotext_names_it_and_finds_it_again(form, write):
    path = write(form)
    base: Any = SimpleNamespace(source=BaseModelConfig(vae=str(path)))
    said, file = vae_parameters(base), path
    if path.is_dir():
        inner = path / "vae" if form == "model_folder" else path
        file = inner / "diffusion_pytorch_model.safetensors"
    assert said == {"VAE hash": sha256(file)[:10], "VAE": form}
    if form == "checkpoint.safetensors":
        return  # it is found as a model, not as a VAE
    line = f"Steps: 2, Sampler: Euler, Size: 16x16, VAE hash: {said['VAE hash']}, VAE: other.pt"
    made = recipe_from_infotext(f"a\n{line}, Model: picto", [path.parent])
    assert made.recipe["base_model"]["vae"] == str(file.parent if path.is_dir() else path)
    assert not [note for note in made.notes if "VAE" in note]


def test_a_vae_that_is_not_here_is_noted(write):
    path = write("ldm.vae.pt")
    line = "Steps: 2, Sampler: Euler, Size: 16x16, Model: picto"

    def made(vae):
        recipe = recipe_from_infotext(f"a\n{line}, {vae}", [path.parent])
        return recipe.recipe["base_model"].get("vae"), [n for n in recipe.notes if "VAE" in n]

    vae, (note,) = made("VAE hash: 0123456789, VAE: kl-f8.pt")
    assert vae is None
    assert "VAE: kl-f8.pt (hash 0123456789) is not in" in note
    vae, (note,) = made("VAE hash: 0123456789, VAE: ldm.vae.pt")
    assert vae == str(path)
    assert "has another hash" in note
    for name in ("ldm.vae.pt", "ldm.vae"):
        assert made(f"VAE: {name}") == (str(path), [])
    assert made("VAE: Automatic") == (None, [])


def test_a_model_with_its_own_vae_says_nothing_of_it(tiny_base):
    assert vae_of(tiny_base) is None
    assert vae_parameters(tiny_base) == {"VAE hash": None, "VAE": None}


@pytest.mark.parametrize("form", FORMS)
def test_inspect_shows_it(form, write):
    path = write(form)
    if form in ("checkpoint.safetensors", "model_folder"):
        return  # models
    facts = inspect(path)
    assert facts["kind"] == "VAE (base_model.vae)"
    assert facts["VAE hash in infotext"] == facts["sha256"][:10]
    assert facts["latent channels"] == "4"
    is_ldm = form.startswith(("ldm", "prefixed", "vae_prefix"))
    assert facts["naming"].startswith("LDM" if is_ldm else "diffusers")
    with pytest.raises(ArtifactError, match=r"is a VAE; name it as base_model.vae="):
        load_artifact(path)


def test_other_files_are_no_vae(tiny_base_folder, tiny_base):
    assert vae_form(["model.diffusion_model.out.2.bias"]) is None
    assert not is_vae([])
    assert not is_vae(["lora_unet_x.lora_up.weight"])
    unet = tiny_base.unet.state_dict().keys()
    assert not is_vae(unet)


def refused(path, own) -> str:
    messages = []
    for without_weights in (False, True):
        with pytest.raises(BaseModelError) as caught:
            read_vae(str(path), own, without_weights)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]  # a plan says what the run would
    assert messages[0].startswith("base_model.vae: ")
    return messages[0]


def test_what_does_not_fit_is_refused(write, own, tmp_path):
    tensors = load_file(write("ldm.safetensors"))
    wrong = tmp_path / "wrong.safetensors"
    save_file({k: v for k, v in tensors.items() if k != "decoder.norm_out.weight"}, wrong)
    assert "missing: decoder.norm_out.weight" in refused(wrong, own)
    save_file({**tensors, "decoder.conv_out.weight": torch.zeros(3, 99, 3, 3)}, wrong)
    assert "of other shapes: decoder.conv_out.weight (3, 99, 3, 3)" in refused(wrong, own)
    save_file({**tensors, "decoder.extra.weight": torch.zeros(1)}, wrong)
    assert "superfluous: decoder.extra.weight" in refused(wrong, own)
    save_file({"a": torch.zeros(1)}, wrong)
    assert "contains no VAE by its names (a)" in refused(wrong, own)
    wrong.write_text("<html>")
    assert "cannot be loaded" in refused(wrong, own)
    assert "no such file or folder" in refused(tmp_path / "nothing", own)
    with pytest.raises(BaseModelError, match=r"base_model.vae: no such file"):
        check_vae("nothing.pt")


def test_a_folder_of_another_kind_is_refused(write, own):
    folder = write("folder")
    config = json.loads((folder / "config.json").read_text())
    for change, message in (
        ({"_class_name": "AutoencoderTiny"}, "is an AutoencoderTiny; expected an AutoencoderKL"),
        ({"latent_channels": 16}, "has 16 latent_channels; the base model's own VAE 4"),
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(BaseModelError, match=message):
            read_vae(str(folder), own, without_weights=True)
    (folder / "config.json").unlink()
    assert "config.json is missing" in refused(folder, own)


def test_a_folders_own_scale_is_kept_with_a_warning(write, own):
    folder = write("folder")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"scaling_factor": 0.13025}))
    with pytest.warns(DrawWarning, match=rf"latents by 0.13025, the base model's .* {SCALE}"):
        vae = read_vae(str(folder), own)
    assert vae.config.scaling_factor == 0.13025


def test_video_models_have_their_own(tiny_video_folder, tmp_path):
    from inference.models.cogvideox.loading import load_video_model

    recipe = {"type": "clip", "clips": {"a": {"prompt": "a"}}, "base_model": {"vae": "x.pt"}}
    with pytest.raises(RecipeError, match=r"base_model.vae: is for image models"):
        load_mapping(recipe, "recipe", draw_schema)
    with pytest.raises(BaseModelError, match=r"base_model.vae: 'x.pt' is for image models"):
        load_video_model(BaseModelConfig(path=str(tiny_video_folder), vae="x.pt"))
