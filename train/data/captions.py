"""What becomes of a caption on its way to the text encoder (kohya's options and words)."""

import random
from collections.abc import Sequence

from train.data_config import CaptionConfig


def make_caption(captions: Sequence[str], config: CaptionConfig, draw: random.Random) -> str:
    """One of the captions, its tags dropped and shuffled, or nothing at all.

    Args:
        captions: at least one.
        config: rates and switches.
        draw: where the random choices come from; always asked in the same order.
    """
    if draw.random() < config.dropout_rate:
        return ""
    caption = captions[draw.randrange(len(captions))]
    if not (config.shuffle_tags or config.tag_dropout_rate):
        return caption
    tags = [tag.strip() for tag in caption.split(",")]
    kept, loose = tags[: config.keep_tokens], tags[config.keep_tokens :]
    if config.shuffle_tags:
        draw.shuffle(loose)
    loose = [tag for tag in loose if draw.random() >= config.tag_dropout_rate]
    return ", ".join(kept + loose)
