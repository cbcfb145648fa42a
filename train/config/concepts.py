"""Typed options of a concept, named as in A1111's DreamBooth extension (`db_concept.py`)."""

import dataclasses
import difflib
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any, ClassVar

from inference.prompts import misread
from inference.recipe import MISSING, at_home, fields_of
from inference.runtime import InputError, check_readable
from train.config.rules import Faults, at_least

FILEWORDS = "[filewords]"
"""Placeholder for the caption of an image."""


@dataclass
class ConceptConfig:
    """A subject to learn: images of it, and class images."""

    paths: ClassVar[tuple[str, ...]] = (
        "instance_data_dir",
        "class_data_dir",
        "save_sample_template",
    )

    instance_data_dir: str = MISSING
    """Folder with images of the subject, searched recursively."""
    class_data_dir: str | None = None
    """Folder with class images. Those in it are used, missing ones are generated into it; default:
    class_images/<name> in the run's folder."""
    instance_prompt: str = FILEWORDS
    """Prompt of the instance images. `[filewords]` becomes the caption of the image, or its file
    name without leading digits."""
    class_prompt: str = FILEWORDS
    """Prompt of the class images. `[filewords]` becomes the captions of the instance images,
    without the subject."""
    instance_token: str = ""
    """Name of the subject: a rare word. Where a prompt has the class instead (`a dog`), the token
    replaces it; a prompt with neither is prefixed with it. Without class_token every instance
    prompt is prefixed with it."""
    class_token: str = ""
    """Name of the class, such as dog. In class prompts it replaces the subject; a prompt with
    neither is prefixed with it. Without instance_token every class prompt is prefixed with it."""
    num_class_images_per: int = 0
    """Class images per instance image; 0 trains without prior preservation."""
    class_negative_prompt: str = ""
    """Negative prompt of generated class images."""
    class_guidance_scale: float = 7.5
    """CFG scale of generated class images."""
    class_infer_steps: int = 40
    """Sampling steps of generated class images."""
    save_sample_prompt: str = ""
    """Prompt of the concept's images in the preview grid; empty generates none. `[filewords]`
    becomes the captions of the instance images in turn."""
    save_sample_negative_prompt: str = ""
    """Negative prompt of these images."""
    save_sample_template: str | None = None
    """Text file with one prompt per line, instead of save_sample_prompt."""
    n_save_sample: int = 1
    """Images per prompt."""
    sample_seed: int = -1
    """Seed of these images; -1 derives one from the recipe's seed."""
    save_guidance_scale: float = 7.5
    """CFG scale of these images."""
    save_infer_steps: int = 20
    """Sampling steps of these images."""

    @property
    def has_prior(self) -> bool:
        """Return whether class images are used."""
        return self.num_class_images_per > 0

    @property
    def draws_samples(self) -> bool:
        return bool(self.save_sample_prompt or self.save_sample_template)

    def faults(self) -> Faults:
        yield from at_least(0, num_class_images_per=self.num_class_images_per)
        yield from at_least(
            1,
            class_infer_steps=self.class_infer_steps,
            save_infer_steps=self.save_infer_steps,
            n_save_sample=self.n_save_sample,
        )
        yield from at_least(
            0,
            class_guidance_scale=self.class_guidance_scale,
            save_guidance_scale=self.save_guidance_scale,
        )
        if not -1 <= self.sample_seed < 2**63:
            yield "sample_seed", f"must lie in -1 … 2^63-1, got {self.sample_seed}"
        if not self.instance_data_dir.strip():
            yield "instance_data_dir", "must name a folder of pictures"
        elif self.class_data_dir is not None and _overlap(
            self.instance_data_dir, self.class_data_dir
        ):
            yield (
                "class_data_dir",
                f"{self.class_data_dir!r} and instance_data_dir {self.instance_data_dir!r} lie "
                "within each other, so that pictures would be subject and class at once; take "
                "folders side by side",
            )
        if not self.instance_prompt.strip():
            yield "instance_prompt", f"must not be empty; {FILEWORDS} takes the captions"
        if self.has_prior and not self.class_prompt.strip():
            yield "class_prompt", f"must not be empty; {FILEWORDS} takes the captions"
        has_token = self.instance_token or self.class_token
        if self.has_prior and not has_token and self.class_prompt == self.instance_prompt:
            yield (
                "class_prompt",
                "is the same as instance_prompt, so that the class would be trained as the "
                "subject; set instance_token and class_token, or describe the class",
            )

    def idle(self) -> Faults:
        for name in ("instance_token", "class_token"):
            if reading := misread(vars(self)[name]):
                yield name, f"is learned as it is written, while in prompts {reading}"
        unset = {field.name: field.default for field in dataclasses.fields(self)}
        values = dataclasses.asdict(self)

        def without_effect(names: tuple[str, ...], why: str) -> Faults:
            for name in names:
                if values[name] != unset[name]:
                    yield name, f"has no effect {why}"

        if not self.has_prior:
            names = (
                "class_data_dir", "class_prompt", "class_negative_prompt", "class_guidance_scale",
                "class_infer_steps",
            )  # fmt: skip
            yield from without_effect(names, "with num_class_images_per: 0")
        elif self.class_guidance_scale == 1:
            yield from without_effect(("class_negative_prompt",), "with class_guidance_scale: 1")
        if self.save_sample_template:
            yield from without_effect(("save_sample_prompt",), "beside save_sample_template")
        if not self.draws_samples:
            names = (
                "save_sample_negative_prompt", "n_save_sample", "sample_seed",
                "save_guidance_scale", "save_infer_steps",
            )  # fmt: skip
            yield from without_effect(names, "without save_sample_prompt or save_sample_template")


