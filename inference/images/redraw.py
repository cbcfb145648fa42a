"""Make a recipe from an image's infotext: `python -m inference picture.png [key=value ...]`.

Infotext is converted back to settings, and the model that it names is searched by hash;
everything that cannot be reproduced is noted. Infotext does not contain init images:
an image of img2img needs its `img2img.init_image` on the command line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inference.config import draw_schema
from inference.images.infotext import (
    Infotext,
    Resources,
    as_pasted,
    parse_infotext,
    read_infotext,
    read_other_programs,
    resources_of,
)
from inference.images.redraw_settings import (
    WITHOUT_INIT,
    in_known_words,
    is_only_postprocessed,
    settings_from,
)
from inference.media import PILLOW_ERRORS, SUFFIXES
from inference.models import LOW_BITS, artifacts_in, find_model, find_named, find_vae
from inference.recipe import (
    RecipeError,
    absolute,
    cut,
    load_mapping,
    merged,
    override_layers,
    shown,
)
from inference.runtime import InputError, check_readable

ENTRY = "picture"
"""The name of the recipe's one image; all options but its prompt are in `settings`."""

TAG = re.compile(r"<(lora|lyco|hypernet):([^:<>]+)((?::[^<>]*)?)>")
"""A tag; nothing in it can begin another one, which keeps the search linear."""

NO_VAE = ("", "none", "automatic")
"""Values of `VAE` that name no file."""

NOT_OURS = "drawn in full; base_model.quantization=fp8 rounds the weights, in Limner's own way"

MOST_NOTES = 100
"""Maximum number of notes on what an infotext names; keys and tags can be many."""
LONGEST_NOTE = 300
LONGEST_INFOTEXT = 2**20
"""Maximum number of characters; A1111 writes some hundred."""


@dataclass
class Redrawing:
    """A recipe's content, and notes on what it cannot reproduce."""

    recipe: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    def shorten(self) -> None:
        """Cut long notes, and leave out those beyond a number."""
        more = len(self.notes) - MOST_NOTES
        del self.notes[MOST_NOTES:]
        self.notes[:] = [cut(note.replace("\n", "\\n"), LONGEST_NOTE) for note in self.notes]
        self.notes += [f"… and {more} more notes"] if more > 0 else []


def is_picture(path: str | Path) -> bool:
    """Return whether a path has the suffix of an image."""
    return Path(path).suffix.lower() in SUFFIXES


