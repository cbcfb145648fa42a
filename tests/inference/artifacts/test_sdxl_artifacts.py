"""What is learned on SDXL: kohya's names in full shape, files of other programs, refusals."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionXLPipeline
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from inference.artifacts.adapters.lora import Lora, LoraSpec, changeable_parts
from inference.artifacts.adapters.lora_keys import known_names, layers_of
from inference.artifacts.base import Artifact, load_artifact
from inference.artifacts.checkpoint import Checkpoint
from inference.artifacts.embedding import Embedding
from inference.artifacts.hypernetwork import context_widths
from inference.config.models import BaseModelConfig
from inference.files.tensors import read_tensors
from inference.inspect import inspect
from inference.models.conditions import Conditions
from inference.models.families import family_of
from inference.models.folder import weights_of
from inference.models.stable_diffusion.loading import load_base_model
from inference.models.stable_diffusion.model import BaseModel
from inference.runtime.errors import ArtifactError

GOLDEN = json.loads((Path(__file__).parents[2] / "golden/lora_key_map.json").read_text())["sdxl"]
LINEAR = ["attention", "feed_forward", "projection"]


@pytest.fixture(scope="module")
def sdxl() -> BaseModel:
    """The shapes of SDXL 1.0, without weights."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=2,
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
        first = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=768,
                intermediate_size=3072,
                num_hidden_layers=12,
                num_attention_heads=12,
            )
        )
        second = CLIPTextModelWithProjection(
            CLIPTextConfig(
                hidden_size=1280,
                intermediate_size=5120,
                num_hidden_layers=32,
                num_attention_heads=20,
                projection_dim=1280,
            )
        )
    nothing: Any = None
    vae: Any = SimpleNamespace(config=SimpleNamespace(block_out_channels=(128,) * 4))
    return BaseModel(
        path="sdxl",
        tokenizer=nothing,
        text_encoder=first,
        vae=vae,
        unet=unet,
        alphas_cumprod=torch.ones(1000),
        prediction_type="epsilon",
        noise_schedule={},
        dtype=torch.float32,
        tokenizer_2=nothing,
        text_encoder_2=second,
    )


def test_a_lora_is_saved_with_exactly_kohyas_names(sdxl: BaseModel, tmp_path: Path) -> None:
    everything = [*LINEAR, "convolution"]
    lora = Lora.create(sdxl, LoraSpec(1, 0.5, 0.0, everything, train_text_encoder=True), seed=0)
    assert {*lora.modules_by_part()} == {"unet", "text_encoder", "text_encoder_2"}
    lora.save(tmp_path / "lora.safetensors", torch.float16, {})
    tensors, metadata = read_tensors(tmp_path / "lora.safetensors")
    assert len(GOLDEN) == 1052
    ends = ("lora_down.weight", "lora_up.weight", "alpha")
    assert tensors.keys() == {f"{name}.{end}" for name in GOLDEN for end in ends}
    for name, entry in GOLDEN.items():
        for end, half in zip(ends, ("down", "up"), strict=False):
            shape = [1 if number == "r" else number for number in entry[half]]
            if entry["kind"] != "linear":  # a kernel of 1 x 1 is written short
                shape = [*shape[:2], *[shape[2]] * 2]
            assert list(tensors[f"{name}.{end}"].shape) == shape, name
    assert metadata["ss_base_model_version"] == "sdxl_base_v1-0"
    assert metadata["ss_v2"] == "False"
    assert metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert metadata["modelspec.resolution"] == "1024x1024"
    assert metadata["modelspec.implementation"].endswith("generative-models")


def test_without_convolutions_there_are_986(sdxl: BaseModel) -> None:
    layout = family_of(sdxl).lora_layout(sdxl)
    names = {
        layout.kohya_name(part, path)
        for part, parent in changeable_parts(sdxl).items()
        for path, module in layers_of(parent)
        if (part != "unet" and layout.is_text_encoder_target(path))
        or (part == "unet" and any(layout.is_target(path, module, one) for one in LINEAR))
    }
    assert len(names) == 986
    assert names == {name for name, entry in GOLDEN.items() if entry["set"] == "lora"}


