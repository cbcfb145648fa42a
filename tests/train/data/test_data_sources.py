"""Pictures in tars, zips, tables and saved datasets: the same examples as in a folder."""

import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from inference.recipe.loader import RecipeWarning
from train.common.errors import DataError
from train.config.containers import ColumnsConfig
from train.config.data import DataConfig
from train.config.examples import CaptionConfig
from train.data.containers.containers import open_container
from train.data.containers.files import exists, file_state, read_bytes
from train.data.containers.members import MemberIndex
from train.data.containers.names import expanded
from train.data.examples.examples import Examples
from train.data.examples.loader import build_loader
from train.data.examples.stream import MicroBatches
from train.data.pictures.index import picture_digest, picture_size
from train.data.sources.folder import Picture, find_pictures, fingerprint

Member = tuple[str, bytes]


def picture(number: int, kind: str = "PNG") -> bytes:
    """8x8 pixels that no other number has."""
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


MEMBERS: list[Member] = [
    ("a/0001.png", picture(1)),
    ("a/0001.txt", b" a cat,\n on a mat\n"),
    ("a/0002.jpg", picture(2, "JPEG")),
    ("a/0002.caption", "ein Bär".encode()),
    ("a-b/0003.webp", picture(3, "WEBP")),
    ("a-b/0003.txt", b"a dog"),
    ("a-b/notes.md", b"no picture"),
    ("4.png", picture(4)),
    ("metadata.jsonl", b'{"file_name": "4.png", "text": ["one", "two"]}\n'),
]
CAPTIONS = [("one", "two"), ("a cat, on a mat",), ("ein Bär",), ("a dog",)]


def in_folder(path: Path, members: Sequence[Member] = MEMBERS) -> Path:
    for name, data in members:
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return path


def in_tar(path: Path, members: Sequence[Member] = MEMBERS, **how: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **how) as file:
        for name, data in reversed(members):
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def in_zip(path: Path, members: Sequence[Member] = MEMBERS, method: int = 8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in reversed(members):
            file.writestr(name, data)
    return path


def config(path: Path | str, workers: int = 0, **captions: Any) -> DataConfig:
    return DataConfig(
        path=str(path), flip=0.5, num_workers=workers, captions=CaptionConfig(**captions)
    )


def found(path: Path | str, **captions: Any) -> list[Picture]:
    return find_pictures(config(path, **captions), captioned=True)


def examples(path: Path | str, workers: int = 0) -> list[tuple[bytes, str]]:
    """Pixels and captions of three epochs, in the order of the stream."""
    own = config(path, workers)
    made = Examples(find_pictures(own, captioned=True), own, 8, seed=3)
    batches = MicroBatches(2, 1, 0, 1, 0, 6)
    reported: list[tuple[bytes, str]] = []
    for batch in build_loader(made, batches):
        assert isinstance(batch, dict)
        reported += [
            (pixels.numpy().tobytes(), prompt)
            for pixels, prompt in zip(batch["pixels"], batch["prompts"], strict=True)
        ]
    return reported


@pytest.fixture(scope="module")
def of_folder(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[bytes, str]]:
    return examples(in_folder(tmp_path_factory.mktemp("plain") / "cats"))


# The same pictures elsewhere

ARCHIVES: dict[str, Callable[[Path], Path]] = {
    "tar of pax": lambda path: in_tar(path / "cats.tar", format=tarfile.PAX_FORMAT),
    "tar of GNU": lambda path: in_tar(path / "cats.TAR", format=tarfile.GNU_FORMAT),
    "tar of ustar": lambda path: in_tar(path / "cats.tar", format=tarfile.USTAR_FORMAT),
    "deflated zip": lambda path: in_zip(path / "cats.zip"),
    "stored zip": lambda path: in_zip(path / "cats.zip", method=0),
    "folder of a zip": lambda path: in_zip(path / "cats" / "all.zip").parent,
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_archive_gives_the_examples_of_the_folder(
    kind: str, tmp_path: Path, of_folder: list[tuple[bytes, str]]
) -> None:
    path = ARCHIVES[kind](tmp_path)
    assert [one.captions for one in found(path)] == CAPTIONS
    assert examples(path) == of_folder


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [1, 4])
def test_workers_read_the_same_of_an_archive(
    workers: int, tmp_path: Path, of_folder: list[tuple[bytes, str]]
) -> None:
    torch.set_num_threads(1)
    assert examples(in_tar(tmp_path / "cats.tar"), workers) == of_folder


def test_shards_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    for number in range(9, 12):
        in_tar(tmp_path / f"{number:03}.tar", [(f"{number}.png", picture(number)), ("x.txt", b"-")])
    pattern = str(tmp_path / "{009..011}.tar")
    names = [tmp_path / f"{n:03}.tar" / f"{n}.png" for n in range(9, 12)]
    assert [one.path for one in found(pattern, fallback="x")] == names
    assert [one.path for one in found(tmp_path, fallback="x")] == names
    assert fingerprint(found(pattern, fallback="x"), Path(pattern))


def test_long_names(tmp_path: Path) -> None:
    name = "/".join(["ä" * 60] * 5) + ".png"
    for style in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        path = in_tar(tmp_path / f"{style}.tar", [(name, picture(1))], format=style)
        assert [one.path for one in found(path, fallback="x")] == [path / name]
        assert read_bytes(path / name) == picture(1)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("{08..11}.tar", ["08.tar", "09.tar", "10.tar", "11.tar"]),
        ("{8..10}-{a,b}.tar", ["8-a.tar", "8-b.tar", "9-a.tar", "9-b.tar", "10-a.tar", "10-b.tar"]),
        ("plain.tar", ["plain.tar"]),
    ],
)
def test_braces(pattern: str, names: list[str]) -> None:
    assert list(expanded(pattern, "data.path")) == names


