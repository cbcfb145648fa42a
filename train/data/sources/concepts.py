"""Concepts: instance images with their prompts, and the class images that they need."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.common import DataError, derive_seed
from train.config import CaptionConfig, ConceptConfig, ContainerConfig, DataConfig
from train.data.containers import file_state, walk
from train.data.pictures import Policy, sound_paths
from train.data.sources.caption_files import CaptionFiles
from train.data.sources.captions import all_choices, class_prompt, instance_prompt, words_of_name
from train.data.sources.folder import Picture, fingerprint, picture_files
from train.data.sources.mask_files import parted
from train.data.sources.metadata import matched, read_metadata


@dataclass(frozen=True)
class Concept:
    """Instance images of a subject; their captions are the final prompts."""

    name: str
    config: ConceptConfig
    pictures: list[Picture]
    class_prompts: Counter[str]
    """Number of class images by prompt."""

    @property
    def fingerprint(self) -> str:
        """Return a hash of images, prompts and all settings of the concept."""
        said = (self.name, repr(self.config))
        return fingerprint(self.pictures, Path(self.config.instance_data_dir), said)


def find_concepts(config: DataConfig, left_out: Counter[str] | None = None) -> list[Concept]:
    """Return the images and prompts of every concept.

    Args:
        config: the concepts.
        left_out: gets the number of files left out that look like data, by kind.

    Raises:
        DataError: folders or captions cannot be used; those of all concepts are reported together.
    """
    found: list[Concept] = []
    faults: list[str] = []
    for name, concept in config.named_concepts.items():
        where = f"data.concepts.{name}" if config.concepts else f"{config.concepts_list}: {name}"
        try:
            root, key = concept.instance_data_dir, f"{where}.instance_data_dir"
            files = picture_files(root, key, left_out=left_out)
            files, masks = parted(files, Path(root), config.masks, left_out)
            files = sound_paths(files, config.broken_pictures)
            captions = captions_of(files, root, config.captions, where)
        except DataError as error:
            faults.append(str(error))
            continue
        said = [(file, texts or (words_of_name(file.stem),)) for file, texts in captions]
        pictures = [
            Picture(file, tuple(instance_prompt(concept, text) for text in texts), masks.get(file))
            for file, texts in said
        ]
        wanted = Counter(
            {
                prompt: count * concept.num_class_images_per
                for prompt, count in Counter(
                    class_prompt(concept, _first(texts[0], config.captions)) for _, texts in said
                ).items()
            }
        )
        found.append(Concept(name, concept, pictures, wanted if concept.has_prior else Counter()))
    if faults:
        raise DataError("\n".join(faults))
    return found


def _first(caption: str, config: CaptionConfig) -> str:
    """Return a caption with the first alternatives, since generated images must not change."""
    return next(all_choices(caption)) if config.wildcards else caption


def captions_of(
    files: Sequence[Path], folder: str, config: CaptionConfig, concept: str = ""
) -> list[tuple[Path, tuple[str, ...]]]:
    """Return the captions of each image, from metadata.jsonl or beside it; there may be none.

    With the recipe key of a `concept`, a warning counts caption files without text.
    """
    described, _ = matched(read_metadata(folder, ContainerConfig()), files)
    beside = CaptionFiles(config)
    found = [(file, described.get(file) or beside.captions(file)) for file in files]
    if concept:
        beside.warn_of_empty(len(files), f"pictures of {concept}", "their names are the captions")
    return found


@dataclass(frozen=True)
class ClassPicture:
    """A required class image, and its file, which need not exist yet."""

    prompt: str
    seed: int
    file: Path


@dataclass(frozen=True)
class ClassFolder:
    """A folder of class images, of one concept or of several that share it."""

    path: Path
    concept: str
    config: ConceptConfig
    """Settings of generated images."""
    wanted: Counter[str]

    def pictures(self, extensions: list[str]) -> list[Picture]:
        """Return the images in the folder; their captions are final prompts.

        An image without a caption gets the class prompt in its file name.

        Raises:
            DataError: a caption cannot be read.
        """
        if not self.path.is_dir():
            return []
        if not list(walk(self.path)):  # nothing in it yet; a folder without access is an error
            return []
        try:
            files = picture_files(str(self.path), "class_data_dir")
        except DataError:  # other files
            return []
        return [
            Picture(file, texts or (class_prompt(self.config, words_of_name(file.stem)),))
            for file, texts in captions_of(files, str(self.path), CaptionConfig(extensions))
        ]

    def to_draw(self, seed: int, extensions: list[str]) -> list[ClassPicture]:
        """Return what is generated for this folder, whether or not it exists already.

        Image number n of a prompt has a seed derived from the recipe's, the concept and n; its file
        is named by prompt and seed. Images from elsewhere replace generated ones: those of the same
        prompt first, others where most are missing. The result is the same before, during and after
        generation.
        """
        name = int.from_bytes(hashlib.blake2b(self.concept.encode(), digest_size=7).digest())
        first = derive_seed(seed, "class pictures", name) % 2**31
        own = {
            prompt: [self._picture(prompt, first + number) for number in range(count)]
            for prompt, count in self.wanted.items()
        }
        known = {picture.file for pictures in own.values() for picture in pictures}
        others = [one for one in self.pictures(extensions) if one.path not in known]
        number = dict(self.wanted)
        spare = 0
        for prompt in (one.captions[0] for one in others):
            if number.get(prompt, 0) > 0:
                number[prompt] -= 1
            else:
                spare += 1
        for _ in range(min(spare, sum(number.values()))):
            number[max(number, key=lambda prompt: number[prompt])] -= 1
        return [picture for prompt in own for picture in own[prompt][: number[prompt]]]

    def _picture(self, prompt: str, seed: int) -> ClassPicture:
        words = hashlib.blake2b(prompt.encode(), digest_size=4).hexdigest()
        return ClassPicture(prompt, seed, self.path / f"{words}-{seed:010d}.png")


def class_folders(concepts: Sequence[Concept], run: Path) -> list[ClassFolder]:
    """Return the class image folders of all concepts that need any, each once.

    Raises:
        DataError: concepts that share a folder have different settings for its images.
    """
    folders: dict[Path, ClassFolder] = {}
    for concept in concepts:
        if not concept.config.has_prior:
            continue
        own = run / "class_images" / concept.name
        path = Path(concept.config.class_data_dir or own)
        folder = folders.get(path.absolute())
        if folder is None:
            wanted = Counter(concept.class_prompts)
            folders[path.absolute()] = ClassFolder(path, concept.name, concept.config, wanted)
            continue
        folder.wanted.update(concept.class_prompts)
        for field in ("class_negative_prompt", "class_guidance_scale", "class_infer_steps"):
            one, two = vars(folder.config)[field], vars(concept.config)[field]
            if one != two:
                raise DataError(
                    f"class_data_dir {str(path)!r} is shared by the concepts {folder.concept} and "
                    f"{concept.name}, whose {field} differ ({one!r}, {two!r}): make them equal, or "
                    "give each a folder of its own"
                )
    return list(folders.values())


def class_pictures(
    folders: Sequence[ClassFolder], extensions: list[str], policy: Policy
) -> list[Picture]:
    """Return all existing class images, by folder and name.

    Raises:
        DataError: a folder has none, or some are corrupt and the policy does not skip them.
    """
    for folder in folders:
        if not folder.pictures(extensions):
            raise DataError(
                f"class_data_dir: no class pictures in {str(folder.path)!r}, though concept "
                f"{folder.concept} asks for {folder.wanted.total()} of them"
            )
    return pictures_there(folders, extensions, policy)


def pictures_there(
    folders: Sequence[ClassFolder], extensions: list[str], policy: Policy
) -> list[Picture]:
    """Return the images as `class_pictures`, if some may still have to be generated."""
    found = [picture for folder in folders for picture in folder.pictures(extensions)]
    sound = {*sound_paths([one.path for one in found], policy)}
    return [one for one in found if one.path in sound]


def class_facts(pictures: Sequence[Picture]) -> dict[str, Any]:
    """Return the metadata of class images in environment.json, which a resumed run must match."""
    digest = hashlib.blake2b(digest_size=16)
    for picture in pictures:
        size = file_state(picture.path)[0]
        digest.update(repr((picture.path.name, size, picture.captions)).encode())
    return {"class_pictures": len(pictures), "class_fingerprint": digest.hexdigest()}
