"""Hypernetworks: A1111's layers, files of every era, and how they work in a base model."""

import inspect
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from inference.artifacts.adapters.lora import Lora, LoraSpec
from inference.artifacts.base import load_artifact
from inference.artifacts.hypernetwork import Hypernetwork, attention_inputs, context_widths
from inference.artifacts.hypernetwork_files import (
    UNUSABLE,
    HypernetworkModule,
    HypernetworkSpec,
    a1111_file,
    activation,
    comfyui_difference,
    distance_from_identity,
    initial_pair,
)
from inference.models.stable_diffusion.model import BaseModel
from inference.runtime.errors import ArtifactError, DrawWarning
from tests.inference.artifacts.adapters.low_rank_layers import low_rank, low_ranks
from train.config.objectives import ACTIVATIONS, UNUSABLE_ACTIVATIONS

RELU = {"activation_func": "relu"}
NUMBERING: dict[str, tuple[dict[str, Any], list[str]]] = {  # as measured in A1111 1.10.1
    "plain": ({}, ["0 Linear", "1 Linear"]),
    "relu": (RELU, ["0 Linear", "2 Linear"]),
    "relu, norm": (
        {**RELU, "is_layer_norm": True},
        ["0 Linear", "2 LayerNorm", "3 Linear", "4 LayerNorm"],
    ),
    "relu, norm, dropout": (
        {
            **RELU,
            "is_layer_norm": True,
            "layer_structure": (1, 2, 2, 1),
            "dropout_structure": (0, 0.05, 0.15, 0),
        },
        ["0 Linear", "2 LayerNorm", "4 Linear", "6 LayerNorm", "8 Linear", "9 LayerNorm"],
    ),
    "relu, norm, output": (
        {**RELU, "is_layer_norm": True, "activate_output": True},
        ["0 Linear", "2 LayerNorm", "3 Linear", "5 LayerNorm"],
    ),
    "prelu": ({"activation_func": "prelu"}, ["0 Linear", "1 PReLU", "2 Linear"]),
}


def randomized(network: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5, generator=generator)
    return network.requires_grad_(False).eval()


def context(width: int = 4) -> Tensor:
    return torch.randn(2, 3, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NUMBERING)
def test_layers_are_numbered_as_in_a1111(name: str) -> None:
    options, expected = NUMBERING[name]
    network = HypernetworkModule(4, HypernetworkSpec(**options))
    kinds = {"Linear", "LayerNorm", "PReLU"}
    layers = [f"{i} {type(layer).__name__}" for i, layer in enumerate(network.linear)]
    assert [layer for layer in layers if layer.split()[1] in kinds] == expected
    keys = {key.split(".")[1] for key in network.state_dict()}
    assert keys == {layer.split()[0] for layer in expected}


def by_hand(network: HypernetworkModule, spec: HypernetworkSpec, x: Tensor) -> Tensor:
    """x + MLP(x), written out with the weights in their order."""
    linears = [layer for layer in network.linear if isinstance(layer, nn.Linear)]
    norms = [layer for layer in network.linear if isinstance(layer, nn.LayerNorm)]
    slopes = [float(layer.weight) for layer in network.linear if isinstance(layer, nn.PReLU)]
    functions = {"linear": lambda h: h, "relu": lambda h: h.clamp(min=0)}
    functions["prelu"] = lambda h: torch.where(h > 0, h, slopes[0] * h)
    change = x
    for number, linear in enumerate(linears):
        change = change @ linear.weight.T + linear.bias
        if number + 1 < len(linears) or spec.activate_output:
            change = functions[spec.activation_func](change)
        if spec.is_layer_norm:
            mean = change.mean(-1, keepdim=True)
            deviation = (change.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
            change = (change - mean) / deviation * norms[number].weight + norms[number].bias
    return x + change


@pytest.mark.parametrize("name", NUMBERING)
def test_forward_by_hand(name: str) -> None:
    spec = HypernetworkSpec(**NUMBERING[name][0])
    network = HypernetworkModule(4, spec)
    randomized(network)
    torch.testing.assert_close(network(context()), by_hand(network, spec, context()))


def test_a_number_worked_out_on_paper() -> None:
    """Width 1, [1, 2, 1], relu: weights 2 and -3, then 5 and 7. 1.5 -> 1.5 + 5 * (3 + 0.25)."""
    network = HypernetworkModule(1, HypernetworkSpec(activation_func="relu"))
    first, second = network.linears
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[2.0], [-3.0]]))
        first.bias.copy_(torch.tensor([0.25, 1.0]))
        second.weight.copy_(torch.tensor([[5.0, 7.0]]))
        second.bias.copy_(torch.tensor([-0.5]))
    network.eval()
    assert network(torch.tensor([[1.5]])).item() == 1.5 + 5 * 3.25 - 0.5
    network.strength = 0.5
    assert network(torch.tensor([[1.5]])).item() == 1.5 + (5 * 3.25 - 0.5) / 2
    assert network.train()(torch.tensor([[1.5]])).item() == 1.5 + 5 * 3.25 - 0.5


