"""LoRAs by the names of ComfyUI, SimpleTuner and peft have the effect that they have there."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from inference.artifacts.adapters.lora import Lora
from inference.artifacts.adapters.lora_keys import layers_of
from inference.artifacts.adapters.lora_names import usual_name
from inference.artifacts.base import load_artifact
from inference.artifacts.library import NetworkLibrary
from inference.convert import Request, convert
from inference.files.hashes import artifact_hash
from inference.inspect import inspect
from inference.models.finding import find_named
from inference.models.stable_diffusion.detect import FAMILIES
from inference.models.stable_diffusion.keys import places
from inference.models.stable_diffusion.lora import LAYOUTS
from inference.models.stable_diffusion.single_file import build_part
from inference.prompts.network_calls import ExtraNetwork
from inference.runtime.errors import ArtifactError, DrawWarning
from tests.inference.artifacts.adapters.test_lora_files import (
    TEXT_Q,
    check_hand_written,
    hand_written,
)
from tests.inference.artifacts.conftest import build_base

pytestmark = pytest.mark.filterwarnings("ignore:.*layers have no alpha")

UNET = "lora_unet_down_blocks_0_attentions_0"
COMFY = {
    f"{UNET}_transformer_blocks_0_attn1_to_q": (
        "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"
    ),
    f"{UNET}_proj_in": "diffusion_model.input_blocks.1.1.proj_in",
    "lora_te_text_model_encoder_layers_0_self_attn_q_proj": (
        f"text_encoders.clip_l.transformer.text_model.{TEXT_Q}"
    ),
}
SIMPLE_TUNER = {name: name.replace("lora_unet_", "lycoris_") for name in COMFY}


@pytest.mark.parametrize(
    ("names", "ends", "naming"),
    [
        (COMFY, ("lora_down.weight", "lora_up.weight"), "ComfyUI"),
        (COMFY, ("lora_A.weight", "lora_B.weight"), "ComfyUI"),
        (COMFY, ("lora_A", "lora_B"), "ComfyUI"),
        (COMFY, ("lora.down.weight", "lora.up.weight"), "ComfyUI"),
        (SIMPLE_TUNER, ("lora_down.weight", "lora_up.weight"), "SimpleTuner"),
    ],
)
def test_others_names_have_the_same_effect(base, tmp_path, names, ends, naming):
    tensors = {}
    for key, value in hand_written().items():
        name, end = key.split(".", 1)
        end = end.replace("lora_down.weight", ends[0]).replace("lora_up.weight", ends[1])
        tensors[f"{names[name]}.{end}"] = value
    save_file(tensors, tmp_path / "hand.safetensors")
    check_hand_written(base, load_artifact(tmp_path / "hand.safetensors"))
    assert inspect(tmp_path / "hand.safetensors")["naming"] == naming


def comfy_names(family, part):
    """Return ComfyUI's key of each linear and convolution layer of a part in full size."""
    module = build_part(part, FAMILIES[family].configs[part], FAMILIES[family])
    if part != "unet":  # its text encoders have transformers' names
        encoder = {"sd2": "h"}.get(family, "g" if part.endswith("2") else "l")
        begin = f"text_encoders.clip_{encoder}.transformer."
        for path, _ in layers_of(module):
            own = path if path == "text_projection" else path.removeprefix("text_model.")
            yield path, begin + ("" if path == "text_projection" else "text_model.") + own
        return
    found = places("unet", module.state_dict(), FAMILIES[family].layout)
    for path, _ in layers_of(module):
        yield path, found[f"{path}.weight"].key.removeprefix("model.").removesuffix(".weight")


@pytest.mark.parametrize(
    ("family", "part", "number"),
    [
        ("sd1", "text_encoder", 72),
        ("sd2", "text_encoder", 138),
        pytest.param("sd1", "unet", 282, marks=pytest.mark.slow),
        pytest.param("sd2", "unet", 282, marks=pytest.mark.slow),
        pytest.param("sdxl", "unet", 794, marks=pytest.mark.slow),
        pytest.param("sdxl", "text_encoder_2", 193, marks=pytest.mark.slow),
    ],
)
def test_every_layer_of_a_model_in_full_size_is_found_by_comfyuis_name(family, part, number):
    layout = LAYOUTS[family == "sdxl"]
    names = dict(comfy_names(family, part))
    assert len(names) == number
    known = {name: path for path in names for name in layout.known_names(part, path)}
    for path, comfy in names.items():
        name = usual_name(f"{comfy}.lora_up.weight", torch.zeros(1)).removesuffix(".lora_up.weight")
        if part != "unet":
            name = layout.kohya_name(part, name.removeprefix(f"{part}."))
        assert known[name] == path, comfy