def _overlap(one: str, two: str) -> bool:
    first, second = Path(one).absolute(), Path(two).absolute()
    return first.is_relative_to(second) or second.is_relative_to(first)


@dataclass
class ConceptsFile:
    """Contents of a concepts_list.json, with warnings."""

    concepts: dict[str, ConceptConfig]
    notes: list[str]
    """Warnings about keys and entries that have no effect."""


def read_concepts_list(path: str) -> ConceptsFile:
    """Read A1111's concepts_list.json: a list of objects with the fields of `ConceptConfig`.

    Folders are relative to the file. Entries without instance_data_dir are skipped, as in A1111,
    which writes them for unused panels. The concepts are named concept-1, concept-2, ….

    Raises:
        InputError: it is missing, is not such a list, or has values of a wrong type; one line each.
    """
    check_readable(path)
    entries = _json_of(path)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(
            f"{path!r}: expected a list of concepts, [{{…}}, {{…}}], as A1111 writes it"
        )
    found, faults = ConceptsFile({}, []), []
    for number, entry in enumerate(entries, 1):
        name = f"concept-{number}"
        if not str(entry.get("instance_data_dir") or "").strip():
            found.notes.append(f"{name} has no instance_data_dir and is left out")
            continue
        values = _known_values(name, entry, found.notes, faults)
        for key in ("instance_data_dir", "class_data_dir", "save_sample_template"):
            if key in values:
                values[key] = _within(Path(path).parent, at_home(values[key]))
        concept = ConceptConfig(**values)
        faults += [f"{name}.{key}: {message}" for key, message in concept.faults()]
        found.notes += [f"{name}.{key}: {message}" for key, message in concept.idle()]
        found.concepts[name] = concept
    if not found.concepts:
        faults.append(f"{path!r}: no concept with an instance_data_dir")
    if faults:
        raise InputError("\n".join(faults))
    return found


def _within(folder: Path, path: str) -> str:
    """Return a path that is relative to a folder; one of Windows with slashes, unless it exists."""
    if (windows := PureWindowsPath(path)).drive:
        return path  # not on this disk, which is reported where it is read
    own = folder / path
    return str(own if "\\" not in path or own.exists() else folder / windows.as_posix())


def _json_of(path: str) -> Any:
    """Return the content of a JSON file.

    Raises:
        InputError: it cannot be read.
    """
    if not os.path.isfile(path):  # noqa: PTH113 (is_file() fails for names that are too long)
        raise InputError(f"{path!r} is not a file")
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path!r} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path!r} is not JSON: {error}") from error


def _known_values(
    name: str, entry: dict[str, Any], notes: list[str], faults: list[str]
) -> dict[str, Any]:
    """Return the entry's values in the types of the fields; add the others to `faults`."""
    kinds = fields_of(ConceptConfig)
    values: dict[str, Any] = {}
    for key, value in entry.items():
        stays_empty = kinds.get(key) is str and not key.endswith("_prompt")
        is_unset = value is None or (value == "" and not stays_empty)
        if is_unset or key == "is_valid":  # A1111 stores whether the folder existed
            continue
        if key not in kinds:
            near = difflib.get_close_matches(key, kinds, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            notes.append(f"{name}.{key}: no field of a concept, has no effect{hint}")
        else:
            try:
                values[key] = _coerced(kinds[key], value)
            except ValueError as error:
                faults.append(f"{name}.{key}: {error}")
    return values


def _coerced(kind: Any, value: Any) -> Any:
    """Convert a JSON value to a field's type: A1111's page writes numbers as text and 40 as 40.0.

    Raises:
        ValueError: it is not of this type.
    """
    words = {int: "a whole number", float: "a number"}.get(kind, "text")
    wrong = ValueError(f"expected {words}, got {json.dumps(value)}")
    if kind not in (int, float):
        if not isinstance(value, str):
            raise wrong
        return value
    if isinstance(value, bool | list | dict):
        raise wrong
    with suppress(ValueError):
        number = value if isinstance(value, int) else float(value)
        if kind is float or number == number // 1:
            return kind(number)
    raise wrong