def test_the_activations_are_those_of_the_installed_torch() -> None:
    module = torch.nn.modules.activation
    classes = {
        name.lower()
        for name, found in inspect.getmembers(module, inspect.isclass)
        if issubclass(found, nn.Module) and found.__module__ == module.__name__
    }
    assert {*ACTIVATIONS} | {*UNUSABLE_ACTIVATIONS} == classes | {"linear", "swish"}
    assert {*UNUSABLE} <= {*UNUSABLE_ACTIVATIONS}
    assert isinstance(activation("swish"), nn.Hardswish)
    assert isinstance(activation("ReLU"), nn.ReLU)
    for name in classes - {*UNUSABLE}:
        network = HypernetworkModule(4, HypernetworkSpec(activation_func=name))
        assert randomized(network)(context()).shape == (2, 3, 4)
    for name in (*UNUSABLE, "quux"):
        with pytest.raises(ArtifactError, match="no activation"):
            activation(name)


@pytest.mark.parametrize(
    ("options", "low", "high"),
    [
        ({}, 0.001, 0.02),
        ({**RELU, "weight_initialization": "KaimingUniform"}, 1.0, 2.0),
        ({**RELU, "weight_initialization": "KaimingNormal"}, 1.0, 2.0),
        ({"weight_initialization": "XavierUniform"}, 0.5, 2.0),
        ({"weight_initialization": "XavierNormal"}, 0.5, 2.0),
        ({**RELU, "weight_initialization": "KaimingUniform", "is_layer_norm": True}, 0.001, 0.03),
    ],
)
def test_how_far_each_beginning_is_from_no_change(
    options: dict[str, Any], low: float, high: float
) -> None:
    pair = initial_pair(64, HypernetworkSpec(**options), seed=0)
    assert low < distance_from_identity([pair]) < high
    again = initial_pair(64, HypernetworkSpec(**options), seed=0)
    assert all(map(torch.equal, pair.parameters(), again.parameters()))
    keys, values = (next(iter(network.parameters())) for network in pair)
    assert not torch.equal(keys, values)


# ------------------------------------------------------------------------------------------ files


def state(network: nn.Module) -> OrderedDict[str, Tensor]:
    return OrderedDict(network.state_dict())


def pair_of(spec: HypernetworkSpec, width: int = 4) -> nn.ModuleList:
    return nn.ModuleList(randomized(HypernetworkModule(width, spec), i) for i in (1, 2))


def outputs(path: Path, width: int = 4) -> list[Tensor]:
    loaded = load_artifact(path)
    assert isinstance(loaded, Hypernetwork)
    return [network.eval()(context(width)) for network in loaded.pairs[width]]


