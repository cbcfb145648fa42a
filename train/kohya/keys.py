"""The keys of kohya's dataset_config.toml: their types, and how each is translated.

They follow sd-scripts 0.10.1: `library/config_util.py`, `library/train_util.py`
(`process_caption`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kind:
    """The values that a key accepts, and their description."""

    fits: Callable[[Any], bool]
    words: str


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))


BOOLEAN = Kind(lambda value: isinstance(value, bool), "true or false")
TEXT = Kind(lambda value: isinstance(value, str), "text")
WHOLE = Kind(lambda value: _is_whole(value) and value >= 0, "a whole number from 0 on")
POSITIVE = Kind(lambda value: _is_whole(value) and value > 0, "a whole number above 0")
NUMBER = Kind(_is_number, "a number")
RATE = Kind(lambda value: _is_number(value) and 0 <= value <= 1, "a number from 0 to 1")
PAIR = Kind(_is_pair, "two numbers, [low, high]")
SIZE = Kind(
    lambda value: (
        all(map(POSITIVE.fits, value)) and len(value) == 2
        if isinstance(value, list)
        else POSITIVE.fits(value)
    ),
    "a whole number, or [width, height]",
)
TABLE = Kind(lambda value: isinstance(value, dict), "a table")

TYPES: dict[str, Kind] = {
    "image_dir": TEXT, "metadata_file": TEXT, "is_reg": BOOLEAN, "conditioning_data_dir": TEXT,
    "num_repeats": WHOLE, "class_tokens": TEXT, "caption_extension": TEXT,
    "shuffle_caption": BOOLEAN, "keep_tokens": WHOLE, "keep_tokens_separator": TEXT,
    "secondary_separator": TEXT, "caption_separator": TEXT, "enable_wildcard": BOOLEAN,
    "caption_prefix": TEXT, "caption_suffix": TEXT, "caption_dropout_rate": RATE,
    "caption_dropout_every_n_epochs": WHOLE, "caption_tag_dropout_rate": RATE,
    "token_warmup_min": WHOLE, "token_warmup_step": NUMBER, "flip_aug": BOOLEAN,
    "random_crop": BOOLEAN, "color_aug": BOOLEAN, "alpha_mask": BOOLEAN,
    "face_crop_aug_range": PAIR, "cache_info": BOOLEAN, "custom_attributes": TABLE,
    "resize_interpolation": TEXT, "batch_size": POSITIVE, "resolution": SIZE,
    "enable_bucket": BOOLEAN, "min_bucket_reso": POSITIVE, "max_bucket_reso": POSITIVE,
    "bucket_reso_steps": POSITIVE, "bucket_no_upscale": BOOLEAN, "validation_split": RATE,
    "validation_seed": WHOLE, "network_multiplier": NUMBER,
}  # fmt: skip
"""Every key."""

SUBSET_ONLY = ("image_dir", "metadata_file", "is_reg", "conditioning_data_dir")
"""Keys that neither a dataset nor [general] can have."""

PATHS = ("image_dir", "metadata_file")
"""Keys that are paths."""

DATASET_KEYS = (
    "batch_size", "resolution", "enable_bucket", "min_bucket_reso", "max_bucket_reso",
    "bucket_reso_steps", "bucket_no_upscale", "validation_split", "validation_seed",
    "network_multiplier",
)  # fmt: skip
"""Keys that a subset cannot have."""

BUCKET_KEYS = {
    "min_bucket_reso": "min_side",
    "max_bucket_reso": "max_side",
    "bucket_reso_steps": "step",
    "bucket_no_upscale": "no_upscale",
}
"""Keys of data.buckets."""


def _same(dotted: str) -> Callable[[Any], dict[str, Any]]:
    return lambda value: {dotted: value}


SUBSET_KEYS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "image_dir": _same("path"),
    "metadata_file": _same("metadata_file"),
    "is_reg": _same("is_reg"),
    "num_repeats": _same("repeats"),
    "class_tokens": _same("captions.fallback"),
    "caption_extension": lambda value: {"captions.extensions": [value]},
    "shuffle_caption": _same("captions.shuffle_tags"),
    "keep_tokens": _same("captions.keep_tokens"),
    "keep_tokens_separator": _same("captions.keep_tokens_separator"),
    "secondary_separator": _same("captions.secondary_separator"),
    "caption_separator": _same("captions.caption_separator"),
    "enable_wildcard": _same("captions.wildcards"),
    # kohya inserts a space between them and the caption
    "caption_prefix": lambda value: {"captions.prefix": f"{value} " if value else ""},
    "caption_suffix": lambda value: {"captions.suffix": f" {value}" if value else ""},
    "caption_dropout_rate": _same("captions.dropout_rate"),
    "caption_dropout_every_n_epochs": _same("captions.dropout_every_n_epochs"),
    "caption_tag_dropout_rate": _same("captions.tag_dropout_rate"),
    "token_warmup_min": _same("captions.token_warmup_min"),
    "token_warmup_step": _same("captions.token_warmup_step"),
    "flip_aug": lambda value: {"flip": 0.5 if value else 0.0},
    "random_crop": lambda value: {"crop": "random" if value else "center"},
    "alpha_mask": lambda value: {"masks": {"source": "alpha"} if value else None},
    "resize_interpolation": lambda value: {
        "resize_interpolation": {"linear": "bilinear", "cubic": "bicubic", "box": "area"}.get(
            value, value
        )
    },
    # a hue within 8 of 180 degrees or a gamma of 0.95 to 1.05, for a third of the examples
    "color_aug": lambda value: {
        "color_jitter": {"hue": 0.04, "brightness": 0.05} if value else None
    },
}
"""Translation of a subset's key to keys of the recipe's subset, dotted."""

IGNORED = {
    "cache_info": "sizes of pictures are always kept, in an index beside them",
}
"""Keys without effect here, and why."""

REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "face_crop_aug_range": (
        (),
        "no faces are looked for here; cut the pictures beforehand, or take random_crop",
    ),
    "conditioning_data_dir": (
        (),
        "ControlNets are not trained here; if these are masks for the loss, take the key out and "
        "give data.masks.path in the recipe",
    ),
    "custom_attributes": (
        ({},),
        "are of differential output preservation; loss.prior: prediction in the recipe does that "
        "with regularisation pictures",
    ),
    "network_multiplier": (
        (1, 1.0),
        "what is trained is always trained at full strength; take it out",
    ),
}
"""Unsupported keys: the values that change nothing, and why others are rejected."""
