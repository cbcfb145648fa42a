"""Possible problems of a run's captions: long prompts, the trigger word, tags."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from inference.config import BaseModelConfig
from inference.models import DiffusionModel, load_auto, tokenizer_names
from train.config import FILEWORDS, CaptionConfig, TrainRecipe
from train.data import (
    Examples,
    Picture,
    Sources,
    longest_choice,
    parts_of,
    plain_caption,
    split_tags,
)
from train.families import training_of
from train.plan.base import Configs

MOST_NAMED = 10
"""Maximum number of images listed for each."""
TAGS_TOLD = 10


@dataclass(frozen=True)
class LongPrompt:
    """A prompt with more tokens than a text encoder reads at once."""

    picture: str
    tokenizer: str
    tokens: int


@dataclass(frozen=True)
class TokenLint:
    """Lengths of prompts in tokens, including those of start and end."""

    limits: dict[str, int]
    """Maximum length of each text encoder, by tokenizer."""
    is_cut: bool
    """Whether the rest of a longer prompt is lost, or read in chunks."""
    pictures: int
    """Images or clips with a longer prompt; with wildcards the longest alternatives count."""
    longest: list[LongPrompt]
    """The longest first."""


@dataclass(frozen=True)
class TriggerLint:
    """How many captions have the trigger word."""

    word: str
    kind: str
    """token (of textual inversion), instance_token, or kept tag: the most frequent first tag."""
    concept: str
    """The concept of an instance_token."""
    captions: int
    having: int
    without: list[str]
    """Images with a caption that lacks it."""


@dataclass(frozen=True)
class CaptionLint:
    """The lints of a run's captions."""

    told_by: dict[str, int]
    """Images by the source of their captions: extensions of files, metadata.jsonl, fallback."""
    without: int
    """Images without a caption, if no template needs one."""
    empty: list[str]
    """Images with a caption without a word."""
    open_braces: list[str]
    """Images with a wildcard that is not closed, or that contains another one."""
    tags: dict[str, int]
    """The most frequent tags, and the number of images that have them."""
    triggers: list[TriggerLint]
    tokens: TokenLint | None
    """None if the tokenizer is not on the disk."""
    balance: dict[str, int] = field(default_factory=dict)
    """Examples of an epoch by concept or subset, if there are several."""


def lint_captions(
    recipe: TrainRecipe, sources: Sources, examples: Examples, base: DiffusionModel
) -> CaptionLint:
    """Check the captions of all images; see `CaptionLint`."""
    pictures = sources.pictures
    tags = Counter[str]()
    for one in pictures:
        tags.update([*dict.fromkeys(tags_of(one, settings_of(examples, one)[0]))])
    return CaptionLint(
        told_by=dict(Counter(one.told_by for one in pictures if one.told_by).most_common()),
        without=sum(not one.captions for one in pictures),
        empty=_named(one for one in pictures if any(not text.strip() for text in one.captions)),
        open_braces=_named(
            one
            for one in pictures
            if settings_of(examples, one)[0].wildcards and any(map(_is_open, one.captions))
        ),
        tags=dict(tags.most_common(TAGS_TOLD)),
        triggers=triggers(recipe, sources, examples),
        tokens=token_lint(pictures, examples, base, recipe.base_model),
        balance=balance(sources, examples),
    )


def settings_of(examples: Examples, picture: Picture) -> tuple[CaptionConfig, Sequence[str]]:
    """Return the caption settings of an image, and its template."""
    subset = examples.subsets[picture.subset]
    return subset.config.captions, subset.template


def balance(sources: Sources, examples: Examples) -> dict[str, int]:
    """Return the examples of an epoch by concept or subset, if there are several.

    Those of regularisation subsets are an epoch of their own, which is paired with that of the
    others.
    """
    learned = {one.path for one in sources.pictures}
    counted = Counter(
        {one.name: sum(own.path in learned for own in one.pictures) for one in sources.concepts}
    )
    for index in examples.slots if sources.subsets else ():
        subset = examples.subset(int(index))
        counted[f"{subset.name} (regularisation)" if subset.config.is_reg else subset.name] += 1
    return dict(counted) if len(counted) > 1 else {}


def tags_of(picture: Picture, config: CaptionConfig) -> Iterable[str]:
    """Return all tags of an image's captions, those within `secondary_separator` one by one."""
    for caption in picture.captions:
        for tag in (tag for part in split_tags(caption, config) for tag in part):
            inner = tag.split(config.secondary_separator) if config.secondary_separator else [tag]
            yield from (one.strip() for one in inner if one.strip())


