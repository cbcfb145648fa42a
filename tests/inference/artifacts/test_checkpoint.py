"""Checkpoints: whole parts of a base model, exchanged in place and written as diffusers folders."""

import json

import pytest
import torch
from safetensors.torch import load_file

from inference.artifacts.adapters.lora import Lora, LoraSpec
from inference.artifacts.base import load_artifact
from inference.artifacts.checkpoint import Checkpoint
from inference.config.models import BaseModelConfig
from inference.models.folder import weights_of
from inference.models.stable_diffusion.loading import load_base_model
from inference.runtime.errors import ArtifactError


@pytest.fixture
def tuned(new_base, randomize):
    """A base model whose UNet has been trained away from `base`."""
    base = new_base()
    randomize(base.unet, std=0.1)
    return base


@pytest.fixture
def folder(tuned, tmp_path):
    path = tmp_path / "tuned"
    Checkpoint.of(tuned).save(path, torch.float32, {"ss_steps": "9"})
    return path


def test_strength_0_and_1_are_exact_and_between_lies_on_the_line(base, tuned, predict, folder):
    before, after = predict(base), predict(tuned)
    plain = {key: value.clone() for key, value in weights_of(base.unet).items()}
    checkpoint = load_artifact(folder)
    assert isinstance(checkpoint, Checkpoint)
    assert list(checkpoint.parts) == ["unet"]
    checkpoint.attach(base, strength=0.0)
    assert torch.equal(predict(base), before)
    checkpoint.set_strength(1.0)
    assert torch.equal(predict(base), after)
    checkpoint.set_strength(0.25)
    for key, value in weights_of(base.unet).items():
        expected = 0.75 * plain[key] + 0.25 * weights_of(tuned.unet)[key]
        torch.testing.assert_close(value, expected)


def test_detaching_leaves_the_same_bits(base, snapshot, folder):
    before = snapshot(base)
    checkpoint = load_artifact(folder)
    for strength in (1.0, 0.3):
        checkpoint.attach(base, strength)
        assert snapshot(base) != before
        checkpoint.detach()
        assert snapshot(base) == before


def test_it_takes_the_bases_number_format(new_base, tuned, predict, folder):
    base = new_base(torch.bfloat16)
    load_artifact(folder).attach(base)
    assert base.unet.dtype == torch.bfloat16
    tuned.unet.bfloat16()
    for key, value in weights_of(base.unet).items():
        assert torch.equal(value, weights_of(tuned.unet)[key])


def test_it_stacks_with_a_lora_in_any_order(base, tuned, predict, randomize, snapshot, folder):
    lora = Lora.create(base, LoraSpec(2, 2.0, 0.0, ["attention"], False), seed=0)
    randomize(list(lora.layers.values()))
    before, checkpoint = snapshot(base), load_artifact(folder)
    checkpoint.attach(base)
    lora.attach(base)
    one = predict(base)
    checkpoint.detach()
    lora.detach()
    assert snapshot(base) == before
    lora.attach(base)
    checkpoint.attach(base)
    assert torch.equal(predict(base), one)
    lora.detach()
    checkpoint.detach()
    assert snapshot(base) == before


def test_limner_opens_the_folder_as_a_base_model(tuned, predict, folder):
    again = load_base_model(BaseModelConfig(path=str(folder)))
    assert torch.equal(predict(again), predict(tuned))
    assert again.prediction_type == tuned.prediction_type
    assert torch.equal(again.alphas_cumprod, tuned.alphas_cumprod)
    assert torch.equal(again.tokenize(["ab cd"]).ids, tuned.tokenize(["ab cd"]).ids)


@pytest.mark.filterwarnings("ignore")
def test_diffusers_opens_the_folder(tuned, predict, folder):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    for key, value in weights_of(tuned.unet).items():
        assert torch.equal(pipe.unet.state_dict()[key], value)
    for key, value in weights_of(tuned.text_encoder).items():
        assert torch.equal(pipe.text_encoder.state_dict()[key], value)
    pipe.set_progress_bar_config(disable=True)
    image = pipe("ab", num_inference_steps=2, height=16, width=16, output_type="np").images[0]
    assert image.shape == (16, 16, 3)


def test_the_folder_is_what_older_tools_expect(folder):
    keys = load_file(folder / "text_encoder" / "model.safetensors").keys()
    assert all(key.startswith("text_model.") for key in keys)
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert index["safety_checker"] == [None, None]
    vocabulary = json.loads((folder / "tokenizer" / "vocab.json").read_text())
    assert vocabulary["ab</w>"] == 23
    assert (folder / "tokenizer" / "merges.txt").read_text() == "#version: 0.2\na b\na b</w>\n"
    facts = json.loads((folder / "limner.json").read_text())
    assert facts["parts"] == ["unet"]
    assert facts["metadata"] == {"ss_steps": "9"}
    text = "".join(path.read_text() for path in folder.rglob("*.json"))
    assert str(folder.parent) not in text


