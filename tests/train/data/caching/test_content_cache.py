"""What is kept on disk by content, and what becomes of damaged files."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from inference.config.models import BaseModelConfig
from inference.models.cogvideox.arithmetic import FrameRule
from inference.models.conditions import Conditions
from inference.parallel import Ring
from inference.runtime.errors import InputError
from tests.inference.parallel.threads import in_ring
from train.common.encoding import encoded_at_once
from train.common.errors import DataError
from train.common.sharing import Share
from train.config.clips import ClipDataConfig
from train.config.data import DataConfig
from train.config.recipe import LossConfig
from train.data.caching.content_cache import (
    ContentCache,
    StoredStates,
    key_of,
    module_digest,
    text_origin,
)
from train.data.caching.prompt_states import PromptStates
from train.data.caching.threads import prefetch, write_behind
from train.data.examples import latents as latents_module
from train.data.examples.clip_buckets import BucketRule
from train.data.examples.clips import ClipExamples
from train.data.examples.examples import Examples
from train.data.examples.latents import cache_latents, open_cache
from train.data.pictures.index import picture_digest
from train.data.sources.clip_folder import find_clips
from train.data.sources.folder import find_pictures
from train.losses.denoising import Denoising


class Base:
    """Means of neighbouring pixels as latents, words' lengths as states; counts its work."""

    source: Any = None

    dtype = torch.float32
    device = torch.device("cpu")
    prompt_shape = (3, 2)
    tokenizers = (SimpleNamespace(get_vocab=lambda: {"a": 1}),)

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.vae: Any = nn.Linear(2, 2)
        self.vae.config = SimpleNamespace(scaling_factor=0.7)
        self.vae.use_tiling = False
        self.text_encoders = {"text_encoder": nn.Linear(2, 2)}
        self.encoded: list[Any] = []

    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        self.encoded.append(tuple(pixels.shape))
        small = pixels[..., ::2, ::2]
        return small, small.abs() + 0.1

    @contextmanager
    def frames_shared(self, ring: Ring) -> Iterator[None]:
        """Meet the others, who encode the same."""
        assert not ring.any(False, self.device)
        yield

    def encode_prompts(self, prompts: list[str]) -> Conditions:
        self.encoded += prompts
        states = torch.tensor([float(len(prompt)) for prompt in prompts])
        return Conditions(states[:, None, None].expand(-1, 3, 2))


def track(values: Any, title: str) -> Any:
    return values


def clip_examples(root: Path, seed: int = 0, **options: Any) -> ClipExamples:
    if not root.is_dir():
        root.mkdir()
        noise = np.random.default_rng(0).integers(0, 255, (12, 16, 32), np.uint8)
        for name, frames in (("a", noise), ("b", noise[:, :, :16]), ("c", noise[::-1])):
            first, *others = map(Image.fromarray, frames)
            first.save(root / f"{name}.gif", save_all=True, append_images=others, duration=125)
    clips = ClipDataConfig(buckets=["9x8x8", "9x8x16"])
    config = DataConfig(path=str(root), clips=clips, **options)
    rule = BucketRule(clips, 8, 8, 8, FrameRule())
    return ClipExamples(find_clips(config, False), config, rule, seed, ("",), batch_size=2)


def picture_examples(root: Path, seed: int = 0, **options: Any) -> Examples:
    if not root.is_dir():
        root.mkdir()
        for number in range(3):
            Image.new("RGB", (8, 8), (number * 50, 9, 9)).save(root / f"{number}.png")
    config = DataConfig(path=str(root), **options)
    return Examples(find_pictures(config, captioned=False), config, 8, seed)


def kept(examples: Examples, base: Any, cache: ContentCache | None = None) -> list[dict[str, Any]]:
    cache_latents(examples, base, 2, track, cache)
    assert examples.latents is not None
    return [examples.latents[index] for index in range(len(examples))]


