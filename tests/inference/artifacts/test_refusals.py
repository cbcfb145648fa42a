"""Artifacts that cannot work as meant are refused, with what was found and what is known."""

import os
import pickle
import sys
import types
from typing import Any, cast

import pytest
import torch
from safetensors.torch import save_file

from inference.artifacts.adapters.lora import Lora, LoraSpec
from inference.artifacts.base import load_artifact, read_keys
from inference.artifacts.checkpoint import Checkpoint
from inference.artifacts.embedding import Embedding
from inference.artifacts.hypernetwork import Hypernetwork
from inference.artifacts.merging import merge
from inference.config.models import BaseModelConfig
from inference.convert import Request, convert
from inference.inspect import inspect
from inference.models.stable_diffusion.loading import load_base_model
from inference.runtime.errors import ArtifactError, DrawWarning, InputError

Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
K = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


def layer(name, rank=2, in_=16, out=16):
    return {
        f"{name}.lora_down.weight": torch.ones(rank, in_),
        f"{name}.lora_up.weight": torch.ones(out, rank),
        f"{name}.alpha": torch.tensor(float(rank)),
    }


@pytest.fixture
def written(tmp_path):
    def write(tensors, name="file.safetensors"):
        path = tmp_path / name
        if path.suffix == ".safetensors":
            save_file(tensors, path)
        else:
            torch.save(tensors, path)
        return path

    return write


def refusal(action) -> str:
    with pytest.raises(ArtifactError) as caught:
        action()
    assert isinstance(caught.value, InputError)
    return str(caught.value)


def test_a_lora_that_matches_nothing_says_what_it_was_made_for(base, written, snapshot):
    before = snapshot(base)
    name = "lora_unet_input_blocks_4_1_transformer_blocks_1_attn2_to_k"
    message = refusal(lambda: load_artifact(written(layer(name, in_=2048))).attach(base))
    assert "matches nothing in this base model (tiny)" in message
    assert name in message
    assert "width 2048 (SDXL)" in message
    assert "this base model's have 24" in message
    assert snapshot(base) == before


def unknown(number):
    names = (f"lora_unet_mid_block_attentions_{7 + index}_proj_in" for index in range(number))
    return {key: tensor for name in names for key, tensor in layer(name).items()}


def test_layers_that_the_base_model_lacks_are_counted_in_one_warning(base, written):
    """Up to half of them; the others work."""
    tensors = layer(Q) | layer(K, in_=24) | layer("lora_te3_encoder_block_0") | unknown(1)
    lora = load_artifact(written(tensors))
    with pytest.warns(DrawWarning) as warned:
        lora.attach(base)
    (message,) = [str(one.message) for one in warned]
    assert "file: 2 of 4 layers are not in this base model (tiny): " in message
    assert "lora_te3_encoder_block_0, lora_unet_mid_block_attentions_7_proj_in" in message
    assert "they have no effect" in message
    attached = [path for path, _ in base.unet.named_modules() if path.endswith("base_layer")]
    assert [path.split(".")[-2] for path in attached] == ["to_q", "to_k"]


def test_a_lora_of_which_more_than_half_is_unknown_is_refused(base, written, snapshot):
    before = snapshot(base)
    tensors = layer(Q) | layer(K, in_=24) | unknown(3)
    lora = Lora.load(written(tensors))
    for use in (lora.attach, lora.merge_into):
        message = refusal(lambda use=use: use(base))
        assert "3 of 5 layers are not in this base model" in message
        assert "lora_unet_mid_block_attentions_7_proj_in" in message
        assert "made for" not in message  # its width, 24, is that of this base model
        assert snapshot(base) == before


def test_no_message_says_that_a_width_differs_from_itself(base, written):
    tensors = layer(K, in_=24, out=99) | layer(Q)
    message = refusal(lambda: load_artifact(written(tensors)).attach(base))
    assert "99x2" in message
    assert "made for" not in message


def test_a_text_projection_that_is_never_used_is_passed_over(base, written):
    tensors = layer(Q) | layer("lora_te_text_projection", in_=24, out=24)
    load_artifact(written(tensors)).attach(base)


