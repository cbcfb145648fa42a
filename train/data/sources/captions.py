"""Processing of captions for the text encoder (kohya's and A1111's options)."""

import itertools
import os
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import floor, prod
from pathlib import Path

from inference.runtime import InputError, check_readable
from train.common import DataError
from train.config import FILEWORDS, CaptionConfig, ConceptConfig
from train.data.containers import read_text


def parts_of(text: str) -> list[tuple[str, ...]]:
    """Return a text as consecutive parts, each with its alternatives.

    `{{` and `}}` are braces. A brace without its partner, `{}`, and an opening brace within braces
    are kept as written.
    """
    parts: list[tuple[str, ...]] = []
    plain, inside = "", None  # what has been read, and the alternatives of open braces
    place = 0
    while place < len(text):
        pair, sign = text[place : place + 2], text[place]
        place += 1
        if pair in ("{{", "}}"):
            plain += sign
            place += 1
        elif sign == "{" and inside is None and not text.startswith("}", place):
            parts.append((plain,))
            plain, inside = "", []
        elif sign == "|" and inside is not None:
            inside.append(plain)
            plain = ""
        elif sign == "}" and inside is not None:
            parts.append((*inside, plain))
            plain, inside = "", None
        else:
            plain += sign
    if inside is not None:
        plain = "{" + "|".join([*inside, plain])
    return [*parts, (plain,)]


def choose(text: str, draw: random.Random) -> str:
    """Return the text with one of the alternatives at each place, all equally likely."""
    return "".join(
        part[0] if len(part) == 1 else part[draw.randrange(len(part))] for part in parts_of(text)
    )


def count_choices(text: str) -> int:
    """Return the number of combinations of alternatives; several may give the same text."""
    return prod(map(len, parts_of(text)))


def all_choices(text: str) -> Iterator[str]:
    """Yield all results of `choose`, the first of all alternatives first."""
    return map("".join, itertools.product(*parts_of(text)))


def longest_choice(text: str) -> str:
    """Return the text with the longest alternative at each place."""
    return "".join(max(part, key=len) for part in parts_of(text))


TEMPLATES = Path(__file__).parents[2] / "templates"
NAME = "[name]"
MOST_CHOICES = 10_000
"""Maximum number of prompts that are made of wildcards in advance."""


def read_template(template: str | None, name: str, key: str = "data.captions") -> tuple[str, ...]:
    """Return the non-empty lines of a shipped template or of a file, with `[name]` replaced.

    Raises:
        InputError: there is no such file, it is empty, or not in UTF-8; `key` is the
            recipe key of the captions' settings.
    """
    if template is None:
        return (FILEWORDS,)
    shipped = TEMPLATES / f"{template}.txt"
    path = shipped if os.path.isfile(shipped) else Path(template)  # noqa: PTH113 (may be long)
    check_readable(path, f"{key}.template")
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in TEMPLATES.glob("*.txt")))
        raise InputError(f"{key}.template: {template!r} is neither a file nor one of {known}")
    lines = read_lines(path, f"{key}.template")
    return tuple(line.replace(NAME, name) for line in lines)


def read_lines(path: Path, key: str) -> list[str]:
    """Return the prompts of a text file, one per non-empty line.

    Raises:
        InputError: it is empty, or not in UTF-8; `key` is its recipe key.
    """
    check_readable(path, key)
    if not path.is_file():
        raise InputError(f"{key}: {str(path)!r} is not a file")
    try:
        text = read_text(path)
    except DataError as error:
        raise InputError(f"{key}: {error}") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise InputError(f"{key}: {str(path)!r} has no prompt in it")
    return lines


def asks_for_captions(template: Sequence[str]) -> bool:
    """Return whether an image needs a caption of its own."""
    return any(FILEWORDS in line for line in template)


@dataclass(frozen=True)
class StepInfo:
    """Time in a run at which a caption is used."""

    epoch: int = 0
    """The first is 0."""
    step: int = 0
    """Optimizer steps before this one."""
    max_steps: int = 1


def make_caption(
    captions: Sequence[str],
    config: CaptionConfig,
    draw: random.Random,
    template: Sequence[str] = (FILEWORDS,),
    moment: StepInfo = StepInfo(),
) -> str:
    """Return one of the captions, its tags dropped and shuffled, in a line of the template.

    The result may be empty. It follows kohya's `train_util.process_caption`, except that prefix and
    suffix are in every caption of an image, and that separators which keep tags in place never
    occur in a prompt.

    Args:
        captions: at least one.
        config: rates and switches.
        draw: source of random numbers, always used in the same order.
        template: lines with `[filewords]` where the caption goes.
        moment: epoch and step, which some options depend on.
    """
    every = config.dropout_every_n_epochs
    is_dropped = draw.random() < config.dropout_rate
    if is_dropped or (every and (moment.epoch + 1) % every == 0):
        return ""
    caption = captions[draw.randrange(len(captions))]
    line = template[draw.randrange(len(template))] if len(template) > 1 else template[0]
    if config.wildcards:
        caption, line = choose(caption, draw), choose(line, draw)
    if config.changes_words:
        caption = _rearranged(caption, config, draw, moment)
    return line.replace(FILEWORDS, plain_caption(caption, config))


