"""Every reader of tensors x everything that tensors in files can be: one message, or read right."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from inference.artifacts.base import load_artifact
from inference.artifacts.checkpoint import Checkpoint
from inference.artifacts.embedding import Embedding
from inference.artifacts.embedding_picture import picture_with
from inference.artifacts.hypernetwork import Hypernetwork
from inference.artifacts.hypernetwork_files import HypernetworkSpec, initial_pair
from inference.models.stable_diffusion.model import BaseModel
from inference.runtime.errors import InputError
from tests.train.runs.test_checkpoints import make_state

Change = Callable[[Tensor], Tensor]
"""Of the first tensor of a file that has two dimensions."""


def with_value(value: float) -> Change:
    def change(tensor: Tensor) -> Tensor:
        changed = tensor.clone()
        changed[0, 0] = value
        return changed

    return change


def expanded(tensor: Tensor) -> Tensor:
    return tensor[:1].clone().expand(tensor.shape)


def bomb(tensor: Tensor) -> Tensor:
    """Four bytes that stand for two terabytes."""
    return torch.zeros(1, 1).expand(2**20, 2**19)


FAULTS: dict[str, Change] = {
    "NaN": with_value(float("nan")),
    "inf": with_value(float("inf")),
    "float8": lambda tensor: tensor.to(torch.float8_e4m3fn),
    "sparse": lambda tensor: tensor.to_sparse(),
    "meta": lambda tensor: tensor.to("meta"),
    "expanded": expanded,
    "bomb": bomb,
}
REFUSED = {
    "NaN": "not finite",
    "inf": "not finite",
    "sparse": r"no dense tensor \(sparse_coo\)",
    "meta": "has no values",
    "bomb": "repeats 4 stored bytes to",
}
OF_PICKLES = ("sparse", "meta", "expanded", "bomb")
"""No safetensors file and no picture holds such tensors."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A file that is read.

    `name` is the file's; `write` fills it with changed tensors; `read` returns a changed tensor's
    values.
    """

    name: str
    write: Callable[[Path, Change], object]
    read: Callable[[Path], Tensor]


def save(path: Path, tensors: dict[str, Tensor]) -> None:
    (save_file if path.suffix == ".safetensors" else torch.save)(tensors, path)  # type: ignore[operator]


LORA = {
    "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.arange(16.0).reshape(2, 8),
    "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": torch.ones(8, 2),
    "lora_unet_mid_block_attentions_0_proj_in.alpha": torch.tensor(2.0),
}
DOWN, UP, _ = LORA
VECTORS = torch.arange(12.0).reshape(3, 4)


def lora(name: str, changed: str) -> Case:
    def read(path: Path) -> Tensor:
        (layer,) = load_artifact(path).layers.values()  # type: ignore[attr-defined]
        return (layer.lora_A if changed == DOWN else layer.lora_B).weight

    return Case(
        name, lambda path, change: save(path, LORA | {changed: change(LORA[changed])}), read
    )


def vectors(path: Path) -> Tensor:
    artifact = load_artifact(path)
    assert isinstance(artifact, Embedding)
    return artifact.learned.vectors


def embedding_picture(path: Path, change: Change) -> None:
    content = {"string_to_param": {"*": change(VECTORS)}, "name": "a"}
    image, texts = picture_with(Image.fromarray(np.zeros((64, 64, 3), np.uint8)), content)
    if path.suffix == ".webp":
        image.save(path, lossless=True)
    else:
        from inference.media.pictures import save_png

        save_png(path, image, texts)


NETWORK = Hypernetwork({8: initial_pair(8, HypernetworkSpec(), 0)}, HypernetworkSpec(), {}, "net")


def hypernetwork(path: Path, change: Change) -> None:
    NETWORK.save(path, torch.float32, {})
    if path.suffix == ".safetensors":
        tensors = load_file(path)
        tensors["8.k.linear.0.weight"] = change(tensors["8.k.linear.0.weight"])
        save_file(tensors, path, metadata_of(path))
        return
    content = torch.load(path)
    content[8][0]["linear.0.weight"] = change(content[8][0]["linear.0.weight"])
    torch.save(content, path)


def metadata_of(path: Path) -> dict[str, str]:
    content = path.read_bytes()
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]


def network(path: Path) -> Tensor:
    artifact = load_artifact(path)
    assert isinstance(artifact, Hypernetwork)
    return artifact.pairs[8][0].linears[0].weight  # type: ignore[return-value,union-attr,index]


CASES = {
    "LoRA": lora("a.safetensors", DOWN),
    "LoRA, up": lora("a.safetensors", UP),
    "LoRA, pickle": lora("a.pt", DOWN),
    "embedding": Case(
        "a.safetensors",
        lambda path, change: save(path, {"emb_params": change(VECTORS)}),
        vectors,
    ),
    "embedding, pickle": Case(
        "a.pt",
        lambda path, change: torch.save({"string_to_param": {"*": change(VECTORS)}}, path),
        vectors,
    ),
    "embedding, ParameterDict": Case(
        "a.pt",
        lambda path, change: torch.save(
            {"string_to_param": torch.nn.ParameterDict({"*": change(VECTORS)})}, path
        ),
        vectors,
    ),
    "embedding, picture": Case("a.png", embedding_picture, vectors),
    "embedding, WebP": Case("a.webp", embedding_picture, vectors),
    "hypernetwork": Case("a.safetensors", hypernetwork, network),
    "hypernetwork, pickle": Case("a.pt", hypernetwork, network),
}


def check(case: Case, fault: str, path: Path, original: Tensor) -> None:
    """The file is refused in one line that names it, or read right."""
    case.write(path, FAULTS[fault])
    if fault in REFUSED:
        with pytest.raises(InputError, match=REFUSED[fault]) as caught:
            case.read(path)
        message = str(caught.value)
        assert str(path) in message
        assert "\n" not in message
        return
    expected = FAULTS[fault](original).float()
    assert torch.equal(case.read(path).float(), expected)


def can_be(case: Case, fault: str) -> bool:
    return fault not in OF_PICKLES or Path(case.name).suffix in (".pt", ".ckpt", ".bin")


@pytest.mark.parametrize(
    ("name", "fault"),
    [(name, fault) for name, case in CASES.items() for fault in FAULTS if can_be(case, fault)],
)
def test_artifacts_are_read_right_or_refused(name: str, fault: str, tmp_path: Path) -> None:
    case = CASES[name]
    originals: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        originals.append(tensor)
        return tensor

    case.write(tmp_path / case.name, note)
    check(case, fault, tmp_path / case.name, originals[0])


WEIGHT = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight"
IN_FILE = "model.diffusion_model.input_blocks.3.1.transformer_blocks.0.attn1.to_q.weight"


def denoiser_weight(path: Path) -> Tensor:
    artifact = load_artifact(path)
    assert isinstance(artifact, Checkpoint)
    return artifact.parts["unet"].get_parameter(WEIGHT)


@pytest.fixture(scope="module")
def model_file(tiny_base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base model as a single file."""
    from inference.config.models import BaseModelConfig
    from inference.models.stable_diffusion.loading import load_base_model

    base: BaseModel = load_base_model(BaseModelConfig(path=str(tiny_base_folder)))
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    Checkpoint.of(base, ["unet"]).save(path, torch.float32, {})
    return path