def test_hypernetworks_find_sdxls_widths(sdxl: BaseModel) -> None:
    assert context_widths(sdxl) == {640, 1280, 2048}


def test_the_full_shape_takes_its_conditions(sdxl: BaseModel) -> None:
    with torch.device("meta"):
        latents = torch.empty(2, 4, 128, 104)
        conditions = Conditions(torch.empty(2, 77, 768 + 1280), torch.empty(2, 1280))
        timesteps = torch.empty(2)
    assert sdxl.predict(latents, timesteps, conditions).shape == (2, 4, 128, 104)
    assert sdxl.resolution == 1024


def test_no_two_layers_share_a_name(sdxl: BaseModel) -> None:
    names = [
        name
        for part, parent in changeable_parts(sdxl).items()
        for path, _ in layers_of(parent)
        for name in set(known_names(part, path))
    ]
    assert len(names) == len(set(names))


# ------------------------------------------------------------------------------- with other tools


@torch.no_grad()
def prediction(base: BaseModel) -> Tensor:
    latents = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(5))
    conditions = base.encode_prompts(["a red cat", "x"])
    return base.predict(latents, torch.tensor([10, 500]), conditions)


def pipeline(base: BaseModel) -> Any:
    """diffusers' pipeline around a base model's parts."""
    return StableDiffusionXLPipeline(
        vae=base.vae, unet=base.unet, text_encoder=base.text_encoder,
        text_encoder_2=base.text_encoder_2, tokenizer=base.tokenizer, tokenizer_2=base.tokenizer_2,
        scheduler=DDPMScheduler.from_config(base.noise_schedule), add_watermarker=False,
    )  # fmt: skip


def randomize(parameters: Any, std: float = 0.2) -> None:
    generator = torch.Generator().manual_seed(1)
    for parameter in parameters:
        parameter.data = torch.randn(parameter.shape, generator=generator) * std