def test_samples_of_webdataset(tmp_path: Path) -> None:
    """Of one sample is what has its name up to the first dot."""
    members = [
        ("01.jpg", picture(1, "JPEG")),
        ("01.json", json.dumps({"caption": "by json", "width": 8}).encode()),
        ("02.png", picture(2)),
        ("02.mask.png", picture(3)),
        ("02.txt", b"by txt"),
        ("02.json", b'{"caption": "not this"}'),
        ("03.big.png", picture(3)),
        ("03.txt", b"of the sample"),
        ("03.cls.pyd", b"cos\nsystem\n"),
    ]
    path = in_tar(tmp_path / "x.tar", members)
    reported = r"x.tar: left out: 1 \*.pyd, 1 pictures of a second ending"
    with pytest.warns(RecipeWarning, match=reported):
        assert [(one.path.name, one.captions) for one in found(path)] == [
            ("01.jpg", ("by json",)),
            ("02.png", ("by txt",)),
            ("03.big.png", ("of the sample",)),
        ]


def test_captions_of_an_archive_obey_the_recipe(tmp_path: Path) -> None:
    path = in_zip(tmp_path / "x.zip", [("a.png", picture(1)), ("a.tags", b"cat"), ("b.png", b"-")])
    own = found(path, extensions=[".tags"], prefix="a ", suffix="!", fallback="thing")
    assert [one.captions for one in own] == [("a cat!",), ("a thing!",)]
    with pytest.raises(DataError, match=r"1 of 2 pictures have no caption: .*x.zip/b.png"):
        found(path, extensions=[".tags"])


def test_pictures_in_a_folder_go_before_archives_beside_them(tmp_path: Path) -> None:
    in_folder(tmp_path, [("a.png", picture(1))])
    (tmp_path / "old.zip").write_bytes(b"no zip at all")
    assert [one.path for one in found(tmp_path, fallback="x")] == [tmp_path / "a.png"]


# What is not as it should be


def cut(path: Path, size: int) -> Path:
    path.write_bytes(path.read_bytes()[:size])
    return path


