"""Folders of clips, their frames, buckets and examples."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from inference.media.video_reading import ClipFacts
from inference.models.cogvideox.arithmetic import FrameRule
from inference.models.cogvideox.model import VideoModel
from inference.recipe.loader import RecipeWarning
from inference.runtime.errors import InputError
from tests.inference.models.cogvideox.tiny import tiny_transformer, tiny_vae
from train.common.errors import DataError
from train.config.clips import Bucket, ClipDataConfig, parse_bucket
from train.config.data import DataConfig
from train.config.examples import CaptionConfig
from train.config.objectives import OBJECTIVE_CONFIGS
from train.config.schema import recipe_class
from train.config.stages import StageConfig
from train.data.examples.build import build_examples
from train.data.examples.clip_buckets import BucketRule
from train.data.examples.clips import ClipExamples, cut_frames, frame_numbers
from train.data.examples.latents import cache_latents
from train.data.examples.loader import build_loader
from train.data.examples.stream import BucketStream, MicroBatches
from train.data.sources.clip_folder import Clip, find_clips, timeline, usable, warn_of_short
from train.data.sources.folder import fingerprint
from train.data.sources.sources import find_sources
from train.families.cogvideox.training import drop_positions


def facts(frames: int, width: int = 720, height: int = 480, fps: float = 8) -> ClipFacts:
    return ClipFacts(frames, fps, width, height, np.arange(frames), 1 / fps)


def frames_of(count: int, width: int = 16, height: int = 16) -> list[Image.Image]:
    """Red counts the frames by tens, green the columns and blue the rows."""
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    return [
        Image.fromarray(np.stack([0 * rows + 10 * n, columns, rows], -1).astype(np.uint8))
        for n in range(count)
    ]


def animation(path: Path, count: int, width: int = 16, height: int = 16, caption: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *others = frames_of(count, width, height)
    first.save(path, save_all=True, append_images=others, duration=125, lossless=True)
    if caption:
        path.with_suffix(".txt").write_text(caption)
    return path


def sequence(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True)
    for number, image in enumerate(frames_of(count)):
        image.save(folder / f"{number}.png")
    return folder


def data(path: Path, clips: dict[str, Any] | None = None, **options: Any) -> DataConfig:
    return DataConfig(path=str(path), clips=ClipDataConfig(**(clips or {})), **options)


def rule(config: ClipDataConfig, height: int = 480, width: int = 720, step: int = 16) -> BucketRule:
    return BucketRule(config, height, width, step, FrameRule())


def examples(config: DataConfig, size: int = 16, batch_size: int = 1, seed: int = 5) -> Any:
    assert config.clips is not None
    buckets = BucketRule(config.clips, size, size, 8, FrameRule())
    return ClipExamples(find_clips(config, False), config, buckets, seed, ("",), batch_size)


def reds(pixels: torch.Tensor) -> list[int]:
    """Numbers of the frames of an example."""
    return [round((value + 1) * 12.75) for value in pixels[0, :, 0, 0].tolist()]


# The recipe


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"frames": 50}, ("frames", r"^50 frames; .* 1, 8k or 8k \+ 1 .*; use 49 or 56$")),
        ({"frames": 5}, ("frames", "use 1 or 8")),
        ({"frames": 0}, ("frames", "must be at least 1, got 0")),
        ({"stride": 0}, ("stride", "must be at least 1")),
        ({"fps": 0}, ("fps", "must be above 0")),
        ({"trim_end": -1}, ("trim_end", "must be at least 0")),
        ({"token_budget": 0}, ("token_budget", "must be at least 1")),
        ({"buckets": ["49x480"]}, ("buckets", "'49x480' is not a bucket: .* such as 49x480x720")),
        ({"buckets": ["0x16x16"]}, ("buckets", "'0x16x16' is not a bucket")),
        ({"buckets": ["13x16x16"]}, ("buckets", "13x16x16: 13 frames; .* use 9 or 16")),
        ({"buckets": ["9x16x16"] * 2}, ("buckets", "twice")),
        ({"buckets": ["9x16x16"], "token_budget": 9}, ("token_budget", "excludes buckets")),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], fault: tuple[str, str]) -> None:
    ((key, message),) = ClipDataConfig(**options).faults()
    assert key == fault[0]
    with pytest.raises(AssertionError, match=fault[1]):
        raise AssertionError(message)


@pytest.mark.parametrize("frames", [1, 8, 9, 16, 17, 25, 49, 80, 81, 161])
def test_usable_numbers_of_frames_are_not_refused(frames: int) -> None:
    assert not [*ClipDataConfig(frames=frames).faults()]


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        ({}, []),
        ({"buckets": ["9x16x16"], "height": 16, "frames": 9}, ["height", "frames"]),
        ({"pack": True}, ["pack"]),
        ({"pack": True, "pictures": True}, []),
        ({"frames": 1, "short_clips": "hold"}, ["short_clips"]),
        ({"buckets": ["bad"], "short_clips": "hold"}, []),
    ],
)
def test_what_has_no_effect_is_told(options: dict[str, Any], keys: list[str]) -> None:
    assert [key for key, _ in ClipDataConfig(**options).idle()] == keys


def test_data_keys_beside_clips(tmp_path: Path) -> None:
    plain = data(tmp_path, resolution=512, cache_dir="x")
    assert [key for key, _ in plain.idle()] == ["cache_dir", "resolution"]
    cached = data(tmp_path, {"part": "random"}, cache="disk", cache_dir="x")
    assert [key for key, _ in cached.idle()] == ["cache"]
    listed = DataConfig(concepts={"a": None}, clips=ClipDataConfig())
    assert ("clips", "go with data.path, a folder of clips, not with concepts") in listed.faults()
    for name, value in (("crop", "random"), ("flip", 0.5), ("background", "random")):
        assert data(tmp_path, None, **{name: value}).is_random
    assert data(tmp_path, {"part": "random"}).is_random
    assert not data(tmp_path, flip=1.0).is_random


# Which frames


@pytest.mark.parametrize(
    ("frames", "fps", "options", "expected"),
    [
        (4, 8, {}, [0, 1, 2, 3]),
        (16, 16, {"fps": 8.0}, [0, 2, 4, 6, 8, 10, 12, 14]),
        (12, 24, {"fps": 8.0}, [0, 3, 6, 9]),
        (6, 12, {"fps": 8.0}, [0, 1, 3, 4]),  # 1.5 is as near to 1 as to 2
        (3, 4, {"fps": 8.0}, [0, 0, 1, 1, 2, 2]),
        (8, 8, {"trim_start": 0.25, "trim_end": 0.25}, [2, 3, 4, 5]),
        (16, 16, {"fps": 8.0, "trim_start": 0.25, "trim_end": 0.5}, [4, 6]),
        (4, 8, {"trim_start": 1.0}, []),
        (4, 8, {"trim_start": 1.0, "fps": 8.0}, []),
        (1, 8, {"trim_start": 1.0, "fps": 2.0}, [0]),
    ],
)
def test_frames_by_time(
    frames: int, fps: float, options: dict[str, Any], expected: list[int]
) -> None:
    chosen = timeline(facts(frames, fps=fps), ClipDataConfig(**options))
    assert chosen.tolist() == expected


def test_variable_rates_are_brought_to_one() -> None:
    uneven = ClipFacts(4, 6, 16, 16, np.array([50, 60, 90, 100]), 0.01)  # at 0, 0.1, 0.4, 0.5 s
    assert timeline(uneven, ClipDataConfig(fps=10)).tolist() == [0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize(
    ("length", "options", "expected"),
    [
        (12, {}, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        (12, {"part": "center"}, [1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (18, {"stride": 2, "part": "center"}, [0, 2, 4, 6, 8, 10, 12, 14, 16]),
        (4, {"short_clips": "loop"}, [0, 1, 2, 3, 0, 1, 2, 3, 0]),
        (4, {"short_clips": "hold"}, [0, 1, 2, 3, 3, 3, 3, 3, 3]),
        (4, {"short_clips": "loop", "stride": 2}, [0, 2, 0, 2, 0, 2, 0, 2, 0]),
    ],
)
def test_part_stride_and_stretching(
    length: int, options: dict[str, Any], expected: list[int]
) -> None:
    config = ClipDataConfig(**options)
    assert frame_numbers(np.arange(length), 9, config, random.Random(0)).tolist() == expected


def test_random_parts_reach_every_place() -> None:
    config = ClipDataConfig(part="random", stride=2)
    chosen = [frame_numbers(np.arange(20), 9, config, random.Random(seed)) for seed in range(40)]
    assert {numbers[0] for numbers in chosen} == {0, 1, 2, 3}
    assert all((np.diff(numbers) == 2).all() and len(numbers) == 9 for numbers in chosen)


# Folders


def names(clips: Iterable[Clip], root: Path) -> list[str]:
    return [clip.path.relative_to(root).as_posix() for clip in clips]


def test_files_sequences_and_pictures(tmp_path: Path) -> None:
    animation(tmp_path / "b.webp", 9, caption="moving")
    animation(tmp_path / "in" / "a.gif", 9)
    (tmp_path / "in" / "metadata.jsonl").write_text('{"file_name": "a.gif", "text": "turning"}')
    sequence(tmp_path / "v1.2", 9)
    (tmp_path / "v1.2.txt").write_text("by numbers")
    sequence(tmp_path / "in" / "named", 9)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "in/named/", "text": ["x", "y"]}')
    frames_of(1)[0].save(tmp_path / "still.png")
    (tmp_path / "still.txt").write_text("a still")

    def found(**options: Any) -> dict[str, tuple[str, ...]]:
        clips = find_clips(data(tmp_path, {"frames": 9, **options}), captioned=True)
        return dict(zip(names(clips, tmp_path), (clip.captions for clip in clips), strict=True))

    files = {"b.webp": ("moving",), "in/a.gif": ("turning",)}
    folders = {"in/named": ("x", "y"), "v1.2": ("by numbers",)}
    assert found() == files
    assert found(sequences=True) == files | folders
    assert found(sequences=True, pictures=True) == files | folders | {"still.png": ("a still",)}
    assert list(found(sequences=True)) == sorted(files | folders)
    with pytest.raises(DataError, match=r"18 of 21 clips have no caption: .*in/named/0.png"):
        found(pictures=True)


def listed(root: Path, videos: str, prompts: str, name: str = "prompts.txt") -> DataConfig:
    for clip in ("videos/a.webp", "videos/b.webp", "videos/c.webp"):
        animation(root / clip, 9)
    (root / "videos.txt").write_text(videos)
    (root / name).write_text(prompts)
    return data(root, {"frames": 9})


@pytest.mark.parametrize("name", ["prompts.txt", "prompt.txt"])
def test_lists_of_cogvideos_trainers(tmp_path: Path, name: str) -> None:
    videos = "videos/b.webp\r\n\nvideos/a.webp\nvideos/b.webp\n"
    config = listed(tmp_path, videos, "a ball, rolling\n a cube \n\nthe ball\n", name)
    left_out = Counter[str]()
    first, second = find_clips(config, captioned=True, left_out=left_out)
    assert (first.path.name, first.captions) == ("a.webp", ("a cube",))
    assert (second.path.name, second.captions) == ("b.webp", ("a ball, rolling", "the ball"))
    assert first.told_by == name
    assert +left_out == {"clips that videos.txt does not list": 1}
    assert names(find_clips(config, captioned=False), tmp_path) == [
        "videos/a.webp", "videos/b.webp"
    ]  # fmt: skip
    (tmp_path / "images.txt").touch()
    with pytest.warns(RecipeWarning, match=r"images\.txt: is not read"):
        find_clips(config, captioned=True)
    (tmp_path / "videos.txt").unlink()
    with pytest.raises(DataError, match="3 of 3 clips have no caption"):
        find_clips(config, captioned=True)


@pytest.mark.parametrize(
    ("videos", "prompts", "message"),
    [
        ("videos/a.webp\n", "a\nb\n", r"prompts\.txt: has 2 captions, and videos\.txt 1 clips"),
        ("videos/gone.mp4\n", "a\n", r"videos\.txt: line 1: there is no file 'videos/gone\.mp4'"),
        ("\n../x.webp\n", "a\n", r"videos\.txt: line 2: file_name '\.\./x\.webp' leads out"),
    ],
)
def test_lists_that_do_not_fit(tmp_path: Path, videos: str, prompts: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        find_clips(listed(tmp_path, videos, prompts), captioned=True)


def test_a_folder_of_animations_is_no_sequence(tmp_path: Path) -> None:
    animation(tmp_path / "in" / "a.webp", 9)
    animation(tmp_path / "in" / "b.webp", 9)
    (tmp_path / "broken").mkdir()
    config = data(tmp_path, {"frames": 9, "sequences": True})
    assert names(find_clips(config, captioned=False), tmp_path) == ["in/a.webp", "in/b.webp"]
    (tmp_path / "broken" / "0.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"broken/0\.png: cannot be read as an image"):
        find_clips(config, captioned=False)


def test_folder_without_clips_says_what_would_find_some(tmp_path: Path) -> None:
    sequence(tmp_path / "a", 2)
    with pytest.raises(DataError, match=r"no clips .*\.mp4.*found 2 other files; .*sequences: tru"):
        find_clips(data(tmp_path), captioned=False)
    with pytest.raises(DataError, match="is not a folder"):
        find_clips(data(tmp_path / "none"), captioned=False)


def test_broken_clips_are_told_together(tmp_path: Path) -> None:
    animation(tmp_path / "a.webp", 9)
    (tmp_path / "b.webp").write_bytes(b"no picture")
    (tmp_path / "c.gif").write_bytes(b"")
    with pytest.raises(DataError, match=r"b\.webp: cannot be read .*\n.*c\.gif: cannot be read"):
        find_clips(data(tmp_path, {"frames": 9}), captioned=False)


def test_short_clips(tmp_path: Path) -> None:
    animation(tmp_path / "a.webp", 9)
    animation(tmp_path / "b.webp", 3)
    few = r"1 of 2 clips have fewer than 9 frames"

    def found(**options: Any) -> list[str]:
        config = data(tmp_path, {"frames": 9, **options})
        assert config.clips is not None
        clips = find_clips(config, captioned=False)
        warn_of_short(clips, config.clips)
        return names(usable(clips, config.clips), tmp_path)

    with pytest.raises(DataError, match=rf"{few} .*b\.webp \(3\).*short_clips: skip leaves them"):
        found()
    with pytest.warns(RecipeWarning, match=rf"{few} and are left out: .*b\.webp \(3\)$"):
        assert found(short_clips="skip") == ["a.webp"]
    with pytest.warns(RecipeWarning, match=rf"{few} and begin again"):
        assert found(short_clips="loop") == ["a.webp", "b.webp"]
    with pytest.warns(RecipeWarning, match=rf"{few} and hold their last frame"):
        assert found(short_clips="hold") == ["a.webp", "b.webp"]
    with pytest.raises(DataError, match=r"nothing is left after trimming of .*b\.webp \(0\)"):
        found(short_clips="hold", trim_start=0.5)
    with pytest.raises(DataError, match="skip leaves nothing: 2 of 2"):
        found(short_clips="skip", stride=9)
    assert found(buckets=["1x16x16", "9x16x16"]) == ["a.webp", "b.webp"]


def test_fingerprint_of_sequences_follows_their_pictures(tmp_path: Path) -> None:
    def current() -> str:
        config = data(tmp_path, {"frames": 8, "sequences": True})
        return fingerprint([*find_clips(config, captioned=False)], tmp_path)

    folder = sequence(tmp_path / "a", 8)
    prints = [current()]
    frames_of(1)[0].save(folder / "9.png")
    prints.append(current())
    (folder / "9.png").rename(folder / "8.png")
    prints.append(current())
    assert len({*prints}) == 3
    assert current() == prints[-1]


# Buckets


@pytest.mark.parametrize(
    ("frames", "width", "height", "expected"),
    [
        (100, 720, 480, "49x480x720"),
        (100, 480, 720, "49x720x480"),
        (100, 700, 470, "49x240x360"),  # the larger one would enlarge it
        (48, 720, 480, "25x480x480"),
        (20, 720, 480, "9x480x720"),
        (3, 720, 480, "9x480x720"),
    ],
)
def test_the_most_frames_then_the_nearest_proportions(
    frames: int, width: int, height: int, expected: str
) -> None:
    sizes = ["49x480x720", "49x720x480", "49x240x360", "25x480x480", "9x480x720"]
    buckets = rule(ClipDataConfig(buckets=sizes))
    assert buckets.bucket(facts(frames, width, height), frames) == parse_bucket(expected)


@pytest.mark.parametrize(
    ("budget", "frames", "width", "height", "expected"),
    [
        (17550, 60, 720, 480, "49x480x720"),
        (17550, 48, 720, 480, "41x480x720"),  # never above its own size
        (17550, 49, 1440, 960, "49x480x720"),
        (17550, 49, 960, 1440, "49x720x480"),
        (17550, 9, 1440, 960, "9x960x1440"),
        (8000, 49, 720, 480, "49x320x480"),  # 13 x 20 x 30 = 7800
        (8000, 49, 1000, 1000, "49x384x384"),  # 13 x 24 x 24 = 7488
        (17550, 8, 720, 480, "9x480x720"),
    ],
)
def test_a_budget_is_filled_and_never_passed(
    budget: int, frames: int, width: int, height: int, expected: str
) -> None:
    buckets = rule(ClipDataConfig(token_budget=budget), 1024, 1440)
    bucket = buckets.bucket(facts(frames, width, height), frames)
    assert bucket == parse_bucket(expected)
    assert buckets.tokens(bucket) <= budget


def test_a_budget_keeps_to_the_area_and_says_when_it_is_too_small() -> None:
    small = rule(ClipDataConfig(token_budget=10**6), 256, 256)
    assert small.bucket(facts(49, 1000, 1000), 49) == Bucket(49, 256, 256)
    assert small.picture_bucket(facts(1, 1000, 500)) == Bucket(1, 176, 352)
    with pytest.raises(DataError, match="token_budget: 12 has no room for 49 frames"):
        rule(ClipDataConfig(token_budget=12)).bucket(facts(49), 49)


def test_pictures_have_the_sizes_of_clips() -> None:
    listed = rule(ClipDataConfig(buckets=["49x480x720", "25x480x480"]))
    assert listed.picture_bucket(facts(1, 64, 64)) == Bucket(1, 480, 480)
    assert rule(ClipDataConfig()).picture_bucket(facts(1, 64, 64)) == Bucket(1, 480, 720)


def test_what_the_model_cannot_take_is_refused() -> None:
    rule(ClipDataConfig()).check()
    with pytest.raises(InputError, match=r"^data.clips.height: 488 .*480 or 496"):
        rule(ClipDataConfig(), height=488).check()
    with pytest.raises(InputError, match=r"^data.clips.buckets: 9x16x24: width: 24 .*16 or 32"):
        rule(ClipDataConfig(buckets=["9x16x24"])).check()
    eights = BucketRule(ClipDataConfig(), 480, 720, 16, FrameRule(8, 16))
    eights.check()
    with pytest.raises(InputError, match=r"^data.clips.frames: 25 .*use 17 or 32"):
        BucketRule(ClipDataConfig(frames=25), 480, 720, 16, FrameRule(8, 16)).check()


# The stream

KINDS = (0, 1, 0, 2, 0, 1, 0, 0, 2, 2, 2, 0, 1)
ORDER = [12, 5, 1, 5, 6, 4, 7, 2, 3, 9, 8, 10, 0, 11, 7, 2]


def epoch_of(stream: BucketStream, number: int) -> list[int]:
    length = len(stream)
    places = [stream[position] for position in range(number * length, (number + 1) * length)]
    assert {epoch for epoch, _ in places} == {number}
    return [index for _, index in places]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 8])
def test_micro_batches_are_of_one_bucket_and_epochs_complete(batch_size: int) -> None:
    stream = BucketStream(3, KINDS, batch_size)
    epochs = [epoch_of(stream, number) for number in range(3)]
    for order in epochs:
        counts = Counter(order)
        assert set(counts) == set(range(len(KINDS)))
        assert sum(counts.values()) - len(KINDS) == stream.repeated
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            assert len({KINDS[index] for index in batch}) == 1
            own = KINDS.count(KINDS[batch[0]])
            assert len({*batch}) == min(batch_size, own)
    assert len({*map(tuple, epochs)}) == 3
    assert epochs != [epoch_of(BucketStream(4, KINDS, batch_size), n) for n in range(3)]


def test_repeated_examples_are_counted() -> None:
    repeated = [BucketStream(0, KINDS, size).repeated for size in (1, 2, 3, 4)]
    assert repeated == [0, 1, 2, 3]  # six, three and four of a bucket


def test_orders_stay_what_they_were_for_runs_that_go_on() -> None:
    stream = BucketStream(3, KINDS, 4, first_position=8)
    assert [stream[position][1] for position in range(8, 24)] == ORDER


def test_two_processes_see_buckets_as_one_with_twice_the_accumulation() -> None:
    stream = BucketStream(3, KINDS, 2)

    def seen(rank: int, processes: int, accumulation: int) -> list[list[tuple[int, int]]]:
        batches = MicroBatches(2, accumulation, rank, processes, start_step=0, max_steps=6)
        return [[stream[position] for position in batch] for batch in batches]

    pairs = zip(seen(0, 2, 1), seen(1, 2, 1), strict=True)
    assert [batch for pair in pairs for batch in pair] == seen(0, 1, 2)


def test_a_later_stage_begins_with_a_whole_micro_batch_and_a_new_epoch() -> None:
    stream = BucketStream(3, KINDS, 3, first_position=20)
    for batch in MicroBatches(3, 1, 0, 1, start_step=0, max_steps=5, first_position=20):
        assert len({KINDS[stream[position][1]] for position in batch}) == 1
    assert [stream[position] for position in (20, 35)] == [
        (2, epoch_of(BucketStream(3, KINDS, 3), 2)[0]),
        (3, epoch_of(BucketStream(3, KINDS, 3), 3)[0]),
    ]


# Examples


def test_example_is_cut_alike_in_all_frames() -> None:
    frames = np.stack([np.asarray(image) for image in frames_of(4, 12, 10)])

    def cut(seed: int = 0, **options: Any) -> np.ndarray:
        pixels = cut_frames(
            frames, (6, 8), DataConfig(resize="none", **options), random.Random(seed)
        )
        assert pixels.shape == (3, 4, 6, 8)
        assert pixels.min() >= -1
        return np.round((pixels.numpy() + 1) * 127.5).astype(int).transpose(1, 2, 3, 0)

    assert np.array_equal(cut(), frames[:, 2:8, 2:10])
    assert np.array_equal(cut(flip=1.0), frames[:, 2:8, 2:10][:, :, ::-1])
    corners = set()
    for seed in range(60):
        seen = cut(seed, crop="random")
        _, left, top = seen[0, 0, 0]
        assert np.array_equal(seen, frames[:, top : top + 6, left : left + 8])
        corners.add((int(left), int(top)))
    assert {left for left, _ in corners} == set(range(5))
    assert {top for _, top in corners} == set(range(5))
    mirrored = sum(cut(seed, flip=0.5)[0, 0, 0, 1] == 9 for seed in range(60))
    assert 15 < mirrored < 45
    with pytest.raises(DataError, match=r"12x10 is smaller than 8x12; data\.resize=cover"):
        cut_frames(frames, (12, 8), DataConfig(resize="none"), random.Random(0))


def test_example_covers_its_bucket() -> None:
    frames = np.zeros((1, 10, 40, 3), np.uint8)
    frames[:, :, 15:25] = 255
    white = cut_frames(frames, (20, 40), DataConfig(), random.Random(0))[0, 0, 10] > 0
    assert white[10:30].all()
    assert not white[:8].any()
    assert not white[32:].any()


def folder_of_kinds(root: Path) -> DataConfig:
    for number in range(3):
        animation(root / f"long{number}.webp", 12)
    for number in range(2):
        animation(root / f"wide{number}.webp", 9, width=32)
    frames_of(1)[0].save(root / "still.png")
    clips = {"buckets": ["9x16x16", "9x16x32"], "pictures": True, "part": "random"}
    return data(root, clips, flip=0.5)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a single core
def test_examples_of_several_buckets(tmp_path: Path) -> None:
    config = folder_of_kinds(tmp_path)
    made = examples(config, batch_size=2)
    assert made.buckets == [Bucket(9, 16, 16)] * 3 + [Bucket(1, 16, 16)] + [Bucket(9, 16, 32)] * 2
    assert made.summary == (
        "clips by frames x height x width: 1x16x16: 1, 9x16x16: 3, 9x16x32: 2; 2 occur twice in an "
        "epoch, to fill the last micro-batches"
    )
    shapes = [made.content(index)["pixels"].shape for index in range(6)]
    assert shapes == [(3, *bucket) for bucket in made.buckets]
    starts = {min(reds(made.content(0, epoch)["pixels"])) for epoch in range(30)}
    assert starts == {0, 1, 2, 3}
    batches = MicroBatches(2, 1, 0, 1, start_step=1, max_steps=7)
    alone = list(build_loader(made, batches))
    config.num_workers = 1
    together = list(build_loader(made, batches))
    assert {tuple(batch["pixels"].shape[2:]) for batch in alone} == {
        (1, 16, 16),
        (9, 16, 16),
        (9, 16, 32),
    }
    for one, two in zip(alone, together, strict=True):
        assert one["names"] == two["names"]
        assert torch.equal(one["pixels"], two["pixels"])


def test_one_bucket_streams_as_pictures_do(tmp_path: Path) -> None:
    for number in range(3):
        animation(tmp_path / f"{number}.webp", 9)
    made = examples(data(tmp_path, {"frames": 9}), batch_size=2)
    assert sorted(made.stream[position][1] for position in range(3)) == [0, 1, 2]
    assert made.summary == "clips by frames x height x width: 9x16x16: 3"
    assert reds(made.content(0)["pixels"]) == list(range(9))


def test_a_clip_that_breaks_later_comes_as_a_value(tmp_path: Path) -> None:
    path = animation(tmp_path / "a.webp", 9)
    made = examples(data(tmp_path, {"frames": 9}))
    path.write_bytes(path.read_bytes()[:60])
    (fault,) = build_loader(made, MicroBatches(1, 1, 0, 1, 0, 1))
    assert isinstance(fault, DataError)
    assert str(fault).startswith(f"{path}: cannot be read")


def test_captions_come_with_clips(tmp_path: Path) -> None:
    animation(tmp_path / "a.webp", 9, caption="a frog")
    config = data(tmp_path, {"frames": 9}, captions=CaptionConfig(suffix=" jumps"))
    (clip,) = find_clips(config, captioned=True)
    assert clip.captions == ("a frog jumps",)


def test_first_frames_come_along_where_they_are_asked_for(tmp_path: Path) -> None:
    animation(tmp_path / "a.webp", 9)
    config = data(tmp_path, {"frames": 9})
    assert config.clips is not None
    buckets = BucketRule(config.clips, 16, 16, 8, FrameRule())
    made = ClipExamples(find_clips(config, False), config, buckets, 0, ("",), 1)
    made.with_first_frames = True
    content = made.content(0)
    assert torch.equal(content["first_frames"], content["pixels"][:, 0])


def tiny_model() -> VideoModel:
    """A model whose VAE and sizes are asked for, and nothing else."""
    return VideoModel(
        path="tiny",
        tokenizer=None,  # type: ignore[arg-type]
        text_encoder=None,  # type: ignore[arg-type]
        vae=tiny_vae(),
        transformer=tiny_transformer(sample_height=2, sample_width=4),
        alphas_cumprod=torch.ones(1),
        prediction_type="v_prediction",
        noise_schedule={},
        dtype=torch.float32,
    )


def recipe_of(config: DataConfig, **options: Any) -> Any:
    kind = recipe_class(OBJECTIVE_CONFIGS["lora"])
    return kind(name="x", data=config, train_batch_size=2, max_train_steps=4, **options)


def test_a_recipe_s_examples_and_their_latents(tmp_path: Path) -> None:
    for number in range(2):
        animation(tmp_path / f"{number}.webp", 9, width=32, caption="a")
    animation(tmp_path / "short.webp", 2, caption="b")
    frames_of(1)[0].save(tmp_path / "still.png")
    (tmp_path / "still.txt").write_text("c")
    base = tiny_model()
    clips = {"frames": 9, "pictures": True, "short_clips": "skip", "buckets": []}
    recipe = recipe_of(data(tmp_path, clips))
    with pytest.warns(RecipeWarning, match=r"1 of 4 clips .* are left out: .*short\.webp \(2\)"):
        sources = find_sources(recipe)
    made = build_examples(recipe, sources, base)
    assert isinstance(made, ClipExamples)
    assert made.buckets == [Bucket(9, 16, 32), Bucket(9, 16, 32), Bucket(1, 16, 32)]
    cache_latents(made, base, 2, lambda values, title: values)
    batches = list(build_loader(made, MicroBatches(2, 1, 0, 1, 0, 4)))
    shapes = {tuple(batch["latents"].shape) for batch in batches}  # type: ignore[index]
    assert shapes == {(2, 3, 4, 2, 4), (2, 1, 4, 2, 4)}
    recipe.data.clips.height = 24
    with pytest.raises(InputError, match=r"^data.clips.height: 24 .* use 16 or 32"):
        build_examples(recipe, sources, base)


def test_learned_positions_are_for_one_size_unless_they_are_dropped(tmp_path: Path) -> None:
    animation(tmp_path / "a.webp", 9, width=32, caption="a")
    base = tiny_model()
    learned = tiny_transformer(
        sample_height=2, sample_width=4, use_learned_positional_embeddings=True
    )
    base.transformer = learned
    recipe = recipe_of(data(tmp_path, {"frames": 9, "buckets": []}))
    sources = find_sources(recipe)
    assert build_examples(recipe, sources, base)  # 9 frames of 32x16, as it was made for
    recipe.data.clips.width = 16
    with pytest.raises(InputError, match="drop_learned_positions: true in training and drawing"):
        build_examples(recipe, sources, base)
    drop_positions(base)
    assert build_examples(recipe, sources, base)
    with pytest.raises(InputError, match="has learned none; leave it out"):
        drop_positions(base)


def test_every_stage_is_asked_whether_clips_are_long_enough(tmp_path: Path) -> None:
    animation(tmp_path / "a.webp", 9, caption="a")
    stages = {"one": StageConfig(steps=2, frames=9), "two": StageConfig(frames=8)}
    assert len(find_sources(recipe_of(data(tmp_path), stages=stages)).pictures) == 1
    stages["two"] = StageConfig(frames=17)
    with pytest.raises(DataError, match="1 of 1 clips have fewer than 17 frames"):
        find_sources(recipe_of(data(tmp_path), stages=stages))
