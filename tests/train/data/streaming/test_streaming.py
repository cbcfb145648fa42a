"""Shards far away: the same examples as shards on this disk, within bounds, each fetched once."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import signal
import warnings
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest

from inference.recipe.layers import RecipeError
from inference.recipe.loader import RecipeWarning
from tests.train.data.streaming.far import (
    EACH,
    SHARDS,
    config,
    forget,
    kept,
    largest,
    picture,
    streaming,
    tables,
    take_away,
    tars,
)
from tests.train.test_bucket_training import check_learned_the_same, train_up_to
from train.__main__ import main
from train.common.errors import DataError, FetchError
from train.config.data import DataConfig
from train.data.containers.files import read_bytes
from train.data.examples.examples import Examples
from train.data.examples.loader import build_loader
from train.data.examples.stream import MicroBatches
from train.data.examples.windows import WindowStream, windows_of
from train.data.pictures.index import Known, picture_facts
from train.data.pictures.soundness import sound_paths
from train.data.sources.folder import Picture, find_pictures, fingerprint
from train.data.streaming import cache as shard_cache
from train.data.streaming import remote
from train.data.streaming.shards import find_shard, name_of
from train.plan.plan import plan_run
from train.trainer import Trainer


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A file with a line for each fetch, of any process; waits are short, and nothing is known."""
    log, own = tmp_path / "fetched", remote._download
    log.touch()

    def counted(shard: Any, part: Path) -> None:
        with log.open("a") as file:
            file.write(f"{shard.url}\n")
        own(shard, part)

    monkeypatch.setattr(remote, "_download", counted)
    monkeypatch.setattr(remote, "WAITS", (0.0, 0.0))
    forget()
    yield log
    forget()


def taken(log: Path) -> list[str]:
    """What was fetched since the last look."""
    lines = log.read_text().splitlines()
    log.write_text("")
    return lines


def made(own: DataConfig) -> Examples:
    examples = Examples(find_pictures(own, captioned=True), own, 16, seed=3)
    examples.assign_buckets(8, 2)
    return examples


