"""Limner's files in old and new versions of diffusers, and theirs in Limner, by numbers.

`make install-interop` makes the environments. Limner writes the files here; `in_diffusers.py`, run
by each environment's Python, loads them with diffusers' own loaders on the same base model and
writes what it computes; Limner's own application is compared with that.
"""

from __future__ import annotations

import json
import os
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from inference.artifacts.adapters.lora import Lora, LoraSpec
from inference.artifacts.base import load_artifact
from inference.artifacts.checkpoint import Checkpoint
from inference.artifacts.embedding import Embedding
from inference.convert import main as convert
from inference.runtime.errors import DrawWarning
from tests.inference.models.cogvideox.models import make_video_model, write_video_folder
from tests.interop.bases import load_folder, write_source
from tests.interop.in_diffusers import PROMPT, TIMESTEPS

pytestmark = [pytest.mark.interop, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
VERSIONS = {"032": "0.32.1", "034": "0.34.0", "new": ""}
"""Environments -> their version of diffusers; `new` is the newest that the registry has."""

EVERYTHING = ("attention", "feed_forward", "projection", "convolution")
TOLERANCE = 1e-5
"""Of numbers of about 1; measured are at most 4e-6."""
SEEN = 1e-2
"""What an artifact changes at least, so that one without effect is found."""


@dataclass(frozen=True)
class Case:
    """A file of Limner's and how it is made."""

    family: str
    kind: str
    suffix: str = ".safetensors"
    to: str = ""
    """The format that `convert` writes it in; empty: as it is saved."""
    dtype: torch.dtype = torch.float32
    targets: tuple[str, ...] | None = EVERYTHING
    with_text: bool = True
    refused: str = ""
    """What diffusers says, where it refuses such a file."""


def lora(family: str, **options: Any) -> Case:
    return Case(family, "lora", **options)


def embedding(family: str, **options: Any) -> Case:
    return Case(family, "embedding", **options)


NOT_2D = "size mismatch"
CASES = {
    **{f"{family} folder": Case(family, "folder", "") for family in ("sd1", "sd2", "sdxl")},
    **{f"{family} single file": Case(family, "single file") for family in ("sd1", "sd2", "sdxl")},
    "sd1 lora": lora("sd1"),
    "sd1 lora fp16": lora("sd1", dtype=torch.float16, targets=("attention",), with_text=False),
    "sd1 lora to diffusers": lora("sd1", to="diffusers"),
    "sd2 lora": lora("sd2", refused=NOT_2D),
    "sd2 lora of attention": lora("sd2", targets=("attention", "feed_forward")),
    "sd2 lora to diffusers": lora("sd2", to="diffusers"),
    "sdxl lora": lora("sdxl"),
    "sdxl lora to diffusers": lora("sdxl", to="diffusers"),
    "video lora": lora("video", targets=None, with_text=False),
    "sd1 embedding": embedding("sd1"),
    "sd1 embedding pt": embedding("sd1", suffix=".pt"),
    "sd1 embedding to bin": embedding("sd1", suffix=".bin", to="diffusers"),
    "sd1 embedding to diffusers": embedding("sd1", to="diffusers"),
    "sd2 embedding": embedding("sd2"),
    "sdxl embedding": embedding("sdxl"),
}

TEXTS = ["text_encoder"]
MADE: dict[str, dict[str, Any]] = {
    "made sd1": {"family": "sd1", "parts": ["unet", *TEXTS], "alpha": 4},
    "made sd1 alpha": {"family": "sd1", "parts": ["unet", *TEXTS], "alpha": 3},
    "made sdxl": {"family": "sdxl", "parts": ["unet", *TEXTS, "text_encoder_2"], "alpha": 4},
    "made sdxl alpha": {"family": "sdxl", "parts": ["unet", *TEXTS, "text_encoder_2"], "alpha": 3},
    "made video": {"family": "video", "parts": ["transformer"], "alpha": 4},
    "made video alpha": {"family": "video", "parts": ["transformer"], "alpha": 3},
}
"""LoRAs by peft and `save_lora_weights`; alpha is in the file only where it is not the rank."""

Outputs = dict[str, torch.Tensor]


def inputs_of(family: str, base: Any) -> Outputs:
    numbers = torch.Generator().manual_seed(11)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=numbers)

    if family == "video":
        frames = normal(1, 3, 4, 8, 8)
        cos, sin = base.positions(frames)
        return {"frames": frames, "states": normal(1, 16, 32), "cos": cos, "sin": sin}
    found = {"latents": normal(2, 4, 8, 8)}
    found["states"] = normal(2, 77, base.unet.config.cross_attention_dim)
    if family == "sdxl":
        found["pooled"] = normal(2, 48)
        found["sizes"] = torch.tensor([[16.0, 16, 0, 0, 16, 16]] * 2)
    return found


