"""Base models as single files: written, read again, and read by diffusers to the same bits."""

from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from inference.artifacts.base import load_artifact
from inference.artifacts.checkpoint import Checkpoint
from inference.config.models import BaseModelConfig
from inference.files.hashes import read_header, sha256
from inference.files.tensors import TensorFile
from inference.inspect import inspect
from inference.models.base import model_hash, model_name
from inference.models.folder import weights_of
from inference.models.stable_diffusion.detect import (
    FAMILIES,
    NOISE_SCHEDULE,
    FamilyError,
    family_of,
    prediction_type_of,
)
from inference.models.stable_diffusion.keys import clip_tokenizer
from inference.models.stable_diffusion.loading import load_base_model
from inference.models.stable_diffusion.single_file import ModelParts, input_channels, read_model
from inference.models.stable_diffusion.single_file_writer import own_settings, write_model
from inference.runtime.errors import ArtifactError, BaseModelError

TEXT = {"vocab_size": 24, "intermediate_size": 32, "num_attention_heads": 2, "bos_token_id": 0,
        "eos_token_id": 1, "pad_token_id": 1, "max_position_embeddings": 77}  # fmt: skip
SMALL = {
    "unet": {"sample_size": 8, "block_out_channels": (16, 32), "norm_num_groups": 8,
             "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
             "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "attention_head_dim": 4},
    "vae": {"block_out_channels": (8, 8), "norm_num_groups": 4, "sample_size": 16,
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2},
}  # fmt: skip


def text_config(act: str, layers: int, width: int = 24, **more):
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        **TEXT, hidden_size=width, num_hidden_layers=layers, hidden_act=act, **more
    )


