"""Where a run's images come from: a folder with captions, subsets, or concepts."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from inference.recipe import RecipeWarning
from train.common import DataError, RunDirectoryError
from train.config import FILEWORDS, DataConfig, TrainRecipe, has_streamed, is_commit, stage_recipes
from train.data.containers import left_out_line
from train.data.pictures import sound_paths
from train.data.sources.captions import asks_for_captions, read_template
from train.data.sources.clip_folder import find_clips, warn_of_short
from train.data.sources.concepts import Concept, class_facts, find_concepts
from train.data.sources.folder import Picture, find_pictures, fingerprint
from train.data.sources.subsets import Subset, find_subsets
from train.data.streaming import commits_of, folders_of

RANGE = 2**56
"""Exclusive upper limit of the numbers of images."""


@dataclass(frozen=True)
class ValidationSplit:
    """The validation split."""

    pictures: list[Picture] = field(default_factory=list)
    """Sorted by number."""
    numbers: dict[Path, int] = field(default_factory=dict)
    """A number of each, derived from its name and the seed; noise is drawn by it."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Metadata of another folder in environment.json, which a resumed run must match."""


def split_off_validation(
    recipe: TrainRecipe, sources: Sources, find: Callable[[TrainRecipe, str], Sources]
) -> Sources:
    """Return the sources with the validation split, which is removed from the training images.

    Args:
        recipe: the run's recipe.
        sources: all sources of the run.
        find: finds the images of another folder, whose recipe key it takes.

    Raises:
        DataError: no training images would be left; images of the other folder cannot be used.
    """
    config = recipe.validation
    if config is None:
        return sources
    if config.path is not None:
        source = {"path": config.path, "subsets": {}, "concepts": {}, "concepts_list": None}
        if recipe.data.streaming is not None:  # a setting of the whole run
            source |= {"streaming": None, "revision": None}
        other = replace(recipe.data, **source)
        others = find(replace(recipe, data=other), "validation.path")
        found, root = others.pictures, Path(config.path)
        facts = {
            "validation_pictures": len(found),
            "validation_fingerprint": fingerprint(found, root),
        }
        numbers = {one.path: number_of(one, [root], config.seed) for one in found}
        held = chosen(numbers, found, config.max_examples, facts)
        left_out = sources.left_out + others.left_out
        return replace(sources, held_back=held, left_out=left_out)
    assert config.split is not None
    roots = roots_of(sources)
    numbers = {one.path: number_of(one, roots, config.seed) for one in sources.pictures}
    limit = max(config.split * RANGE, min(numbers.values()) + 1)  # at least one
    inside = [one for one in sources.pictures if numbers[one.path] < limit]
    if len(sources.pictures) == 1:
        raise DataError(
            "validation.split: there is one picture only, and nothing would be left to learn; "
            "give other pictures (validation.path), or leave validation out"
        )
    if len(inside) == len(sources.pictures):
        raise DataError(
            f"validation.split: {config.split} of {len(inside)} pictures holds all of them back; "
            "take a smaller share, another validation.seed, or validation.path"
        )
    left = [one for one in sources.pictures if numbers[one.path] >= limit]
    held = chosen(numbers, inside, config.max_examples, {})
    return replace(sources, pictures=left, held_back=held)


def chosen(
    numbers: dict[Path, int], pictures: Sequence[Picture], limit: int | None, facts: dict[str, Any]
) -> ValidationSplit:
    """Return those with the lowest numbers."""
    ordered = sorted(pictures, key=lambda one: (numbers[one.path], one.path))[:limit]
    return ValidationSplit(ordered, {one.path: numbers[one.path] for one in ordered}, facts)


def number_of(picture: Picture, roots: Sequence[Path], seed: int) -> int:
    """Derive a uniform number in 0 … 2^56-1 from the image's relative name and the seed."""
    root = next((root for root in roots if picture.path.is_relative_to(root)), None)
    name = picture.path.relative_to(root) if root is not None else picture.path
    text = f"{seed}\n".encode() + os.fsencode(name.as_posix())
    digest = hashlib.blake2b(text, digest_size=7, person=b"validation").digest()
    return int.from_bytes(digest)


def roots_of(sources: Sources) -> list[Path]:
    """Return the folders in which a run's images were found."""
    folders = [sources.config.path, *(one.config.instance_data_dir for one in sources.concepts)]
    folders += [one.config.path for one in sources.subsets]
    streamed = folders_of(picture.path for picture in sources.pictures)
    return [*streamed, *(Path(folder) for folder in folders if folder is not None)]