def test_other_shapes_are_told_with_the_layer(base, written, snapshot):
    before = snapshot(base)
    message = refusal(lambda: load_artifact(written(layer(Q) | layer(K, in_=768))).attach(base))
    assert K in message
    assert "2x768" in message
    assert "2x24" in message
    assert "width 768 (SD 1.x)" in message
    assert snapshot(base) == before


@pytest.mark.parametrize(
    ("key", "shape", "what"),
    [
        (f"{Q}.dora_scale", (16, 1), "DoRA"),
        (f"{Q}.lora_mid.weight", (2, 2, 3, 3), "Tucker"),
        (f"{Q}.hada_w1_a", (2, 2), "LoHa"),
        (f"{Q}.lokr_w1", (2, 2), "LoKr"),
        (f"{Q}.diff", (16, 16), "full weight differences"),
        (f"{Q}.a1.weight", (2, 16), "GLoRA"),
        (f"{Q}.w_norm", (16,), "train_norm"),
        (f"{Q}.b_norm", (16,), "train_norm"),
        (f"{Q}.oft_blocks", (2, 8, 8), "OFT"),
        ("oft_unet_down_blocks_0_attentions_0_proj_in.oft_blocks", (2, 8, 8), "OFT"),
        (f"{Q}.on_input", (), "IA3"),
        ("unet.down_blocks.0.attentions.0.proj_in.lora_magnitude_vector", (16,), "DoRA"),
        ("diffusion_model.input_blocks.1.1.proj_in.diff", (16, 16), "full weight differences"),
        ("bundle_emb.cat.string_to_param.*", (1, 24), "embeddings"),
        (f"{Q}.mystery", (2,), "not a LoRA tensor"),
    ],
)
def test_relatives_that_would_be_read_wrongly_are_refused(written, key, shape, what):
    for others in (layer(Q), {}):  # also in a file that holds nothing else
        path = written(others | {key: torch.ones(shape)})
        message = refusal(lambda path=path: load_artifact(path))
        assert f"{path}: {key}: " in message
        assert what in message


def test_a_lora_in_training_is_checked_as_well(base, new_base):
    lora = Lora.create(base, LoraSpec(2, 2.0, 0.0, ["attention"], False), seed=0)
    other = new_base(context=32)
    assert "2x24 and 16x2, but this base model's layer needs 2x32 and 16x2" in refusal(
        lambda: lora.attach(other)
    )
    lora.attach(base)


def test_half_a_layer_is_refused(written):
    tensors = layer(Q)
    del tensors[f"{Q}.lora_up.weight"]
    assert "the up half is missing" in refusal(lambda: load_artifact(written(tensors)))
    tensors = layer(Q) | {f"{Q}.lora_up.weight": torch.ones(16, 3)}
    assert "rank 2 in the down half, 3" in refusal(lambda: load_artifact(written(tensors)))
    tensors = layer(Q) | {f"{Q}.lora_up.weight": torch.ones(16, 2, 1)}
    assert "expected 2 or 4 dimensions" in refusal(lambda: load_artifact(written(tensors)))


def test_a_lora_without_effect_or_with_nan_is_refused(written):
    tensors = layer(Q) | {f"{Q}.lora_up.weight": torch.zeros(16, 2)}
    assert "changes nothing" in refusal(lambda: load_artifact(written(tensors)))
    tensors = layer(Q) | {f"{Q}.lora_up.weight": torch.full((16, 2), torch.nan)}
    assert "not finite" in refusal(lambda: load_artifact(written(tensors)))


def test_unknown_content_is_told_with_its_first_keys(written, tmp_path):
    tensors = {f"something.{i}": torch.ones(1) for i in range(9)}
    message = refusal(lambda: load_artifact(written(tensors)))
    assert "9 tensors (something.0, something.1" in message
    assert "lora_unet_" in message
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    assert "a folder with inner" in refusal(lambda: load_artifact(tmp_path / "folder"))
    assert "no such file" in refusal(lambda: load_artifact(tmp_path / "nothing"))