def small_model(key: str) -> ModelParts:
    """A small model of a family's layout with random weights; SD 2.x has its 23 text layers."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    words = [letter + end for letter in "abcdefghij" for end in ("", "</w>")]
    words = ["<|startoftext|>", "<|endoftext|>", *words, "ab", "ab</w>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    merges = [("a", "b"), ("a", "b</w>")]
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)
    special = {"cross_attention_dim": 24}
    if key != "sd1":
        special["use_linear_projection"] = True
    if key == "sdxl":
        special |= {"cross_attention_dim": 56, "transformer_layers_per_block": (1, 2),
                    "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
                    "projection_class_embeddings_input_dim": 16 + 6 * 8}  # fmt: skip
    if key == "sdxl_refiner":
        special |= {"cross_attention_dim": 32, "addition_embed_type": "text_time",
                    "addition_time_embed_dim": 8,
                    "projection_class_embeddings_input_dim": 16 + 5 * 8}  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        layers = 23 if key == "sd2" else 2
        modules = {
            "unet": UNet2DConditionModel(**SMALL["unet"], **special),
            "vae": AutoencoderKL(**SMALL["vae"]),
            "text_encoder": CLIPTextModel(
                text_config("gelu" if key == "sd2" else "quick_gelu", layers)
            ),
        }
        tokenizers = {"tokenizer": tokenizer}
        if key.startswith("sdxl"):
            modules["text_encoder_2"] = CLIPTextModelWithProjection(
                text_config("gelu", 3, 32, projection_dim=16)
            )
            tokenizers["tokenizer_2"] = tokenizer
        if key == "sdxl_refiner":
            del modules["text_encoder"], tokenizers["tokenizer"]
    for module in modules.values():
        module.requires_grad_(False).eval()
    return ModelParts(modules, tokenizers, {**NOISE_SCHEDULE}, "v_prediction")


def as_it_is(part, weights):
    return weights


def write(path, model, **options):
    write_model(path, model, as_it_is, {}, **options)
    return path


def check_equal(modules, expected):
    for part, module in expected.items():
        own = {key.removeprefix("text_model."): v for key, v in module.state_dict().items()}
        read = {key.removeprefix("text_model."): v for key, v in modules[part].state_dict().items()}
        assert read.keys() == own.keys()
        assert all(torch.equal(read[key], value) for key, value in own.items())


@pytest.mark.parametrize("key", FAMILIES)
def test_every_layout_is_read_again_to_the_same_bits(key, tmp_path):
    model = small_model(key)
    path = write(tmp_path / "model.safetensors", model)
    again = read_model(path)
    check_equal(again.modules, model.modules)
    assert again.modules.keys() == model.modules.keys() == {*FAMILIES[key].layout}
    assert again.prediction_type == "v_prediction"
    assert {str(p.device) for m in again.modules.values() for p in m.buffers()} <= {"cpu"}
    for part, module in model.modules.items():
        for name, value in vars(module.config).items():
            if name.startswith(("hidden", "num_", "intermediate", "vocab", "projection")):
                assert getattr(again.modules[part].config, name) == value
    assert again.tokenizers.keys() == model.tokenizers.keys()
    for tokenizer in again.tokenizers.values():
        assert tokenizer("ab c").input_ids == [0, 23, 7, 1]


@pytest.mark.parametrize("key", FAMILIES)
@pytest.mark.filterwarnings("ignore")
def test_diffusers_reads_every_layout_to_the_same_bits(key, tmp_path):
    from diffusers import (
        DDIMScheduler,
        StableDiffusionPipeline,
        StableDiffusionXLImg2ImgPipeline,
        StableDiffusionXLPipeline,
    )

    model = small_model(key)
    path = write(tmp_path / "model.safetensors", model)
    pipelines = {
        "sdxl": StableDiffusionXLPipeline,
        "sdxl_refiner": StableDiffusionXLImg2ImgPipeline,
    }
    pipeline = pipelines.get(key, StableDiffusionPipeline)
    extra = {} if key in pipelines else {"safety_checker": None, "feature_extractor": None}
    if key == "sdxl_refiner":
        extra = {"text_encoder": None, "tokenizer": None}
    parts = {**model.modules, **model.tokenizers, "scheduler": DDIMScheduler(), **extra}
    pipeline(**parts).save_pretrained(tmp_path / "config")
    for weights in (tmp_path / "config").rglob("*.safetensors"):
        weights.unlink()  # so that nothing can come from there
    read = pipeline.from_single_file(
        str(path), config=str(tmp_path / "config"), local_files_only=True
    )
    check_equal(read.components, model.modules)


def test_what_is_in_the_way_in_old_files_is_passed_over(tmp_path):
    model = small_model("sd1")
    tensors = load_file(write(tmp_path / "model.safetensors", model))
    header = read_header(tmp_path / "model.safetensors")["__metadata__"]
    text = "cond_stage_model.transformer.text_model."
    old = {key.replace(".text_model.", ".", 1): value for key, value in tensors.items()}
    old = {key: v.squeeze() if "mid.attn_1.q.w" in key else v for key, v in old.items()}
    old |= {"model_ema.num_updates": torch.tensor(3), "alphas_cumprod": torch.ones(3),
            "cond_stage_model.logit_scale": torch.ones(())}  # fmt: skip
    assert sum(key.startswith(text) for key in tensors) > 30
    save_file(old, tmp_path / "old.safetensors", header)
    check_equal(read_model(tmp_path / "old.safetensors").modules, model.modules)


def test_missing_left_over_and_misshapen_weights_are_named(tmp_path):
    tensors = load_file(write(tmp_path / "model.safetensors", small_model("sd1")))
    header = read_header(tmp_path / "model.safetensors")["__metadata__"]

    def refusal(changed):
        save_file(changed, tmp_path / "changed.safetensors", header)
        with pytest.raises(ArtifactError) as caught:
            read_model(tmp_path / "changed.safetensors")
        return str(caught.value)

    gone, bent = "first_stage_model.decoder.conv_in.bias", "first_stage_model.quant_conv.bias"
    less = {key: value for key, value in tensors.items() if key != gone}
    less[bent] = torch.zeros(3)
    message = refusal(less)
    assert f"its vae is not that of SD 1.x; missing: {gone}" in message
    assert f"{bent} (3,), expected (8,) as quant_conv.bias" in message
    more = {**tensors, "model.diffusion_model.input_blocks.99.0.weight": torch.zeros(3)}
    assert "SD 1.x does not have: model.diffusion_model.input_blocks.99.0.weight" in refusal(more)


CONV_IN = "model.diffusion_model.input_blocks.0.0.weight"


@pytest.mark.parametrize(
    ("shapes", "what"),
    [
        ({CONV_IN: (320, 8, 3, 3)}, "InstructPix2Pix"),
        ({"model.diffusion_model.double_blocks.0.img_attn.qkv.weight": (9216, 3072)}, "Flux"),
        ({"model.diffusion_model.joint_blocks.0.x": (1,)}, "Stable Diffusion 3"),
        ({"x": (1,)}, r"no checkpoint by its names \(x\); expected a checkpoint of SD 1\.x"),
        ({CONV_IN: (320, 4, 3, 3)}, "no text encoder by which to tell its family"),
    ],
)  # fmt: skip
def test_other_models_are_told(shapes, what):
    with pytest.raises(FamilyError, match=what):
        family_of(shapes)


def test_inpainting_models_are_told_by_their_nine_channels():
    attention = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    shapes = {CONV_IN: (320, 9, 3, 3), attention: (320, 768)}
    family = family_of(shapes)
    assert family.key == "sd1"
    assert input_channels(TensorFile(shapes, {}, shapes.__getitem__), family) == {"in_channels": 9}


def test_the_refiner_is_told_by_its_text_encoder():
    openclip = "conditioner.embedders.0.model.ln_final.bias"
    assert family_of({CONV_IN: (384, 4, 3, 3), openclip: (1280,)}).key == "sdxl_refiner"


def test_a_file_with_only_a_unet_is_told_by_its_width():
    attention = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    for width, key in ((768, "sd1"), (1024, "sd2"), (2048, "sdxl"), (1280, "sdxl_refiner")):
        assert family_of({CONV_IN: (320, 4, 3, 3), attention: (320, width)}).key == key


@pytest.mark.parametrize(
    ("key", "keys", "metadata", "expected"),
    [
        ("sd1", (), {}, "epsilon"),
        ("sd2", (), {}, None),
        ("sdxl", ("v_pred",), {}, "v_prediction"),
        ("sd2", (), {"modelspec.architecture": "stable-diffusion-v2-768-v"}, "v_prediction"),
        ("sd2", ("v_pred",), {"modelspec.prediction_type": "epsilon"}, "epsilon"),
        ("sd1", (), {"modelspec.prediction_type": "v"}, "v_prediction"),
    ],
)
def test_what_it_predicts_is_said_by_the_file(key, keys, metadata, expected):
    assert prediction_type_of(FAMILIES[key], keys, metadata) == expected


def test_what_a_file_does_not_say_is_asked_for(tmp_path):
    tensors = load_file(write(tmp_path / "model.safetensors", small_model("sd2")))
    header = read_header(tmp_path / "model.safetensors")["__metadata__"]
    del header["modelspec.prediction_type"], header["modelspec.architecture"]
    path = tmp_path / "silent.safetensors"
    save_file({**tensors, "ztsnr": torch.tensor(1)}, path, header)
    with pytest.raises(BaseModelError, match=r"base_model\.prediction_type: .* does not say"):
        load_base_model(BaseModelConfig(path=str(path)))
    base = load_base_model(BaseModelConfig(path=str(path), prediction_type="epsilon"))
    assert base.prediction_type == base.noise_schedule["prediction_type"] == "epsilon"
    assert base.alphas_cumprod[-1] == pytest.approx(4.8973451890853435e-08)  # as in A1111


def test_options_of_base_models_without_effect_are_told():
    def idle(**options):
        return [field for field, _ in BaseModelConfig(**options).idle()]

    assert idle(path="a.safetensors", prediction_type="epsilon") == []
    assert idle(path="a.safetensors", variant="fp16", revision="b") == ["revision", "variant"]
    assert idle(path="folder", prediction_type="epsilon") == ["prediction_type"]


def test_a_family_model_says_nothing_of_its_own():
    """Full-size SD 1.5 with CLIP's words needs no settings; another head size does."""
    from inference.models.stable_diffusion.single_file import build_part

    family = FAMILIES["sd1"]
    modules = {part: build_part(part, config, family) for part, config in family.configs.items()}
    schedule = {**NOISE_SCHEDULE, "prediction_type": "epsilon", "timestep_spacing": "leading"}
    model = ModelParts(modules, {"tokenizer": clip_tokenizer()}, schedule, "epsilon")
    assert own_settings(model, family) == {}
    vae: Any = modules["vae"]
    vae.register_to_config(scaling_factor=0.5)
    assert own_settings(model, family)["configs"]["vae"]["scaling_factor"] == 0.5