def test_comfyuis_sdxl_names_are_those_of_sdxl(tiny_sdxl, tmp_path):
    paths = ("transformer.text_model.encoder.layers.1.mlp.fc1", "transformer.text_projection")
    sizes = ((24, 32), (24, 20))
    tensors = {}
    for path, (in_, out) in zip(paths, sizes, strict=True):
        tensors |= {
            f"text_encoders.clip_g.{path}.lora_down.weight": torch.ones(2, in_),
            f"text_encoders.clip_g.{path}.lora_up.weight": torch.ones(out, 2),
            f"text_encoders.clip_g.{path}.alpha": torch.tensor(2.0),
        }
    tensors |= {
        "diffusion_model.middle_block.1.proj_in.lora_down.weight": torch.ones(1, 16),
        "diffusion_model.middle_block.1.proj_in.lora_up.weight": torch.ones(16, 1),
        "diffusion_model.middle_block.1.proj_in.alpha": torch.tensor(1.0),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    lora = Lora.load(tmp_path / "x.safetensors")
    lora.attach(tiny_sdxl)
    attached = {place.path for place in lora._attached.values()}
    assert attached >= {"text_projection", "mid_block.attentions.0.proj_in"}
    assert any(path.endswith("encoder.layers.1.mlp.fc1") for path in attached)
    assert len(attached) == 3


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A UNet and a text encoder in peft's hands, and the folder with what it saved of both."""
    from peft import LoraConfig, get_peft_model

    theirs, folder = build_base(), tmp_path_factory.mktemp("peft")
    generator = torch.Generator().manual_seed(0)
    targets = {"unet": ["to_q", "to_out.0", "proj_in", "conv1"], "text_encoder": ["q_proj", "fc1"]}
    for part, names in targets.items():
        config = LoraConfig(r=3, lora_alpha=5, target_modules=names, alpha_pattern={names[1]: 2})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # transformers' words to peft
            model = get_peft_model(theirs.parts[part], config)
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
        model.save_pretrained(str(folder / part))
    return theirs, folder


@pytest.fixture
def adapters(saved, tmp_path):
    """The same, in a folder for this test."""
    return saved[0], Path(shutil.copytree(saved[1], tmp_path / "cat"))


def test_pefts_adapters_draw_the_same_here(adapters, new_base, predict):
    theirs, folder = adapters
    ours, plain = new_base(), predict(new_base())
    lora = load_artifact(folder)
    assert lora.name == "cat"
    lora.attach(ours)
    torch.testing.assert_close(predict(ours), predict(theirs), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(predict(ours), plain, atol=1e-3)


def test_one_adapter_is_named_by_its_folder_or_its_file(adapters, new_base, predict):
    _, folder = adapters
    whole, found = new_base(), []
    load_artifact(folder / "text_encoder").attach(whole)
    load_artifact(folder / "unet" / "adapter_model.safetensors").attach(whole)
    found.append(predict(whole))
    both = new_base()
    load_artifact(folder).attach(both)
    assert torch.equal(found[0], predict(both))
    assert load_artifact(folder / "unet" / "adapter_model.safetensors").name == "unet"
    hash_ = artifact_hash(folder, "lora")
    assert hash_ is not None
    assert hash_ == artifact_hash(folder / "unet" / "adapter_model.safetensors", "lora")
    facts = inspect(folder)
    assert facts["naming"] == "peft"
    assert facts["rank"] == "3"
    assert "in unet" in facts["modules"]
    assert "in text_encoder" in facts["modules"]
    assert facts["hash in infotext"] == hash_[:12]


def test_an_adapter_without_its_config_is_taken_at_its_rank(adapters, tmp_path):
    """As a file alone, and as a pickle."""
    tensors = load_file(adapters[1] / "unet" / "adapter_model.safetensors")
    (tmp_path / "alone").mkdir()
    save_file(tensors, tmp_path / "alone" / "adapter_model.safetensors")
    torch.save(tensors, tmp_path / "alone" / "adapter_model.bin")
    for name in ("adapter_model.safetensors", "adapter_model.bin"):
        with pytest.warns(DrawWarning, match="does not say its alpha; its rank, 3, is taken"):
            lora = Lora.load(tmp_path / "alone" / name)
        assert {layer.alpha for layer in lora.layers.values()} == {3.0}


def test_prompts_call_an_adapter_by_its_folder(adapters, base):
    folder = adapters[1] / "unet"
    folder = folder.rename(folder.with_name("kitten"))
    library = NetworkLibrary(base, [folder.parent])
    found = library.find(ExtraNetwork("lora", "kitten", 1.0, 1.0, None, 0))
    assert found == folder / "adapter_model.safetensors"
    hash_ = artifact_hash(found, "lora")
    for name, remark in (("kitten", ""), ("other", "is called kitten here")):
        assert find_named(name, "lora", hash_, [folder.parent]) == ("kitten", remark)


def test_an_adapter_is_converted(adapters, new_base, predict, tmp_path):
    out = tmp_path / "cat.safetensors"
    convert(Request(str(adapters[1]), out, "kohya", None, [], None))
    one, two = new_base(), new_base()
    load_artifact(out).attach(one)
    load_artifact(adapters[1]).attach(two)
    assert torch.equal(predict(one), predict(two))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type LOHA: LoHa cannot be read"),
        ({"peft_type": "PREFIX_TUNING"}, "PREFIX_TUNING cannot be read"),
        ({"use_dora": True}, "use_dora: DoRA cannot be read"),
        ({"init_lora_weights": "pissa_niter_4"}, "also changed the base model's weights"),
    ],
)
def test_adapters_of_other_kinds_are_named(adapters, options, message):
    file = adapters[1] / "unet" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | options))
    with pytest.raises(ArtifactError, match=message) as caught:
        load_artifact(adapters[1])
    assert str(file) in str(caught.value)


def test_an_adapter_folder_without_weights_is_named(adapters):
    (adapters[1] / "unet" / "adapter_model.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"unet: has adapter_config.json, and no adapter_model"):
        load_artifact(adapters[1])


def test_two_adapters_of_one_part_are_refused(adapters):
    folder = adapters[1]
    (folder / "other").mkdir()
    for file in (folder / "unet").iterdir():
        (folder / "other" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ArtifactError, match=r"3 adapters for the same layers"):
        load_artifact(folder)
