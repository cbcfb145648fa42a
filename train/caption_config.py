"""The typed recipe of captions: where they are, and what becomes of them (kohya's options)."""

from dataclasses import dataclass, field
from typing import Literal

from train.faults import Faults, at_least, fraction


@dataclass
class CaptionConfig:
    """What becomes of a picture's caption on its way to the text encoder."""

    extensions: list[str] = field(default_factory=lambda: [".txt", ".caption"])
    """Caption files beside the pictures; the first that exists is taken. A `metadata.jsonl` in the
    folder (`file_name`, `text`) goes before them. A `.json` file holds a caption, a list of them,
    or an object with `caption`, `text` or `tags`."""
    prefix: str = ""
    """Written before every caption."""
    suffix: str = ""
    """Written after every caption."""
    template: str | None = None
    """Prompts to put captions into: one of style, style_filewords, subject, subject_filewords,
    hypernetwork and none, or a text file with a prompt in every line. One line is drawn each time;
    `[filewords]` becomes the caption and `[name]` the token of textual inversion or the run's
    name. Captions that no line asks for need not be there (A1111: prompt template)."""
    fallback: str | None = None
    """Caption of pictures without one. Without it such a picture is an error."""
    wildcards: bool = False
    """`{red|blue|}` becomes one of its parts, drawn each time, and every line of a caption file is
    a caption of its own (kohya: enable_wildcard). `{{` and `}}` write braces; wildcards do not lie
    within each other. Without it the lines of a file are one caption, and braces stay."""
    dropout_rate: float = 0.0
    """Share of examples whose caption becomes empty, which guidance needs (kohya:
    caption_dropout_rate)."""
    dropout_every_n_epochs: int = 0
    """Every caption of the n-th, 2n-th, … epoch is empty; 0 has no such epochs (kohya:
    caption_dropout_every_n_epochs)."""
    dropout_mode: Literal["empty_string", "zero_embedding"] = "empty_string"
    """What an empty caption is told as: what the text encoder makes of it, as pipelines draw, or
    zeros, as CogVideoX's SAT trainer and sampler have it."""
    caption_separator: str = ","
    """Stands between the parts (tags) of a caption. Where parts are shuffled, dropped or added step
    by step, they are written with commas between them again, as kohya does."""
    secondary_separator: str = ""
    """Holds parts together that are shuffled and dropped as one; it becomes caption_separator in
    the prompt: with `;;;`, `sky;;;cloud` becomes `sky,cloud` (kohya)."""
    shuffle_tags: bool = False
    """Shuffle the parts of a caption (kohya: shuffle_caption)."""
    keep_tokens: int = 0
    """This many parts at the front stay in place when tags are shuffled or dropped."""
    keep_tokens_separator: str = ""
    """With `"|||"`, what stands before this sign in a caption stays in place, in place of
    keep_tokens parts; what stands after a second one stays too, at the end. The signs never come
    into the prompt (kohya)."""
    tag_dropout_rate: float = 0.0
    """Share of the parts that is left out (kohya: caption_tag_dropout_rate)."""
    always_kept_tags: list[str] = field(default_factory=list)
    """Parts that tag_dropout_rate never leaves out, as they are written in the captions."""
    token_warmup_step: float = 0.0
    """Step at which all parts are there; those behind the kept ones come in one after the other, as
    many at a step as kohya's formula says. Below 1: share of max_train_steps. 0: all at once."""
    token_warmup_min: int = 1
    """So many parts behind the kept ones are there at the first step of token_warmup_step."""

    def faults(self) -> Faults:
        yield from fraction(dropout_rate=self.dropout_rate, tag_dropout_rate=self.tag_dropout_rate)
        yield from at_least(
            0,
            keep_tokens=self.keep_tokens,
            dropout_every_n_epochs=self.dropout_every_n_epochs,
            token_warmup_step=self.token_warmup_step,
            token_warmup_min=self.token_warmup_min,
        )
        signs = {
            "caption_separator": self.caption_separator,
            "secondary_separator": self.secondary_separator,
            "keep_tokens_separator": self.keep_tokens_separator,
        }
        if not self.caption_separator.strip():
            yield "caption_separator", "must be a sign, such as a comma; got nothing"
        taken: dict[str, str] = {}
        for name, sign in signs.items():
            if sign and sign.strip() in taken:
                yield name, f"is the same as {taken[sign.strip()]}: take another sign"
            taken.setdefault(sign.strip(), name)
        for extension in self.extensions:
            if not extension.startswith(".") or len(extension) < 2:
                yield "extensions", f'must begin with a dot, as ".txt"; got {extension!r}'

    def idle(self) -> Faults:
        if self.dropout_mode == "zero_embedding" and not self.drops_captions:
            yield "dropout_mode", "has no effect without dropout_rate or dropout_every_n_epochs"
        if self.dropout_every_n_epochs == 1:
            yield "dropout_every_n_epochs", "1 makes the captions of all epochs empty"
        if self.keep_tokens and not self.changes_words:
            yield (
                "keep_tokens",
                "has no effect without shuffle_tags, tag_dropout_rate or token_warmup_step",
            )
        splits = self.changes_words or self.secondary_separator or self.keep_tokens_separator
        if self.caption_separator != "," and not splits:
            yield "caption_separator", "has no effect: nothing takes captions apart"
        if self.always_kept_tags and not self.tag_dropout_rate:
            yield "always_kept_tags", "has no effect without tag_dropout_rate"
        if self.token_warmup_min != 1 and not self.token_warmup_step:
            yield "token_warmup_min", "has no effect without token_warmup_step"

    @property
    def changes_words(self) -> bool:
        """Whether captions come up that no file holds, apart from the empty one and wildcards."""
        return bool(self.shuffle_tags or self.tag_dropout_rate or self.token_warmup_step)

    @property
    def drops_captions(self) -> bool:
        """Whether captions become empty now and then."""
        return bool(self.dropout_rate or self.dropout_every_n_epochs)