def test_clips_words():
    tokenizer = clip_tokenizer()
    assert len(tokenizer) == 49408
    ids = [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer("a photo of a cat").input_ids == ids
    assert tokenizer.pad_token_id == 49407
    assert clip_tokenizer(pads_with_end=False).pad_token_id == 0


@pytest.fixture
def file(tiny_base, tmp_path):
    """The tiny base model as a file, its UNet trained a little."""
    with torch.no_grad():
        tiny_base.unet.conv_out.bias += 0.5
    path = tmp_path / "tuned.safetensors"
    Checkpoint.of(tiny_base).save(path, torch.float16, {"ss_steps": "9", "ss_output_name": "run"})
    return path


def test_a_base_model_is_the_same_from_file_and_folder(tiny_base, file):
    again = load_base_model(BaseModelConfig(path=str(file)))
    tiny_base.unet.half().float()
    check_equal(again.parts, tiny_base.parts)
    assert torch.equal(again.alphas_cumprod, tiny_base.alphas_cumprod)
    assert again.resolution == tiny_base.resolution
    assert torch.equal(again.tokenize(["a b"]).ids, tiny_base.tokenize(["a b"]).ids)
    assert model_hash(again) == sha256(file)
    assert model_name(again) == "tuned"
    half = load_base_model(BaseModelConfig(path=str(file)), "bf16")
    assert (half.unet.dtype, half.vae.dtype) == (torch.bfloat16, torch.float32)


def test_a_file_is_an_artifact_of_the_trained_parts(tiny_base_folder, file, tmp_path):
    base = load_base_model(BaseModelConfig(path=str(tiny_base_folder)))
    before = {key: value.clone() for key, value in weights_of(base.unet).items()}
    checkpoint = load_artifact(file)
    assert isinstance(checkpoint, Checkpoint)
    assert list(checkpoint.parts) == ["unet"]
    checkpoint.attach(base, 0.5)
    rounded = (before["conv_out.bias"] + 0.5).half().float()
    expected = torch.lerp(before["conv_out.bias"], rounded, 0.5)
    assert torch.equal(base.unet.conv_out.bias, expected)
    checkpoint.detach()
    assert all(torch.equal(v, before[k]) for k, v in weights_of(base.unet).items())
    saved = {"ss_steps": "9", "ss_output_name": "run"}
    checkpoint.save(tmp_path / "again.safetensors", torch.float16, saved)
    assert (tmp_path / "again.safetensors").read_bytes() == file.read_bytes()
    base.prediction_type = "v_prediction"
    with pytest.raises(ArtifactError, match="predicts epsilon, this base model v_prediction"):
        checkpoint.attach(base)


def test_a_ckpt_is_read_as_well(tiny_base, file, tmp_path):
    tensors = load_file(file)
    torch.save({"state_dict": tensors, "global_step": 3}, tmp_path / "tuned.ckpt")
    with pytest.raises(BaseModelError, match=r"its unet is not that of SD 1\.x"):
        load_base_model(BaseModelConfig(path=str(tmp_path / "tuned.ckpt")))
    facts = inspect(tmp_path / "tuned.ckpt")
    assert facts["family"] == "SD 1.x (stable-diffusion-v1)"


def test_inspect_tells_a_single_file(file):
    facts = inspect(file)
    assert facts["kind"] == "base model (single file)"
    assert facts["family"] == "SD 1.x (stable-diffusion-v1), of sizes of its own"
    assert facts["prediction type"] == "epsilon"
    assert facts["trained"] == "unet"
    assert facts["model hash in infotext"] == sha256(file)[:10]
    assert facts["modelspec.title"] == "run"
    assert "limner.model" not in facts