def recipe_from_picture(
    path: str | Path,
    folders: Sequence[str | Path] = (),
    base_model: str | None = None,
    has_init: bool = False,
) -> Redrawing:
    """Return the recipe of an image; arguments as of `recipe_from_infotext`.

    Raises:
        InputError: the image cannot be read, or has no infotext that says how to draw it.
    """
    path = Path(path)
    check_readable(path)
    if not path.exists():
        raise InputError(f"{path}: no such file")
    try:
        text = read_infotext(path) or read_other_programs(path)
    except (*PILLOW_ERRORS, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot be read as a picture: {error}") from error
    if text is None:
        raise InputError(
            f"{path}: does not say how it was drawn: there is no infotext in it, and none in a "
            f"{path.stem}.txt beside it"
        )
    if len(text) > LONGEST_INFOTEXT:
        raise InputError(
            f"{path}: its infotext has {len(text)} characters; expected {LONGEST_INFOTEXT} at most"
        )
    infotext = parse_infotext(text)
    if is_only_postprocessed(infotext):
        raise InputError(
            f"{path}: its infotext says only how it was processed after it was drawn "
            f"({cut(text.strip(), LONGEST_NOTE)}), and not how it was drawn"
        )
    return recipe_from_infotext(infotext, folders, base_model, has_init=has_init)


def load_picture(
    path: str | Path, overrides: Sequence[str] = (), log: Callable[[str], object] | None = None
) -> tuple[Any, list[str]]:
    """Load the valid recipe of an image, and notes on what it cannot reproduce.

    Models and artifacts are searched in the `artifact_dirs` of the overrides; a `base_model.path`
    replaces the model that infotext names.

    Args:
        path: the image.
        overrides: `key=value` each.
        log: gets each note before the recipe is checked, so that notes precede an error.

    Raises:
        InputError: the image or an override cannot be used.
    """
    given = merged(override_layers(overrides, []))
    folders, base = given.get("artifact_dirs") or [], given.get("base_model")
    folders = [folders] if isinstance(folders, str) else folders
    known = [folder for folder in folders if isinstance(folder, str)]  # others are reported below
    base_path = base.get("path") if isinstance(base, dict) else None
    made = recipe_from_picture(path, known, base_path, gives_init(given))
    if isinstance(base, dict) and "vae" in base:  # it draws, whether the picture's is here or not
        made.notes = [note for note in made.notes if not note.startswith("VAE: ")]
    for note in made.notes:
        if log is not None:
            log(note)
    try:
        recipe = load_mapping(made.recipe, shown(absolute(path)), draw_schema, overrides)
    except RecipeError as error:
        raise RecipeError("\n".join(map(with_way_out, str(error).splitlines()))) from error
    return recipe, made.notes


def gives_init(given: Mapping[str, Any]) -> bool:
    """Return whether overrides give an init image, in `settings` or of the one image."""
    images = given.get("images")
    own = images.get(ENTRY) if isinstance(images, Mapping) else None
    places = [place for place in (given.get("settings"), own) if isinstance(place, Mapping)]
    return any(isinstance(place.get("img2img"), Mapping) for place in places)


def with_way_out(line: str) -> str:
    """Return a line of an error with the override that replaces what the picture says."""
    key = re.search(r"\b(settings\.[\w.]+): ", line)
    if key is None:
        return line
    if "must be given" not in line:
        return f"{line} ({key[1]}=… replaces it)"
    is_init = key[1].startswith("settings.img2img.")
    return f"{line}: {key[1]}=…{f'; or give {WITHOUT_INIT}' if is_init else ''}"


def recipe_from_infotext(
    infotext: str | Infotext,
    folders: Sequence[str | Path] = (),
    base_model: str | None = None,
    restorers: Sequence[str] = (),
    has_init: bool = False,
) -> Redrawing:
    """Return the recipe for an infotext.

    Args:
        infotext: of A1111, Forge or ours.
        folders: where models, LoRAs, hypernetworks and embeddings are searched, recursively.
        base_model: replaces the model that infotext names.
        restorers: the available face restorers.
        has_init: whether the user gives an init image.

    Raises:
        InputError: a folder does not exist.
    """
    infotext = parse_infotext(infotext) if isinstance(infotext, str) else infotext
    infotext = in_known_words(infotext)
    resources = resources_of(infotext.parameters)
    paths = [Path(folder) for folder in folders]
    for path in paths:
        if not path.is_dir():
            raise InputError(f"artifact_dirs: {str(path)!r} is not a folder")
    pasted = as_pasted(infotext)
    settings, notes = settings_from(infotext, restorers, has_init)
    made = Redrawing({}, notes + resources.remarks)
    prompt = pasted["Prompt"]
    if not TAG.search(prompt):
        prompt = " ".join([prompt, *resources.called.values()])
    prompt = called_here(prompt, resources.loras, paths, made.notes)
    if later := settings.get("hires", {}).get("prompt"):
        settings["hires"]["prompt"] = called_here(later, resources.loras, paths, made.notes)
    note_embeddings(resources, paths, made.notes)
    made.recipe = {
        "type": "images",
        "base_model": base_of(pasted, resources, paths, base_model, made.notes),
        **({"artifact_dirs": [str(path) for path in paths]} if paths else {}),
        "settings": settings,
        "images": {ENTRY: {"prompt": prompt}},
    }
    made.shorten()
    return made


def base_of(
    pasted: Mapping[str, str],
    resources: Resources,
    folders: Sequence[Path],
    given: str | None,
    notes: list[str],
) -> dict[str, Any]:
    """Return the recipe's base_model: the given one, or else the one that infotext names."""
    base: dict[str, Any] = {}
    name, hash_ = resources.model_name, resources.model_hash
    if given is None and not name and not hash_:
        notes.append("Model: infotext names none: picto draws; or give base_model.path=…")
    elif given is None:
        path, remark = find_model(name, hash_, folders)
        notes += [f"Model: {remark}"] if remark else []
        if path is not None:
            base["path"] = path
    if (resources.vae_name or "").lower() not in NO_VAE or resources.vae_hash is not None:
        vae, remark = find_vae(resources.vae_name, resources.vae_hash, folders)
        notes += [f"VAE: {remark}"] if remark else []
        base |= {"vae": vae} if vae is not None else {}
    if (low_bits := pasted.get("Diffusion in Low Bits")) is not None:
        packing = packing_of(low_bits, pasted.get("Version", ""))
        base |= {"quantization": packing} if packing else {}
        notes += [] if packing else [f"Diffusion in Low Bits: {low_bits}: {NOT_OURS}"]
    if pasted["Clip skip"] != "1":
        try:
            base["clip_skip"] = int(pasted["Clip skip"])
        except ValueError:
            notes.append(f"Clip skip: {pasted['Clip skip']!r} is no number; left out")
    return base


def packing_of(low_bits: str, version: str) -> str | None:
    """Return `base_model.quantization` of a picture by Limner; None for other programs.

    Their weights of this name are rounded otherwise.
    """
    known = {name: packing for packing, name in LOW_BITS.items()}
    return known.get(low_bits) if version.startswith("limner ") else None


def called_here(
    prompt: str, hashes: Mapping[str, str], folders: Sequence[Path], notes: list[str]
) -> str:
    """Return the prompt with its tags of LoRAs and hypernetworks renamed to the files here.

    Tags of missing files are removed.
    """
    files = artifacts_in("lora", folders) if TAG.search(prompt) else []
    found: dict[tuple[str, str, str | None], tuple[str | None, str]] = {}

    def rename(tag: re.Match[str]) -> str:
        name, kind = tag[2], "hypernetwork" if tag[1] == "hypernet" else "lora"
        hash_ = hashes.get(name.replace(",", "")) if kind == "lora" else None
        key = name, kind, hash_
        if key not in found:
            found[key] = find_named(*key, folders, files)
        file, remark = found[key]
        if file is None:
            notes.append(f"{tag[0]}: {remark}; the picture is drawn without")
            return ""
        notes.extend([f"{tag[0]}: {remark}"] if remark else [])
        return f"<{tag[1]}:{file}{tag[3]}>"

    return TAG.sub(rename, prompt)


def note_embeddings(resources: Resources, folders: Sequence[Path], notes: list[str]) -> None:
    """Note the embeddings of the infotext that are missing; prompts call them by name."""
    pairs = resources.embeddings
    files = artifacts_in("embedding", folders) if pairs else []
    for name, hash_ in pairs.items():
        file, remark = find_named(name, "embedding", hash_, folders, files)
        if file is not None and file != name:
            remark = f"is called {file} here: write that into the prompt"
        if remark:
            notes.append(f"embedding {name}: {remark}")
