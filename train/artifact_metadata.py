"""What a run's artifacts say about it: kohya's `ss_*`, and `modelspec.*` 1.0.1.

Sources: sd-scripts `train_network.py`, `library/train_util.py` and `library/sai_model_spec.py`;
what A1111 shows of it: `extensions-builtin/Lora/ui_edit_user_metadata.py`.
"""

from __future__ import annotations

import base64
import io
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import datetime
from functools import cached_property
from pathlib import Path

from PIL import Image, ImageOps

from inference.artifacts import base_facts
from inference.media import PILLOW_ERRORS
from inference.models import DiffusionModel, base_name
from train.common import DataError
from train.config import MetadataConfig, TrainRecipe
from train.data import Examples, Picture, Sources
from train.runs import run_metadata
from train.stages import stages_of, step_size

MOST_TAGS = 2000
"""Tags of a folder that are counted, the most frequent ones."""
THUMBNAIL = 256, 256
"""Largest size of a thumbnail."""


class ArtifactMetadata:
    """The metadata of a run's artifacts; equal runs give equal ones, unless dates are asked for."""

    def __init__(
        self, recipe: TrainRecipe, sources: Sources, base: DiffusionModel, num_processes: int
    ) -> None:
        """Read the recipe's own metadata.

        Raises:
            DataError: the thumbnail cannot be read.
        """
        self.recipe = recipe
        self.sources = sources
        self.base = base
        self.num_processes = num_processes
        self.said = said_by_user(recipe.metadata)
        self.started = time.time()
        self._sizes: tuple[Examples, dict[str, str]] | None = None

    @cached_property
    def unchanging(self) -> dict[str, str]:
        """Return the facts about the base model and the images, then what the recipe says."""
        counts = self.recipe.metadata.caption_tags
        return base_facts(self.base) | image_facts(self.sources, counts) | self.said

    def of(
        self, recipe: TrainRecipe, step: int, examples: Examples, class_images: int
    ) -> dict[str, str]:
        """Return the metadata of an artifact.

        Args:
            recipe: of the member.
            step: completed optimizer steps.
            examples: those of the step's stage.
            class_images: number of class images.
        """
        run = run_metadata(recipe, step, len(self.sources.pictures), class_images)
        return run | self.sizes(examples) | self.unchanging | self.dates()

    def sizes(self, examples: Examples) -> dict[str, str]:
        """Return the sizes of a stage's examples, and the number of epochs."""
        if self._sizes is None or self._sizes[0] is not examples:
            total = sum(
                (stage.last_step - stage.first_step) * step_size(stage.recipe, self.num_processes)
                for stage in stages_of(self.recipe, self.num_processes)
            )
            own = int((examples.slots < examples.num_own).sum())
            epochs = {"ss_num_epochs": str(-(-total // own))}
            self._sizes = examples, epochs | size_facts(examples)
        return self._sizes[1]

    def dates(self) -> dict[str, str]:
        """Return when this process started and now, if the recipe asks for dates."""
        if not self.recipe.metadata.dates:
            return {}
        now = time.time()
        return {
            "ss_training_started_at": str(self.started),
            "ss_training_finished_at": str(now),
            "modelspec.date": datetime.fromtimestamp(int(now)).isoformat(),
        }


def said_by_user(config: MetadataConfig) -> dict[str, str]:
    """Return the metadata of a recipe.

    Raises:
        DataError: the thumbnail cannot be read.
    """
    texts = {
        "modelspec.author": config.author,
        "modelspec.license": config.license,
        "modelspec.description": config.description,
        "modelspec.tags": ", ".join(config.tags),
        "modelspec.trigger_phrase": config.trigger_phrase,
        "modelspec.usage_hint": config.usage_hint,
        "ss_training_comment": config.comment,
    }
    found = {key: text for key, text in texts.items() if text}
    if config.thumbnail is not None:
        found["modelspec.thumbnail"] = data_url(Path(config.thumbnail))
    return found


def data_url(path: Path) -> str:
    """Return an image as a data URL, scaled down to a thumbnail.

    Raises:
        DataError: it cannot be read.
    """
    content = io.BytesIO()
    try:
        with Image.open(path.expanduser()) as image:
            thumbnail = ImageOps.exif_transpose(image).convert("RGB")
    except PILLOW_ERRORS as error:
        raise DataError(
            f"metadata.thumbnail: {path}: cannot be read as a picture: {error}"
        ) from error
    thumbnail.thumbnail(THUMBNAIL)
    thumbnail.save(content, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"


def image_facts(sources: Sources, counts_tags: bool) -> dict[str, str]:
    """Return names of the folders of images with their numbers, and how often tags occur in them.

    As in kohya's files the names are those of the folders alone, and a tag is what stands between
    commas.
    """
    folders: dict[str, dict[str, int]] = {}
    classes: dict[str, dict[str, int]] = {}
    tags: dict[str, dict[str, int]] = {}
    for path, key, repeats, is_reg, images in image_folders(sources):
        own = classes if is_reg else folders
        name = base_name(path)
        name = name if name not in own else f"{name} ({key})"
        own[name] = {"n_repeats": repeats, "img_count": len(images)}
        if counts_tags and not is_reg and (counts := count_tags(images)):
            tags[name] = counts
    found = {"ss_dataset_dirs": folders}
    if classes:
        found["ss_reg_dataset_dirs"] = classes
    if tags:
        found["ss_tag_frequency"] = tags
    return {key: json.dumps(value, ensure_ascii=False) for key, value in found.items()}


def image_folders(
    sources: Sources,
) -> Iterator[tuple[str, str, int, bool, list[Picture]]]:
    """Yield path, name in the recipe, repeats, whether of class images, and images of each folder.

    Images of the validation split are not among them.
    """
    if sources.subsets:
        for subset in sources.subsets:
            config = subset.config
            pool = sources.class_pictures if config.is_reg else sources.pictures
            own = [one for one in pool if one.subset == subset.name]
            yield config.path or subset.name, subset.name, config.repeats, config.is_reg, own
    elif sources.concepts:
        trained = {one.path for one in sources.pictures}
        for concept in sources.concepts:
            own = [one for one in concept.pictures if one.path in trained]
            yield concept.config.instance_data_dir, concept.name, 1, False, own
    else:
        yield sources.config.path or "", "", 1, False, sources.pictures


def count_tags(images: Iterable[Picture]) -> dict[str, int]:
    """Return how often each tag occurs in the captions, the most frequent first."""
    texts = (text for image in images for text in image.captions)
    tags = (tag.strip().lower() for text in texts for tag in text.split(","))
    counts = Counter(tag for tag in tags if tag)
    return dict(sorted(counts.items(), key=lambda one: (-one[1], one[0]))[:MOST_TAGS])


def size_facts(examples: Examples) -> dict[str, str]:
    """Return the resolution of examples, and for images how many of an epoch have each size.

    Of clips of several sizes, the resolution is that of most.
    """
    slots = examples.slots[examples.slots < examples.num_own].tolist()
    counts = Counter(examples.shape(index) for index in slots)
    if examples.config.clips is not None:
        height, width = max(counts, key=lambda shape: (counts[shape], shape))[-2:]
        return resolution_facts(width, height)
    buckets = {
        str(number): {"resolution": [width, height], "count": count}
        for number, ((height, width), count) in enumerate(sorted(counts.items()))
    }
    side = examples.resolution
    return resolution_facts(side, side) | {"ss_bucket_info": json.dumps({"buckets": buckets})}


def resolution_facts(width: int, height: int) -> dict[str, str]:
    """Return the resolution in the words of kohya and of the model specification."""
    return {
        "ss_resolution": f"({width}, {height})",
        "modelspec.resolution": f"{width}x{height}",
    }