def plain_caption(caption: str, config: CaptionConfig) -> str:
    """Return a caption without the separators that only group its tags."""
    if config.keep_tokens_separator and config.keep_tokens_separator in caption:
        caption = ", ".join(itertools.chain(*split_tags(caption, config)))
    if config.secondary_separator:
        caption = caption.replace(config.secondary_separator, config.caption_separator)
    return caption


def split_tags(caption: str, config: CaptionConfig) -> tuple[list[str], list[str], list[str]]:
    """Return the tags fixed at the front, those that may be dropped or moved, and those at the end.

    If keep_tokens_separator is in the caption it decides, and empty tags are removed.
    """
    sign, comma = config.keep_tokens_separator, config.caption_separator
    if sign and sign in caption:
        front, loose, *back = (
            [tag.strip() for tag in part.split(comma) if tag.strip()]
            for part in caption.split(sign)
        )
        return front, loose, [tag for part in back for tag in part]
    tags = [tag.strip() for tag in caption.split(comma)]
    return tags[: config.keep_tokens], tags[config.keep_tokens :], []


def _rearranged(caption: str, config: CaptionConfig, draw: random.Random, moment: StepInfo) -> str:
    """Return the tags that are present at this time, shuffled and dropped."""
    front, loose, back = split_tags(caption, config)
    loose = loose[: warm_tags(len(loose), config, moment)]
    if config.shuffle_tags:
        draw.shuffle(loose)
    rate, kept = config.tag_dropout_rate, config.always_kept_tags
    loose = [tag for tag in loose if draw.random() >= rate or tag in kept]
    return ", ".join([*front, *loose, *back])


def warm_tags(count: int, config: CaptionConfig, moment: StepInfo) -> int:
    """Return how many of `count` loose tags are present at a step of the token warm-up.

    kohya's `process_caption`: min + floor(step x (count - min) / warm-up steps).
    """
    steps = config.token_warmup_step
    if steps < 1:
        steps = floor(steps * moment.max_steps)
    if moment.step >= steps:
        return count
    least = config.token_warmup_min
    return min(count, floor(moment.step * ((count - least) / steps)) + least)


def all_captions(
    captions: Sequence[str],
    template: Sequence[str],
    config: CaptionConfig = CaptionConfig(),  # noqa: B008, it is only read
) -> Iterator[str]:
    """Yield all non-empty results of `make_caption` for an image whose tags do not change."""
    if config.wildcards:
        captions = [choice for text in captions for choice in all_choices(text)]
        template = [choice for line in template for choice in all_choices(line)]
    for caption, line in itertools.product(captions, template):
        yield line.replace(FILEWORDS, plain_caption(caption, config))


def has_countless(pictures: Iterable[tuple[Sequence[str], Sequence[str], CaptionConfig]]) -> bool:
    """Return whether images with these captions and settings have too many prompts to list.

    That is so if tags change, or if wildcards have more than `MOST_CHOICES` prompts.
    """
    choices = 0
    lines: dict[int, int] = {}
    for captions, template, config in pictures:
        if config.changes_words:
            return True
        if config.wildcards:
            if id(template) not in lines:
                lines[id(template)] = sum(map(count_choices, template))
            own = sum(map(count_choices, captions)) * lines[id(template)]
            choices += own if own > len(captions) * len(template) else 0
            if choices > MOST_CHOICES:
                return True
    return False


NUMBERS_AT_START = re.compile(r"^[-\d]+\s*")


def words_of_name(stem: str) -> str:
    """Return a file's name as a caption: without leading digits and dashes."""
    return NUMBERS_AT_START.sub("", stem)


def instance_prompt(concept: ConceptConfig, filewords: str) -> str:
    """Return the prompt of an instance image whose caption is `filewords`.

    A class word without the subject (`a dog`, `the dog`, `dog`) becomes the subject's; if there is
    neither, the prompt is prefixed with the subject.
    """
    text = concept.instance_prompt.replace(FILEWORDS, filewords)
    subject, kind = concept.instance_token, concept.class_token
    if subject and kind:
        if not _says(text, subject):
            if _says(text, kind):
                text = _replaced(text, rf"(?:(?:a|an|the)\s+)?{re.escape(kind)}", subject)
            else:
                text = _before(subject, text)
    elif subject:
        text = _before(subject, text)
    return _tidy(text)


def class_prompt(concept: ConceptConfig, filewords: str) -> str:
    """Return the prompt of a class image, made of a caption of the subject's.

    The subject's word is removed, or becomes the class's if that is not in the caption; if there is
    neither, the prompt is prefixed with the class.
    """
    text = concept.class_prompt.replace(FILEWORDS, filewords)
    subject, kind = concept.instance_token, concept.class_token
    if subject and kind:
        without = _replaced(text, re.escape(subject), "")
        if _says(text, subject):
            text = without if _says(without, kind) else _replaced(text, re.escape(subject), kind)
        if not _says(text, kind):
            text = _before(kind, text)
    elif kind:
        text = _before(kind, text)
    return _tidy(text)


def _says(text: str, words: str) -> bool:
    return re.search(_whole(re.escape(words)), text, re.IGNORECASE) is not None


def _replaced(text: str, pattern: str, words: str) -> str:
    return re.sub(_whole(pattern), lambda _: words, text, flags=re.IGNORECASE)


def _whole(pattern: str) -> str:
    """Return the pattern limited to whole words."""
    return rf"(?<!\w){pattern}(?!\w)"


def _before(word: str, text: str) -> str:
    return f"{word}, {text}" if text.strip() else word


def _tidy(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("\\", "").strip()
