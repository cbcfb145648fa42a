"""Notes of a plan about captions and images, in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from train.plan.lints import CaptionLint, TokenLint, TriggerLint
from train.plan.pictures import Duplicates, PictureLint

MOST_SHOWN = 3
"""Number of names shown; --json has more."""

Rows = Iterator[tuple[str, str]]


def caption_rows(lint: CaptionLint) -> Rows:
    """Yield pairs (topic, note) about captions."""
    if lint.told_by:
        yield "captions from", ", ".join(f"{what} {n:,}" for what, n in lint.told_by.items())
    if lint.without:
        yield "no caption", f"{lint.without:,} pictures; no template asks for one"
    if lint.empty:
        yield "empty captions", named(lint.empty)
    if lint.open_braces:
        yield "open or nested {", named(lint.open_braces)
    yield "long prompts", _tokens(lint.tokens)
    for trigger in lint.triggers:
        yield _trigger(trigger)
    if lint.tags:
        yield "frequent tags", ", ".join(f"{_short(tag)} {n:,}" for tag, n in lint.tags.items())
    if lint.balance:
        yield "examples of an epoch", _balance(lint.balance)


def picture_rows(lint: PictureLint) -> Rows:
    """Yield pairs (topic, note) about images."""
    if lint.broken:
        yield "broken pictures", f"{len(lint.broken):,}: {lint.broken[0]}"
    if lint.small:
        worst = (
            f"{shown(one.picture)} ({one.width}x{one.height}, {one.scale:.2f} times)"
            for one in lint.smallest[:MOST_SHOWN]
        )
        more = ", …" if lint.small > MOST_SHOWN else ""
        yield "scaled up", f"{lint.small:,}: {', '.join(worst)}{more}"
    else:
        yield "scaled up", "none"
    yield from _duplicates(lint.duplicates)


def _tokens(lint: TokenLint | None) -> str:
    if lint is None:
        return "unknown: the tokenizer is not on this disk"
    limits = {*lint.limits.values()}
    limit = " and ".join(map(str, sorted(limits)))
    if not lint.pictures:
        return f"none (the limit is {limit} tokens, begin and end included)"
    what = "the rest is cut off" if lint.is_cut else "read in pieces"
    longest = (f"{shown(one.picture)} {one.tokens}" for one in lint.longest[:MOST_SHOWN])
    more = ", …" if lint.pictures > MOST_SHOWN else ""
    return f"{lint.pictures:,} above {limit} tokens ({what}): {', '.join(longest)}{more}"


def _trigger(lint: TriggerLint) -> tuple[str, str]:
    whose = f" of {lint.concept}" if lint.concept else ""
    text = f"{lint.word!r} in {lint.having:,} of {lint.captions:,} captions"
    return f"{lint.kind}{whose}", text + (f"; not in {named(lint.without)}" if lint.without else "")


def _balance(counts: dict[str, int]) -> str:
    total = max(1, sum(counts.values()))
    text = ", ".join(f"{name} {n:,} ({n / total:.0%})" for name, n in counts.items())
    least, most = min(counts.values()), max(counts.values())
    if most <= 3 * max(1, least):
        return text
    return f"{text}; {most / max(1, least):.0f} times as many of one as of another"


def _duplicates(lint: Duplicates | None) -> Rows:
    if lint is None:
        yield "duplicates", "not looked for (--check-pictures does)"
        return
    for what, groups in (("same bytes", lint.same), ("look alike", lint.near)):
        yield what, _groups(groups)
    if lint.plain:
        yield "plain pictures", f"{lint.plain:,} have too little content to compare them"
    if not lint.is_complete:
        yield "", "very many look alike a little: some that look alike may be missing"


def _groups(groups: Sequence[Sequence[str]]) -> str:
    if not groups:
        return "none"
    text = (" = ".join(shown(one) for one in group[:MOST_SHOWN]) for group in groups[:MOST_SHOWN])
    more = "; …" if len(groups) > MOST_SHOWN else ""
    return f"{sum(map(len, groups)):,} pictures in {len(groups):,} groups: {'; '.join(text)}{more}"


def named(paths: Sequence[str]) -> str:
    """Format the number of paths, and the first of them."""
    more = ", …" if len(paths) > MOST_SHOWN else ""
    return f"{len(paths):,}: {', '.join(map(shown, paths[:MOST_SHOWN]))}{more}"


def shown(path: str) -> str:
    """Return the name of an image with that of its folder."""
    return "/".join(Path(path).parts[-2:])


def _short(tag: str) -> str:
    return tag if len(tag) <= 40 else f"{tag[:39]}…"
