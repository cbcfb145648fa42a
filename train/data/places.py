"""What a recipe's path means: a folder of pictures, one container, or several of them."""

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path

from inference.recipe import RecipeWarning
from train.data.containers import KINDS, is_container, open_archive
from train.data.errors import DataError

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".7z", ".rar")
BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")
MOST_SHARDS = 100_000


def containers_of(path: str, key: str, files: Iterable[Path]) -> list[Path]:
    """The containers that a path names, in order; none where it is a folder of pictures.

    Args:
        path: a container, a pattern of them such as `{000..012}.tar`, or a folder.
        key: what the recipe calls it.
        files: what is in the folder, if it is one.

    Raises:
        DataError: it is neither, or of a pattern one is missing.
    """
    whole = Path(path)
    if whole.is_dir():
        return [file for file in files if file.suffix.lower() in KINDS and file.is_file()]
    if is_container(whole):
        return [whole]
    known = ", ".join(KINDS)
    if whole.name.lower().endswith(COMPRESSED):
        raise DataError(
            f"{key}: {path!r} is compressed as a whole, so that nothing in it can be read by "
            f"itself; unpack it to a folder, or to one of {known}"
        )
    if whole.is_file():
        raise DataError(f"{key}: {path!r} is neither a folder nor one of {known}")
    if not BRACES.search(path):
        raise DataError(f"{key}: {path!r} is not a folder")
    shards = [Path(one) for one in expanded(path, key)]
    missing = [shard for shard in shards if not shard.is_file()]
    if missing:
        shown = ", ".join(map(str, missing[:3])) + (", …" if len(missing) > 3 else "")
        raise DataError(
            f"{key}: {len(missing)} of the {len(shards)} files of {path!r} are missing: {shown}"
        )
    if others := [shard for shard in shards if not is_container(shard)]:
        raise DataError(f"{key}: {str(others[0])!r} is none of {known}")
    return shards


def expanded(pattern: str, key: str) -> Iterator[str]:
    """The names that a pattern stands for, `{000..012}` or `{a,b}` at any number of places.

    Raises:
        DataError: there are too many.
    """
    pieces = BRACES.split(pattern)
    choices: list[Sequence[str]] = []
    count = 1
    for piece in pieces[1::2]:
        if found := RANGE.fullmatch(piece):
            first, last = found.groups()
            width = len(first) if first.startswith("0") else 0
            numbers = range(int(first), int(last) + 1)
            count *= len(numbers)
            if 0 < count <= MOST_SHARDS:
                choices.append([f"{number:0{width}}" for number in numbers])
        else:
            choices.append(piece.split(","))
            count *= len(choices[-1])
        if not 0 < count <= MOST_SHARDS:
            raise DataError(
                f"{key}: {{{piece}}} makes {count} files of {pattern!r}, from 1 to {MOST_SHARDS} "
                "are possible; a range is {first..last}, such as {000..012}"
            )
    for chosen in product(*choices):
        names = [*chosen, ""]
        yield "".join(text + name for text, name in zip(pieces[::2], names, strict=True))


def pictures_in(archives: Sequence[Path], endings: Sequence[str]) -> list[Path]:
    """The pictures in archives, shard by shard, in each in the order of paths.

    In a tar the files of a sample share their name up to the first dot (webdataset); it has one
    picture, and pictures with a second ending (`000123.mask.png`) belong to it. What is pickled is
    never read, since reading it may run what it says.

    Raises:
        DataError: an archive is damaged, or a sample has two pictures.
    """
    found: list[Path] = []
    left_out: Counter[str] = Counter()
    for path in archives:
        archive = open_archive(path)
        names = [name for name in archive.names() if _is_picture(name, endings)]
        if path.suffix.lower() == ".tar":
            names, others = samples(names, path)
            left_out["pictures of a second ending"] += others
        found += [path / name for name in names]
        left_out += archive.left_out
    if said := [f"{count} {kind}" for kind, count in sorted(left_out.items()) if count]:
        where = str(archives[0]) if len(archives) == 1 else f"{archives[0]} and others"
        message = f"{where}: left out: {', '.join(said)}"
        warnings.warn(message, RecipeWarning, stacklevel=2)
    return found


def _is_picture(name: str, endings: Sequence[str]) -> bool:
    """Whether a member is a picture, and not a note of macOS's about one."""
    is_note = name.startswith("__MACOSX/") or name.rpartition("/")[2].startswith("._")
    return name.lower().endswith(tuple(endings)) and not is_note


def samples(names: Sequence[str], path: Path) -> tuple[list[str], int]:
    """The pictures of samples, and how many others belong to them.

    Raises:
        DataError: a sample has two pictures.
    """
    own: dict[str, str] = {}
    others: list[str] = []
    for name in names:
        key, _, ending = split_key(name)
        if "." in ending:
            others.append(name)
        elif key in own:
            raise DataError(
                f"{path}: sample {key!r} has two pictures, {own[key]!r} and {name!r}; take one "
                "out, or call it by another name"
            )
        else:
            own[key] = name
    single = {name for name in others if split_key(name)[0] not in own}
    chosen = {*own.values(), *single}
    return [name for name in names if name in chosen], len(others) - len(single)


def split_key(name: str) -> tuple[str, str, str]:
    """A member's sample, and its ending: what is before and after the first dot of its name."""
    folder, slash, own = name.rpartition("/")
    key, dot, ending = own.partition(".")
    return f"{folder}{slash}{key}", dot, ending