PAIR: list[Member] = [("1.png", picture(1)), ("2.png", picture(2))]
BROKEN: dict[str, tuple[Callable[[Path], Path], str]] = {
    "truncated data": (
        lambda path: cut(in_tar(path / "x.tar", PAIR), 700),
        r"x\.tar: truncated: it ends within or after '\./2\.png', where at least \d+ more bytes",
    ),
    "no end": (
        lambda path: cut(in_tar(path / "x.tar", PAIR), 2048),
        r"x\.tar: truncated: it ends within or after '\./1\.png'",
    ),
    "compressed": (
        lambda path: in_zip_of_gzip(path / "x.tar"),
        r"x\.tar: is compressed.*gunzip it",
    ),
    "compressed as a whole": (
        lambda path: in_zip_of_gzip(path / "x.tar.gz"),
        r"data\.path: '.*x\.tar\.gz' is compressed as a whole.*unpack it",
    ),
    "no tar": (
        lambda path: in_folder(path, [("x.tar", b"<html>" * 200)]) / "x.tar",
        r"x\.tar: is no tar file; download or pack it again",
    ),
    "damaged header": (
        lambda path: (
            in_folder(path, [("x.tar", flipped(in_tar(path / "y.tar", PAIR), 1030))]) / "x.tar"
        ),
        r"x\.tar: damaged after '\./2\.png'; download or pack it again",
    ),
    "names that come twice": (
        lambda path: in_tar(path / "x.tar", [*PAIR, ("2.png", b"")]),
        r"x\.tar: duplicate names in it: 2\.png",
    ),
    "two pictures of a sample": (
        lambda path: in_tar(path / "x.tar", [*PAIR, ("2.jpg", b"")]),
        r"x\.tar: sample '2' has two pictures, '2\.jpg' and '2\.png'",
    ),
    "truncated zip": (
        lambda path: cut(in_zip(path / "x.zip", PAIR), 300),
        r"x\.zip: cannot be read as a zip: .*; download or pack it again",
    ),
    "no picture": (
        lambda path: in_zip(path / "x.zip", [("a.txt", b"a")]),
        r"data\.path: no pictures in '.*x\.zip'.*found 1 other files",
    ),
    "another file": (
        lambda path: in_folder(path, [("x.bin", b"")]) / "x.bin",
        r"data\.path: '.*x\.bin' is neither a folder nor one of \.tar, \.zip",
    ),
    "missing shards": (
        lambda path: in_tar(path / "0.tar", PAIR).with_name("{0..2}.tar"),
        r"data\.path: 2 of the 3 files of '.*' are missing: .*1\.tar, .*2\.tar",
    ),
    "JSON that is none": (
        lambda path: in_tar(path / "x.tar", [PAIR[0], ("1.json", b"{")]),
        r"x\.tar/1\.json: not JSON",
    ),
}


def in_zip_of_gzip(path: Path) -> Path:
    path.write_bytes(b"\x1f\x8b" + bytes(600))
    return path


def flipped(path: Path, place: int) -> bytes:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    return bytes(data)


@pytest.mark.parametrize("case", BROKEN)
def test_broken_container_is_told_in_one_message(case: str, tmp_path: Path) -> None:
    make, message = BROKEN[case]
    with pytest.raises(DataError, match=f"(?s)^.*{message}"):
        found(make(tmp_path), fallback=None)


def test_damaged_members(tmp_path: Path) -> None:
    path = in_zip(tmp_path / "x.zip", PAIR, method=0)
    own = found(path, fallback="x")
    assert read_bytes(own[0].path) == picture(1)
    place = path.read_bytes().index(picture(1))
    path.write_bytes(flipped(path, place + 20))
    with pytest.raises(DataError, match=r"x\.zip: '1\.png' is damaged \(its bytes are not"):
        read_bytes(own[0].path)
    in_zip(path, PAIR[:1])
    assert exists(own[0].path)
    assert not exists(own[1].path)
    with pytest.raises(DataError, match=r"x\.zip: there is no '2\.png' in it"):
        read_bytes(own[1].path)


# What follows from containers


def test_fingerprint_and_digests_follow_the_members(tmp_path: Path) -> None:
    plain = in_folder(tmp_path / "plain", PAIR)
    path = in_tar(tmp_path / "x.tar", PAIR)
    assert picture_digest(path / "1.png") == picture_digest(plain / "1.png")
    assert picture_size(path / "1.png") == (8, 8)
    assert file_state(path / "1.png") == (path.stat().st_size, path.stat().st_mtime_ns)
    before = fingerprint(found(path, fallback="x"), path)
    assert before == fingerprint(found(path, fallback="x"), path)
    in_tar(path, [("1.png", picture(9)), ("2.png", picture(2)), ("3.png", picture(3))])
    assert picture_digest(path / "1.png") != picture_digest(plain / "1.png")
    assert fingerprint(found(path, fallback="x"), path) != before