@pytest.mark.parametrize("make", [clip_examples, picture_examples])
@pytest.mark.parametrize("sampling", ["once", "deterministic", "random"])
def test_files_give_what_memory_gives(tmp_path: Path, make: Any, sampling: str) -> None:
    options = {"latent_sampling": sampling}
    base = Base()
    in_memory = kept(make(tmp_path / "data", **options), base)
    cache = ContentCache(tmp_path / "cache")
    on_disk = kept(make(tmp_path / "data", cache="disk", **options), base, cache)
    for one, two in zip(in_memory, on_disk, strict=True):
        assert one.keys() == two.keys()
        assert ("latents_std" in one) == (sampling == "random")
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_clips_of_one_shape_are_encoded_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = Base()
    latents = kept(clip_examples(tmp_path / "data"), base)
    assert base.encoded == [(2, 3, 9, 8, 16), (1, 3, 9, 8, 8)]
    assert [tuple(one["latents"].shape) for one in latents] == [
        (3, 9, 4, 8),
        (3, 9, 4, 4),
        (3, 9, 4, 8),
    ]
    monkeypatch.setattr("train.common.encoding.CLIP_PIXELS", 9 * 8 * 16 + 1)
    alone = kept(clip_examples(tmp_path / "data"), base)
    assert base.encoded[2:] == [(1, 3, 9, 8, 16), (1, 3, 9, 8, 16), (1, 3, 9, 8, 8)]
    assert all(torch.equal(a["latents"], b["latents"]) for a, b in zip(latents, alone, strict=True))


@pytest.mark.parametrize("shape", [(1024, 1024), (512, 512), (768, 1360), (49, 480, 720)])
def test_what_is_encoded_at_once_is_bounded_in_pixels(shape: tuple[int, ...]) -> None:
    alone = {(1024, 1024): 1, (512, 512): 4, (768, 1360): 1, (49, 480, 720): 1}
    assert encoded_at_once(shape, 64) == alone[shape]
    assert encoded_at_once((64, 64), 8) == 8