@pytest.mark.filterwarnings("ignore:.*ComfyUI")
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("name", NUMBERING)
def test_what_is_saved_is_what_is_loaded(name: str, suffix: str, tmp_path: Path) -> None:
    spec = HypernetworkSpec(**NUMBERING[name][0])
    pair = pair_of(spec)
    facts = {"sd_checkpoint": "0123456789", "sd_checkpoint_name": "picto", "optional_info": "x"}
    saved = Hypernetwork({4: pair}, spec, facts)
    file = tmp_path / f"icons{suffix}"
    saved.save(file, torch.float32, {"ss_output_name": "icons", "ss_steps": "500"})
    loaded = load_artifact(file)
    assert isinstance(loaded, Hypernetwork)
    assert loaded.name == "icons"
    assert loaded.spec == spec
    assert {**facts, "name": "icons", "step": 500}.items() <= loaded.facts.items()
    for ours, theirs in zip(pair, loaded.pairs[4], strict=True):
        assert state(ours).keys() == state(theirs).keys()
        assert all(map(torch.equal, state(ours).values(), state(theirs).values()))
    loaded.save(tmp_path / f"again{suffix}", torch.float32, {})
    assert (tmp_path / f"again{suffix}").read_bytes() == file.read_bytes()


@pytest.mark.filterwarnings("ignore:.*ComfyUI")
def test_the_pt_file_is_a1111s(tmp_path: Path) -> None:
    """Keys and types of A1111 1.10.1; read with weights_only."""
    spec = HypernetworkSpec(**NUMBERING["relu, norm, dropout"][0])
    saved = Hypernetwork({4: pair_of(spec), 8: pair_of(spec, 8)}, spec, {"sd_checkpoint": "abc"})
    saved.save(tmp_path / "icons.pt", torch.float16, {"ss_output_name": "icons", "ss_steps": "7"})
    content = torch.load(tmp_path / "icons.pt", weights_only=True)
    weights = {key: content.pop(key) for key in (4, 8)}
    assert content == {
        "step": 7,
        "name": "icons",
        "layer_structure": [1, 2, 2, 1],
        "activation_func": "relu",
        "is_layer_norm": True,
        "weight_initialization": "Normal",
        "sd_checkpoint": "abc",
        "sd_checkpoint_name": None,
        "activate_output": False,
        "use_dropout": False,
        "dropout_structure": [0, 0.05, 0.15, 0],
        "last_layer_dropout": True,
        "optional_info": None,
    }
    assert all(type(multiple) is int for multiple in content["layer_structure"])
    for pair in weights.values():
        assert type(pair) is tuple
        assert [*pair[0]] == [f"linear.{i}.{p}" for i in (0, 2, 4, 6, 8, 9) for p in WEIGHT_BIAS]
        assert all(value.dtype == torch.float16 for half in pair for value in half.values())


WEIGHT_BIAS = ("weight", "bias")


def renumbered(network: nn.Module, indices: list[int], key: str = "linear.{}") -> dict[str, Tensor]:
    """A state dict with the numbers that another version gave to the same layers."""
    old = list(dict.fromkeys(name.split(".")[1] for name in network.state_dict()))
    names = {number: key.format(new) for number, new in zip(old, indices, strict=True)}
    return {
        f"{names[name.split('.')[1]]}.{name.split('.')[2]}": value
        for name, value in network.state_dict().items()
    }


PLAIN = HypernetworkSpec(activate_output=True)
ERAS: dict[str, tuple[HypernetworkSpec, list[int], str, dict[str, Any]]] = {
    "2022-10-07": (PLAIN, [1, 2], "linear{}", {}),
    "2022-10-11": (PLAIN, [1, 2], "linear{}", {"step": 3, "name": "x", "sd_checkpoint": "a"}),
    "2022-10-19": (
        HypernetworkSpec(layer_structure=(1, 2, 2, 1), is_layer_norm=True, activate_output=True),
        [0, 1, 2, 3, 4, 5],
        "linear.{}",
        {"layer_structure": [1, 2, 2, 1], "is_layer_norm": True},
    ),
    "2022-10-20, dropout before the norm": (
        HypernetworkSpec(activation_func="relu", is_layer_norm=True, activate_output=True),
        [0, 3, 4, 7],
        "linear.{}",
        {
            "layer_structure": [1, 2, 1],
            "activation_func": "relu",
            "is_layer_norm": True,
            "use_dropout": True,
        },
    ),
    "2022-10-26, names of classes": (
        HypernetworkSpec(activation_func="relu"),
        [0, 2],
        "linear.{}",
        {
            "layer_structure": [1, 2, 1],
            "activation_func": "ReLU",
            "weight_initialization": "KaimingNormal",
            "activate_output": False,
        },
    ),
    "2022-10-27, last layer's dropout": (
        HypernetworkSpec(layer_structure=(1, 2, 2, 1), activation_func="relu"),
        [0, 3, 6],
        "linear.{}",
        {
            "layer_structure": [1, 2, 2, 1],
            "activation_func": "relu",
            "activate_output": False,
            "use_dropout": True,
            "last_layer_dropout": True,
        },
    ),
    "2022-11-05, optimizer within": (
        HypernetworkSpec(activation_func="relu"),
        [0, 2],
        "linear.{}",
        {
            "layer_structure": [1, 2, 1],
            "activation_func": "relu",
            "activate_output": False,
            "optimizer_name": "AdamW",
            "optimizer_state_dict": {"state": {0: {"step": torch.tensor(1.0)}}},
        },
    ),
    "2023-01-10": (
        HypernetworkSpec(layer_structure=(1, 1.5, 1), activation_func="mish"),
        [0, 2],
        "linear.{}",
        {
            "layer_structure": [1, 1.5, 1],
            "activation_func": "mish",
            "activate_output": False,
            "dropout_structure": [0, 0, 0],
            "optional_info": "a note",
        },
    ),
}