@pytest.mark.filterwarnings("ignore")
def test_a_lora_works_the_same_in_diffusers(
    tiny_sdxl: BaseModel, tiny_sdxl_folder: Path, tmp_path: Path
) -> None:
    ours, theirs = tiny_sdxl, load_base_model(BaseModelConfig(path=str(tiny_sdxl_folder)))
    lora = Lora.create(
        ours, LoraSpec(2, 3.0, 0.0, [*LINEAR, "convolution"], train_text_encoder=True), seed=0
    )
    randomize(p for part in lora.modules_by_part().values() for p in part.parameters())
    lora.save(tmp_path / "lora.safetensors", torch.float32, {})
    before = prediction(ours)
    load_artifact(tmp_path / "lora.safetensors").attach(ours)
    pipeline(theirs).load_lora_weights(str(tmp_path), weight_name="lora.safetensors")
    after = prediction(ours)
    torch.testing.assert_close(after, prediction(theirs), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(after, before, atol=1e-2)


def test_diffusers_names_become_sdxls(tiny_sdxl: BaseModel, tmp_path: Path) -> None:
    """Also where the file is of the UNet alone: its keys and values read a width of 2048."""

    def names(tensors: dict[str, Tensor]) -> set[str]:
        save_file(tensors, tmp_path / "lora.safetensors")
        return {*Lora.load(tmp_path / "lora.safetensors").layers}

    def halves(path: str, width: int) -> dict[str, Tensor]:
        return {f"{path}.lora_A.weight": torch.ones(2, width),
                f"{path}.lora_B.weight": torch.ones(16, 2),
                f"{path}.alpha": torch.tensor(2.0)}  # fmt: skip

    block = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    sgm = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
    encoder = "text_encoder_2.text_model.encoder.layers.0.mlp.fc1"
    assert names(halves(f"unet.{block}", 2048)) == {sgm}
    assert names(halves(f"unet.{block}", 768)) == {f"lora_unet_{block.replace('.', '_')}"}
    both = names(halves(f"unet.{block}", 40) | halves(encoder, 24))
    assert both == {sgm, "lora_te2_text_model_encoder_layers_0_mlp_fc1"}


def test_a_trained_folder_opens_in_diffusers(
    tiny_sdxl: BaseModel, tiny_sdxl_folder: Path, tmp_path: Path
) -> None:
    parts = ("unet", "text_encoder", "text_encoder_2")
    randomize((p for part in parts for p in tiny_sdxl.parts[part].parameters()), std=0.1)
    expected = prediction(tiny_sdxl)
    folder = tmp_path / "tuned"
    Checkpoint.of(tiny_sdxl, parts).save(folder, torch.float32, {})
    for part in ("text_encoder", "text_encoder_2"):
        keys = load_file(folder / part / "model.safetensors").keys()
        assert all(key.startswith("text_model.") for key in keys - {"text_projection.weight"})
    index = json.loads((folder / "model_index.json").read_text())
    assert index["text_encoder_2"] == ["transformers", "CLIPTextModelWithProjection"]
    assert index["force_zeros_for_empty_prompt"] is True
    assert "safety_checker" not in index
    assert inspect(folder)["layout"].startswith("SDXL")

    pipe = StableDiffusionXLPipeline.from_pretrained(
        folder, local_files_only=True, add_watermarker=False
    )
    assert pipe.tokenizer_2.pad_token == "!"
    for part in parts:
        for key, value in weights_of(tiny_sdxl.parts[part]).items():
            assert torch.equal(getattr(pipe, part).state_dict()[key], value)
    again = load_base_model(BaseModelConfig(path=str(folder)))
    assert torch.equal(prediction(again), expected)

    plain = load_base_model(BaseModelConfig(path=str(tiny_sdxl_folder)))
    before = prediction(plain)
    checkpoint = load_artifact(folder)
    checkpoint.attach(plain)
    assert torch.equal(prediction(plain), expected)
    checkpoint.detach()
    assert torch.equal(prediction(plain), before)


def test_a_folder_of_sdxl_does_not_replace_sd1s_parts(
    tiny_sdxl: BaseModel, tiny_base: BaseModel, tmp_path: Path
) -> None:
    Checkpoint.of(tiny_sdxl, ("text_encoder_2",)).save(tmp_path / "x", torch.float32, {})
    with pytest.raises(ArtifactError, match=r"has a text_encoder_2 \(SDXL\), which this base"):
        load_artifact(tmp_path / "x").attach(tiny_base)


# ------------------------------------------------------------------------------------- embeddings


def pair(count: int = 2) -> Embedding:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(count, width, generator=generator) for width in (16, 24))
    return Embedding(first, "xyz", vectors_2=second)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_an_embedding_is_kohyas_pair(suffix: str, tmp_path: Path) -> None:
    """Nothing else stands in a `.pt`: A1111 takes every entry for a tensor."""
    saved, path = pair(), tmp_path / f"xyz{suffix}"
    saved.save(path, torch.float32, {"ss_steps": "5"})
    content = torch.load(path, weights_only=True) if suffix == ".pt" else load_file(path)
    assert content.keys() == {"clip_l", "clip_g"}
    loaded = load_artifact(path)
    assert isinstance(loaded, Embedding)
    for one, two in zip(saved.learned.by_encoder(), loaded.learned.by_encoder(), strict=True):
        assert torch.equal(one, two)
    assert loaded.name == "xyz"
    assert inspect(path)["vectors"] == "2 of width 16 and 24 (SDXL)"


