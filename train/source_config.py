"""The typed recipe of where pictures come from: a folder, subsets, or concepts."""

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from inference.errors import InputError
from train.concept_config import ConceptConfig, read_concepts_list
from train.faults import Faults
from train.subset_config import SubsetConfig


@dataclass
class SourceConfig:
    """Where the pictures are."""

    path: str | None = None
    """Folder of pictures; folders within it are searched too. Or a .tar (webdataset), .zip or
    .parquet, a folder of such, a pattern of them (`{000..012}.tar`), a dataset saved by Hugging
    Face's `datasets`, or one on the hub (`hf://owner/name`). One of path, subsets, concepts and
    concepts_list must be given."""
    subsets: dict[str, SubsetConfig | None] = field(default_factory=dict)
    """Several folders, by names of your choice, each with repeats and settings of its own."""
    kohya_config: str | None = None
    """A dataset_config.toml of kohya's sd-scripts, as it is. It counts as a base of the recipe:
    what it says becomes data.subsets, data.resolution, data.buckets and train_batch_size, over
    which the recipe has the last word. Folders in it are taken from the working folder, as kohya
    does."""
    kohya_folders: str | None = None
    """A folder of folders `REPEATS_class tokens`, as kohya's train_data_dir: each becomes a subset,
    whose class tokens are the caption of pictures without one."""
    kohya_reg_folders: str | None = None
    """The same of regularisation pictures, as kohya's reg_data_dir."""
    concepts: dict[str, ConceptConfig | None] = field(default_factory=dict)
    """Subjects to learn, by names of your choice: pictures of each, and of its class (DreamBooth,
    Ruiz et al. 2022, arXiv 2208.12242)."""
    concepts_list: str | None = None
    """The same as a concepts_list.json of A1111's DreamBooth extension; folders in it are taken
    relative to the file."""

    def source_faults(self) -> Faults:
        """What is wrong with where the pictures come from."""
        given = {
            "path": self.path is not None,
            "subsets": bool(self.subsets),
            "kohya_config": self.kohya_config is not None,  # it could not be read
            "kohya_folders": self.kohya_folders is not None,
            "concepts": bool(self.concepts),
            "concepts_list": self.concepts_list is not None,
        }
        named = [name for name, is_given in given.items() if is_given]
        if not named:
            yield (
                "path",
                "must be given (a folder of pictures with captions), or data.subsets (several), or "
                "data.concepts or data.concepts_list (subjects with pictures of their class)",
            )
        elif len(named) > 1:
            yield named[1], f"{' and '.join(named)} exclude each other; give one of them"
        for name in self.concepts:
            if "/" in name or name.startswith("."):
                yield f"concepts.{name}", "names a folder of class pictures: no / and no . in front"
        yield from self._nested()
        if self.subsets and all(one.is_reg for one in self.named_subsets.values()):
            yield "subsets", "all are is_reg; at least one must hold what is learned"
        if self.concepts_list is not None:
            try:
                read_concepts_list(self.concepts_list)
            except InputError as error:
                yield from (("concepts_list", line) for line in str(error).splitlines())

    def _nested(self) -> Faults:
        """Subsets whose folder lies within another's, which is searched through."""
        roots = {
            name: Path(one.path).absolute()
            for name, one in self.named_subsets.items()
            if one.path and not one.metadata_file
        }
        for name, root in roots.items():
            for other, outer in roots.items():
                if root != outer and root.is_relative_to(outer):
                    yield (
                        f"subsets.{name}.path",
                        f"lies within that of {other}, which is searched too, so that its pictures "
                        "would come twice; take folders side by side",
                    )

    def source_idle(self) -> Faults:
        """What has no effect of where the pictures come from."""
        if self.concepts_list is not None:
            with suppress(InputError):  # told above
                told = read_concepts_list(self.concepts_list).told
                yield from (("concepts_list", line) for line in told)

    @property
    def named_subsets(self) -> dict[str, SubsetConfig]:
        """The subsets of the recipe; none where it has another source."""
        return {name: one for name, one in self.subsets.items() if one is not None}

    @property
    def has_concepts(self) -> bool:
        """Whether subjects are learned, by `concepts` or `concepts_list`."""
        return bool(self.concepts) or self.concepts_list is not None

    @property
    def named_concepts(self) -> dict[str, ConceptConfig]:
        """The concepts of the recipe, or of the file that it names.

        Raises:
            InputError: the file cannot be used.
        """
        if self.concepts_list is not None:
            return read_concepts_list(self.concepts_list).concepts
        return {name: one for name, one in self.concepts.items() if one is not None}

    @property
    def has_prior(self) -> bool:
        """Whether pictures of classes are learned along."""
        if any(one.is_reg for one in self.named_subsets.values()):
            return True
        try:
            return any(concept.has_prior for concept in self.named_concepts.values())
        except InputError:  # what is wrong with the file is told by `source_faults`
            return False