@torch.no_grad()
def outputs(base: Any, family: str, inputs: Outputs) -> Outputs:
    """The same as `in_diffusers.outputs`, on Limner's model."""
    if family == "video":
        return {
            f"transformer {timestep}": base.transformer(
                hidden_states=inputs["frames"],
                encoder_hidden_states=inputs["states"],
                timestep=torch.tensor([timestep]),
                image_rotary_emb=(inputs["cos"], inputs["sin"]),
                return_dict=False,
            )[0]
            for timestep in TIMESTEPS
        }
    extra = {}
    if family == "sdxl":
        extra = {"text_embeds": inputs["pooled"], "time_ids": inputs["sizes"]}
    found = {
        f"unet {timestep}": base.unet(
            inputs["latents"],
            timestep,
            encoder_hidden_states=inputs["states"],
            added_cond_kwargs=extra,
        ).sample
        for timestep in TIMESTEPS
    }
    encoded = base.encode_prompts([PROMPT])
    found["text"] = encoded.states
    if encoded.pooled is not None:
        found["pooled"] = encoded.pooled
    found["vae"] = base.vae.decode(inputs["latents"]).sample
    return found


@dataclass
class Written:
    """Limner's side: base models, files, inputs, and what is computed here."""

    folder: Path
    bases: dict[str, Any]
    inputs: dict[str, Outputs]
    plain: dict[str, Outputs]
    expected: dict[str, Outputs]
    cases: list[dict[str, Any]]


@contextmanager
def attached(artifact: Any, base: Any, strength: float) -> Iterator[None]:
    artifact.attach(base, strength)
    try:
        yield
    finally:
        artifact.detach()


def new_artifact(case: Case, base: Any) -> Any:
    """A LoRA or embedding of random numbers."""
    numbers = torch.Generator().manual_seed(7)
    if case.kind == "embedding":
        made = Embedding.create(base, "thing", "a b", 3)
        for vectors in made.learned.by_encoder():
            vectors.copy_(torch.randn(vectors.shape, generator=numbers) * 0.1)
        return made
    made = Lora.create(base, LoraSpec(4, 2.0, 0.0, case.targets, case.with_text), seed=0)
    for layer in made.layers.values():
        for parameter in layer.parameters():
            parameter.data = torch.randn(parameter.shape, generator=numbers) * 0.2
        layer.to(case.dtype).float().requires_grad_(False)
    return made


def strength_of(case: Case) -> float:
    return 0.7 if case.kind == "lora" else 1.0


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Written:
    """Every file of `CASES`, and what Limner computes with it before it is saved."""
    folder = tmp_path_factory.mktemp("interop")
    bases: dict[str, Any] = {"video": make_video_model()}
    write_video_folder(bases["video"], folder / "video")
    for family in ("sd1", "sd2", "sdxl"):
        source = load_folder(write_source(family, folder / f"{family} source"))
        parts = ("unet", "vae", *source.text_encoders)
        for suffix in ("", ".safetensors"):
            Checkpoint.of(source, parts).save(folder / f"{family}{suffix}", torch.float32, {})
        bases[family] = load_folder(folder / family)
    inputs = {family: inputs_of(family, base) for family, base in bases.items()}
    plain = {family: outputs(base, family, inputs[family]) for family, base in bases.items()}
    said = Written(folder, bases, inputs, plain, {}, [])
    for name, case in CASES.items():
        add(said, name, case)
    texts = {
        f"{family}:{key}": value for family, own in inputs.items() for key, value in own.items()
    }
    save_file(
        {key: value.contiguous() for key, value in texts.items()}, folder / "inputs.safetensors"
    )
    return said


