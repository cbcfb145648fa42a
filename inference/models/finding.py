"""Find models and artifacts in folders by their hashes and names, without loading weights."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

from inference.files import (
    ADAPTER_FILES,
    EMBEDDING_PICTURES,
    artifact_hash,
    lora_legacy_hash,
    old_hash,
    read_header,
    read_json,
    sha256,
    weights_file,
)
from inference.models.families import folder_family, single_file_format
from inference.models.names import ASSETS, file_model_name, path_of, vae_file, vae_name
from inference.runtime import InputError

OLD_DIGITS = 8
"""Length of hashes from before February 2023, which were computed differently."""

OLD_START = 0x100000
"""Bytes of a file that old hashes skip; shorter files all have the same hash."""

NOT_SEARCHED = "was not searched for, since artifact_dirs is empty (give artifact_dirs=[…])"
"""What remarks say of a file if there is no folder to search."""

ADAPTER_CONFIG = "adapter_config.json"
"""The file beside the weights of a peft adapter."""

MODELS, ARTIFACTS = (".safetensors", ".ckpt"), (".safetensors", ".pt", ".ckpt", ".bin", ".pth")


def find_model(
    name: str | None, hash_: str | None, folders: Sequence[Path]
) -> tuple[str | None, str]:
    """Find the infotext's base model: (value for `base_model.path`, remarks).

    Models of the same name are checked first: hashing a folder of models takes minutes.
    """
    models = sorted(models_in(folders), key=lambda model: file_model_name(model) != name)
    for model in models:
        if hash_ and is_known_as(model, "checkpoint", hash_):
            return path_of(model), ""
    namesake = next((model for model in models if file_model_name(model) == name), None)
    described = f"{name or 'the model'}{f' (hash {hash_})' if hash_ else ''}"
    if namesake is not None:
        found = (artifact_hash(namesake, "checkpoint") or "unknown")[:10]
        remark = f"{described}: the one of this name here has the hash {found}" if hash_ else ""
        return path_of(namesake), remark
    where = ", ".join(map(str, folders))
    searched = f"is not in {where}" if folders else NOT_SEARCHED
    return None, f"{described} {searched}; generated with picto. Or give base_model.path=…"


def models_in(folders: Sequence[Path]) -> Iterator[Path]:
    """Yield the embedded models, and the diffusers folders and single files in folders."""
    for folder in (ASSETS, *folders):
        inside: set[Path] = set()
        for index in sorted(folder.rglob("model_index.json")):
            inside.add(index.parent)
            if is_image_folder(index.parent):
                yield index.parent
        for file in files_in(folder, MODELS):
            if inside.isdisjoint(file.parents) and is_single_model(file):
                yield file


def is_image_folder(folder: Path) -> bool:
    """Return whether a folder is an image model with its denoiser."""
    try:
        family = folder_family(folder)
    except InputError:  # a damaged model_index.json
        return False
    return family.draws == "pictures" and (folder / family.denoiser_name).is_dir()


def is_single_model(file: Path) -> bool:
    """Return whether a file's names are those of a whole model; .ckpt files are assumed to be."""
    if file.suffix.lower() == ".ckpt":
        return True
    try:
        keys = read_header(file)
    except InputError:
        return False
    form = single_file_format(keys)
    return form is not None and form.holds_denoiser(keys)