def test_trained_parts_are_rounded_and_others_are_not(tuned, tmp_path):
    Checkpoint.of(tuned).save(tmp_path / "half", torch.float16, {})
    unet = load_file(tmp_path / "half/unet/diffusion_pytorch_model.safetensors")
    vae = load_file(tmp_path / "half/vae/diffusion_pytorch_model.safetensors")
    for key, value in weights_of(tuned.unet).items():
        assert torch.equal(unet[key], value.half())
    for key, value in weights_of(tuned.vae).items():
        assert torch.equal(vae[key], value)
    tuned.vae.half().float()  # now half precision loses nothing
    Checkpoint.of(tuned).save(tmp_path / "half", torch.float16, {})
    vae = load_file(tmp_path / "half/vae/diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in vae.values()} == {torch.float16}


def test_the_same_weights_give_the_same_bytes(tuned, tmp_path):
    for name in ("one", "two"):
        Checkpoint.of(tuned).save(tmp_path / name, torch.float16, {"ss_steps": "9", "a": "b"})
    load_artifact(tmp_path / "one").save(
        tmp_path / "three", torch.float16, {"ss_steps": "9", "a": "b"}
    )
    files = sorted(
        p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*") if p.is_file()
    )
    assert len(files) >= 11
    for file in files:
        content = (tmp_path / "one" / file).read_bytes()
        assert (tmp_path / "two" / file).read_bytes() == content, file
        assert (tmp_path / "three" / file).read_bytes() == content, file


def test_an_attached_lora_is_not_written(base, randomize, tmp_path):
    lora = Lora.create(base, LoraSpec(2, 2.0, 0.0, ["attention"], False), seed=0)
    randomize(list(lora.layers.values()))
    Checkpoint.of(base).save(tmp_path / "plain", torch.float32, {})
    lora.attach(base)
    Checkpoint.of(base).save(tmp_path / "attached", torch.float32, {})
    file = "unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "plain" / file).read_bytes() == (tmp_path / "attached" / file).read_bytes()


def test_a_vae_brings_its_scaling_factor(base, new_base, randomize, tmp_path):
    trained = new_base()
    randomize(trained.vae, std=0.1)
    trained.vae.register_to_config(scaling_factor=0.7)
    Checkpoint.of(trained, parts=("vae",)).save(tmp_path / "vae", torch.float32, {})
    checkpoint = load_artifact(tmp_path / "vae")
    pixels = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        expected, before = trained.encode_images(pixels)[0], base.encode_images(pixels)[0]
        checkpoint.attach(base)
        assert torch.equal(base.encode_images(pixels)[0], expected)
        checkpoint.detach()
        assert torch.equal(base.encode_images(pixels)[0], before)


def test_a_lone_unet_folder_is_enough_to_draw_with(base, tuned, predict, tmp_path):
    tuned.unet.save_pretrained(tmp_path / "lone" / "unet")
    checkpoint = load_artifact(tmp_path / "lone")
    checkpoint.attach(base)
    assert torch.equal(predict(base), predict(tuned))
    with pytest.raises(ArtifactError, match="vae, text_encoder, tokenizer, scheduler missing"):
        checkpoint.save(tmp_path / "whole", torch.float32, {})


def test_other_shapes_are_refused(base, new_base, snapshot, tmp_path):
    before = snapshot(base)
    Checkpoint.of(new_base(context=32)).save(tmp_path / "other", torch.float32, {})
    with pytest.raises(ArtifactError, match=r"unet\..* has shape .* in this base model"):
        load_artifact(tmp_path / "other").attach(base)
    Checkpoint.of(new_base(linear=True)).save(tmp_path / "linear", torch.float32, {})
    with pytest.raises(ArtifactError, match="proj_in"):
        load_artifact(tmp_path / "linear").attach(base)
    assert snapshot(base) == before


def test_another_prediction_type_is_refused(base, folder):
    base.prediction_type = "v_prediction"
    with pytest.raises(ArtifactError, match="predicts epsilon, this base model v_prediction"):
        load_artifact(folder).attach(base)


def test_a_part_holds_one_checkpoint_at_a_time(base, folder):
    one, two = load_artifact(folder), load_artifact(folder)
    one.attach(base)
    with pytest.raises(ArtifactError, match="replaced by 'tuned' already"):
        two.attach(base)
    one.detach()
    two.attach(base)


def test_interrupted_saving_leaves_the_old_folder(tuned, folder, monkeypatch):
    before = sorted(folder.rglob("*"))

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("inference.models.folder._write_noise_schedule", fail)
    with pytest.raises(OSError, match="disk full"):
        Checkpoint.of(tuned).save(folder, torch.float32, {})
    assert sorted(folder.rglob("*")) == before
    assert list(folder.parent.iterdir()) == [folder]
