"""Hypernetworks as A1111 saves them (`modules/hypernetworks/hypernetwork.py`), written out here.

ComfyUI reads the same file, goes by `use_dropout` and never turns dropout off, so it is False;
A1111 goes by `dropout_structure`.
"""

import itertools

import pytest
import torch

from inference.artifacts.hypernetwork import Hypernetwork
from inference.artifacts.hypernetwork_files import HypernetworkSpec
from tests.interop.bases import load_folder
from tests.interop.files import must_fail, unpickled

OPTIONS = {
    "step": int, "name": str, "layer_structure": list, "activation_func": str,
    "is_layer_norm": bool, "weight_initialization": str, "sd_checkpoint": (str, type(None)),
    "sd_checkpoint_name": (str, type(None)), "activate_output": bool, "use_dropout": bool,
    "dropout_structure": list, "last_layer_dropout": bool, "optional_info": (str, type(None)),
}  # fmt: skip
MODULES = {"linear": 0, "relu": 1, "mish": 1}
"""Modules that an activation adds; A1111 leaves out the identity of `linear`."""


def expected_shapes(width, content):
    """The weights of A1111's `HypernetworkModule`, whose numbers count activation and dropout."""
    shapes, number = {}, 0
    widths = [int(width * multiple) for multiple in content["layer_structure"]]
    last = len(widths) - 2
    for index, (before, after) in enumerate(itertools.pairwise(widths)):
        shapes[f"linear.{number}.weight"] = (after, before)
        shapes[f"linear.{number}.bias"] = (after,)
        number += 1
        if index < last or content["activate_output"]:
            number += MODULES[content["activation_func"]]
        if content["is_layer_norm"]:
            shapes[f"linear.{number}.weight"] = shapes[f"linear.{number}.bias"] = (after,)
            number += 1
        number += content["dropout_structure"][index + 1] > 0
    return shapes


def check_hypernetwork(content, widths, dtype=torch.float32) -> None:
    networks = {key: value for key, value in content.items() if type(key) is int}
    assert networks.keys() == widths
    assert content.keys() - networks.keys() == OPTIONS.keys()
    for key, kind in OPTIONS.items():
        assert isinstance(content[key], kind)
    assert len(content["dropout_structure"]) == len(content["layer_structure"])
    assert content["layer_structure"][0] == content["layer_structure"][-1] == 1
    assert content["dropout_structure"][0] == content["dropout_structure"][-1] == 0
    assert content["use_dropout"] is False
    assert content["last_layer_dropout"] is (content["dropout_structure"][-2] != 0)
    for width, pair in networks.items():
        assert type(pair) is tuple
        assert len(pair) == 2
        for state in pair:
            shapes = {key: tuple(value.shape) for key, value in state.items()}
            assert shapes == expected_shapes(width, content)
            assert {value.dtype for value in state.values()} == {dtype}


SPECS = {
    "linear": HypernetworkSpec(),
    "relu, dropout": HypernetworkSpec((1, 2, 2, 1), "relu", False, (0, 0.1, 0.2, 0)),
    "all": HypernetworkSpec((1, 0.5, 2, 1), "mish", True, (0, 0.3, 0, 0), True),
}


def saved(base, spec, folder, dtype=torch.float32):
    made = Hypernetwork.create(base, spec, None, 0)
    made.save(folder / "net.pt", dtype, {"ss_output_name": "net", "ss_steps": "5"})
    return unpickled(folder / "net.pt")


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a1111s_dict(spec, dtype, base, tmp_path):
    content = saved(base, spec, tmp_path, dtype)
    widths = {key for key in content if type(key) is int}
    assert 16 in widths  # the prompts'
    check_hypernetwork(content, widths, dtype)
    assert (content["name"], content["step"]) == ("net", 5)
    assert content["dropout_structure"] == list(spec.dropout_structure)


def changed_network(function):
    def change(content):
        keys, values = content[16]
        content[16] = (function(dict(keys)), values)

    return change


def changed_option(key, value):
    return lambda content: content.update({key: value})


def shifted(state):
    """As if dropout were counted elsewhere."""
    return {key.replace("linear.6", "linear.5"): value for key, value in state.items()}


CHANGES = {
    "dropout for ComfyUI": changed_option("use_dropout", True),
    "another key": changed_option("extra", 1),
    "a key less": lambda content: content.pop("activate_output"),
    "width a text": lambda content: content.update({"16": content.pop(16)}),
    "a list for the pair": lambda content: content.update({16: list(content[16])}),
    "dropout too short": changed_option("dropout_structure", [0, 0.1, 0]),
    "last layer's dropout": changed_option("last_layer_dropout", False),
    "step a text": changed_option("step", "5"),
    "layers shifted": changed_network(shifted),
    "a weight less": changed_network(
        lambda state: {k: v for k, v in state.items() if "0.b" not in k}
    ),
    "another dtype": changed_network(lambda state: {k: v.double() for k, v in state.items()}),
    "turned": changed_network(lambda state: {k: v.T for k, v in state.items()}),
}


@pytest.fixture(scope="module")
def base(tiny_base_folder):
    return load_folder(tiny_base_folder)


@pytest.fixture(scope="module")
def content(base, tmp_path_factory):
    return saved(base, SPECS["relu, dropout"], tmp_path_factory.mktemp("hypernetwork"))


@pytest.mark.filterwarnings("ignore:The use of `x.T`:UserWarning")
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_is_found(change, content):
    content = dict(content)
    widths = {key for key in content if type(key) is int}
    check_hypernetwork(content, widths)
    change(content)
    must_fail(check_hypernetwork, content, widths)
