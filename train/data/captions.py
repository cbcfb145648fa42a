"""What becomes of a caption on its way to the text encoder (kohya's and A1111's options)."""

import itertools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from inference.errors import InputError
from train.concept_config import FILEWORDS
from train.data.files import read_text
from train.data_config import CaptionConfig

TEMPLATES = Path(__file__).parents[1] / "templates"
NAME = "[name]"


def read_template(template: str | None, name: str) -> tuple[str, ...]:
    """The lines of a shipped template or of a file, `[name]` replaced; empty ones are left out.

    Raises:
        InputError: there is no such file, nothing in it, or it is not in UTF-8.
    """
    if template is None:
        return (FILEWORDS,)
    shipped = TEMPLATES / f"{template}.txt"
    path = shipped if shipped.is_file() else Path(template)
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in TEMPLATES.glob("*.txt")))
        raise InputError(
            f"data.captions.template: {template!r} is neither a file nor one of {known}"
        )
    lines = read_lines(path, "data.captions.template")
    return tuple(line.replace(NAME, name) for line in lines)


def read_lines(path: Path, key: str) -> list[str]:
    """The prompts of a text file, one in every line that is not empty.

    Raises:
        InputError: there is none, or it is not in UTF-8; `key` is what the recipe calls it.
    """
    if not path.is_file():
        raise InputError(f"{key}: {str(path)!r} is not a file")
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not lines:
        raise InputError(f"{key}: {str(path)!r} has no prompt in it")
    return lines


def asks_for_captions(template: Sequence[str]) -> bool:
    """Whether a picture needs a caption of its own."""
    return any(FILEWORDS in line for line in template)


def make_caption(
    captions: Sequence[str],
    config: CaptionConfig,
    draw: random.Random,
    template: Sequence[str] = (FILEWORDS,),
) -> str:
    """One of the captions, its tags dropped and shuffled, in a line of the template; or nothing.

    Args:
        captions: at least one.
        config: rates and switches.
        draw: where the random choices come from; always asked in the same order.
        template: lines with `[filewords]` where the caption goes.
    """
    if draw.random() < config.dropout_rate:
        return ""
    caption = captions[draw.randrange(len(captions))]
    line = template[draw.randrange(len(template))] if len(template) > 1 else template[0]
    if not (config.shuffle_tags or config.tag_dropout_rate):
        return line.replace(FILEWORDS, caption)
    tags = [tag.strip() for tag in caption.split(",")]
    kept, loose = tags[: config.keep_tokens], tags[config.keep_tokens :]
    if config.shuffle_tags:
        draw.shuffle(loose)
    loose = [tag for tag in loose if draw.random() >= config.tag_dropout_rate]
    return line.replace(FILEWORDS, ", ".join(kept + loose))


def all_captions(captions: Sequence[str], template: Sequence[str]) -> Iterator[str]:
    """Everything that `make_caption` can give for a picture whose tags stay as they are."""
    for caption, line in itertools.product(captions, template):
        yield line.replace(FILEWORDS, caption)
