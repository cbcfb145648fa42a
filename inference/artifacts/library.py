"""Artifacts that prompts call by name: LoRAs, hypernetworks and embeddings from folders.

A1111 1.10.1: `modules/extra_networks.py`, `extensions-builtin/Lora`, `modules/textual_inversion`.
"""

from __future__ import annotations

import difflib
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from inference.artifacts.adapters import Lora
from inference.artifacts.base import Artifact, UsedArtifact, load_artifact, read_keys
from inference.artifacts.embedding import Embedding
from inference.artifacts.hypernetwork import Hypernetwork
from inference.artifacts.run_files import is_named_by_run
from inference.files import EMBEDDING_PICTURES as PICTURES
from inference.files import artifact_hash
from inference.models import ARTIFACTS, artifact_name, files_in, output_name
from inference.prompts import ExtraNetwork
from inference.runtime import ArtifactError, DrawWarning, InputError, check_readable

if TYPE_CHECKING:
    from inference.models import ImageModel


KINDS: dict[str, type[Lora] | type[Hypernetwork]] = {"lora": Lora, "hypernet": Hypernetwork}
"""The artifact types that tags call."""

MOST_KEPT = 8
"""LoRAs that stay attached at strength 0 until they are called again."""

LARGEST_EMBEDDING = 20_000_000
"""Bytes: 75 vectors of SDXL's pair in fp32 are 1; larger files are not searched for one."""

Calls = tuple[ExtraNetwork, ...]


class NetworkFiles:
    """The files of the artifacts in some folders, by the names that prompts call.

    Args:
        folders: the folders, with all subfolders.
    """

    def __init__(self, folders: Sequence[Path] = ()) -> None:
        self.folders = list(folders)
        self._found: dict[tuple[str, str], Path] = {}
        self._kinds: dict[Path, frozenset[type[Artifact]]] = {}

    @cached_property
    def files(self) -> dict[str, list[Path]]:
        """Return the files by name without suffix; a link has a name of its own.

        Raises:
            InputError: a folder does not exist.
        """
        found: dict[str, list[Path]] = {}
        seen: set[tuple[Path, str]] = set()
        for folder in self.folders:
            check_readable(folder, "artifact_dirs")
            if not folder.is_dir():
                raise InputError(f"artifact_dirs: {folder} is no folder")
            for path in files_in(folder, (*ARTIFACTS, *PICTURES)):
                place = path.parent.resolve(), path.name
                if place in seen:
                    continue
                seen.add(place)  # folders may contain one another
                found.setdefault(artifact_name(path), []).append(path)
        return found

    @cached_property
    def aliases(self) -> dict[str, list[Path]]:
        """Return LoRA files by the name that kohya's trainer gave them (`ss_output_name`)."""
        found: dict[str, list[Path]] = {}
        for path in [path for paths in self.files.values() for path in paths]:
            name = output_name(path)
            if name and name != path.stem:
                add_once(found.setdefault(name, []), path)
        return found

    def find(self, call: ExtraNetwork) -> Path:
        """Return the file that a prompt calls; searched once for each type and name.

        Files of another type may have the same name, as previews and embeddings do.

        Raises:
            InputError: no file or several have the name, or its type is wrong.
        """
        if known := self._found.get((call.kind, call.name)):
            return known
        named = [*self.files.get(call.name, []), *self.aliases.get(call.name, [])]
        paths = [path for path in named if path.suffix.lower() not in PICTURES]
        kind = KINDS[call.kind]
        fitting = [path for path in paths if self.is_kind(path, kind)]
        fitting = [path for path in fitting if path.stem == call.name] or fitting
        if len(fitting) == 1:
            return self._found.setdefault((call.kind, call.name), fitting[0])
        where = ", ".join(map(str, self.folders))
        missing = f"no file of this name in {where}"
        if not self.folders:
            missing = "no file of this name was searched for, since artifact_dirs is empty"
        if fitting:
            several = " and ".join(map(str, fitting))
            raise InputError(f"{call}: the name stands for {several}; rename one of them")
        if paths:
            raise InputError(f"{call}: {paths[0]} is no {kind.kind}")
        close = difflib.get_close_matches(call.name, [*self.files, *self.aliases], 3, 0.5)
        hint = f". Did you mean: {', '.join(close)}?" if close else ""
        raise InputError(f"{call}: {missing}{hint}")

    def is_kind(self, path: Path, kind: type[Artifact]) -> bool:
        """Return whether a file is an artifact of a type; it is read once."""
        if path not in self._kinds:
            self._kinds[path] = kinds_of(path)
        return kind in self._kinds[path]

    def check(self, calls: Iterable[ExtraNetwork]) -> None:
        """Find everything that prompts call, so that nothing is missing after minutes.

        Raises:
            InputError: a file is missing, several match, or its type is wrong.
        """
        for call in {(call.kind, call.name): call for call in calls}.values():
            self.find(call)