def triggers(recipe: TrainRecipe, sources: Sources, examples: Examples) -> list[TriggerLint]:
    """Return the trigger words, as far as they are in the recipe."""
    pictures = [one for one in sources.pictures if one.captions]
    said = {id(one): [*_prompts(one, *settings_of(examples, one))] for one in pictures}
    if word := recipe.objective.word:
        has_word = partial(_says, word)
        return [_trigger(word, "token", "", [(one, said[id(one)]) for one in pictures], has_word)]
    found = []
    for concept in sources.concepts:
        if word := concept.config.instance_token:
            own = [(one, list(one.captions)) for one in concept.pictures]
            found.append(_trigger(word, "instance_token", concept.name, own, partial(_says, word)))
    if found or sources.concepts:
        return found
    kept = {id(one): _first_tags(one, settings_of(examples, one)[0]) for one in pictures}
    first = Counter(tag for tags in kept.values() for tag in tags)
    if first:
        word = first.most_common(1)[0][0]
        own = [(one, kept[id(one)]) for one in pictures if kept[id(one)]]
        found.append(_trigger(word, "kept tag", "", own, lambda tag: tag == word))
    return found


def _trigger(
    word: str,
    kind: str,
    concept: str,
    said: Sequence[tuple[Picture, Sequence[str]]],
    has: Any,
) -> TriggerLint:
    texts = sum(len(one) for _, one in said)
    having = sum(bool(has(text)) for _, one in said for text in one)
    without = _named(picture for picture, one in said if not all(map(has, one)))
    return TriggerLint(word, kind, concept, texts, having, without)


def _says(word: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) is not None


def _first_tags(picture: Picture, config: CaptionConfig) -> list[str]:
    """Return the first kept tag of each caption, if the recipe keeps any."""
    if not (config.keep_tokens or config.keep_tokens_separator):
        return []
    kept = [split_tags(caption, config)[0] for caption in picture.captions]
    return [tags[0] if tags else "" for tags in kept]


def _prompts(picture: Picture, config: CaptionConfig, template: Sequence[str]) -> Iterable[str]:
    """Return an image's prompts with all tags, and the longest alternatives of wildcards."""
    for caption in picture.captions or ("",):
        for line in template:
            if config.wildcards:
                caption, line = longest_choice(caption), longest_choice(line)
            yield line.replace(FILEWORDS, plain_caption(caption, config))


def token_lint(
    pictures: Sequence[Picture], examples: Examples, base: DiffusionModel, config: BaseModelConfig
) -> TokenLint | None:
    """Return which prompts have more tokens than each text encoder reads at once."""
    tokenizers = tokenizers_of(base, config)
    if not tokenizers:
        return None
    limits = {name: limit for name, (_, limit) in tokenizers.items()}
    asked: dict[str, list[Picture]] = {}
    for picture in pictures:
        for prompt in dict.fromkeys(_prompts(picture, *settings_of(examples, picture))):
            # A token is a byte at least, and two are for start and end.
            if len(prompt.encode()) + 2 > min(limits.values()):
                asked.setdefault(prompt, []).append(picture)
    found: dict[str, LongPrompt] = {}
    for name, (tokenizer, limit) in tokenizers.items():
        lengths = tokenizer(list(asked), truncation=False).input_ids if asked else []
        for owners, ids in zip(asked.values(), lengths, strict=True):
            for picture in owners if len(ids) > limit else ():
                one = LongPrompt(str(picture.path), name, len(ids))
                if (known := found.get(one.picture)) is None or known.tokens < one.tokens:
                    found[one.picture] = one
    longest = sorted(found.values(), key=lambda one: (-one.tokens, one.picture))
    is_cut = training_of(base).truncates_prompts
    return TokenLint(limits, is_cut, len(found), longest[:MOST_NAMED])


def tokenizers_of(base: DiffusionModel, config: BaseModelConfig) -> dict[str, tuple[Any, int]]:
    """Return the tokenizers of a model without weights, and their encoders' lengths, by name."""
    limits, known = training_of(base).prompt_limits(base), base.tokenizers
    if None not in known:
        pairs = zip(known, limits, strict=True)
        return dict(zip(tokenizer_names(base), pairs, strict=True))
    file = Configs(config).file("tokenizer", "tokenizer_config.json")
    if file is None:
        return {}
    from transformers import AutoTokenizer

    return {"tokenizer": (load_auto(AutoTokenizer, file.parent), limits[0])}


def _is_open(caption: str) -> bool:
    """Return whether an unmatched brace remains after wildcards are removed."""
    plain = caption.replace("{{", "").replace("}}", "")
    return any(sign in choice for part in parts_of(plain) for choice in part for sign in "{}")


def _named(pictures: Iterable[Picture]) -> list[str]:
    return [str(picture.path) for picture in pictures]