def test_pictures_beyond_the_bound_are_encoded_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the cache, and in a step that has none."""
    base = Base()
    together = kept(picture_examples(tmp_path / "data"), base)
    assert base.encoded == [(2, 3, 8, 8), (1, 3, 8, 8)]
    monkeypatch.setattr("train.common.encoding.PICTURE_PIXELS", 8 * 8)
    alone = kept(picture_examples(tmp_path / "data"), base)
    assert base.encoded[2:] == [(1, 3, 8, 8)] * 3
    assert all(
        torch.equal(a["latents"], b["latents"]) for a, b in zip(together, alone, strict=True)
    )
    pixels = torch.stack([one["latents"].repeat(1, 2, 2) for one in alone])
    model: Any = base
    denoising = Denoising(model, LossConfig(), "deterministic", 0)
    latents = denoising.latents({"pixels": pixels})  # type: ignore[typeddict-item]
    assert base.encoded[5:] == [(1, 3, 8, 8)] * 3
    assert torch.equal(latents, pixels[..., ::2, ::2])


def test_another_run_finds_what_one_has_made(tmp_path: Path) -> None:
    base, root = Base(), tmp_path / "data"
    cache = ContentCache(tmp_path / "cache")
    kept(clip_examples(root, cache="disk"), base, cache)
    assert len(base.encoded) == 3
    (root / "a.gif").rename(root / "z.gif")  # found by content
    once = kept(clip_examples(root, seed=1, cache="disk"), base, cache)
    again = kept(clip_examples(root, seed=2, cache="disk"), base, cache)
    assert len(base.encoded) == 3
    assert not torch.equal(once[0]["latents"], again[0]["latents"])
    kept(clip_examples(root, cache="disk", flip=1.0), base, cache)
    assert len(base.encoded) == 6
    base.vae.weight.data += 1
    kept(clip_examples(root, cache="disk"), base, cache)
    assert len(base.encoded) == 9
    (root / "b.gif").write_bytes((root / "z.gif").read_bytes())
    kept(clip_examples(root, cache="disk"), base, cache)  # the same bytes: nothing to encode
    assert len(base.encoded) == 9


@pytest.mark.filterwarnings("ignore:.*another process indexes its pictures")
@pytest.mark.parametrize("kind", ["disk", "memory", "on demand"])
def test_processes_of_a_ring_encode_all_together(kind: str, tmp_path: Path) -> None:
    """And one of them writes."""
    where = "disk" if kind == "disk" else "memory"
    made = [clip_examples(tmp_path / "data", cache=where) for _ in range(2)]
    written: list[int] = []

    class Cache(ContentCache):
        def write(self, key: str, tensors: Any) -> None:
            written.append(1)
            super().write(key, tensors)

    def work(ring: Ring) -> tuple[list[Any], list[Tensor]]:
        base, examples = Base(), made[ring.place]
        cache, paused = Cache(tmp_path / "cache"), nullcontext if kind == "on demand" else None
        share = Share(ring=ring)
        cache_latents(examples, base, 2, track, cache, share, paused)  # type: ignore[arg-type]
        ring.any(False, base.device)  # as Caches waits for all
        latents: Any = examples.latents
        return base.encoded, [latents[row]["latents"] for row in range(3)]

    (first, ours), (second, theirs) = in_ring(2, work)
    assert first == second
    assert sum(shape[0] for shape in first) == 3
    assert all(torch.equal(one, two) for one, two in zip(ours, theirs, strict=True))
    assert len(written) == (3 if kind == "disk" else 0)


@pytest.mark.filterwarnings("ignore:.*another process indexes its pictures")
@pytest.mark.parametrize("kind", ["disk", "memory"])
def test_a_file_that_one_process_of_a_ring_cannot_read_ends_all(kind: str, tmp_path: Path) -> None:
    where = "disk" if kind == "disk" else "memory"
    made = [clip_examples(tmp_path / "data", cache=where) for _ in range(2)]
    kept = made[1].content_of_row

    def content_of_row(row: int) -> dict[str, Tensor]:
        if row == 1:
            raise DataError("its disk failed")
        return kept(row)

    made[1].content_of_row = content_of_row

    def work(ring: Ring) -> str | None:
        base = Base()
        cache = ContentCache(tmp_path / "cache")
        try:
            cache_latents(made[ring.place], base, 1, track, cache, Share(ring=ring))  # type: ignore[arg-type]
        except DataError as error:
            return str(error)
        return None

    ours, theirs = in_ring(2, work)
    assert ours == "another process cannot read a file that this one has read"
    assert theirs is not None
    assert "its disk failed" in theirs


def test_processes_share_the_work(tmp_path: Path) -> None:
    cache, bases = ContentCache(tmp_path / "cache"), [Base(), Base()]
    made = [clip_examples(tmp_path / "data", cache="disk") for _ in bases]
    for rank, base in enumerate(bases):
        processes: Any = SimpleNamespace(num_processes=2, process_index=rank)
        share = Share(processes, rank, 2)
        cache_latents(made[rank], base, 2, track, cache, share)  # type: ignore[arg-type]
    assert sorted(len(base.encoded) for base in bases) == [1, 2]
    for index in range(3):
        one, two = (examples.latents[index]["latents"] for examples in made)  # type: ignore[index]
        assert torch.equal(one, two)


def test_runs_that_fill_at_once_leave_each_other_their_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second begins while the first has encoded one of six, at another place."""
    for number in range(6):
        path = tmp_path / "data" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (number * 40, 9, 9)).save(path)
    cache, first, second = ContentCache(tmp_path / "cache"), Base(), Base()
    made = [picture_examples(tmp_path / "data", cache="disk") for _ in range(2)]
    encode = first.encode_images

    def written() -> list[Path]:
        return [*(tmp_path / "cache").rglob("*.safetensors")]

    def encode_while_another_run_does(pixels: Tensor) -> tuple[Tensor, Tensor]:
        if len(first.encoded) == 1:
            while not written():  # in the background
                time.sleep(0.01)
            with monkeypatch.context() as patched:
                patched.setattr("os.getpid", lambda: 3)
                cache_latents(made[1], second, 2, track, cache)  # type: ignore[arg-type]
        return encode(pixels)

    monkeypatch.setattr(latents_module, "_depth", lambda examples: 1)
    monkeypatch.setattr("os.getpid", lambda: 0)
    monkeypatch.setattr(first, "encode_images", encode_while_another_run_does)
    cache_latents(made[0], first, 2, track, cache)  # type: ignore[arg-type]
    # The first was at its second picture, and had nothing left to do after it.
    assert (len(first.encoded), len(second.encoded)) == (2, 5)
    assert len(written()) == 6
    for index in range(6):
        one, two = (examples.latents[index]["latents"] for examples in made)  # type: ignore[index]
        assert torch.equal(one, two)


