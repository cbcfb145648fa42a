"""Describe files: `python -m inference.inspect FILE...`.

Artifacts, base models, images and videos; no code in a file is ever executed.
"""

from __future__ import annotations

import dataclasses
import pkgutil
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from inference.files import EMBEDDING_PICTURES as PICTURES
from inference.files import artifact_hash, lora_hash, read_header, sha256, weights_file
from inference.media import PILLOW_ERRORS, SUFFIXES
from inference.recipe import DRAWING_GROUPS, cut, load_plugins, warnings_reported
from inference.runtime import (
    InputError,
    check_readable,
    open_console,
    output,
    quiet_libraries,
    run_command,
    status_of,
)
from inference.shadowing import refuse_foreign_train

USAGE = """usage: python -m inference.inspect FILE...

Describes artifacts, base models, images and videos, with the metadata that they contain."""

VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi")

MOST_FACTS = 500
"""Maximum number of lines that are printed of a file."""
LONGEST_FACT = 2000
LONGEST_TEXT = 100_000
"""Maximum number of characters that are printed of one of its facts, and of its infotext."""

Description = dict[str, str]
"""The description of a file, in this order."""


@refuse_foreign_train("inspect")
def main(arguments: Sequence[str] | None = None) -> int:
    """Describe every file; return the exit status: 0, or 2 if one of them is unknown."""
    return run_command("inspect", command, arguments, prints_result=True)


def command(files: list[str]) -> int:
    """Print the usage or the descriptions; return the exit status."""
    if not files or files[0] in ("-h", "--help"):
        output(USAGE, is_error=not files)
        return 0 if files else 2
    quiet_libraries()
    with warnings_reported("inspect"):
        load_plugins({}, DRAWING_GROUPS)
        return max([status_of("inspect", partial(describe, file)) for file in files])


def describe(file: str) -> int:
    """Print the description of a file; return the exit status."""
    show(file, inspect(Path(file)))
    return 0