def add(said: Written, name: str, case: Case) -> None:
    """Write one file, and compute with what it holds."""
    base = said.bases[case.family]
    file = said.folder / name / f"thing{case.suffix}"
    request = {"name": name, "family": case.family, "kind": case.kind, "file": str(file)}
    said.cases.append(
        {**request, "base": str(said.folder / case.family), "strength": strength_of(case)}
    )
    said.expected[name] = said.plain[case.family]
    if case.kind in ("folder", "single file"):
        said.cases[-1]["file"] = str(said.folder / f"{case.family}.safetensors")
        return
    file.parent.mkdir()
    artifact = new_artifact(case, base)
    with attached(artifact, base, strength_of(case)):
        said.expected[name] = outputs(base, case.family, said.inputs[case.family])
    if case.to:
        artifact.save(file.with_name("own.safetensors"), case.dtype, {})
        assert convert([str(file.with_name("own.safetensors")), str(file), "--to", case.to]) == 0
    else:
        artifact.save(file, case.dtype, {})


@dataclass
class There:
    """What another environment has computed."""

    version: str
    folder: Path
    results: dict[str, Any]


@pytest.fixture(scope="module", params=VERSIONS)
def there(request, tmp_path_factory) -> There:
    python = ROOT / ".venv-interop" / request.param / "bin" / "python"
    if not python.is_file():
        pytest.skip(f"no {python.relative_to(ROOT)}: make install-interop (needs a registry)")
    said: Written = request.getfixturevalue("written")
    folder = tmp_path_factory.mktemp(request.param)
    made = [
        {**case, "name": name, "kind": "made", "base": str(said.folder / case["family"]),
         "file": str(folder / f"{name} file.safetensors")}
        for name, case in MADE.items()
    ]  # fmt: skip
    job = {"folder": str(folder), "inputs": str(said.folder / "inputs.safetensors")}
    (folder / "job.json").write_text(json.dumps({**job, "cases": [*said.cases, *made]}))
    script = Path(__file__).with_name("in_diffusers.py")
    done = subprocess.run(
        [python, script, folder / "job.json"],
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((folder / "results.json").read_text())
    return There(request.param, folder, results)


def differences(one: Outputs, two: Outputs) -> dict[str, float]:
    assert one.keys() == two.keys()
    return {key: (one[key] - two[key]).abs().max().item() for key in one}


def test_the_environment_is_what_it_is_named(there):
    version = there.results["versions"]["diffusers"]
    assert version.startswith(VERSIONS[there.version])
    print(there.results["versions"])


@pytest.mark.parametrize("name", CASES)
def test_their_loader_does_what_limner_does(name, there, written):
    case = CASES[name]
    error = there.results[name]
    if case.refused:
        assert case.refused in error
        return
    assert error is None
    expected = written.expected[name]
    found = differences(load_file(there.folder / f"{name}.safetensors"), expected)
    print(there.version, name, found)
    assert max(found.values()) < TOLERANCE
    if case.kind in ("lora", "embedding"):
        assert max(differences(expected, written.plain[case.family]).values()) > SEEN


@pytest.mark.parametrize("name", MADE)
def test_limner_does_what_their_lora_does(name, there, written):
    case = MADE[name]
    error = there.results[name]
    if error and "no metadata in this version" in error:
        assert case["alpha"] != 4
        assert there.version == "032"
        return
    assert error is None
    base, family = written.bases[case["family"]], case["family"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DrawWarning)  # no alpha in the file: that the rank is taken
        artifact = load_artifact(there.folder / f"{name} file.safetensors")
    with attached(artifact, base, 1.0):
        own = outputs(base, family, written.inputs[family])
    found = differences(load_file(there.folder / f"{name}.safetensors"), own)
    print(there.version, name, found)
    assert max(found.values()) < TOLERANCE
    assert max(differences(own, written.plain[family]).values()) > SEEN