@torch.no_grad()
def test_each_encoder_reads_its_own_vectors(tiny_sdxl: BaseModel) -> None:
    """As if the letters q and w were spelled so in both token tables."""
    embedding = pair()
    before = tiny_sdxl.encode_prompts(["a xyz b"])
    embedding.attach(tiny_sdxl, strength=0.5)
    conditions = tiny_sdxl.encode_prompts(["a xyz b"])
    embedding.detach()
    again = tiny_sdxl.encode_prompts(["a xyz b"])
    letters = [tiny_sdxl.tokenizer.get_vocab()[f"{letter}</w>"] for letter in "qw"]
    encoders: list[Any] = [*tiny_sdxl.text_encoders.values()]
    for encoder, vectors in zip(encoders, embedding.learned.by_encoder(), strict=True):
        encoder.get_input_embeddings().weight[letters] = vectors * 0.5
    expected = tiny_sdxl.encode_prompts(["a q w b"])
    for found, wanted, first in (
        (conditions.states, expected.states, before.states),
        (conditions.pooled, expected.pooled, before.pooled),
    ):
        assert isinstance(found, Tensor)
        assert isinstance(wanted, Tensor)
        assert torch.equal(found, wanted)
        assert first is not None
        assert not torch.equal(found, first)
    assert torch.equal(again.states, before.states)


def test_embeddings_begin_as_the_rows_of_both_tables(tiny_sdxl: BaseModel) -> None:
    created = Embedding.create(tiny_sdxl, "new", "a b", 2)
    rows = [tiny_sdxl.tokenizer.get_vocab()[f"{letter}</w>"] for letter in "ab"]
    encoders: list[Any] = [*tiny_sdxl.text_encoders.values()]
    for encoder, vectors in zip(encoders, created.learned.by_encoder(), strict=True):
        assert torch.equal(encoder.get_input_embeddings().weight[rows], vectors)


REFUSED = [
    (pair, "tiny_base", r"width 16 and 24 \(SDXL\); the text encoder of this base .* has 16"),
    (
        lambda: Embedding(torch.ones(2, 16), "x"),
        "tiny_sdxl",
        r"has vectors of width 16; the two text encoders of this base model .* have 16 and 24",
    ),
    (
        lambda: Embedding(torch.ones(2, 768), "x"),
        "tiny_sdxl",
        r"has vectors of width 768 \(SD 1.x\); the two text encoders",
    ),
]


@pytest.mark.parametrize(("make", "base", "message"), REFUSED)
def test_embeddings_of_another_family_are_refused(
    make: Any, base: str, message: str, request: pytest.FixtureRequest
) -> None:
    artifact: Artifact = make()
    with pytest.raises(ArtifactError, match=message):
        artifact.attach(request.getfixturevalue(base))


def test_a_picture_has_no_room_for_a_pair(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"objective\.save_as: .* take safetensors or pt"):
        pair().save(tmp_path / "x.png", torch.float32, {})
    assert not [*tmp_path.iterdir()]


def test_a_projection_may_carry_a_lora_too(tiny_sdxl: BaseModel, tmp_path: Path) -> None:
    """Some tools write it, and SDXL uses it; in SD 1.x it is passed over."""
    assert tiny_sdxl.text_encoder_2 is not None
    name = "lora_te2_text_projection"
    tensors = {
        f"{name}.lora_down.weight": torch.arange(24.0)[None],
        f"{name}.lora_up.weight": torch.ones(20, 1),
        f"{name}.alpha": torch.tensor(1.0),
    }
    save_file(tensors, tmp_path / "lora.safetensors")
    before = tiny_sdxl.encode_prompts(["a"]).pooled
    load_artifact(tmp_path / "lora.safetensors").attach(tiny_sdxl)
    assert not isinstance(tiny_sdxl.text_encoder_2.text_projection, nn.Linear)
    after = tiny_sdxl.encode_prompts(["a"]).pooled
    assert before is not None
    assert after is not None
    assert not torch.equal(before, after)
