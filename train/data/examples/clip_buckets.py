"""Frames and size of a clip's example."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from inference.media import ClipFacts
from inference.models import FrameArithmetic, check_size
from train.common import DataError
from train.config import Bucket, ClipDataConfig


@dataclass(frozen=True)
class BucketRule:
    """Assign a bucket to every clip: that of the recipe, one of its list, or one computed for it.

    The token budget is that of VideoX-Fun (`training_with_video_token_length`): the shorter a clip,
    the larger it may be.
    """

    config: ClipDataConfig
    height: int
    """Height of examples; with a token budget the sides are those of the largest area."""
    width: int
    size_step: int
    """Pixels that heights and widths are multiples of, and sides of a token."""
    frame_rule: FrameArithmetic

    def check(self) -> None:
        """Reject what the base model does not accept.

        Raises:
            InputError: the message names the key and the nearest valid values.
        """
        for key, bucket in self._named():
            self.frame_rule.check(f"data.clips.{key}frames", bucket.frames)
            check_size(f"data.clips.{key}height", bucket.height, self.size_step)
            check_size(f"data.clips.{key}width", bucket.width, self.size_step)

    def _named(self) -> Iterator[tuple[str, Bucket]]:
        if not self.config.buckets:
            yield "", Bucket(self.config.frames, self.height, self.width)
        for bucket in self.config.sizes:
            yield f"buckets: {bucket}: ", bucket

    def bucket(self, facts: ClipFacts, frames: int) -> Bucket:
        """Return the bucket of a clip.

        Args:
            facts: metadata of the clip.
            frames: available frames; fewer than in the recipe are stretched.

        Raises:
            DataError: no size with this aspect ratio is within the budget.
        """
        if self.config.buckets:
            return self._listed(facts, frames)
        if self.config.token_budget is not None:
            return self._filled(facts, self._most_frames(frames), self.config.token_budget)
        return Bucket(self.config.frames, self.height, self.width)

    def picture_bucket(self, facts: ClipFacts) -> Bucket:
        """Return the bucket of a single image: one frame, with the size of clips."""
        if self.config.token_budget is not None:
            return self._filled(facts, 1, self.config.token_budget)
        sizes = self.config.sizes or [Bucket(1, self.height, self.width)]
        return _nearest([bucket._replace(frames=1) for bucket in sizes], facts)

    def tokens(self, bucket: Bucket) -> int:
        """Return the number of tokens of an example, without padding and prompt."""
        latent_frames = self.frame_rule.latent_frames(bucket.frames)
        return latent_frames * (bucket.height // self.size_step) * (bucket.width // self.size_step)

    def _listed(self, facts: ClipFacts, frames: int) -> Bucket:
        sizes = self.config.sizes
        fitting = [bucket.frames for bucket in sizes if bucket.frames <= frames]
        wanted = max(fitting, default=self.config.shortest)
        return _nearest([bucket for bucket in sizes if bucket.frames == wanted], facts)

    def _most_frames(self, frames: int) -> int:
        most, chunk = min(frames, self.config.frames), self.frame_rule.frame_chunk
        return max((most - 1) // chunk * chunk + 1, self.config.shortest)

    def _filled(self, facts: ClipFacts, frames: int, budget: int) -> Bucket:
        """Return the largest size with the clip's aspect ratio within budget, area and clip.

        Sides are counted in tokens; the longer one is rounded.
        """
        step = self.size_step
        room = min(
            budget // self.frame_rule.latent_frames(frames), self.height * self.width // step**2
        )
        short, long = sorted((facts.height, facts.width))
        best = None
        for side in range(1, max(short // step, 1) + 1):
            other = max(round(side * long / short), 1)
            if side * other <= room and other <= max(long // step, 1):
                best = side, other
        if best is None:
            raise DataError(
                f"data.clips.token_budget: {budget} has no room for {frames} frames of a clip of "
                f"{facts.width}x{facts.height}; raise it, or lower data.clips.frames"
            )
        sides = [side * step for side in best]
        height, width = sides if facts.height <= facts.width else sides[::-1]
        return Bucket(frames, height, width)


def _nearest(buckets: list[Bucket], facts: ClipFacts) -> Bucket:
    """Return the bucket with the nearest aspect ratio; of equals the largest within the clip."""

    def distance(bucket: Bucket) -> tuple[float, bool, int]:
        stretch = math.log(bucket.height / bucket.width) - math.log(facts.height / facts.width)
        is_enlarged = bucket.height > facts.height or bucket.width > facts.width
        area = bucket.height * bucket.width
        return round(abs(stretch), 6), is_enlarged, area if is_enlarged else -area

    return min(buckets, key=distance)