@pytest.mark.parametrize("era", ERAS)
def test_files_of_every_era(era: str, tmp_path: Path) -> None:
    """Laid out by hand as that version did; loaded, it computes what that version computed."""
    spec, indices, key, facts = ERAS[era]
    pair = pair_of(spec)
    content = {4: tuple(renumbered(network, indices, key) for network in pair), **facts}
    torch.save(content, tmp_path / "old.pt")
    expected = [network(context()) for network in pair]
    for ours, theirs in zip(expected, outputs(tmp_path / "old.pt"), strict=True):
        torch.testing.assert_close(theirs, ours, atol=0, rtol=0)


def test_dropout_of_2022(tmp_path: Path) -> None:
    facts = ERAS["2022-10-27, last layer's dropout"][3]
    for last, expected in ((True, (0, 0.3, 0.3, 0)), (False, (0, 0.3, 0, 0))):
        pair = pair_of(HypernetworkSpec(layer_structure=(1, 2, 2, 1), activation_func="relu"))
        content = {4: tuple(renumbered(network, [0, 3, 6]) for network in pair), **facts}
        torch.save({**content, "last_layer_dropout": last}, tmp_path / "old.pt")
        loaded = load_artifact(tmp_path / "old.pt")
        assert isinstance(loaded, Hypernetwork)
        assert loaded.spec.dropout_structure == expected


def file_with(tmp_path: Path, **facts: Any) -> Path:
    spec = HypernetworkSpec()
    content = a1111_file({4: pair_of(spec)}, spec, {})
    torch.save({**content, **facts}, tmp_path / "x.pt")
    return tmp_path / "x.pt"


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"skip_connection": True}, "MonkeyPatch"),
        ({"activation_func": "quux"}, "no activation 'quux'"),
        ({"activation_func": "prelu"}, "0 layers of kind PReLU"),
        ({"dropout_structure": [0, 0]}, "does not go with"),
        ({4: ({"linear.0.weight": torch.ones(1, 2, 3)},) * 2}, "no layer that we know"),
        ({4: ({}, {})}, "without layers"),
        ({4: ({"linear.0.weight": 1}, {})}, "no tensor"),
        ({4: (1, 2)}, "no networks in it"),
    ],
)
def test_files_that_are_refused(facts: dict[Any, Any], message: str, tmp_path: Path) -> None:
    content = torch.load(file_with(tmp_path), weights_only=True)
    torch.save(content | facts, tmp_path / "x.pt")
    with pytest.raises(ArtifactError, match=message):
        load_artifact(tmp_path / "x.pt")


KNOWN_IN_COMFYUI = {
    "linear", "relu", "leakyrelu", "elu", "swish", "tanh", "sigmoid", "softsign", "mish",
}  # fmt: skip


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_what_comfyui_does_otherwise_is_reported(name: str) -> None:
    plain = comfyui_difference(HypernetworkSpec(activation_func=name))
    assert (plain is None) == (name in KNOWN_IN_COMFYUI)
    normed = HypernetworkSpec(activation_func=name, is_layer_norm=True)
    assert (comfyui_difference(normed) is None) == (name == "linear")
    whole = HypernetworkSpec(activation_func=name, is_layer_norm=True, activate_output=True)
    assert comfyui_difference(whole) == plain