def test_work_in_advance_comes_in_order_with_what_it_raises() -> None:
    def work(value: int) -> int:
        if value == 3:
            raise DataError("three")
        time.sleep(0.02 * (value % 2))
        return value * 10

    with prefetch(work, range(6), depth=4) as results:
        assert [next(results).result() for _ in range(3)] == [0, 10, 20]
        with pytest.raises(DataError, match="three"):
            next(results).result()
        assert [future.result() for future in results] == [40, 50]
    done: list[int] = []
    with write_behind(done.append) as later:
        for value in range(40):
            later(value)
    assert sorted(done) == [*range(40)]
    with pytest.raises(DataError, match="three"), write_behind(work) as later:
        later(3)


def test_damaged_files_are_told_and_made_anew(tmp_path: Path) -> None:
    base, cache = Base(), ContentCache(tmp_path / "cache")
    examples = clip_examples(tmp_path / "data", cache="disk")
    before = kept(examples, base, cache)
    first, second, _ = (cache.path(key) for key in examples.latents.keys)  # type: ignore[union-attr]
    content = first.read_bytes()
    first.write_bytes(content[:-3] + bytes(3))
    with pytest.raises(DataError, match=r"safetensors: damaged \(its content is not .*delete this"):
        examples.latents[0]  # type: ignore[index]
    first.unlink()
    second.write_bytes(second.read_bytes()[:-5])
    with pytest.raises(DataError, match="damaged"):
        examples.latents[1]  # type: ignore[index]
    after = kept(clip_examples(tmp_path / "data", cache="disk"), base, cache)
    assert len(base.encoded) == 5
    assert all(torch.equal(a["latents"], b["latents"]) for a, b in zip(before, after, strict=True))
    assert first.read_bytes() == content
    assert not [*tmp_path.glob("cache/**/.*")]


def test_nothing_is_kept_where_something_is_random(tmp_path: Path) -> None:
    examples = clip_examples(tmp_path / "data", cache="disk", crop="random", cached_crops=0)
    cache_latents(examples, Base(), 2, track, ContentCache(tmp_path / "cache"))  # type: ignore[arg-type]
    assert examples.latents is None
    assert not (tmp_path / "cache").exists()


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file in the place of the folder")
    cache = ContentCache(tmp_path / "cache")
    with pytest.raises(InputError, match=r"^data.cache_dir: .*cannot be written"):
        cache.write(key_of("x", {}), {"a": torch.zeros(1)})