class NetworkLibrary:
    """The artifacts in some folders; loaded when a prompt first calls them, and cached.

    Args:
        base: the model they are attached to.
        folders: the folders, with all subfolders.
    """

    def __init__(self, base: ImageModel, folders: Sequence[Path] = ()) -> None:
        self.base = base
        self.on_disk = NetworkFiles(folders)
        self._loaded: dict[Path, Artifact] = {}
        self._loras: dict[tuple[Path, int | None], Lora] = {}

    @property
    def files(self) -> dict[str, list[Path]]:
        """Return the files by name without suffix."""
        return self.on_disk.files

    def find(self, call: ExtraNetwork) -> Path:
        """Return the file that a prompt calls; see `NetworkFiles.find`."""
        return self.on_disk.find(call)

    def check(self, calls: Iterable[ExtraNetwork]) -> None:
        """Find everything that prompts call; see `NetworkFiles.check`."""
        self.on_disk.check(calls)

    def load(self, path: Path) -> Artifact:
        """Return the artifact of a file, loaded once."""
        if path not in self._loaded:
            self._loaded[path] = load_artifact(path)
        return self._loaded[path]

    @contextmanager
    def at_work(self, calls: Calls, texts: Sequence[str]) -> Iterator[list[UsedArtifact]]:
        """Attach what the tags call and the embeddings named in the texts; deactivate them at exit.

        LoRAs stay attached at strength 0, which changes nothing, so that they are quickly active
        again. A LoRA that is called several times by one name has the last call's strengths each
        time, as in A1111 (`extensions-builtin/Lora/networks.py`, `load_networks`): `<lora:x:1>
        <lora:x:0.5>` is 1. Called by two names, it has the sum.

        Raises:
            InputError: a called artifact is missing, of another type, or does not fit.
        """
        ended: list[Artifact] = []
        used: list[UsedArtifact] = []
        try:
            times = Counter((call.kind, call.name) for call in calls)
            strengths: dict[int, tuple[float, float]] = {}
            for call in {(call.kind, call.name): call for call in calls}.values():
                artifact = self.start(call, ended)
                if isinstance(artifact, Lora):
                    unet, te = strengths.get(id(artifact), (0.0, 0.0))
                    count = times[call.kind, call.name]
                    strengths[id(artifact)] = unet + count * call.unet, te + count * call.te
                    artifact.set_strengths(*strengths[id(artifact)])
                used.append(self.used(call))
            used += [self.start_embedding(path, ended) for path in self.named(texts)]
            yield used
        finally:
            for artifact in reversed(ended):
                if isinstance(artifact, Lora):
                    artifact.set_strength(0.0)
                else:
                    artifact.detach()
            self.let_go()

    def start(self, call: ExtraNetwork, ended: list[Artifact]) -> Artifact:
        """Attach what is called, add its clean-up to `ended`, and return it."""
        path = self.find(call)
        artifact = self._loras.get((path, call.dyn)) or self.load(path)
        if isinstance(artifact, Lora):
            artifact = self.lora(path, artifact, call.dyn)
        else:
            artifact.attach(self.base, call.unet)
        ended.append(artifact)
        return artifact

    def start_embedding(self, path: Path, ended: list[Artifact]) -> UsedArtifact:
        """Attach an embedding so that prompts can call it, and add its clean-up to `ended`."""
        embedding = self.load(path)
        embedding.attach(self.base)
        ended.append(embedding)
        return UsedArtifact("embedding", embedding.name, 1.0, artifact_hash(path, "embedding"))

    def used(self, call: ExtraNetwork) -> UsedArtifact:
        """Return the infotext's entry for a call."""
        kind = KINDS[call.kind].kind
        hash_ = artifact_hash(self.find(call), kind)
        return UsedArtifact(kind, call.name, call.unet, hash_, True, call.te)

    def lora(self, path: Path, whole: Lora, rank: int | None) -> Lora:
        """Return a LoRA, attached, with as many of its ranks as are called.

        `whole` is what its file holds, or the LoRA itself if it is attached already. Of an attached
        one only what the layers hold is kept, which is a copy.
        """
        key = path, rank
        lora = self._loras.pop(key, None)
        if lora is None:
            lora = whole if rank is None else whole.limited(rank)
            lora.attach(self.base, 0.0)
            lora.forget()
            self._loaded.pop(path, None)
        self._loras[key] = lora  # the most recently called comes last
        return lora

    def let_go(self) -> None:
        """Detach the LoRAs that were called longest ago, except for a few."""
        while len(self._loras) > MOST_KEPT:
            self._loras.pop(next(iter(self._loras))).detach()

    def named(self, texts: Sequence[str]) -> list[Path]:
        """Return the files of embeddings whose names are in the texts and not attached yet.

        As in A1111 case does not matter: prompts are tokenized in lower case.

        Raises:
            InputError: several files have the name.
        """
        said = "\n".join(texts)
        attached = {name.casefold() for name in self.base.embeddings}
        found = []
        for name, paths in self.names_of_embeddings.items():
            if name in attached or not spells(said, name):
                continue
            fitting = [path for path in paths if self.is_embedding(path)]
            if len(fitting) > 1:
                several = " and ".join(map(str, fitting))
                raise InputError(
                    f"embedding {name}: the name stands for {several}; rename one of them"
                )
            found += fitting
        return found

    @cached_property
    def names_of_embeddings(self) -> dict[str, list[Path]]:
        """Return files that may be embeddings by their name in prompts, in lower case.

        Some contain their own name, see `inference.artifacts.embedding`: those are
        read. An image beside an artifact of its name is its preview.
        """
        found: dict[str, list[Path]] = {}
        for stem, paths in self.files.items():
            shown = any(path.suffix.lower() not in PICTURES for path in self.files[stem])
            for path in paths:
                if path.suffix.lower() in PICTURES and (shown or is_preview(path, self.files)):
                    continue
                says_itself = path.suffix.lower() in PICTURES or is_named_by_run(path)
                name = self.own_name(path) if says_itself else stem
                add_once(found.setdefault(name.casefold(), []), path)
        return found

    def own_name(self, path: Path) -> str:
        """Return the name in an embedding's file; the file's name if it is none or damaged."""
        try:
            return self.load(path).name if self.is_embedding(path) else path.stem
        except ArtifactError:
            return path.stem  # whoever calls it by this name gets the error

    def is_embedding(self, path: Path) -> bool:
        """Return whether a file is an embedding."""
        return path.stat().st_size <= LARGEST_EMBEDDING and self.on_disk.is_kind(path, Embedding)

    def close(self) -> None:
        """Detach everything from the base model."""
        for lora in self._loras.values():
            lora.detach()
        self._loras = {}