def files_in(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """Return all files with these suffixes in a folder and below, in order."""
    return sorted(f for f in folder.rglob("*") if f.suffix.lower() in suffixes and f.is_file())


def is_known_as(path: Path, kind: str, hash_: str) -> bool:
    """Return whether a model or artifact has this hash, of any length and age."""
    try:
        whole = artifact_hash(path, kind)
        if whole is not None and whole.startswith(hash_):
            return True
        if kind == "lora" and sha256(path).startswith(hash_):  # Civitai's, of the whole file
            return True
        file = weights_file(path / folder_family(path).denoiser_name) if path.is_dir() else path
        if file is None or len(hash_) != OLD_DIGITS or file.stat().st_size <= OLD_START:
            return False
        return hash_ in (old_hash(file), legacy_hash(file, kind))
    except (InputError, OSError):  # a damaged file was not generated with
        return False


def legacy_hash(file: Path, kind: str) -> str | None:
    """Return kohya's old hash, by which old infotext identifies LoRAs."""
    return lora_legacy_hash(file) if kind == "lora" else None


class VaeForm(NamedTuple):
    """How a file names the weights of a VAE."""

    prefix: str
    """Before each name: `first_stage_model.` (checkpoints), `vae.`, or nothing."""
    naming: Literal["LDM", "diffusers"]


VAE_PREFIXES = ("first_stage_model.", "vae.", "")
LARGEST_VAE = 2**30
"""Bytes: with the averages and the discriminator of its training a VAE of SD takes 0.8 GB."""
BESIDE_VAE = ("loss.", "model_ema.")
"""Beginnings of further names in files of VAEs: their training's."""


def vae_form(keys: Collection[str]) -> VaeForm | None:
    """Return how a file with these tensors names the weights of its VAE; None without a VAE."""
    for prefix in VAE_PREFIXES:
        if all(f"{prefix}{half}.conv_in.weight" in keys for half in ("encoder", "decoder")):
            is_ldm = any(key.startswith(f"{prefix}decoder.mid.") for key in keys)
            return VaeForm(prefix, "LDM" if is_ldm else "diffusers")
    return None


def is_vae(keys: Collection[str]) -> bool:
    """Return whether a file with these tensors is a VAE, and nothing else."""
    form = vae_form(keys)
    return form is not None and all(key.startswith((form.prefix, *BESIDE_VAE)) for key in keys)


def is_vae_folder(path: Path) -> bool:
    """Return whether a folder is a VAE in diffusers' layout.

    Raises:
        InputError: its config.json is damaged.
    """
    settings = read_json(path / "config.json") if path.is_dir() else {}
    return str(settings.get("_class_name", "")).startswith("Autoencoder")


def vaes_in(folders: Sequence[Path]) -> Iterator[Path]:
    """Yield the VAEs in folders: files of their own, and folders in diffusers' layout."""
    for folder in folders:
        for config in sorted(folder.rglob("config.json")):
            try:
                if is_vae_folder(config.parent):
                    yield config.parent
            except InputError:
                continue
        for file in files_in(folder, ARTIFACTS):
            is_pickle = file.suffix.lower() != ".safetensors"
            try:
                if file.stat().st_size <= LARGEST_VAE and (is_pickle or is_vae(header_keys(file))):
                    yield file
            except InputError:
                continue


def header_keys(file: Path) -> list[str]:
    """Return the names of the tensors of a safetensors file.

    Raises:
        InputError: it is not one.
    """
    return [key for key in read_header(file) if key != "__metadata__"]


def find_vae(
    name: str | None, hash_: str | None, folders: Sequence[Path]
) -> tuple[str | None, str]:
    """Find the infotext's VAE: (value for `base_model.vae`, remarks).

    VAEs of the same name, with or without its suffix, are checked first. Pickles are compared by
    their hash alone.
    """

    def is_called(vae: Path) -> bool:
        return name in (vae_name(vae), Path(vae_name(vae)).stem)

    found = sorted(vaes_in(folders), key=lambda vae: not is_called(vae))
    for vae in found:
        if hash_ and (file := vae_file(vae)) and sha256(file).startswith(hash_):
            return str(vae), ""
    described = f"{name or 'the VAE'}{f' (hash {hash_})' if hash_ else ''}"
    namesake = next(filter(is_called, found), None)
    if namesake is not None:
        remark = f"{described}: the one of this name here has another hash" if hash_ else ""
        return str(namesake), remark
    searched = f"is not in {', '.join(map(str, folders))}"
    searched = searched if folders else NOT_SEARCHED
    return None, (
        f"{described} {searched}; generated with the model's own VAE. Or give base_model.vae=…"
    )


def artifact_name(path: Path) -> str:
    """Return the name that prompts call an artifact by: its file's without suffix, or its folder's.

    The weight file of a peft adapter is named by its folder.
    """
    is_adapter = path.name.lower() in ADAPTER_FILES and (path.parent / ADAPTER_CONFIG).is_file()
    if is_adapter or path.is_dir():
        return (path.parent if is_adapter else path).resolve().name
    return path.stem


def artifacts_in(kind: str, folders: Sequence[Path]) -> list[Path]:
    """Return the files in folders that may be artifacts of a kind."""
    suffixes = (*ARTIFACTS, *EMBEDDING_PICTURES) if kind == "embedding" else ARTIFACTS
    return [file for folder in folders for file in files_in(folder, suffixes)]


def find_named(
    name: str,
    kind: str,
    hash_: str | None,
    folders: Sequence[Path],
    files: Sequence[Path] | None = None,
) -> tuple[str | None, str]:
    """Find the artifact that a prompt calls: (its name here, remarks).

    It is found by name (the file's, or kohya's in its metadata), or else by hash. `files` are those
    of `artifacts_in`, for callers who look for many.
    """
    files = artifacts_in(kind, folders) if files is None else files
    namesakes = [file for file in files if name in (artifact_name(file), output_name(file))]
    for file in namesakes:
        if not hash_ or is_known_as(file, kind, hash_):
            return name, ""
    if hash_:
        for file in files:
            if file not in namesakes and is_known_as(file, kind, hash_):
                own = artifact_name(file)
                return own, "" if own == name else f"is called {own} here"
    described = f" with the hash {hash_}" if hash_ else ""
    if namesakes:
        return name, f"{namesakes[0]} is another file of this name, not the one{described}"
    searched = f" in {', '.join(map(str, folders))}" if folders else ": give artifact_dirs=[…]"
    return None, f"there is no such file{described}{searched}"


@lru_cache(maxsize=4096)
def output_name(file: Path) -> str | None:
    """Return the name that kohya's trainer wrote into a LoRA."""
    if file.suffix.lower() != ".safetensors":
        return None
    try:
        return read_header(file).get("__metadata__", {}).get("ss_output_name")
    except InputError:
        return None