@pytest.mark.parametrize(
    ("suffix", "fault"),
    [(".safetensors", fault) for fault in FAULTS if fault not in OF_PICKLES]
    + [(".ckpt", fault) for fault in OF_PICKLES if fault in REFUSED],
)
def test_checkpoints_in_one_file(suffix: str, fault: str, model_file: Path, tmp_path: Path) -> None:
    tensors, metadata = load_file(model_file), metadata_of(model_file)
    path, original = tmp_path / f"a{suffix}", tensors[IN_FILE]

    def write(path: Path, change: Change) -> None:
        changed = tensors | {IN_FILE: change(original)}
        if suffix == ".safetensors":
            save_file(changed, path, metadata)
        else:
            torch.save({"state_dict": changed}, path)

    check(Case(path.name, write, denoiser_weight), fault, path, original)


@pytest.mark.parametrize(
    ("kind", "fault"),
    [("safetensors", fault) for fault in FAULTS if fault not in OF_PICKLES]
    + [("bin", fault) for fault in FAULTS],
)
def test_folders(kind: str, fault: str, tiny_base_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "model"
    shutil.copytree(tiny_base_folder, path)
    weights = path / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)

    def write(path: Path, change: Change) -> None:
        changed = tensors | {WEIGHT: change(tensors[WEIGHT])}
        if kind == "safetensors":
            save_file(changed, weights, {"format": "pt"})
        else:
            weights.unlink(missing_ok=True)
            torch.save(changed, weights.with_suffix(".bin"))

    case = Case("model", write, denoiser_weight)
    case.write(path, FAULTS[fault])
    try:
        found = denoiser_weight(path)
    except InputError as error:
        assert str(path) in str(error)
        assert "\n" not in str(error)
        assert fault in REFUSED
        return
    assert fault not in REFUSED or fault == "sparse"
    assert torch.equal(found, FAULTS[fault](tensors[WEIGHT]).to_dense().float())


@pytest.mark.parametrize(
    ("file", "fault"),
    [("trained.safetensors", fault) for fault in FAULTS if fault not in OF_PICKLES]
    + [("ema.safetensors", fault) for fault in FAULTS if fault not in OF_PICKLES]
    + [("optimizer.pt", fault) for fault in OF_PICKLES],
)
def test_states_of_runs(file: str, fault: str, tmp_path: Path) -> None:
    from train.runs.checkpoint_files import CheckpointWriter

    state = make_state()
    state.write(CheckpointWriter(tmp_path), 2)
    path = tmp_path / file
    if file == "optimizer.pt":
        content: Any = torch.load(path)
        moments = content["optimizer"]["state"][0]
        moments["exp_avg"] = original = FAULTS[fault](moments["exp_avg"])
        torch.save(content, path)
    else:
        tensors = load_file(path)
        name = next(name for name, tensor in tensors.items() if tensor.dim() == 2)
        tensors[name] = original = FAULTS[fault](tensors[name])
        save_file(tensors, path)
    other = make_state(seed=1)
    if fault in REFUSED:
        with pytest.raises(InputError, match=REFUSED[fault]) as caught:
            other.read(tmp_path)
        assert str(path) in str(caught.value)
        return
    assert other.read(tmp_path) == 2
    assert other.ema is not None
    found = {
        "trained.safetensors": lambda: other.objective.weight,  # type: ignore[union-attr]
        "ema.safetensors": lambda: other.ema.shadow_params[0],  # type: ignore[union-attr]
        "optimizer.pt": lambda: other.optimizer.state_dict()["state"][0]["exp_avg"],
    }
    assert torch.equal(found[file](), original.float())
