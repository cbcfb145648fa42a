"""Where a run's pictures come from: a folder with captions, subsets, or concepts."""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from train.config import TrainRecipe
from train.data.captions import FILEWORDS, asks_for_captions, read_template
from train.data.clip_folder import find_clips, warn_of_short
from train.data.concepts import Concept, class_facts, find_concepts
from train.data.folder import Picture, find_pictures, fingerprint
from train.data.held_back import HeldBack, hold_back
from train.data.shards import commits_of
from train.data.soundness import sound_paths
from train.data.subsets import Subset, find_subsets
from train.data_config import DataConfig
from train.run_errors import RunDirectoryError
from train.stages import stages_of
from train.streaming_config import has_streamed, is_commit


@dataclass(frozen=True)
class Sources:
    """What a run begins with; the class pictures of concepts come along later."""

    pictures: list[Picture]
    config: DataConfig
    """How they become examples."""
    template: tuple[str, ...]
    fingerprint: str
    concepts: list[Concept] = field(default_factory=list)
    subsets: list[Subset] = field(default_factory=list)
    class_pictures: list[Picture] = field(default_factory=list)
    """Those of subsets, which are there."""
    held_back: HeldBack = field(default_factory=HeldBack)
    """What validation looks at; none of it is among `pictures` (but of `validation.path`)."""

    @property
    def commits(self) -> dict[str, str]:
        """Those of streamed datasets, by `path`."""
        return commits_of(one.path for one in (*self.pictures, *self.held_back.pictures))

    @property
    def facts(self) -> dict[str, Any]:
        """What environment.json tells of them; a resumed run must have the same."""
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
    """The recipe's pictures and what is said of them; some may be held back.

    A run that is resumed has those of the commits that it began with.

    Raises:
        DataError: pictures or captions cannot be used.
    """
    recipe = pinned(recipe)
    return hold_back(recipe, _all_sources(recipe), _all_sources)


def pinned(recipe: TrainRecipe) -> TrainRecipe:
    """The recipe with the commits of streamed datasets that the run began with, if it goes on.

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
    """The recipe with these commits of streamed datasets, by `path`, in the place of branches."""

    def own(part: Any) -> Any:
        if is_commit(part.revision):
            return part
        return replace(part, revision=commits.get(part.path or "", part.revision))

    if not commits:
        return recipe
    subsets = {name: None if one is None else own(one) for name, one in recipe.data.subsets.items()}
    return replace(recipe, data=replace(own(recipe.data), subsets=subsets))


def _all_sources(recipe: TrainRecipe) -> Sources:
    data = recipe.data
    if data.subsets:
        return _of_subsets(recipe)
    if data.path is None:
        concepts = find_concepts(data)
        digest = hashlib.blake2b(digest_size=16)
        for concept in concepts:
            digest.update(concept.fingerprint.encode())
        # The first part of a prompt says what it is about; A1111 keeps it in its place too.
        captions = replace(data.captions, keep_tokens=max(1, data.captions.keep_tokens))
        pictures = [picture for concept in concepts for picture in concept.pictures]
        config = replace(data, captions=captions)
        return Sources(pictures, config, (FILEWORDS,), digest.hexdigest(), concepts)
    template = read_template(data.captions.template, recipe.objective.word or recipe.name)
    captioned = recipe.objective.learns_from_captions and asks_for_captions(template)
    pictures: list[Picture] = []
    if data.clips is None:
        found = find_pictures(data, captioned)
        digests = data.cache == "disk" and not data.is_random
        sound = {*sound_paths([one.path for one in found], data.broken_pictures, digests)}
        pictures += [one for one in found if one.path in sound]
    else:
        clips = find_clips(data, captioned)
        for stage in stages_of(recipe, num_processes=1):
            assert stage.recipe.data.clips is not None
            warn_of_short(clips, stage.recipe.data.clips)
        pictures += clips
    return Sources(pictures, data, template, fingerprint(pictures, Path(data.path), template))


def _of_subsets(recipe: TrainRecipe) -> Sources:
    subsets = find_subsets(recipe)
    digest = hashlib.blake2b("".join(one.fingerprint for one in subsets).encode(), digest_size=16)
    own, of_classes = (
        [one for subset in subsets if subset.config.is_reg == is_reg for one in subset.pictures]
        for is_reg in (False, True)
    )
    data = recipe.data
    template = read_template(data.captions.template, recipe.objective.word or recipe.name)
    return Sources(
        own, data, template, digest.hexdigest(), subsets=subsets, class_pictures=of_classes
    )