def seen(examples: Examples, steps: int, start: int = 0) -> list[tuple[bytes, str]]:
    reported: list[tuple[bytes, str]] = []
    for batch in build_loader(examples, MicroBatches(2, 1, 0, 1, start, steps)):
        if isinstance(batch, DataError):
            raise batch
        reported += [
            (pixels.numpy().tobytes(), prompt)
            for pixels, prompt in zip(batch["pixels"], batch["prompts"], strict=True)
        ]
    return reported


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("make", [tars, tables])
def test_examples_are_those_of_shards_on_this_disk(
    make: Any, tmp_path: Path, fetched: Path
) -> None:
    """In the same order; with any number of workers, from any step on, within the bound."""
    pattern, cache = make(tmp_path / "far"), tmp_path / "cache"
    local = made(config(pattern, None))
    own = config(f"file://{pattern}", streaming(cache, pattern))
    bound = 3 * largest(pattern) + 1
    streamed = made(own)
    assert len(taken(fetched)) == SHARDS, "one pass for names, captions, sizes and digests"
    assert [one.captions for one in streamed.pictures] == [one.captions for one in local.pictures]
    assert [one.path.name for one in streamed.pictures] == [p.path.name for p in local.pictures]
    assert fingerprint(streamed.pictures, Path()) == fingerprint(local.pictures, Path())

    assert isinstance(streamed.stream, WindowStream)
    epoch = len(streamed.stream) // 2
    local.stream = streamed.stream
    straight = seen(streamed, 2 * epoch)
    assert straight == seen(local, 2 * epoch)
    assert len(taken(fetched)) <= 2 * SHARDS, "once in each epoch"
    assert sum(file.stat().st_size for file in kept(cache)) <= bound

    take_away(kept(cache))
    forget()
    again = made(config(f"file://{pattern}", streaming(cache, pattern), workers=2))
    assert not taken(fetched), "what is known is kept"
    assert seen(again, 2 * epoch, start=epoch // 2) == straight[epoch // 2 * 2 :]
    assert sum(file.stat().st_size for file in kept(cache)) <= bound
    assert not list(cache.rglob("*.part"))


def test_order_goes_by_windows() -> None:
    """Every picture once an epoch, those of a window together, in orders of their own."""
    windows = np.repeat([2, 0, 1], [7, 6, 7])
    stream = WindowStream(5, windows)
    epochs = [[stream[n] for n in range(start, start + 20)] for start in (0, 20)]
    for number, own in enumerate(epochs):
        assert {epoch for epoch, _ in own} == {number}
        assert sorted(slot for _, slot in own) == list(range(20))
        order = [int(windows[slot]) for _, slot in own]
        assert sum(one != two for one, two in pairwise(order)) == 2
    assert [slot for _, slot in epochs[0]] != [slot for _, slot in epochs[1]]

    buckets = np.arange(20) % 3
    stream = WindowStream(5, windows, buckets, batch_size=2, first_position=6)
    length = len(stream)
    order = [stream[6 + position] for position in range(length)]
    assert {slot for _, slot in order} == set(range(20))
    assert {epoch for epoch, _ in order} == {-(-6 // length)}
    for one, two in zip(order[::2], order[1::2], strict=True):
        assert buckets[one[1]] == buckets[two[1]]
        assert windows[one[1]] == windows[two[1]]


def test_pictures_that_lie_here_are_dealt_to_all_windows(tmp_path: Path, fetched: Path) -> None:
    pattern = tars(tmp_path / "far")
    own = config(f"file://{pattern}", streaming(tmp_path / "cache", pattern))
    far = [one.path for one in find_pictures(own, captioned=False)]
    here = [tmp_path / f"{number}.png" for number in range(9)]
    windows = windows_of([*here, *far], 1, 2)
    assert windows is not None
    assert np.bincount(windows[:9]).tolist() == [3, 3, 3]
    assert np.bincount(windows[9:]).tolist() == [2 * EACH] * 3
    assert windows_of(here, 1, 2) is None


def read_one(path: Path, results: Any) -> None:
    results.put(hashlib.sha256(read_bytes(path)).hexdigest())


def test_processes_at_once_fetch_once(tmp_path: Path, fetched: Path) -> None:
    pattern, cache = tars(tmp_path / "far"), tmp_path / "cache"
    pictures = find_pictures(config(f"file://{pattern}", streaming(cache, pattern)), False)
    take_away(kept(cache))
    taken(fetched)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    started = [context.Process(target=read_one, args=(pictures[7].path, results)) for _ in "123"]
    for process in started:
        process.start()
    found = {results.get(timeout=60) for _ in started}
    for process in started:
        process.join()
    assert found == {hashlib.sha256(picture(7)).hexdigest()}
    assert [Path(url).name for url in taken(fetched)] == ["001.tar"]


def test_process_that_is_killed_leaves_nothing(
    tmp_path: Path, fetched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lock is free, and what it has left of a shard goes."""
    path, own = path_in(tars(tmp_path / "far"), tmp_path / "cache", 7), remote._download

    def killed(shard: Any, part: Path) -> None:
        part.write_bytes(b"half of it")
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(remote, "_download", killed)
    context = multiprocessing.get_context("fork")
    process = context.Process(target=read_one, args=(path, context.Queue()))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(list((tmp_path / "cache").rglob(".*.part"))) == 1
    monkeypatch.setattr(remote, "_download", own)
    assert read_bytes(path) == picture(7)
    assert not list((tmp_path / "cache").rglob(".*.part"))


def find_all(own: DataConfig, results: Any) -> None:
    with warnings.catch_warnings():  # who waits says so
        warnings.simplefilter("ignore")
        pictures = find_pictures(own, captioned=True)
    results.put(fingerprint(pictures, Path()))


def test_ranks_look_through_shards_once(tmp_path: Path, fetched: Path) -> None:
    """Both go through all of them at the same time, with room for a few."""
    pattern, cache = tars(tmp_path / "far"), tmp_path / "cache"
    own = config(f"file://{pattern}", streaming(cache, pattern))
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    started = [context.Process(target=find_all, args=(own, results)) for _ in "12"]
    for process in started:
        process.start()
    assert len({results.get(timeout=60) for _ in started}) == 1
    for process in started:
        process.join()
    assert len(taken(fetched)) == SHARDS


def test_known_beforehand_needs_no_fetch(tmp_path: Path, fetched: Path) -> None:
    """Sizes, digests, states and names; left-overs of who was killed go."""
    pattern, cache = tables(tmp_path / "far"), tmp_path / "cache"
    own = config(f"file://{pattern}", streaming(cache, pattern))
    paths = [one.path for one in find_pictures(own, captioned=True)]
    before = picture_facts(paths, Known.SIZE | Known.DIGEST).check()
    take_away(kept(cache))
    taken(fetched)
    forget()
    paths = [one.path for one in find_pictures(own, captioned=True)]
    assert sound_paths(paths, "refuse", digests=True) == paths
    after = picture_facts(paths, Known.SIZE | Known.DIGEST).check()
    assert (before.records == after.records).all()
    assert name_of(paths[0]) == f"file://{Path(pattern).parent}/000.parquet/0.png"
    assert not taken(fetched)

    place = find_shard(paths[-1])
    assert place is not None
    for name in ("000", "001", "002"):
        size = (Path(pattern).parent / f"{name}.parquet").stat().st_size
        (place.folder / f".{name}.parquet.{size}.part").write_bytes(b"cut")
    assert read_bytes(paths[-1]) == picture(SHARDS * EACH - 1)
    assert len(list(cache.rglob("*.part"))) < 3


@pytest.mark.parametrize("make", [tars, tables])
@pytest.mark.parametrize("damage", [b"", b"damaged", b"\x1f\x8b\x08\0"])
def test_damage_of_what_is_known_is_told(
    make: Any, damage: bytes, tmp_path: Path, fetched: Path
) -> None:
    pattern, cache = make(tmp_path / "far"), tmp_path / "cache"
    own = config(f"file://{pattern}", streaming(cache, pattern))
    before = find_pictures(own, captioned=True)
    known = sorted(cache.rglob("*.known"))[2]
    known.write_bytes(damage)
    forget()
    taken(fetched)
    with pytest.raises(FetchError, match=r"known: damaged \(.*\); delete it"):
        find_pictures(own, captioned=True)
    known.unlink()
    assert find_pictures(own, captioned=True) == before
    assert len(taken(fetched)) == 1


def path_in(pattern: str, cache: Path, number: int = 0) -> Path:
    """Of a picture whose shard is not here any more."""
    found = find_pictures(config(f"file://{pattern}", streaming(cache, pattern)), captioned=False)
    take_away(kept(cache))
    return found[number].path


def test_shard_that_is_gone_or_changed(
    tmp_path: Path, fetched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pattern = tars(tmp_path / "far")
    path = path_in(pattern, tmp_path / "cache")
    far = tmp_path / "far" / "000.tar"
    content = far.read_bytes()
    far.unlink()
    with pytest.raises(FetchError, match=r"000\.tar: cannot be fetched: .*resume=true continues"):
        read_bytes(path)
    far.write_bytes(content + b"\0" * 512)
    monkeypatch.setattr(shard_cache, "FRESH", 0.0)
    with pytest.raises(FetchError, match="has changed since it was first read"):
        read_bytes(path)


def test_damaged_shards_are_named(
    tmp_path: Path, fetched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard that is truncated, and one whose bytes differ from the published ones."""
    pattern, cache = tars(tmp_path / "far"), tmp_path / "cache"
    own = config(f"file://{pattern}", streaming(cache, pattern))
    far = tmp_path / "far" / "000.tar"
    content = far.read_bytes()
    far.write_bytes(content[:1000])
    with pytest.raises(DataError, match=rf"^file://{far}: truncated"):
        find_pictures(own, captioned=False)
    assert not kept(cache)

    far.write_bytes(content)
    metadata = remote._metadata
    other = {"lfs": {"sha256": "0" * 64}}
    monkeypatch.setattr(remote, "_metadata", lambda url: metadata(url) | other)
    own.path = f"file://{far}"
    with (
        pytest.warns(
            RecipeWarning,
            match="checksum mismatch: .* published hash; it is tried",
        ),
        pytest.raises(FetchError, match="in 3 tries: checksum mismatch"),
    ):
        find_pictures(own, captioned=False)


def test_what_fails_for_a_moment_is_tried_again(
    tmp_path: Path, fetched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = path_in(tars(tmp_path / "far"), tmp_path / "cache", 3)
    failures, own = [1, 2], remote._download

    def shaky(shard: Any, part: Path) -> None:
        if failures:
            failures.pop()
            part.write_bytes(b"half of it")
            raise ConnectionError("reset by peer")
        own(shard, part)

    monkeypatch.setattr(remote, "_download", shaky)
    with pytest.warns(RecipeWarning, match="reset by peer; it is tried again") as reported:
        assert read_bytes(path) == picture(3)
    assert len(reported) == 2
    take_away(kept(tmp_path / "cache"))
    failures += [1] * 3
    examples = Examples([Picture(path, ())], config("", None), 16, seed=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fault = examples.__getitems__([0])
        with pytest.raises(FetchError, match="in 3 tries: reset by peer; look at the network"):
            sound_paths([path], "skip")
    assert isinstance(fault, FetchError)
    assert not failures, "those who wait for the same shard learn it at once"
    assert not list((tmp_path / "cache").rglob("*.part"))


@pytest.mark.parametrize("where", ["asked", "met"])
def test_full_disk(
    where: str, tmp_path: Path, fetched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = path_in(tars(tmp_path / "far"), tmp_path / "cache")
    if where == "asked":
        usage = SimpleNamespace(free=shard_cache.RESERVE + 100)
        monkeypatch.setattr(shard_cache.shutil, "disk_usage", lambda _: usage)
    else:

        def full(shard: Any, part: Path) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(remote, "_download", full)
    with pytest.raises(FetchError, match=r"disk.*make room.*data\.streaming\.disk_gib.*resume"):
        read_bytes(path)
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_bounds_and_addresses(tmp_path: Path, fetched: Path) -> None:
    pattern, cache = tars(tmp_path / "far"), tmp_path / "cache"
    assert largest(pattern)
    with pytest.raises(FetchError, match=r"more than data\.streaming\.disk_gib"):
        find_pictures(config(f"file://{pattern}", streaming(cache, pattern, 2)), False)
    with pytest.raises(DataError, match=r"is not on the disk; data\.streaming=\{\}"):
        find_pictures(config(f"file://{pattern}", None), False)
    kept_here = streaming(cache, pattern)
    with pytest.raises(DataError, match=r"streamed are \.tar and \.parquet"):
        find_pictures(config(f"file://{tmp_path}/{{a,b}}.zip", kept_here), False)
    with pytest.raises(FetchError, match="cannot be fetched"):
        find_pictures(config(f"file://{tmp_path}/none.tar", kept_here), False)
    with pytest.raises(FetchError, match="cannot be fetched by fsspec: Protocol not known"):
        find_pictures(config("nowhere://a/b.tar", kept_here), False)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What stands for the hub: two commits, of which one is the newest; or no network."""
    reported: dict[str, Any] = {"newest": "a" * 40, "asked": []}
    own = datasets.load_dataset_builder
    for commit in ("a" * 40, "b" * 40):
        tables(tmp_path / f"name@{commit}" / "data")

    def builder(name: str, configuration: str | None, revision: str | None) -> Any:
        reported["asked"].append(revision)
        if reported["newest"] is None:
            raise ConnectionError("no route to the hub")
        folder = tmp_path / f"name@{revision or reported['newest']}" / "data"
        if not folder.is_dir():
            raise FileNotFoundError(f"no revision {revision}")
        found = own(str(folder.parent)).config.data_files  # as the library finds them
        assert found is not None
        files = {split: [f"file://{file}" for file in files] for split, files in found.items()}
        return SimpleNamespace(config=SimpleNamespace(data_files=files))

    monkeypatch.setattr(datasets, "load_dataset_builder", builder)
    return reported


def test_hub_is_pinned(tmp_path: Path, fetched: Path, hub: dict[str, Any]) -> None:
    """A commit is looked up once in a start; what has been looked up goes without a network."""
    pattern = f"{tmp_path}/name@{'a' * 40}/data/*"
    own = config("hf://owner/name/CONFIG", streaming(tmp_path / "cache", pattern))
    first = find_pictures(own, captioned=True)
    assert [read_bytes(one.path) for one in first[:3]] == [picture(n) for n in range(3)]
    assert f"@{'a' * 40}/" in name_of(first[0].path)
    hub["newest"] = "b" * 40
    forget()
    assert f"@{'b' * 40}/" in name_of(find_pictures(own, captioned=True)[0].path)
    taken(fetched)

    hub["newest"] = None
    forget()
    with pytest.warns(RecipeWarning, match="no route to the hub.*last known commit is used, b{12}"):
        assert f"@{'b' * 40}/" in name_of(find_pictures(own, captioned=True)[0].path)
    forget()
    own.revision = "a" * 40
    assert find_pictures(own, captioned=True) == first
    own.revision = "c" * 40
    with pytest.raises(FetchError, match="no route to the hub; check the name"):
        find_pictures(own, captioned=True)
    assert not taken(fetched)


def options(cache: Path, count: int, *more: str) -> list[str]:
    pattern = f"{cache.parent}/name@{'a' * 40}/data/*"
    size = streaming(cache, pattern, count).disk_gib
    return [
        "data.path=hf://owner/name",
        f"data.streaming={{disk_gib: {size!r}, window: 2, folder: {cache}}}",
        "data.flip=0.5",
        "data.buckets={min_side: 8, max_side: 32, step: 4, area: 256}",
        "saving.save_every_n_steps=3",
        "sampling.sample_every_n_steps=100",
        *more,
    ]


@pytest.mark.slow
def test_a_stopped_run_goes_on(
    make_recipe: Any,
    recipe_file: Path,
    tmp_path: Path,
    fetched: Path,
    hub: dict[str, Any],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the same commit, another cache and another bound; a shard that is gone ends it."""
    cache = tmp_path / "cache"
    off = "data.cache=off"
    Trainer(make_recipe(*options(cache, 3, off, "name=straight", "max_train_steps=7"))).train()
    train_up_to(5, make_recipe(*options(cache, 3, off, "name=cut", "max_train_steps=7")))
    facts = json.loads((tmp_path / "cut" / "environment.json").read_text())
    assert facts["commits"] == {"hf://owner/name": "a" * 40}
    assert "a" * 40 in (tmp_path / "cut" / "recipe.yaml").read_text(), "for train.rerun"
    hub["newest"] = "b" * 40
    take_away(kept(cache))
    forget()
    other, go_on = tmp_path / "other", (off, "name=cut", "max_train_steps=7", "resume=true")
    more = options(cache, 4, *go_on)
    far, away = tmp_path / f"name@{'a' * 40}", tmp_path / "away"
    far.rename(away)
    monkeypatch.setattr(shard_cache, "FRESH", 0.0)
    arguments = [str(recipe_file), f"output_dir={tmp_path}", "objective={type: lora, rank: 2}"]
    assert main([*arguments, *more]) == 2
    assert "cannot be fetched" in capfd.readouterr().err
    away.rename(far)
    Trainer(make_recipe(*options(other, 4, *go_on))).train()
    check_learned_the_same(tmp_path / "straight", tmp_path / "cut", 7)
    assert sum(file.stat().st_size for file in kept(other)) <= 4 * largest(f"{far}/data/*") + 1
    assert not kept(cache)


@pytest.mark.slow
def test_cached_latents_need_no_shards(
    make_recipe: Any, tmp_path: Path, fetched: Path, hub: dict[str, Any]
) -> None:
    """Nor does the plan, which prints what is streamed; the validation split is cached too."""
    cache = tmp_path / "cache"
    more = [f"data.cache_dir={tmp_path / 'latents'}", "validation={split: 0.2, every_n_steps: 3}"]
    own = options(cache, 3, "data.cache=disk", *more)
    own.remove("data.flip=0.5")
    Trainer(make_recipe(*own, "name=one")).train()
    assert len(taken(fetched)) <= 3 * SHARDS, "looked through, held back, encoded"
    take_away(kept(cache))
    forget()
    Trainer(make_recipe(*own, "name=two")).train()
    check_learned_the_same(tmp_path / "one", tmp_path / "two", 4)
    plan = plan_run(make_recipe(*own, "name=three"))
    assert plan.cache.latents_found == SHARDS * EACH
    (stream,) = plan.streams
    assert (stream.shards, stream.shards_here, stream.window) == (SHARDS, 0, 2)
    assert stream.commit == "a" * 40
    assert not taken(fetched)


FAULTS = {
    "data.cache: auto would keep": ["data.cache=auto"],
    "validation.split: would download all": ["data.cache=off", "validation={split: 0.5}"],
    "validation.path: is not streamed": ["data.cache=off", "validation={path: hf://a/b}"],
}


@pytest.mark.parametrize("message", FAULTS)
def test_what_does_not_go_with_streaming(message: str, make_recipe: Any) -> None:
    with pytest.raises(RecipeError, match=message):
        make_recipe("data.path=hf://a/b", "data.streaming={}", *FAULTS[message])


def test_subsets_and_streaming(make_recipe: Any) -> None:
    far = ["data.path=null", "data.cache=off", "data.streaming={}"]
    with pytest.raises(RecipeError, match=r"data\.subsets\.b\.is_reg: class images have their own"):
        make_recipe(*far, "data.subsets={a: {path: hf://a/b}, b: {path: c, is_reg: true}}")
    with pytest.raises(RecipeError, match=r"data\.subsets\.a\.streaming: is the same for"):
        make_recipe(*far, "data.subsets={a: {path: hf://a/b, streaming: {window: 9}}}")
    subsets = "{a: {path: hf://a/b}, b: {path: hf://c, streaming: null}}"
    recipe = make_recipe(*far, f"data.subsets={subsets}")
    parts = recipe.data.named_subsets
    assert (parts["a"].streaming, parts["b"].streaming) == (recipe.data.streaming, None)
    with pytest.warns(RecipeWarning, match=r"data\.streaming: has no effect"):
        make_recipe("data.streaming={}")
