"""Whole parts of a video model: saved, read again, attached and taken out."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from inference.artifacts.base import load_artifact
from inference.artifacts.checkpoint import Checkpoint
from inference.config.models import BaseModelConfig
from inference.models.cogvideox.loading import load_video_model
from inference.models.cogvideox.model import VideoModel
from inference.runtime.errors import ArtifactError
from tests.inference.artifacts.video_base import build_video_base, predict, save_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_folder(build_video_base(), tmp_path_factory.mktemp("video_base"))


@pytest.fixture
def base(folder) -> VideoModel:
    return load_video_model(BaseModelConfig(path=str(folder)))


def change(module: torch.nn.Module) -> None:
    """As a training does."""
    generator = torch.Generator().manual_seed(2)
    for parameter in module.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.05)


@pytest.fixture
def saved(base, tmp_path) -> tuple[Path, torch.Tensor]:
    """A fine-tuned transformer, saved in fp32, and what it predicts."""
    change(base.transformer)
    Checkpoint.of(base, ["transformer"]).save(tmp_path / "tuned", torch.float32, {"ss_steps": "3"})
    return tmp_path / "tuned", predict(base)


def test_the_folder_is_a_base_model_of_ours_and_of_diffusers(saved, base):
    from diffusers.pipelines.cogvideo.pipeline_cogvideox import CogVideoXPipeline

    path, expected = saved
    again = load_video_model(BaseModelConfig(path=str(path)))
    assert torch.equal(predict(again), expected)
    for part in ("vae", "text_encoder"):
        ours, theirs = again.parts[part].state_dict(), base.parts[part].state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    prompts = ["a red circle", "moving"]
    assert torch.equal(again.encode_prompts(prompts).states, base.encode_prompts(prompts).states)
    pipeline = CogVideoXPipeline.from_pretrained(str(path), local_files_only=True)
    base.transformer = pipeline.transformer
    assert torch.equal(predict(base), expected)


def test_attached_scaled_and_taken_out(saved, folder):
    path, expected = saved
    fresh = load_video_model(BaseModelConfig(path=str(folder)))
    plain = predict(fresh)
    checkpoint = load_artifact(path)
    assert isinstance(checkpoint, Checkpoint) and [*checkpoint.parts] == ["transformer"]
    checkpoint.attach(fresh)
    assert torch.equal(predict(fresh), expected)
    checkpoint.set_strength(0.5)
    half = predict(fresh)
    assert not torch.equal(half, plain) and not torch.equal(half, expected)
    checkpoint.set_strength(0.0)
    assert torch.equal(predict(fresh), plain)
    checkpoint.set_strength(1.0)
    checkpoint.detach()
    assert torch.equal(predict(fresh), plain)


def test_every_part_of_a_folder_by_another_tool_is_attached(base, tmp_path):
    other = build_video_base()
    for part in other.parts.values():
        change(part)
    other.vae.register_to_config(scaling_factor=1.5)
    prompts, latents = ["a red circle"], torch.randn(1, 1, 4, 4, 4)
    expected = other.encode_prompts(prompts).states, other.decode_latents(latents)
    plain = base.encode_prompts(prompts).states, base.decode_latents(latents)
    checkpoint = load_artifact(save_folder(other, tmp_path))
    checkpoint.attach(base)
    assert torch.equal(base.encode_prompts(prompts).states, expected[0])
    assert torch.equal(base.decode_latents(latents), expected[1])
    checkpoint.detach()
    assert torch.equal(base.encode_prompts(prompts).states, plain[0])
    assert torch.equal(base.decode_latents(latents), plain[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_only_trained_parts_are_rounded(base, dtype, tmp_path):
    change(base.transformer)
    Checkpoint.of(base, ["transformer"]).save(tmp_path / "tuned", dtype, {})
    weights = load_file(tmp_path / "tuned/transformer/diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in weights.values()} == {dtype}
    again = load_video_model(BaseModelConfig(path=str(tmp_path / "tuned")))
    for key, value in base.transformer.state_dict().items():
        assert torch.equal(again.transformer.state_dict()[key], value.to(dtype).float()), key
    for key, value in base.vae.state_dict().items():
        assert torch.equal(again.vae.state_dict()[key], value), key


CHANGES = {
    "use_rotary_positional_embeddings": {"use_rotary_positional_embeddings": False},
    "sample_width": {"sample_width": 8},
    "only the checkpoint has transformer.transformer_blocks.2": {"num_layers": 3},
    r"transformer.patch_embed.proj.weight has shape \(32, 8, 2, 2\)": {"in_channels": 8},
}


@pytest.mark.parametrize("said", CHANGES)
def test_a_transformer_of_another_kind_is_refused(said, base):
    plain = predict(base)
    other = Checkpoint.of(build_video_base(**CHANGES[said]), ["transformer"])
    with pytest.raises(ArtifactError, match=said):
        other.attach(base)
    assert torch.equal(predict(base), plain)


def test_models_of_pictures_and_of_clips_are_told_apart(base, tiny_base):
    with pytest.raises(ArtifactError, match=r"has a transformer \(a video model\), which this"):
        Checkpoint.of(build_video_base(), ["transformer"]).attach(tiny_base)
    with pytest.raises(ArtifactError, match=r"has a unet \(a model of pictures\), which this"):
        Checkpoint.of(tiny_base, ["unet"]).attach(base)


def test_a_single_file_is_refused(base, tmp_path):
    with pytest.raises(ArtifactError, match=r"a video model is kept as a diffusers folder"):
        checkpoint = Checkpoint.of(base, ["transformer"])
        checkpoint.save(tmp_path / "one.safetensors", torch.float16, {})
    assert not [*tmp_path.iterdir()]