def test_a_file_that_is_no_safetensors_is_told(tmp_path):
    (tmp_path / "page.safetensors").write_text("<!DOCTYPE html>")
    assert "cannot be read as safetensors (15 bytes)" in refusal(
        lambda: load_artifact(tmp_path / "page.safetensors")
    )


class Harmful:
    def __reduce__(self):
        return print, ("run",)


HARMFUL = {
    "lora": {"lora_unet_x.lora_down.weight": Harmful()},
    "hypernetwork": {768: ({}, {}), "optional_info": Harmful()},
    "embedding": {"string_to_param": {"*": torch.zeros(1, 4)}, "name": Harmful()},
    "state dict": {"state_dict": {"model": Harmful()}},
}


@pytest.mark.parametrize("kind", HARMFUL)
def test_pickles_run_nothing(kind, tmp_path, capsys):
    path = tmp_path / "harmful.pt"
    torch.save(HARMFUL[kind], path)
    message = refusal(lambda: load_artifact(path))
    assert "cannot be read as a pickle" in message
    assert "only data is read from pickles" in message
    assert capsys.readouterr().out == ""


class Payload:
    """When it is unpickled by a careless program, a file appears."""

    def __init__(self, function, text):
        self.call = function, (text,)

    def __reduce__(self):
        return self.call


def zipped(payload, path):
    torch.save({"state_dict": {"model.diffusion_model.out.2.bias": payload}}, path)


def legacy(payload, path):
    content = {"string_to_param": {"*": torch.zeros(1, 4)}, "name": payload}
    torch.save(content, path, _use_new_zipfile_serialization=False)


def bare(payload, path):
    path.write_bytes(pickle.dumps({"lora_unet_x.lora_up.weight": payload}, protocol=4))


LOADERS = {
    "load_artifact": load_artifact,
    "lora": Lora.load,
    "embedding": Embedding.load,
    "hypernetwork": Hypernetwork.load,
    "checkpoint": Checkpoint.load,
    "base model": lambda path: load_base_model(BaseModelConfig(path=str(path))),
    "inspect": inspect,
    "convert": lambda path: convert(
        Request(str(path), path.with_suffix(".out"), "single-file", None, [], None)
    ),
    "merge": lambda path: merge(cast(Any, None), f"{path}:0.5"),
}


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("wrap", [zipped, legacy, bare])
@pytest.mark.parametrize("function", [os.system, eval, exec])
def test_no_loader_runs_what_is_in_a_checkpoint(loader, wrap, function, tmp_path):
    trace, path = tmp_path / "trace", tmp_path / "harmful.ckpt"
    code = f"open({str(trace)!r}, 'w').close()"
    wrap(Payload(function, f"touch {trace}" if function is os.system else code), path)
    with pytest.raises(InputError, match="cannot be read as a pickle") as caught:
        LOADERS[loader](path)
    assert "harmful.ckpt" in str(caught.value)
    assert wrap is bare or "only data is read from pickles" in str(caught.value)
    assert not trace.exists()


def test_the_class_in_old_checkpoints_is_only_a_name(tmp_path, monkeypatch):
    """As in sd-v1-4.ckpt, whose callbacks are kept by the class of pytorch-lightning."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = types.ModuleType(name)
    callback = type("ModelCheckpoint", (), {"__module__": name})
    vars(module)["ModelCheckpoint"] = callback
    with monkeypatch.context() as patch:
        for parent in (name.rsplit(".", 2)[0], name.rsplit(".", 1)[0]):
            patch.setitem(sys.modules, parent, types.ModuleType(parent))
        patch.setitem(sys.modules, name, module)
        content = {"state_dict": {"x": torch.ones(1)}, "callbacks": {callback: {"best": 1.0}}}
        torch.save(content, tmp_path / "old.ckpt")
    assert read_keys(tmp_path / "old.ckpt") == ["x"]


def test_the_payloads_would_work(tmp_path):
    """So that the test above refuses something."""
    trace = tmp_path / "trace"
    pickle.loads(pickle.dumps(Payload(os.system, f"touch {trace}")))
    assert trace.exists()


def test_content_decides_not_the_name(base, written):
    path = written(layer(Q), "embedding_or_so.safetensors")
    assert isinstance(load_artifact(path), Lora)