def test_index_of_many_members_is_small(tmp_path: Path) -> None:
    """200,000 names of 12 letters: 40 bytes each."""
    numbers = np.random.default_rng(0).permutation(200_000).tolist()
    index = MemberIndex(tmp_path, ((f"a/{number:06}.jpg", (number, 7)) for number in numbers))
    assert index.nbytes < 200_001 * 40
    assert index.find("a/123456.jpg") == (123456, 7)
    assert index.find("a/1234567.jpg") is None
    assert next(index.names("a")) == "a/000000.jpg"


def test_a_container_is_looked_at_once(tmp_path: Path) -> None:
    path = in_tar(tmp_path / "x.tar", PAIR)
    assert open_container(path) is open_container(path)


# Tables

ROWS = [
    {"image": {"bytes": MEMBERS[7][1], "path": "4.png"}, "text": ["one", "two"]},
    {"image": {"bytes": MEMBERS[0][1], "path": None}, "text": ["a cat, on a mat"]},
    {"image": {"bytes": MEMBERS[2][1], "path": "x.jpg"}, "text": ["ein Bär"]},
    {"image": {"bytes": MEMBERS[4][1], "path": "y.webp"}, "text": ["a dog"]},
]


def in_parquet(path: Path, rows: Sequence[dict[str, Any]] = ROWS, **how: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path, **how)
    return path


def shards(path: Path) -> Path:
    in_parquet(path / "train-00000-of-00002.parquet", ROWS[:1])
    return in_parquet(path / "train-00001-of-00002.parquet", ROWS[1:]).parent


def plain_bytes() -> list[dict[str, Any]]:
    return [{"jpg": row["image"]["bytes"], "caption": row["text"]} for row in ROWS]


def dataset(rows: Sequence[dict[str, Any]] = ROWS) -> datasets.Dataset:
    kinds = {"image": datasets.Image(), "text": datasets.Value("string")}
    kinds["text"] = datasets.List(kinds["text"])
    return datasets.Dataset.from_list(list(rows), features=datasets.Features(kinds))


def saved(path: Path, **splits: datasets.Dataset) -> Path:
    whole: Any = datasets.DatasetDict
    (whole(splits) if splits else dataset()).save_to_disk(path)
    return path


TABLES: dict[str, Callable[[Path], Path]] = {
    "parquet": lambda path: in_parquet(path / "x.parquet"),
    "row groups of one": lambda path: in_parquet(path / "x.parquet", row_group_size=1),
    "without statistics": lambda path: in_parquet(path / "x.parquet", write_statistics=False),
    "bytes alone": lambda path: in_parquet(path / "x.parquet", plain_bytes()),
    "shards": lambda path: shards(path / "data"),
    "saved dataset": lambda path: saved(path / "x"),
    "saved splits": lambda path: saved(path / "x", train=dataset()),
    "Arrow with an index": lambda path: in_arrow(path / "x.arrow"),
}


def in_arrow(path: Path) -> Path:
    table = pa.Table.from_pylist(ROWS)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    return path


@pytest.mark.parametrize("kind", TABLES)
def test_table_gives_the_examples_of_the_folder(
    kind: str, tmp_path: Path, of_folder: list[tuple[bytes, str]]
) -> None:
    path = TABLES[kind](tmp_path)
    own = found(path)
    assert [one.captions for one in own] == CAPTIONS
    assert {one.told_by for one in own} == {"column"}
    assert examples(path) == of_folder
    assert picture_digest(own[0].path) == picture_digest(in_folder(tmp_path / "plain") / "4.png")


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_read_the_same_of_a_table(
    tmp_path: Path, of_folder: list[tuple[bytes, str]]
) -> None:
    assert examples(in_parquet(tmp_path / "x.parquet", row_group_size=2), 2) == of_folder
    assert examples(saved(tmp_path / "saved"), 2) == of_folder


