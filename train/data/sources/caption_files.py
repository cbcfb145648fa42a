"""Captions beside images: files of the same name with another extension."""

import os
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from inference.recipe import RecipeWarning
from train.common import DataError, tell_once
from train.config import CaptionConfig
from train.data.containers import container_of, files_within, nfc, parsed_json, read_text
from train.data.sources.texts import check_caption, is_followed

KNOWN_EXTENSIONS = (".txt", ".caption", ".json", ".tags", ".cap", ".text")
"""Extensions that trainers and taggers give captions; upper case counts too."""


class CaptionFiles:
    """Caption files beside images and clips; each folder is read once."""

    def __init__(self, config: CaptionConfig) -> None:
        self.config = config
        self.found: Counter[str] = Counter()
        """Number of captions from files of each extension."""
        self.empty: list[Path] = []
        """Caption files without text whose images have no other."""
        self.folders: dict[Path, tuple[set[str], set[str]]] = {}
        """Names of caption files and of folders in each folder."""
        self.spelled: dict[Path, dict[str, str]] = {}
        """Names of caption files in each folder by their usual spelling."""
        self.tars: set[Path] = set()
        """The folders in a tar."""

    def captions(self, path: Path) -> tuple[str, ...]:
        """Return the captions in the first caption file of the same name that has text.

        Raises:
            DataError: a file is not in UTF-8, or a .json file has another content.
        """
        return tuple(filter(None, self.look(path)[0]))

    def look(self, path: Path) -> tuple[tuple[str, ...], str]:
        """Return the captions, and the extension of the file that they are from.

        A file without text is an empty caption, unless the recipe has a fallback.
        """
        _, folders = self._names(path.parent)
        empty = None
        stems = [path.name if path.name in folders else path.stem]
        extensions = self.config.extensions
        is_sample = path.parent in self.tars
        if is_sample:  # webdataset: names are equal up to the first dot, and a .json has other keys
            stems.append(path.name.partition(".")[0])
            extensions = [*extensions, ".json"]
        for stem in stems:
            for extension in extensions:
                if (name := self._file(path.parent, stem + extension)) is None:
                    continue
                texts = read_captions(path.parent / name, self.config, is_sample=is_sample)
                if texts:
                    self.found[extension] += 1
                    return texts, extension
                if empty is None and extension.lower() != ".json":
                    empty = path.parent / name, extension
        if empty is None:
            return (), ""
        self.empty.append(empty[0])
        return ((), "") if self.config.fallback is not None else (("",), empty[1])

    def warn_of_empty(self, count: int, what: str, effect: str) -> None:
        """Say how many of `count` images have a caption file without text.

        Args:
            count: number of images.
            what: what messages call them.
            effect: what becomes of them.
        """
        if not self.empty:
            return
        named = ", ".join(map(str, self.empty[:3])) + (", …" if len(self.empty) > 3 else "")
        message = f"{len(self.empty)} of {count} {what} have empty caption files: {effect}: {named}"
        warnings.warn(message, RecipeWarning, stacklevel=3)

    def _file(self, folder: Path, name: str) -> str | None:
        """Return the file of this name, or of another spelling (`spelling`)."""
        files, _ = self._names(folder)
        if name in files:
            return name
        if folder not in self.spelled:
            usual = {one: spelling(one) for one in files}
            odd = {new: one for one, new in usual.items() if new != one or not one.isascii()}
            self.spelled[folder] = odd
        spelled = self.spelled[folder]
        return spelled.get(spelling(name)) if spelled else None

    def hint(self, bare: Iterable[Path], key: str) -> str:
        """Describe files of other extensions beside images without a caption, if any.

        `key` is the recipe key of the captions' settings.
        """
        asked, others = set(self.config.extensions), Counter[str]()
        endings: dict[Path, set[str]] = {}
        for path in bare:
            files, folders = self._names(path.parent)
            if path.parent not in endings:
                endings[path.parent] = {Path(name).suffix for name in files} - asked
            stem = path.name if path.name in folders else path.stem
            others.update(one for one in endings[path.parent] if stem + one in files)
        if not others:
            return ""
        listed = ", ".join(f"{ending} beside {count}" for ending, count in others.most_common())
        wanted = ", ".join([*self.config.extensions, others.most_common(1)[0][0]])
        return f"There are files ending in {listed} of them: {key}.extensions=[{wanted}] reads them"

    def _names(self, folder: Path) -> tuple[set[str], set[str]]:
        if (found := self.folders.get(folder)) is None:
            found = set(), set()
            known = (*self.config.extensions, *KNOWN_EXTENSIONS)
            endings = tuple({ending.lower() for ending in known})
            if (container := container_of(folder)) is not None:
                inside = (path for path in files_within(folder) if path.parent == folder)
                found[0].update(p.name for p in inside if p.name.lower().endswith(endings))
                if container.suffix.lower() == ".tar":
                    self.tars.add(folder)
                return self.folders.setdefault(folder, found)
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir():
                        found[1].add(entry.name)
                    elif entry.name.lower().endswith(endings) and entry.is_file():
                        if entry.is_symlink() and not is_followed(Path(entry.path)):
                            tell_once(f"{entry.path}: a link out of the data is not followed")
                            continue
                        found[0].add(entry.name)
            self.folders[folder] = found
        return found


def spelling(name: str) -> str:
    """Return a file's name with its extension in lower case and its accents composed (`nfc`)."""
    stem, dot, ending = name.rpartition(".")
    return nfc(f"{stem}{dot}{ending.lower()}")


def read_captions(file: Path, config: CaptionConfig, *, is_sample: bool = False) -> tuple[str, ...]:
    """Return the captions in a file: one, or with wildcards one per line.

    The .json of a webdataset's sample (`is_sample`) may have none.

    Raises:
        DataError: it is not in UTF-8, or a .json file has another content than captions.
    """
    text = read_text(file)
    if file.suffix.lower() == ".json":
        texts = _texts_of_json(file, text, is_sample)
    else:
        texts = text.splitlines() if config.wildcards else [text]
    for one in texts:
        check_caption(one, str(file))
    return tuple(one for one in (" ".join(text.split()) for text in texts) if one)


def _texts_of_json(file: Path, text: str, is_sample: bool) -> list[str]:
    """Return the texts of a caption, a list, or an object with `caption`, `text` or `tags`."""
    content: Any = parsed_json(text, str(file))
    if isinstance(content, dict):
        key = next((name for name in ("caption", "text", "tags") if content.get(name)), None)
        if key is None and is_sample:
            return []
        content = content[key] if key else None
        if key == "tags" and isinstance(content, list):
            content = ", ".join(map(str, content))
    texts = [content] if isinstance(content, str) else content
    if not isinstance(texts, list) or not all(isinstance(one, str) for one in texts):
        raise DataError(
            f"{file}: expected a caption, a list of captions, or an object with caption, text or "
            "tags"
        )
    return texts