def test_digests_follow_content(tmp_path: Path) -> None:
    for name, text in (("a", "one"), ("b", "one"), ("c", "two")):
        (tmp_path / name).write_text(text)
    one, same, other = (picture_digest(tmp_path / name) for name in "abc")
    assert one == same != other
    assert one == "71685a1a1dfa37df72357c8e15fca8d39d1570bf"  # of caches that are there already
    (tmp_path / "a").write_text("three")
    assert picture_digest(tmp_path / "a") not in {one, other}
    layer = nn.Linear(2, 2)
    before = module_digest(layer)
    assert module_digest(layer.double()) != before
    layer.float().weight.data[0, 0] += 1e-3
    assert module_digest(layer) != before
    assert key_of("a", {"x": 1, "y": 2}) == key_of("a", {"y": 2, "x": 1}) != key_of("b", {})


def test_the_folder_is_the_recipe_s(tmp_path: Path) -> None:
    assert open_cache(DataConfig(), "runs") is None
    default = open_cache(DataConfig(cache="disk"), "runs")
    own = open_cache(DataConfig(cache="disk", cache_dir="x/y"), "runs")
    assert default and default.folder == Path("runs/cache")
    assert own and own.folder == Path("x/y")


def test_prompt_states_on_disk(tmp_path: Path) -> None:
    base: Any = Base()
    cache = ContentCache(tmp_path)
    states = PromptStates(base, StoredStates(cache, text_origin(base)))
    states.fill(["", "ab", "abc"], track)
    assert not states.known
    assert states(["abc", "", "abc"]).states[:, 0, 0].tolist() == [3, 0, 3]
    assert states(["four", "ab"]).states.shape == (2, 3, 2)
    again = PromptStates(base, StoredStates(cache, text_origin(base)))
    again.fill(["", "ab", "abc", "four"], track)
    assert base.encoded == ["", "ab", "abc", "four"]
    base.text_encoders["text_encoder"].weight.data += 1
    other = StoredStates(cache, text_origin(base))
    assert not other.has("ab")
    pooled = Conditions(torch.ones(1, 3, 2), torch.full((1, 2), 4.0))
    other.write("ab", pooled)
    read = other.read("ab")
    assert read.pooled is not None
    assert torch.equal(read.pooled, torch.full((1, 2), 4.0))


def test_what_is_remembered_of_a_model_depends_on_its_vae(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for name in ("model/weights", "one.vae.pt", "two.vae.pt"):
        (tmp_path / name).write_bytes(name.encode())
    cache, base = ContentCache(tmp_path / "cache"), Base()
    base.vae.dtype = torch.float32

    def remembered(vae: str | None) -> Any:
        base.source = BaseModelConfig(str(tmp_path / "model"), vae=vae and str(tmp_path / vae))
        before = cache.remembered("vae", base)  # type: ignore[arg-type]
        cache.remember("vae", base, {"vae": vae})  # type: ignore[arg-type]
        return before

    vaes = (None, "one.vae.pt", "two.vae.pt")
    assert [remembered(vae) for vae in vaes] == [None, None, None]
    assert [remembered(vae) for vae in vaes] == [{"vae": vae} for vae in vaes]


@pytest.mark.parametrize("is_stored", [False, True])
def test_a_later_stage_encodes_new_captions_alone(tmp_path: Path, is_stored: bool) -> None:
    """The same values as in one go; the model itself moves its encoder where it works."""
    base = Base()
    cache = ContentCache(tmp_path / "cache")
    model: Any = base
    states = PromptStates(model, StoredStates(cache, {}) if is_stored else None)
    first, second = ["a", "bb", "ccc"], ["bb", "dddd"]
    assert states.fill(first, track, batch_size=2)
    assert sorted(base.encoded) == first
    assert states.fill(first, track, batch_size=2)
    assert sorted(base.encoded) == first
    assert states.fill(second, track, batch_size=2)
    assert "dddd" in base.encoded[3:] and not {"a", "ccc"} & {*base.encoded[3:]}
    count = len(base.encoded)
    assert [float(one) for one in states(["a", "dddd"]).states[:, 0, 0]] == [1.0, 4.0]
    assert len(base.encoded) == count
