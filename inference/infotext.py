"""Infotext: how a picture was drawn, in A1111's words, written into its file and read back.

Format: A1111 1.10.1 (`create_infotext`, `parse_generation_parameters`)::

    a cat, noto style
    Negative prompt: blurry
    Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 64x64, …

Ours reads a little more than A1111's: keys of one letter, empty values, and prompts whose lines
begin or end with spaces.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from inference.config import ImageConfig
from inference.files import write_atomically
from inference.hashes import sha256, weights_file

if TYPE_CHECKING:
    from PIL import Image

    from inference.base_model import BaseModel

NEGATIVE = "Negative prompt:"
TAGS = {"lora": "lora", "hypernetwork": "hypernet"}
"""Kind of artifact -> what A1111 calls it by in prompts."""
KEY, VALUE = r"\w[\w \-/]*+", r'"(?:\\.|[^\\"])*+"|[^,]*+'
PARAMETER = re.compile(rf"\s*({KEY}):\s*({VALUE})(?:,|$)")
PARAMETER_OR_WORD = re.compile(rf"\s*({KEY})(?::\s*({VALUE}))?(?:,|$)")
"""A1111 writes a key alone where its value is the same word."""

FEWEST_PARAMETERS = 3
"""With fewer of them A1111 takes the last line for a part of the prompt."""


@dataclass(frozen=True)
class UsedArtifact:
    """What infotext tells of an artifact that a picture was drawn with."""

    kind: str
    """`lora`, …: as in `inference.artifacts`."""
    name: str
    strength: float
    hash: str | None = None
    """What A1111 knows the file by; it shows the first 12 digits."""


@dataclass(frozen=True)
class Infotext:
    """Prompt, negative prompt, and the parameters in their order, all as text."""

    prompt: str
    negative_prompt: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)


def write_infotext(
    prompt: str, negative_prompt: str, parameters: Mapping[str, object | None]
) -> str:
    """Infotext of a picture. Parameters that are None are left out."""
    lines = [prompt]
    if negative_prompt:
        lines.append(f"{NEGATIVE} {negative_prompt}")
    entries = [(key, number(value)) for key, value in parameters.items() if value is not None]
    lines.append(
        ", ".join(key if key == text else f"{key}: {quote(text)}" for key, text in entries)
    )
    return "\n".join(lines).strip()


def parse_infotext(text: str) -> Infotext:
    """Takes infotext apart. A text without parameters is a prompt."""
    lines = text.strip().split("\n")
    parameters: dict[str, str] = {}
    if is_parameters(lines[-1]):
        found = PARAMETER_OR_WORD.finditer(lines.pop())
        parameters = {m[1]: m[1] if m[2] is None else unquote(m[2]) for m in found}
    for position, line in enumerate(lines):
        if line.lstrip().startswith(NEGATIVE):
            first = line.lstrip().removeprefix(NEGATIVE).removeprefix(" ")
            negative = "\n".join([first, *lines[position + 1 :]])
            return Infotext("\n".join(lines[:position]), negative, parameters)
    return Infotext("\n".join(lines), "", parameters)


def is_parameters(line: str) -> bool:
    """Whether a text's last line is parameters, and not the end of a prompt."""
    return len(PARAMETER.findall(line)) >= FEWEST_PARAMETERS or line.startswith("Steps: ")


def quote(text: str) -> str:
    """A value as it stands in infotext: in JSON's quotes where it could be misread."""
    is_clear = text and text == text.strip() and text[0] != '"'
    if is_clear and not any(sign in text for sign in ",:\n"):
        return text
    return json.dumps(text, ensure_ascii=False)


def unquote(text: str) -> str:
    """A value as it was before `quote`; text that only looks quoted stays as it is."""
    if len(text) < 2 or not text[0] == text[-1] == '"':
        return text
    try:
        return str(json.loads(text))
    except json.JSONDecodeError:
        return text