def test_saving_reports_once_what_comfyui_does_otherwise(tmp_path: Path) -> None:
    spec = HypernetworkSpec(activation_func="hardtanh")
    network = Hypernetwork({4: pair_of(spec)}, spec, {})
    network.save(tmp_path / "x.safetensors", torch.float32, {})
    with pytest.warns(DrawWarning, match=r"x\.pt: ComfyUI does not apply .* hardtanh; it knows"):
        network.save(tmp_path / "x.pt", torch.float32, {})
    network.save(tmp_path / "y.pt", torch.float32, {})


def test_dropout_of_an_old_file_is_read_as_before(tmp_path: Path) -> None:
    """Ours says use_dropout: False beside dropout_structure, which wins in A1111 and here."""
    spec = HypernetworkSpec((1, 2, 2, 1), dropout_structure=(0, 0.3, 0.1, 0))
    Hypernetwork({4: pair_of(spec)}, spec, {}).save(tmp_path / "x.pt", torch.float32, {})
    content = torch.load(tmp_path / "x.pt", weights_only=True)
    assert (content["use_dropout"], content["dropout_structure"]) == (False, [0, 0.3, 0.1, 0])
    read = load_artifact(tmp_path / "x.pt")
    assert isinstance(read, Hypernetwork)
    assert read.spec == spec