def add_once(paths: list[Path], path: Path) -> None:
    """Append a path, unless it or a link to the same file is among them."""
    if path.resolve() not in [one.resolve() for one in paths]:
        paths.append(path)


def is_preview(path: Path, files: Mapping[str, Sequence[Path]]) -> bool:
    """Return whether an image is called `NAME.preview.png` after an artifact."""
    return path.stem.endswith(".preview") and path.stem.removesuffix(".preview") in files


def spells(text: str, name: str) -> bool:
    """Return whether a name occurs in a text as a word of its own.

    As tokenizers read it: in any case, and not within a longer word.
    """
    before = r"(?<![^\W\d_])" if name[:1].isalpha() else ""
    after = r"(?![^\W\d_])" if name[-1:].isalpha() else ""
    return re.search(before + re.escape(name) + after, text, re.IGNORECASE) is not None


def kinds_of(path: Path) -> frozenset[type[Artifact]]:
    """Return the types that a file called by a prompt is of; none if it is unreadable.

    Warns about that, except for images, which are seldom embeddings.
    """
    try:
        keys = read_keys(path)
    except ArtifactError as error:
        if path.suffix.lower() not in PICTURES:
            warnings.warn(f"{error}: passed over", DrawWarning, stacklevel=2)
        return frozenset()
    kinds: list[type[Artifact]] = [*KINDS.values(), Embedding]
    return frozenset(kind for kind in kinds if kind.recognizes(path, keys))