def test_columns_are_chosen_by_their_names_or_by_the_recipe(tmp_path: Path) -> None:
    rows = [
        {"mask": picture(2), "image": picture(1), "text": "t", "long": "l", "url": "http"},
        {"mask": picture(4), "image": picture(3), "text": None, "long": "m", "url": "http"},
    ]
    path = in_parquet(tmp_path / "x.parquet", rows)
    reported = "images are taken from column 'image' and captions from 'text', not from mask, long"
    with pytest.warns(RecipeWarning, match=reported):
        own = found(path, fallback="none")
    assert [one.captions for one in own] == [("t",), ("none",)]
    assert [read_bytes(one.path) for one in own] == [picture(1), picture(3)]
    named = DataConfig(path=str(path), columns=ColumnsConfig(image="mask", text="long"))
    own = find_pictures(named, captioned=True)
    assert [one.path for one in own] == [path / "mask" / "0.png", path / "mask" / "1.png"]
    assert [one.captions for one in own] == [("l",), ("m",)]
    assert [read_bytes(one.path) for one in own] == [picture(2), picture(4)]
    assert exists(own[1].path)
    assert not exists(path / "mask" / "2.png")
    assert not exists(path / "other" / "1.png")


def test_rows_may_name_files(tmp_path: Path) -> None:
    """As `datasets` keeps a folder of pictures."""
    in_folder(tmp_path, [("0.png", picture(0)), ("1.png", picture(1))])
    (tmp_path / "0.png").rename(tmp_path / "zero.bin")
    rows = [
        {"image": {"bytes": None, "path": "zero.bin"}, "text": "a"},
        {"image": {"bytes": picture(2), "path": "gone.png"}, "text": "b"},
    ]
    path = in_parquet(tmp_path / "x.parquet", rows)
    own = found(path)
    assert [one.path for one in own] == [tmp_path / "zero.bin", path / "1.png"]
    assert [one.captions for one in own] == [("a",), ("b",)]
    in_parquet(path, [*rows, {"image": {"bytes": None, "path": "gone.png"}, "text": "b"}])
    with pytest.raises(DataError, match=r"row 2 names the file 'gone\.png', which is not there"):
        found(path)
    in_parquet(path, [*rows, {"image": None, "text": "b"}])
    with pytest.raises(DataError, match=r"x\.parquet: column 'image': row 2 is empty"):
        found(path)


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.parquet"])
def test_metadata_as_datasets_reads_it(name: str, tmp_path: Path) -> None:
    in_folder(tmp_path, [("a/1.png", picture(1)), ("a/2.png", picture(2))])
    if name == "metadata.csv":
        (tmp_path / "a" / name).write_text('file_name,text,what\n1.png,"one, a",x\n2.png,two,y\n')
    else:
        rows = [{"file_name": f"{n}.png", "text": t, "what": w} for n, t, w in WORDS]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a" / name)
    assert [one.captions for one in found(tmp_path)] == [("one, a",), ("two",)]
    named = DataConfig(path=str(tmp_path), columns=ColumnsConfig(text="what"))
    assert [one.captions for one in find_pictures(named, captioned=True)] == [("x",), ("y",)]
    named.columns.text = "nothing"
    with pytest.raises(DataError, match=rf"{name}: .*: expected file_name and nothing"):
        find_pictures(named, captioned=True)


def test_other_tables_beside_pictures_are_let_be(tmp_path: Path) -> None:
    in_folder(tmp_path, [("1.png", picture(1)), ("1.txt", b"a cat")])
    (tmp_path / "metadata.csv").write_text("file_name,label\n1.png,7\n")
    with pytest.warns(RecipeWarning, match=r"metadata\.csv: has no captions: .*, label"):
        assert [one.captions for one in found(tmp_path)] == [("a cat",)]


WORDS = [(1, "one, a", "x"), (2, "two", "y")]