def test_files_that_would_have_no_effect(tmp_path: Path) -> None:
    spec = HypernetworkSpec()
    pair = pair_of(spec)
    for parameter in pair.parameters():
        parameter.fill_(0.0)
    Hypernetwork({4: pair}, spec, {}).save(tmp_path / "x.pt", torch.float32, {})
    with pytest.raises(ArtifactError, match="changes nothing"):
        load_artifact(tmp_path / "x.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_networks_that_are_not_finite_are_not_written(suffix: str, tmp_path: Path) -> None:
    spec = HypernetworkSpec()
    pair = pair_of(spec)
    next(pair.parameters()).fill_(float("inf"))
    with pytest.raises(ArtifactError, match=r"1 of 8 tensors are not finite .* in fp32"):
        Hypernetwork({4: pair}, spec, {}).save(tmp_path / f"x{suffix}", torch.float32, {})
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------------- in a base model


def predict(base: BaseModel) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn(1, 4, 4, 4, generator=generator)
    with torch.no_grad():
        return base.predict(latents, torch.tensor([300]), base.encode_prompts(["a cat"]))


def hypernetwork(seed: int, widths: tuple[int, ...] = (16,)) -> Hypernetwork:
    spec = HypernetworkSpec(activation_func="relu")
    pairs = {
        width: nn.ModuleList(
            randomized(HypernetworkModule(width, spec), seed * 100 + i) for i in (0, 1)
        )
        for width in widths
    }
    return Hypernetwork(pairs, spec, {}, f"hn{seed}")


def test_attached_it_changes_keys_and_values_only(tiny_base: BaseModel) -> None:
    """A hook on every to_k and to_v; queries see the context unchanged."""
    assert context_widths(tiny_base) == {16}
    roles = [role for _, role in attention_inputs(tiny_base)]
    assert roles.count(0) == roles.count(1) == len(roles) // 2 == 8
    before = predict(tiny_base)
    one = hypernetwork(1)
    one.attach(tiny_base)
    seen: dict[str, Tensor] = {}
    attention: Any = tiny_base.unet.get_submodule(
        "mid_block.attentions.0.transformer_blocks.0.attn2"
    )
    handles = [
        getattr(attention, name).register_forward_hook(
            lambda layer, inputs, output, name=name: seen.update({name: output})
        )
        for name in ("to_k", "to_v")
    ]
    states = tiny_base.encode_prompts(["a cat"]).states
    after = predict(tiny_base)
    for number, name in enumerate(("to_k", "to_v")):
        changed = one.pairs[16][number](states)
        expected = nn.functional.linear(changed, getattr(attention, name).weight)
        torch.testing.assert_close(seen[name], expected)
    for handle in handles:
        handle.remove()
    assert not torch.equal(after, before)
    one.set_strength(0)
    assert torch.equal(predict(tiny_base), before)
    one.set_strength(1)
    assert torch.equal(predict(tiny_base), after)
    one.detach()
    assert torch.equal(predict(tiny_base), before)
    assert not any(layer._forward_pre_hooks for layer, _ in attention_inputs(tiny_base))


def test_several_work_one_after_the_other(tiny_base: BaseModel) -> None:
    """In the order of attaching: the second gets what the first gives."""
    x = context(16)
    one, two = hypernetwork(1), hypernetwork(2)
    one.attach(tiny_base)
    two.attach(tiny_base, 0.5)
    layer: Any = attention_inputs(tiny_base)[0][0]
    second: Any = two.pairs[16][0]
    inner = one.pairs[16][0](x)
    change = second.linear(inner) * 0.5
    torch.testing.assert_close(layer(x), nn.functional.linear(inner + change, layer.weight))
    one.detach()
    change = second.linear(x) * 0.5
    torch.testing.assert_close(layer(x), nn.functional.linear(x + change, layer.weight))


@pytest.mark.parametrize("order", ["lora first", "hypernetwork first"])
def test_with_a_lora_in_any_order(order: str, tiny_base: BaseModel) -> None:
    """Both halves of a layer, its own weight and the LoRA's, get the changed context."""
    lora = Lora.create(
        tiny_base, LoraSpec(2, 2.0, 0.0, ["attention"], train_text_encoder=False), seed=1
    )
    for one in low_ranks(lora).values():
        one.requires_grad_(False)
        nn.init.normal_(one.lora_B.weight, generator=torch.Generator().manual_seed(9))
    before = predict(tiny_base)
    artifacts = [lora, hypernetwork(1)]
    for artifact in artifacts if order == "lora first" else artifacts[::-1]:
        artifact.attach(tiny_base)
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    layer = tiny_base.unet.get_submodule(name)
    halves = low_rank(lora, "lora_unet_" + name.replace(".", "_"))
    x = context(16)
    changed = artifacts[1].pairs[16][0](x)  # type: ignore[union-attr]
    weight = layer.get_base_layer().weight  # type: ignore[operator, union-attr]
    delta = halves.lora_B.weight @ halves.lora_A.weight
    torch.testing.assert_close(layer(x), changed @ (weight + delta).T, atol=1e-5, rtol=1e-5)
    for artifact in artifacts:
        artifact.detach()
    assert torch.equal(predict(tiny_base), before)


def test_widths_that_are_not_there_are_refused(tiny_base: BaseModel) -> None:
    with pytest.raises(ArtifactError, match=r"width 768 \(SD 1.x\); this base model .* has 16"):
        hypernetwork(1, (768,)).attach(tiny_base)
    with pytest.raises(ArtifactError, match=r"sizes: 320 is not .* contexts of width 16"):
        Hypernetwork.create(tiny_base, HypernetworkSpec(), [16, 320], seed=0)
    partly = hypernetwork(1, (16, 768))
    partly.attach(tiny_base)
    with pytest.raises(ArtifactError, match="already attached"):
        partly.attach(tiny_base)


def test_fused_projections_are_refused(tiny_base: BaseModel) -> None:
    tiny_base.unet.fuse_qkv_projections()
    with pytest.raises(ArtifactError, match="unfuse_qkv_projections"):
        hypernetwork(1).attach(tiny_base)


def test_created_to_be_trained(tiny_base: BaseModel) -> None:
    spec = HypernetworkSpec(layer_structure=(1, 1.5, 1))
    created = Hypernetwork.create(tiny_base, spec, None, seed=3)
    assert [*created.pairs] == [16]
    assert [tuple(p.shape) for p in created.pairs[16][0].parameters()] == [
        (24, 16),
        (24,),
        (16, 24),
        (16,),
    ]
    assert len(created.facts["sd_checkpoint"]) == 10