@dataclass(frozen=True)
class Sources:
    """What a run starts with; class images of concepts are added later."""

    pictures: list[Picture]
    config: DataConfig
    """How they become examples."""
    template: tuple[str, ...]
    fingerprint: str
    concepts: list[Concept] = field(default_factory=list)
    subsets: list[Subset] = field(default_factory=list)
    class_pictures: list[Picture] = field(default_factory=list)
    """Those of subsets, which exist."""
    held_back: ValidationSplit = field(default_factory=ValidationSplit)
    """The validation split; none of it is among `pictures` (except for `validation.path`)."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Number of files left out that look like data, by kind."""

    @property
    def commits(self) -> dict[str, str]:
        """Return the commits of streamed datasets, by `path`."""
        return commits_of(one.path for one in (*self.pictures, *self.held_back.pictures))

    @property
    def facts(self) -> dict[str, Any]:
        """Return their metadata in environment.json, which a resumed run must match."""
        told_by = Counter(picture.told_by for picture in self.pictures if picture.told_by)
        facts = {
            "pictures": len(self.pictures),
            "dataset_fingerprint": self.fingerprint,
            "captions_from": dict(told_by.most_common()),
            **self.held_back.facts,
        }
        if self.commits:
            facts["commits"] = self.commits
        return facts | (class_facts(self.class_pictures) if self.class_pictures else {})


def find_sources(recipe: TrainRecipe) -> Sources:
    """Return the recipe's images and captions, with the validation split apart.

    A resumed run uses the commits that it started with. One warning counts what is left out
    although it looks like data.

    Raises:
        DataError: images or captions cannot be used.
    """
    recipe = pinned(recipe)
    sources = split_off_validation(recipe, _all_sources(recipe), _all_sources)
    if sources.left_out.total():
        warnings.warn(f"data: {left_out_line(sources.left_out)}", RecipeWarning, stacklevel=2)
    return sources


def pinned(recipe: TrainRecipe) -> TrainRecipe:
    """Return the recipe with the commits of streamed datasets of the run that is resumed.

    Raises:
        RunDirectoryError: the run's environment.json is damaged.
    """
    file = Path(recipe.output_dir) / recipe.name / "environment.json"
    data = recipe.data
    if not (recipe.resume and has_streamed(data) and file.is_file()):
        return recipe
    try:
        commits = dict(json.loads(file.read_text("utf-8")).get("commits") or {})
    except (OSError, ValueError, AttributeError) as error:
        raise RunDirectoryError(f"{file}: cannot be read ({error}); restore it") from error
    return at_commits(recipe, commits)


def at_commits(recipe: TrainRecipe, commits: dict[str, str]) -> TrainRecipe:
    """Return the recipe with these commits of streamed datasets, by `path`, instead of branches."""

    def own(part: Any) -> Any:
        if is_commit(part.revision):
            return part
        return replace(part, revision=commits.get(part.path or "", part.revision))

    if not commits:
        return recipe
    subsets = {name: None if one is None else own(one) for name, one in recipe.data.subsets.items()}
    return replace(recipe, data=replace(own(recipe.data), subsets=subsets))


def _all_sources(recipe: TrainRecipe, key: str = "data.path") -> Sources:
    data, left_out = recipe.data, Counter[str]()
    if data.subsets:
        return _of_subsets(recipe)
    if data.path is None:
        concepts = find_concepts(data, left_out)
        digest = hashlib.blake2b(digest_size=16)
        for concept in concepts:
            digest.update(concept.fingerprint.encode())
        # The first part of a prompt is its subject; A1111 keeps it in place too.
        captions = replace(data.captions, keep_tokens=max(1, data.captions.keep_tokens))
        pictures = [picture for concept in concepts for picture in concept.pictures]
        config = replace(data, captions=captions)
        said = digest.hexdigest()
        return Sources(pictures, config, (FILEWORDS,), said, concepts, left_out=left_out)
    template = read_template(data.captions.template, recipe.objective.word or recipe.name)
    captioned = recipe.objective.learns_from_captions and asks_for_captions(template)
    pictures: list[Picture] = []
    if data.clips is None:
        found = find_pictures(data, captioned, left_out, key)
        digests = data.cache == "disk" and data.caches_latents
        sound = {*sound_paths([one.path for one in found], data.broken_pictures, digests)}
        pictures += [one for one in found if one.path in sound]
    else:
        clips = find_clips(data, captioned, left_out, key)
        for own in stage_recipes(recipe):
            assert own.data.clips is not None
            warn_of_short(clips, own.data.clips)
        pictures += clips
    digest = fingerprint(pictures, Path(data.path), template)
    return Sources(pictures, data, template, digest, left_out=left_out)


def _of_subsets(recipe: TrainRecipe) -> Sources:
    left_out = Counter[str]()
    subsets = find_subsets(recipe, left_out)
    digest = hashlib.blake2b("".join(one.fingerprint for one in subsets).encode(), digest_size=16)
    own, of_classes = (
        [one for subset in subsets if subset.config.is_reg == is_reg for one in subset.pictures]
        for is_reg in (False, True)
    )
    data = recipe.data
    template = read_template(data.captions.template, recipe.objective.word or recipe.name)
    return Sources(
        own,
        data,
        template,
        digest.hexdigest(),
        subsets=subsets,
        class_pictures=of_classes,
        left_out=left_out,
    )