def test_splits(tmp_path: Path) -> None:
    path = saved(tmp_path / "x", train=dataset(), test=dataset(ROWS[:1]))
    with pytest.warns(RecipeWarning, match="of the splits train, test in .* train is taken"):
        assert len(found(path)) == 4
    of_test = DataConfig(path=str(path), split="test")
    assert len(find_pictures(of_test, captioned=True)) == 1
    in_parquet(tmp_path / "y" / "test-0.parquet")
    in_parquet(tmp_path / "y" / "dev-0.parquet")
    with pytest.raises(DataError, match=r"has the splits dev, test; set data\.split"):
        found(tmp_path / "y")
    with pytest.raises(DataError, match="has no split 'train'; there are dev, test"):
        find_pictures(DataConfig(path=str(tmp_path / "y"), split="train"), captioned=True)


def test_settings_of_tables_without_any_are_told(tmp_path: Path) -> None:
    in_folder(tmp_path, PAIR)
    own = DataConfig(path=str(tmp_path), split="train", columns=ColumnsConfig(image="x"))
    with pytest.warns(RecipeWarning) as reported:
        find_pictures(own, captioned=False)
    said = [str(one.message) for one in reported]
    assert [one.split(" on ")[0] for one in said] == [
        "data.columns.image has no effect",
        "data.split has no effect",
    ]


NO_TABLES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "truncated": (
        lambda path: cut(in_parquet(path / "x.parquet"), 200),
        r"x\.parquet: cannot be read as parquet: .*; download or write it again",
    ),
    "no pictures": (
        lambda path: in_parquet(path / "x.parquet", [{"url": "http://x", "text": "a"}]),
        r"x\.parquet: no column of images among url \(string\), text \(string\).*img2dataset",
    ),
    "several of pictures": (
        lambda path: in_parquet(path / "x.parquet", [{"a": b"", "b": b""}]),
        r"x\.parquet: images can be in the columns a, b; set data\.columns\.image",
    ),
    "several of texts": (
        lambda path: in_parquet(path / "x.parquet", [{"a": b"", "b": "", "c": ""}]),
        r"x\.parquet: captions can be in the columns b, c; set data\.columns\.text",
    ),
    "none of texts": (
        lambda path: in_parquet(path / "x.parquet", [{"a": b"-"}]),
        r"1 of 1 pictures have no caption: .*x\.parquet/0\.png\. Looked for a column of texts",
    ),
    "a dataset without a file": (
        lambda path: without_table(saved(path / "x")),
        r"data\.path: .*data-00000-of-00001\.arrow is missing; copy or save",
    ),
    "cut off Arrow": (
        lambda path: cut(in_arrow(path / "x.arrow"), 300),
        r"x\.arrow: cannot be read as Arrow: .*; download or save it again",
    ),
}


def without_table(path: Path) -> Path:
    (path / "data-00000-of-00001.arrow").unlink()
    return path


@pytest.mark.parametrize("case", NO_TABLES)
def test_broken_table_is_told_in_one_message(case: str, tmp_path: Path) -> None:
    make, message = NO_TABLES[case]
    with pytest.raises(DataError, match=f"(?s)^.*{message}"):
        found(make(tmp_path), fallback=None)


def test_hub_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError) as error:
        found("hf://nobody/nothing-at-all")
    first = str(error.value)
    assert first.startswith("data.path: hf://nobody/nothing-at-all cannot be fetched from the Hug")
    assert "\n" not in first
    with pytest.raises(DataError, match="hf://name: expected hf://owner/name"):
        found("hf://name")


def test_hub_gives_the_files_of_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of_folder: list[tuple[bytes, str]]
) -> None:
    """As from the hub, but for where it is fetched from."""
    in_parquet(tmp_path / "data" / "train-0.parquet")
    own = datasets.load_dataset

    def load(name: str, configuration: str | None, revision: str | None) -> Any:
        assert (name, configuration, revision) == ("owner/cats", "small", "v1")
        return own("parquet", data_dir=str(tmp_path / "data"), cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", load)
    hub = DataConfig(path="hf://owner/cats/small", revision="v1")
    pictures = find_pictures(hub, captioned=True)
    assert [one.captions for one in pictures] == CAPTIONS
    assert [read_bytes(one.path) for one in pictures] == [row["image"]["bytes"] for row in ROWS]
    assert fingerprint(pictures, Path("hf://owner/cats/small"))