def number(value: object) -> str:
    """7.0 is written 7, as A1111's page writes it."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def describe_drawing(
    request: ImageConfig, base: BaseModel, artifacts: Sequence[UsedArtifact] = ()
) -> str:
    """Infotext of a picture drawn by `inference.sampling`.

    LoRAs and hypernetworks at work are added to the prompt as A1111 calls them,
    `<lora:name:strength>` and `<hypernet:name:strength>`; a checkpoint takes the place of the
    base model.

    Args:
        request: one picture, with seed and size.
        base: what it was drawn with.
        artifacts: what was attached; those of strength 0 are left out.
    """
    from inference.samplers import SAMPLERS, resolve_schedule

    at_work = [artifact for artifact in artifacts if artifact.strength != 0]
    loras = [artifact for artifact in at_work if artifact.kind == "lora"]
    models = [(a.name, a.hash) for a in at_work if a.kind == "checkpoint"]
    name, hash_ = models[-1] if models else (model_name(base), model_hash(base))
    places = base.tokenize([request.prompt, request.negative_prompt]).places
    called = {place.name for place in places}
    usual_eta = SAMPLERS[request.sampler].default_eta
    is_usual = usual_eta is None or request.eta in (None, usual_eta)
    parameters = {
        "Steps": request.steps,
        "Sampler": request.sampler,
        "Schedule type": resolve_schedule(request.sampler, request.schedule_type),
        "CFG scale": request.cfg_scale,
        "Seed": request.seed,
        "Size": f"{request.width}x{request.height}",
        "Model hash": hash_[:10] if hash_ else None,
        "Model": name,
        "Clip skip": base.clip_skip if base.clip_skip > 1 else None,
        "RNG": "CPU",
        "Eta DDIM" if request.sampler.startswith("DDIM") else "Eta": None
        if is_usual
        else request.eta,
        "Lora hashes": hash_list(loras),
        "TI hashes": hash_list([a for a in at_work if a.kind == "embedding" and a.name in called]),
        "Version": version(),
    }
    tags = [
        f"<{TAGS[artifact.kind]}:{artifact.name}:{number(artifact.strength)}>"
        for artifact in at_work
        if artifact.kind in TAGS
    ]
    return write_infotext(" ".join([request.prompt, *tags]), request.negative_prompt, parameters)


def hash_list(artifacts: Sequence[UsedArtifact]) -> str | None:
    """`name: hash, …` of those whose hash is known; None for none."""
    return ", ".join(f"{plain(a.name)}: {a.hash[:12]}" for a in artifacts if a.hash) or None


def plain(name: str) -> str:
    """A name without what separates names from hashes."""
    return name.replace(":", "").replace(",", "")


def version() -> str:
    """`limner` and its version, where it is installed."""
    try:
        return f"limner {metadata.version('limner')}"
    except metadata.PackageNotFoundError:
        return "limner"


def model_name(base: BaseModel) -> str:
    """A single file's name without its ending, as in A1111; else the folder's, or the hub's."""
    from inference.base_model import is_single_file

    path = Path(base.path)
    return path.stem if is_single_file(path) else path.name


def model_hash(base: BaseModel) -> str | None:
    """SHA-256 of a single file, as in A1111; None if it is not here.

    Of a folder that of the file of the UNet's weights (the first of several).
    """
    from inference.base_model import is_single_file, resolve_path

    if is_single_file(base.path):
        return sha256(Path(base.path)) if Path(base.path).is_file() else None
    folder = Path(resolve_path(base.path)) / "unet"
    file = weights_file(folder)
    if file is None and not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        name = "unet/diffusion_pytorch_model.safetensors"
        cached = try_to_load_from_cache(base.path, name) if base.path.count("/") == 1 else None
        file = Path(cached) if isinstance(cached, str) else None
    return sha256(file) if file else None


def save_png(path: Path, image: Image.Image, texts: Mapping[str, str]) -> None:
    """Writes a PNG with texts by keyword, whole or not at all; A1111's keyword is `parameters`."""
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    for keyword, text in texts.items():
        chunks.add_text(keyword, text)
    write_atomically(path, lambda file: image.save(file, format="PNG", pnginfo=chunks))


def read_infotext(path: Path) -> str | None:
    """The infotext in a picture's file; None if there is none."""
    from PIL import Image

    with Image.open(path) as image:
        image.load()  # texts may stand behind the pixels
        text = image.info.get("parameters")
    return text if isinstance(text, str) else None
