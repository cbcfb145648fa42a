"""The registry of model families, and a third one that nothing else knows of."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from inference.artifacts.adapters.lora import Lora, LoraSpec
from inference.artifacts.adapters.lora_keys import diffusers_path, part_of
from inference.artifacts.base import check_kind, load_artifact
from inference.artifacts.checkpoint import Checkpoint
from inference.artifacts.embedding import Embedding
from inference.config import BaseModelConfig, ImageConfig
from inference.images.drawing import draw
from inference.inspect import inspect
from inference.models.families import (
    FAMILIES,
    all_families,
    family_named,
    family_of,
    find_family,
    folder_family,
    load_clip_model,
    load_image_model,
    load_model,
    part_names,
    register_family,
    single_file_format,
    single_file_of,
    skeleton,
)
from inference.models.family import Match
from inference.models.model_files import ModelFiles
from inference.runtime import ArtifactError, BaseModelError, DrawWarning
from tests.inference.artifacts.adapters.low_rank_layers import low_ranks
from tests.toy_family.family import FlowFamily, new_toy_flow


@pytest.fixture
def toy_family() -> Iterator[FlowFamily]:
    family = FlowFamily()
    register_family(family)
    yield family
    del FAMILIES[family.name]


def write_index(folder: Path, **index: object) -> BaseModelConfig:
    folder.mkdir(exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps(index), "utf-8")
    return BaseModelConfig(path=str(folder))


def test_families_of_limner():
    assert [family.name for family in all_families()] == ["stable_diffusion", "cogvideox"]
    assert {family.name: family.draws for family in all_families()} == {
        "stable_diffusion": "pictures",
        "cogvideox": "clips",
    }
    assert part_names() == ("unet", "transformer", "text_encoder", "text_encoder_2", "vae")
    with pytest.raises(BaseModelError, match=r"'flux': unknown; known are stable_diffusion, cogv"):
        family_named("flux")


@pytest.mark.parametrize(
    ("index", "parts", "name", "match"),
    [
        ({"_class_name": "StableDiffusionXLPipeline"}, (), "stable_diffusion", Match.NAMED),
        ({"_class_name": "CogVideoXPipeline"}, (), "cogvideox", Match.NAMED),
        ({"transformer": []}, (), "cogvideox", Match.LAYOUT),
        ({"unet": []}, (), "stable_diffusion", Match.LAYOUT),
        (None, ("unet",), "stable_diffusion", Match.LAYOUT),
        (None, ("transformer", "vae"), "cogvideox", Match.LAYOUT),
        (None, ("vae",), "stable_diffusion", None),
    ],
)
def test_the_files_decide(tmp_path, index, parts, name, match):
    config = BaseModelConfig(path=str(tmp_path))
    if index is not None:
        write_index(tmp_path, **index)
    for part in parts:
        (tmp_path / part).mkdir()
    family = find_family(ModelFiles(config))
    assert family.name == name
    assert family.detect(ModelFiles(config)) == match


def test_a_damaged_index_is_one_message(tmp_path):
    (tmp_path / "model_index.json").write_text("{", "utf-8")
    with pytest.raises(BaseModelError, match=r"model_index.json: cannot be read as JSON"):
        load_model(BaseModelConfig(path=str(tmp_path)))


@pytest.mark.parametrize("path", ["./x", "../y", "no such/folder", "nothing"])
@pytest.mark.parametrize(
    "load", [load_model, load_clip_model, lambda config: skeleton(config, "fp32")]
)
def test_a_path_that_leads_nowhere_is_one_message(path, load, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BaseModelError, match=f"base_model.path: '{path}'"):
        load(BaseModelConfig(path=path))


def test_models_of_the_other_kind_are_refused():
    with pytest.raises(BaseModelError, match=r"'picto' draws no clips; give a CogVideoX model"):
        load_clip_model(BaseModelConfig(path="picto"))
    with pytest.raises(BaseModelError, match=r"'picto-motion' draws no pictures; draw with it"):
        load_image_model(BaseModelConfig(path="picto-motion"))


def test_a_family_that_names_itself_goes_before_a_layout(tmp_path, toy_family):
    config = write_index(tmp_path, _class_name="ToyFlowPipeline", transformer=[])
    assert find_family(ModelFiles(config)) is toy_family
    assert folder_family(tmp_path) is toy_family
    assert "toy_dit" in part_names()


def test_a_plug_in_that_does_not_load_is_left_out():
    register_family("no_such_module:FAMILY", "flux")
    with pytest.warns(DrawWarning, match="'flux' does not load and is left out: No module named"):
        assert [family.name for family in all_families()] == ["stable_diffusion", "cogvideox"]
    assert "flux" not in FAMILIES


def test_a_third_family_draws(toy_family):
    image = ImageConfig(prompt="a house", seed=1, steps=3, sampler="Euler", width=16, height=16)
    [drawing] = draw(new_toy_flow(), [image])
    assert drawing.image.size == (16, 16)
    assert "Sampler: Euler" in drawing.infotext and "Model: toy_flow" in drawing.infotext


def test_a_third_family_is_saved_and_read(tmp_path, toy_family):
    base = new_toy_flow()
    folder = tmp_path / "saved"
    Checkpoint.of(base, ["toy_dit"]).save(folder, torch.float32, {})
    assert family_of(load_model(BaseModelConfig(path=str(folder)))) is toy_family
    bare = skeleton(BaseModelConfig(path=str(folder)), "fp32")
    assert all(p.is_meta for part in bare.parts.values() for p in part.parameters())
    assert inspect(folder)["layout"] == "Toy flow"

    other = new_toy_flow(seed=1)
    loaded = load_artifact(folder)
    loaded.attach(other)
    assert torch.equal(other.toy_dit.out.weight, base.toy_dit.out.weight)
    loaded.detach()
    assert not torch.equal(other.toy_dit.out.weight, base.toy_dit.out.weight)


def test_a_third_family_takes_loras(tmp_path, toy_family):
    base = new_toy_flow()
    lora = Lora.create(base, LoraSpec(2, 2.0, 0.0, None, train_text_encoder=False), seed=0)
    assert sorted(lora.layers) == [
        f"lora_toy_blocks_{n}_attn_{layer}"
        for n in (0, 1)
        for layer in ("to_k", "to_out_0", "to_q", "to_v")
    ]
    for layer in low_ranks(lora).values():
        torch.nn.init.ones_(layer.lora_B.weight)
    lora.save(tmp_path / "toy.safetensors", torch.float32, {})
    latents, steps = torch.ones(1, 4, 4, 4), torch.tensor([500])
    states = base.encode_prompts(["a"])
    plain = base.predict(latents, steps, states)
    loaded = Lora.load(tmp_path / "toy.safetensors")
    assert loaded.metadata["ss_base_model_version"] == "toy_flow"
    assert loaded.metadata["modelspec.architecture"] == "toy-flow/lora"
    loaded.attach(base)
    assert not torch.equal(base.predict(latents, steps, states), plain)
    loaded.detach()
    assert torch.equal(base.predict(latents, steps, states), plain)
    with pytest.raises(ArtifactError, match="a model of pictures: it has none"):
        Lora.create(base, LoraSpec(2, 2.0, 0.0, None, train_text_encoder=True), seed=0)


def test_artifacts_that_a_family_does_not_take_are_refused(toy_family):
    embedding = Embedding(torch.zeros(1, 4), "word")
    with pytest.raises(ArtifactError, match=r"\(embedding\) does not work in 'toy_flow', a model"):
        check_kind(embedding, new_toy_flow())


def test_files_of_a_family_without_single_files_are_refused(toy_family):
    with pytest.raises(ArtifactError, match="a model of pictures is kept as a diffusers folder"):
        single_file_of(new_toy_flow())
    assert single_file_format(["blocks.0.attn.to_q.weight"]) is None


def test_the_longest_beginning_of_a_name_decides(toy_family):
    assert part_of("lora_unet_mid_block_attentions_0_proj_in") == "unet"
    assert part_of("lora_unet__transformer_blocks_0_attn1_to_q") == "transformer"
    assert part_of("lora_te2_text_model_encoder_layers_0_mlp_fc1") == "text_encoder_2"
    assert part_of("lora_toy_blocks_0_attn_to_q") == "toy_dit"
    assert part_of("lora_flux_blocks") == ""
    to_out = "toy_dit", "blocks.1.attn.to_out.0"
    assert diffusers_path("lora_toy_blocks_1_attn_to_out_0") == to_out
