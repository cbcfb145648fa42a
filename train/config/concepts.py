"""The typed recipe of a concept, in the words of A1111's DreamBooth extension (`db_concept.py`)."""

import dataclasses
import difflib
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from omegaconf import MISSING

from inference.runtime import InputError
from train.config.rules import Faults, at_least

FILEWORDS = "[filewords]"
"""What a picture's caption takes the place of."""


@dataclass
class ConceptConfig:
    """A subject to learn: its pictures, and pictures of the class it belongs to."""

    instance_data_dir: str = MISSING
    """Folder with pictures of the subject; folders within it are searched too."""
    class_data_dir: str | None = None
    """Folder with pictures of the class. What is in it is used, what is missing is drawn into it;
    without it that is class_images/<name> in the run's folder."""
    instance_prompt: str = FILEWORDS
    """What the subject's pictures show. `[filewords]` becomes the caption beside the picture, or
    the file's name without digits at its front."""
    class_prompt: str = FILEWORDS
    """What the class's pictures shall show. `[filewords]` becomes the captions of the subject's
    pictures, without the subject."""
    instance_token: str = ""
    """The subject's name: a rare word. Where a prompt says the class instead (`a dog`), it takes
    its place; where it says neither, it is written before the prompt. Without class_token it is
    written before every instance prompt."""
    class_token: str = ""
    """The class's name, such as dog. In class prompts it takes the subject's place, and is written
    before those without it. Without instance_token it is written before every class prompt."""
    num_class_images_per: int = 0
    """Class pictures for each picture of the subject; 0 learns without prior preservation."""
    class_negative_prompt: str = ""
    """What drawn class pictures shall not show."""
    class_guidance_scale: float = 7.5
    """Classifier-free guidance scale of drawn class pictures."""
    class_infer_steps: int = 40
    """Sampling steps of drawn class pictures."""
    save_sample_prompt: str = ""
    """Prompt of the concept's pictures in the grid; empty draws none. `[filewords]` becomes the
    captions of the subject's pictures in turn."""
    save_sample_negative_prompt: str = ""
    """What these pictures shall not show."""
    save_sample_template: str | None = None
    """Text file with a prompt in every line, in the place of save_sample_prompt."""
    n_save_sample: int = 1
    """Pictures for each prompt."""
    sample_seed: int = -1
    """Seed of these pictures; -1 takes one that follows from the recipe's seed."""
    save_guidance_scale: float = 7.5
    """Classifier-free guidance scale of these pictures."""
    save_infer_steps: int = 20
    """Sampling steps of these pictures."""

    @property
    def has_prior(self) -> bool:
        """Whether pictures of the class are learned along."""
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
                "says the same as instance_prompt, so that the class would be learned as the "
                "subject; set instance_token and class_token, or say what the class is",
            )

    def idle(self) -> Faults:
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
    """What a concepts_list.json holds, and what is to be said about it."""

    concepts: dict[str, ConceptConfig]
    told: list[str]
    """Keys and entries that have no effect, in words."""


def read_concepts_list(path: str) -> ConceptsFile:
    """A1111's concepts_list.json: a list of objects with the fields of `ConceptConfig`.

    Folders are taken relative to the file. Entries without instance_data_dir are left out, as in
    A1111, which writes them for unused panels. The concepts are called concept-1, concept-2, ….

    Raises:
        InputError: it is not there, no such list, or values are of a wrong type. One line each.
    """
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path!r} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path!r} is no JSON: {error}") from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(
            f"{path!r}: expected a list of concepts, [{{…}}, {{…}}], as A1111 writes it"
        )
    found, faults = ConceptsFile({}, []), []
    for number, entry in enumerate(entries, 1):
        name = f"concept-{number}"
        if not str(entry.get("instance_data_dir") or "").strip():
            found.told.append(f"{name} has no instance_data_dir and is left out")
            continue
        values = _known_values(name, entry, found.told, faults)
        for key in ("instance_data_dir", "class_data_dir", "save_sample_template"):
            if key in values:
                values[key] = str(Path(path).parent / values[key])
        concept = ConceptConfig(**values)
        faults += [f"{name}.{key}: {message}" for key, message in concept.faults()]
        found.told += [f"{name}.{key}: {message}" for key, message in concept.idle()]
        found.concepts[name] = concept
    if not found.concepts:
        faults.append(f"{path!r}: no concept with an instance_data_dir")
    if faults:
        raise InputError("\n".join(faults))
    return found


def _known_values(
    name: str, entry: dict[str, Any], told: list[str], faults: list[str]
) -> dict[str, Any]:
    """The entry's values in the types of the fields; what does not fit goes to `faults`."""
    kinds = get_type_hints(ConceptConfig)
    values: dict[str, Any] = {}
    for key, value in entry.items():
        stays_empty = kinds.get(key) is str and not key.endswith("_prompt")
        is_unset = value is None or (value == "" and not stays_empty)
        if is_unset or key == "is_valid":  # A1111's note whether the folder was there
            continue
        if key not in kinds:
            near = difflib.get_close_matches(key, kinds, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            told.append(f"{name}.{key}: no field of a concept, has no effect{hint}")
        else:
            try:
                values[key] = _coerced(kinds[key], value)
            except ValueError as error:
                faults.append(f"{name}.{key}: {error}")
    return values


def _coerced(kind: Any, value: Any) -> Any:
    """A value of JSON in a field's type: A1111's page leaves numbers as text and 40 as 40.0.

    Raises:
        ValueError: it says something else.
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