def inspect(path: Path) -> Description:
    """Describe a file or folder.

    Raises:
        InputError: it does not exist, cannot be read, or is of an unknown type.
    """
    from inference.models import is_vae_folder

    check_readable(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if path.suffix.lower() in SUFFIXES:
        return inspect_picture(path)
    if path.suffix.lower() in VIDEOS:
        return inspect_video(path)
    if path.is_dir() and (path / "model_index.json").is_file():
        return inspect_base_model(path)
    if path.is_dir() and is_vae_folder(path):
        return inspect_vae(path)
    return inspect_artifact(path)


def inspect_picture(path: Path) -> Description:
    """Return size and infotext."""
    from PIL import Image

    from inference.artifacts import read_embedding_picture
    from inference.images import read_infotext, read_other_programs

    try:
        with Image.open(path) as image:
            size = f"{image.width}x{image.height}"
            frames = getattr(image, "n_frames", 1)
        infotext = read_infotext(path)
    except InputError:
        raise
    except PILLOW_ERRORS as error:
        raise InputError(f"{path}: cannot be read as a picture: {error}") from error
    try:
        infotext = infotext or read_other_programs(path)
    except InputError as error:  # it was written by another program and cannot be parsed
        infotext = str(error)
    facts = {"kind": "picture", "size": size}
    if frames > 1:
        facts |= {"kind": "animated picture", "frames": str(frames)}
    facts["infotext"] = infotext or "none in this file"
    if path.suffix.lower() in PICTURES and read_embedding_picture(path):
        facts |= {"carries": "an embedding", **describe_embedding(path)}
    return facts


def inspect_video(path: Path) -> Description:
    """Return size, length and infotext; no frame is decoded."""
    from inference.media import video_facts

    facts = video_facts(path)
    infotext = facts.pop("comment", None)
    return {"kind": "video", **facts, "infotext": infotext or "none in this file"}


def inspect_base_model(path: Path) -> Description:
    """Return parts, sizes and prediction type of a diffusers folder; only headers are read."""
    from inference.files import read_json
    from inference.models import folder_family

    family = folder_family(path)
    facts = family.inspect(path, read_json(path / "model_index.json"))
    facts |= dict(count_parameters(path))
    return facts | hash_of_denoiser(path / family.denoiser_name)


def count_parameters(path: Path) -> Iterator[tuple[str, str]]:
    """Yield parameters and data types of each part of a base model in a folder."""
    for part in sorted(entry.name for entry in path.iterdir() if entry.is_dir()):
        headers = [read_header(file) for file in sorted((path / part).glob("*.safetensors"))]
        if headers:
            yield part, describe_tensors({k: v for header in headers for k, v in header.items()})


def hash_of_denoiser(folder: Path) -> Description:
    """Return the denoiser's hash, and the one in infotexts; nothing without a weight file."""
    file = weights_file(folder)
    if file is None:
        return {}
    digest = sha256(file)
    name = "UNet" if folder.name == "unet" else folder.name
    return {f"sha256 of the {name}": digest, "model hash in infotext": digest[:10]}


def inspect_vae(path: Path) -> Description:
    """Return names, parameters and hash of a standalone VAE: a file, or a diffusers folder."""
    from inference.files import open_tensors, read_json
    from inference.models import vae_file, vae_form, vae_name

    file = vae_file(path)
    facts = {"kind": "VAE (base_model.vae)", "called": vae_name(path)}
    if path.is_dir():
        config = read_json(path / "config.json")
        facts["class"] = str(config["_class_name"])
        keys = ("latent_channels", "scaling_factor", "force_upcast")
        facts |= {key.replace("_", " "): str(config[key]) for key in keys if key in config}
    if file is None:
        return facts | {"weights": "none in this folder"}
    tensors = open_tensors(file)
    if form := vae_form(tensors.shapes):
        prefix = f", each behind {form.prefix}" if form.prefix else ""
        channels = tensors.shapes[f"{form.prefix}decoder.conv_in.weight"][1]
        facts |= {"naming": f"{form.naming}{prefix}", "latent channels": str(channels)}
    if file.suffix.lower() == ".safetensors":
        facts["parameters"] = describe_tensors(read_header(file))
    digest = sha256(file)
    facts |= {"sha256": digest, "VAE hash in infotext": digest[:10]}
    return facts | dict(sorted(tensors.metadata.items()))


def inspect_artifact(path: Path) -> Description:
    """Return kind, layers, metadata and hashes of an artifact."""
    from inference.artifacts import read_keys, read_lora
    from inference.models import is_vae

    keys = [] if path.is_dir() else read_keys(path)
    if is_vae(keys):
        return inspect_vae(path)
    kind = artifact_kind(path, keys)
    if kind == "checkpoint" and path.is_file():
        return inspect_single_file(path)
    facts = {"kind": f"artifact: {kind}"}
    if path.is_dir() and kind == "lora":
        facts |= describe_lora(*read_lora(path))
        known_by = artifact_hash(path, kind)
        return facts | ({"hash in infotext": known_by[:12]} if known_by else {})
    if path.is_dir():
        return facts | dict(describe_parts(path))
    is_safetensors = path.suffix.lower() == ".safetensors"
    metadata = read_header(path).get("__metadata__", {}) if is_safetensors else {}
    if kind == "lora":
        tensors, said = read_lora(path)
        facts |= describe_lora(tensors, {**said, **metadata})
    if kind == "embedding":
        return facts | describe_embedding(path) | {"sha256": sha256(path)}
    if kind == "hypernetwork":
        return facts | describe_hypernetwork(path) | {"sha256": sha256(path)}
    facts |= {"tensors": str(len(keys)), "sha256": sha256(path), "AutoV2 hash": sha256(path)[:10]}
    if is_safetensors:
        facts["sshs hash"] = sha256(path, after_header=True)
    if kind == "lora":
        facts["hash in infotext"] = lora_hash(path)[:12]
    return facts | {key: metadata[key] for key in sorted(metadata)}


def inspect_single_file(path: Path) -> Description:
    """Return family, prediction type, parts and hashes of a base model in one file."""
    from inference.files import open_tensors
    from inference.models import single_file_format

    file = open_tensors(path)
    form = single_file_format(file.shapes)
    assert form is not None, path
    facts = {"kind": "base model (single file)"}
    try:
        facts |= form.inspect(file)
    except InputError as error:
        return facts | {"family": str(error), "sha256": sha256(path)}
    facts |= {"sha256": sha256(path), "model hash in infotext": sha256(path)[:10]}
    return facts | form.inspect_metadata(file.metadata)


def artifact_kind(path: Path, keys: Sequence[str]) -> str:
    """Return the kind of artifact that a folder, or a file with these tensors, is.

    Raises:
        InputError: it is of no known kind.
    """
    from inference.artifacts import ARTIFACTS

    for kind, target in ARTIFACTS.items():
        if pkgutil.resolve_name(target).recognizes(path, keys):
            return kind
    found = "a folder" if path.is_dir() else f"{len(keys)} tensors ({', '.join(keys[:4])}, …)"
    raise InputError(
        f"{path}: neither a picture, nor a base model (a folder with model_index.json, or a "
        "single file of Stable Diffusion), nor an "
        f"artifact ({', '.join(ARTIFACTS)}); found {found}"
    )


def describe_lora(tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> Description:
    """Return ranks, alphas and layers, and the base model that the metadata name."""
    from inference.artifacts import (
        Lora,
        diffusers_note,
        format_of,
        part_of,
        read_layers,
        says_alpha,
    )

    layers = read_layers(tensors, metadata)
    said = "" if says_alpha(tensors, metadata) else " (assumed; the file does not specify it)"
    parts = Counter(part_of(name) for name in layers)
    architecture = metadata.get("modelspec.architecture")
    naming = format_of(tensors)
    note = diffusers_note(Lora(layers, dict(metadata))) if naming == "kohya" else None
    facts = {
        "base model": metadata.get("ss_base_model_version") or architecture or "does not say",
        "rank": count(layer.rank for layer in layers.values()),
        "alpha": count(layer.alpha for layer in layers.values()) + said,
        "naming": naming,
        "modules": ", ".join(f"{number} in {part}" for part, number in parts.items()),
    }
    return facts if note is None else facts | {"in diffusers": note}


def describe_embedding(path: Path) -> Description:
    """Return its name in prompts, its size, and its metadata."""
    from inference.artifacts import Embedding, made_for

    embedding = Embedding.load(path)
    said = {key: str(value) for key, value in embedding.facts.items() if value is not None}
    vectors = f"{len(embedding.learned.vectors)} of {made_for(embedding.learned)}"
    return {"called": embedding.name, "vectors": vectors, **said}


def describe_hypernetwork(path: Path) -> Description:
    """Return its widths, its layers in A1111's terms, and its metadata."""
    from inference.artifacts import comfyui_difference, read_hypernetwork

    pairs, spec, facts = read_hypernetwork(path)
    parameters = sum(p.numel() for pair in pairs.values() for p in pair.parameters())
    names = ("name", "step", "sd_checkpoint_name", "sd_checkpoint", "optional_info")
    said = {name: str(facts[name]) for name in names if facts.get(name) is not None}
    options = {name: str(value) for name, value in dataclasses.asdict(spec).items()}
    sizes = ", ".join(map(str, pairs))
    difference = comfyui_difference(spec) if path.suffix.lower() != ".safetensors" else None
    note = {} if difference is None else {"in ComfyUI": difference}
    return {"sizes": sizes, "parameters": f"{parameters:,}", **options, **note, **said}


def count(values: Iterator[float]) -> str:
    """Return the values that occur; if there are several, with the number of layers."""
    found = Counter(values)
    if len(found) == 1:
        return f"{next(iter(found)):g}"
    return ", ".join(f"{value:g} ({times} layers)" for value, times in sorted(found.items()))


def describe_parts(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (name, size and hash) of each part of a model in a folder."""
    for part in sorted(entry for entry in path.iterdir() if entry.is_dir()):
        file = weights_file(part)
        if file and file.suffix.lower() == ".safetensors":
            yield part.name, f"{describe_tensors(read_header(file))}, sha256 {sha256(file)}"


def describe_tensors(header: Mapping[str, Any]) -> str:
    """Return the number of parameters and their data types, from safetensors headers."""
    sizes: Counter[str] = Counter()
    for key, entry in header.items():
        if key != "__metadata__":
            number = 1
            for length in entry["shape"]:
                number *= length
            sizes[entry["dtype"]] += number
    return f"{sum(sizes.values()):,} parameters ({', '.join(sizes) or 'none'})"


def show(title: str, facts: Description) -> None:
    """Print the description as a table."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), show_header=False, title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for number, (name, value) in enumerate(facts.items()):
        if number == MOST_FACTS:
            table.add_row(Text("…"), Text(f"and {len(facts) - MOST_FACTS} more"))
            break
        length = LONGEST_TEXT if name == "infotext" else LONGEST_FACT
        table.add_row(Text(cut(name)), Text(cut(value, length)))
    open_console().print(table)


if __name__ == "__main__":
    sys.exit(main())
