"""Assignment of mask files to images."""

import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from inference.recipe import RecipeWarning
from train.common import DataError
from train.config import MaskConfig
from train.data.containers import MASKS, name_within, nfc, walk

MASK_EXTENSIONS = (".png", ".webp", ".bmp", ".tif", ".tiff", ".jpg", ".jpeg")

LABELS = ("-masklabel", "-condlabel")
"""OneTrainer's suffixes of masks and conditions beside their images."""


def without_labels(
    files: Sequence[Path], config: MaskConfig | None, left_out: Counter[str] | None
) -> list[Path]:
    """Return the files without OneTrainer's masks and conditions of others among them."""
    if not any(path.stem.endswith(LABELS) for path in files):
        return list(files)
    stems = {path.with_suffix("") for path in files}
    kept = []
    for path in files:
        label = next((one for one in LABELS if path.stem.endswith(one)), "")
        picture = path.with_name(path.stem.removesuffix(label)) if label != path.stem else path
        is_label = label and picture in stems
        if is_label and not (config is not None and config.is_mask(path)):
            if left_out is not None:
                left_out[MASKS] += 1
        else:
            kept.append(path)
    return kept


def parted(
    files: Sequence[Path],
    root: Path,
    config: MaskConfig | None,
    left_out: Counter[str] | None = None,
    key: str = "data.masks",
) -> tuple[list[Path], dict[Path, Path]]:
    """Return the images among the files of a folder, and the mask of each that has one.

    Args:
        files: all image files.
        root: the folder that they were found in.
        config: location of masks.
        left_out: gets the number of OneTrainer's masks that the recipe does not use.
        key: the recipe key of `config`.

    Raises:
        DataError: images without a mask, all listed; an image with two; no folder.
    """
    files = without_labels(files, config, left_out)
    if config is None or config.source == "alpha":
        return list(files), {}
    pictures = [file for file in files if not config.is_mask(file)]
    masks = [file for file in files if config.is_mask(file)]
    if not pictures:
        raise DataError(f"{key}: all {len(masks)} pictures in {str(root)!r} are masks")
    home = root
    if config.path is not None:
        home = Path(config.path)
        if not home.is_dir():
            raise DataError(f"{key}.path: {config.path!r} is not a folder")
        masks = [path for path in walk(home) if path.suffix.lower() in MASK_EXTENSIONS]
    by_name: dict[str, Path] = {}
    for mask in masks:
        name = nfc(Path(name_within(mask, home)).with_suffix("").as_posix())
        if name in by_name:
            raise DataError(f"{key}: {by_name[name]} and {mask} are masks of one picture")
        by_name[name] = mask
    found = {
        picture: by_name[name]
        for picture in pictures
        if (
            name := nfc(Path(name_within(picture, root)).with_suffix("").as_posix() + config.ending)
        )
        in by_name
    }
    bare = [picture for picture in pictures if picture not in found]
    if bare:
        report_missing(bare, len(pictures), config, key)
    return pictures, found


def report_missing(bare: Sequence[Path], count: int, config: MaskConfig, key: str) -> None:
    """Report images without a mask.

    Raises:
        DataError: unless the recipe gives them full weight.
    """
    shown = ", ".join(map(str, bare[:3])) + (", …" if len(bare) > 3 else "")
    message = f"{key}: {len(bare)} of {count} pictures have no mask: {shown}"
    if config.missing == "whole":
        warnings.warn(f"{message}; they count everywhere", RecipeWarning, stacklevel=2)
        return
    name = f"NAME{config.ending}.png"
    where = f"{name} beside them" if config.path is None else f"{name} in {config.path!r}"
    raise DataError(
        f"{message}. Looked for {where}, or ending in {', '.join(MASK_EXTENSIONS[1:])}; "
        f"{key}.missing=whole has them count everywhere"
    )
