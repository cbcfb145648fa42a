"""An adapter of one file: trained, saved, loaded, drawn, merged, beside a LoRA, and refused."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from inference.artifacts import Lora, LoraSpec, load_artifact
from inference.config import BaseModelConfig, ImageConfig
from inference.images import draw
from inference.memory import Packing, packed_layers, unpacked_layer
from inference.models import quantize_denoiser
from inference.models.stable_diffusion import BaseModel, load_base_model
from inference.recipe import RecipeError, load_consented
from inference.runtime import ArtifactError
from tests.inference.artifacts.adapters.low_rank_layers import low_ranks
from train.config import TrainRecipe
from train.trainer import Trainer

MakeRecipe = Callable[..., TrainRecipe]
OBJECTIVE = "objective={type: lora, algorithm: scaled_rows, alpha: 1.0}"


def picture(base: BaseModel) -> bytes:
    (drawing,) = draw(base, [ImageConfig(prompt="a", steps=2, seed=1)])
    return drawing.image.tobytes()


@pytest.fixture
def trained(make_recipe: MakeRecipe, outside: Path) -> Trainer:
    """Two steps."""
    recipe = make_recipe("plugins=[my_adapter]", OBJECTIVE, "max_train_steps=2")
    trainer = Trainer(recipe)
    trainer.train()
    return trainer


def test_adapter_is_trained_saved_loaded_and_drawn(
    trained: Trainer, tiny_base_folder: Path
) -> None:
    path = trained.run.folder.artifact(2, ".safetensors")
    with safe_open(path, "pt") as file:
        keys, metadata = list(file.keys()), file.metadata()
    assert {key.partition(".")[2] for key in keys} == {"row_scale", "alpha"}
    assert metadata["ss_network_module"] == "lycoris.kohya"
    assert metadata["ss_network_args"] == '{"algo": "scaled_rows"}'
    learned = load_artifact(path)
    assert isinstance(learned, Lora)
    assert {type(layer).__name__ for layer in learned.layers.values()} == {"ScaledRows"}
    for name, layer in learned.layers.items():
        own = dict(trained.objective.artifact().layers[name].tensors())  # type: ignore[attr-defined]
        assert torch.equal(layer.tensors()["row_scale"], own["row_scale"].to(torch.float16))

    base = load_base_model(BaseModelConfig(path=str(tiny_base_folder)))
    plain = picture(base)
    learned.attach(base)
    assert picture(base) != plain
    learned.set_strength(0.0)
    assert picture(base) == plain
    learned.detach()
    assert picture(base) == plain


def test_attached_and_merged_are_the_same_change(trained: Trainer, tiny_base_folder: Path) -> None:
    learned = load_artifact(trained.run.folder.artifact(2, ".safetensors"))
    assert isinstance(learned, Lora)
    x = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    states = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(1))
    results = []
    for merges in (False, True):
        base = load_base_model(BaseModelConfig(path=str(tiny_base_folder)))
        (learned.merge_into if merges else learned.attach)(base, 0.7)
        with torch.no_grad():
            results.append(base.unet(x, 7, states).sample)
        learned.detach()
    assert torch.allclose(*results, atol=1e-5)


@pytest.mark.parametrize("kind", ["fp8", "nf4"])
def test_an_adapter_changes_packed_weights_by_their_values(
    kind: Packing, outside: Path, tiny_base: BaseModel
) -> None:
    """Those of fp8 are numbers without their scale, those of NF4 have another shape."""
    load_consented(["plugins=[my_adapter]"])
    quantize_denoiser(tiny_base, kind, torch.float32)
    mirror = deepcopy(tiny_base)
    for path, layer in packed_layers(mirror.unet).items():
        parent, _, name = path.rpartition(".")
        setattr(mirror.unet.get_submodule(parent), name, unpacked_layer(layer))
    spec = LoraSpec(1, 1.0, 0.0, None, False, "scaled_rows", {"start": 0.5})
    x = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    states = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(1))
    results = []
    for base in (tiny_base, mirror):
        with torch.no_grad():
            plain = base.unet(x, 7, states).sample
            Lora.create(base, spec, 1).attach(base)
            results.append(base.unet(x, 7, states).sample)
        assert not torch.allclose(results[-1], plain, atol=1e-3)
    assert torch.allclose(*results, atol=1e-5)


def test_adapter_and_lora_work_on_the_same_layers(trained: Trainer, tiny_base_folder: Path) -> None:
    """In either order of attaching and taking off."""
    other = load_artifact(trained.run.folder.artifact(2, ".safetensors"))
    base = load_base_model(BaseModelConfig(path=str(tiny_base_folder)))
    lora = Lora.create(base, LoraSpec(2, 2.0, 0.0, None, False), seed=0)
    for layer in low_ranks(lora).values():
        torch.nn.init.normal_(layer.lora_B.weight, generator=torch.Generator().manual_seed(0))
    plain = picture(base)
    for first, second in ((lora, other), (other, lora)):
        first.attach(base)
        alone = picture(base)
        second.attach(base)
        assert picture(base) not in (plain, alone)
        second.detach()
        assert picture(base) == alone
        second.attach(base)
        first.detach()
        second.detach()
        assert picture(base) == plain


def test_options_are_checked(make_recipe: MakeRecipe, outside: Path) -> None:
    plugin = "plugins=[my_adapter]"
    for objective, message in {
        "{type: lora, algorithm: scaled_row}": "algorithm: expected one of lora, scaled_rows; got",
        "{type: lora, algorithm: scaled_rows, options: {strat: 1}}": "ScaledRows takes no such "
        "option; did you mean start?",
        "{type: lora, algorithm: scaled_rows, options: {start: x}}": "expected a number, got 'x'",
        "{type: lora, options: {start: 1}}": "algorithm: lora takes no options",
    }.items():
        with pytest.raises(RecipeError, match=message.replace("?", r"\?")):
            make_recipe(plugin, f"objective={objective}")
    recipe = make_recipe(
        plugin, "objective={type: lora, algorithm: scaled_rows, options: {start: 1}}"
    )
    assert recipe.objective.options == {"start": 1}  # type: ignore[attr-defined]


def test_file_without_its_plugin_is_refused(
    trained: Trainer, monkeypatch: pytest.MonkeyPatch, tiny_base_folder: Path
) -> None:
    from inference.config import ADAPTERS

    path = trained.run.folder.artifact(2, ".safetensors")
    known = ADAPTERS.pop("scaled_rows")
    with pytest.raises(ArtifactError, match="row_scale"):
        load_artifact(path)
    ADAPTERS["scaled_rows"] = known
    learned = load_artifact(path)
    with pytest.raises(ArtifactError, match="cannot be limited"):
        learned.limited(1)  # type: ignore[attr-defined]


def test_plugin_cannot_take_the_name_of_lora(outside: Path) -> None:
    from inference.artifacts import Adapter, adapter

    load_consented(["plugins=[my_adapter]"])
    with pytest.raises(ValueError, match="is built in"):
        adapter("lora")(Adapter)
