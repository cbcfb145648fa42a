"""Pictures, captions, their transforms, the stream of examples, and the loader."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from inference.recipe.layers import RecipeWarning
from inference.runtime.errors import InputError
from train.common.errors import DataError
from train.common.randomness import derive_seed
from train.config.data import DataConfig
from train.config.examples import CaptionConfig, Size
from train.data.examples.examples import Examples
from train.data.examples.loader import build_loader
from train.data.examples.picture_buckets import Place
from train.data.examples.stream import MicroBatches, Stream
from train.data.examples.transforms import crop_image
from train.data.sources.captions import all_captions, asks_for_captions, make_caption, read_template
from train.data.sources.folder import Picture, find_pictures, fingerprint


def save(path: Path, size: tuple[int, int] = (4, 4), colour: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def config(path: Path, **captions: Any) -> DataConfig:
    return DataConfig(path=str(path), captions=CaptionConfig(**captions))


# Folders and captions


def test_pictures_of_all_folders_with_their_captions(tmp_path: Path) -> None:
    save(tmp_path / "b.png")
    (tmp_path / "b.txt").write_text(" a cat,\n  on a mat \n")
    save(tmp_path / "a" / "z.JPG")
    (tmp_path / "a" / "z.caption").write_text("a dog")
    save(tmp_path / "a" / "y.webp")
    (tmp_path / "a" / "metadata.jsonl").write_text(
        '{"file_name": "y.webp", "text": ["one", "two"]}\n\n'
    )
    (tmp_path / "notes.md").write_text("no picture")
    found = find_pictures(config(tmp_path), captioned=True)
    assert found == [
        Picture(tmp_path / "a" / "y.webp", ("one", "two")),
        Picture(tmp_path / "a" / "z.JPG", ("a dog",)),
        Picture(tmp_path / "b.png", ("a cat, on a mat",)),
    ]


def test_files_come_sorted_by_their_parts(tmp_path: Path) -> None:
    for name in ("a/z.png", "a.png", "a-b/c.png", "B.png", "a/b/c/d.png", "a b/e.png"):
        save(tmp_path / name)
    (tmp_path / "link").symlink_to(tmp_path)  # would never end
    (tmp_path / "folder.png").mkdir()
    found = [picture.path for picture in find_pictures(config(tmp_path), captioned=False)]
    assert found == sorted(path for path in tmp_path.rglob("*.png") if path.is_file())
    assert len(found) == 6


def test_metadata_goes_before_caption_files_and_txt_before_caption(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text("by txt")
        (tmp_path / f"{name}.caption").write_text("by caption")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "by metadata"}')
    found = find_pictures(config(tmp_path), captioned=True)
    assert [picture.captions for picture in found] == [("by metadata",), ("by txt",)]


def test_prefix_suffix_and_fallback(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    save(tmp_path / "b.png")
    (tmp_path / "a.txt").write_text("a cat")
    (tmp_path / "b.txt").write_text(" \n")
    own = config(tmp_path, prefix="photo of ", suffix="!", fallback="it")
    with pytest.warns(RecipeWarning, match=r"1 of 2 pictures have empty caption files: they have"):
        found = find_pictures(own, captioned=True)
    assert [p.captions for p in found] == [("photo of a cat!",), ("photo of it!",)]


def test_byte_order_mark_is_no_part_of_a_caption(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes("\ufeffein Käfer".encode())
    assert find_pictures(config(tmp_path), captioned=True)[0].captions == ("ein Käfer",)


def test_pictures_need_no_captions_where_none_are_learned(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    assert find_pictures(config(tmp_path), captioned=False) == [Picture(tmp_path / "a.png", ())]


def test_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^data.path: '.*nowhere' is not a folder$"):
        find_pictures(config(tmp_path / "nowhere"), captioned=True)


def test_empty_folder_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a.psd").write_bytes(b"8BPS")
    reported = r"no pictures in .*\.png, .*\.jpg.* found 1 other files; left out: 1 \.psd$"
    with pytest.raises(DataError, match=reported):
        find_pictures(config(tmp_path), captioned=True)


def test_all_pictures_without_captions_are_told_together(tmp_path: Path) -> None:
    for number in range(5):
        save(tmp_path / f"{number}.png")
    (tmp_path / "3.txt").write_text("three")
    with pytest.raises(DataError) as error:
        find_pictures(config(tmp_path), captioned=True)
    for part in ("4 of 5 pictures", "0.png", "2.png, …", ".txt, .caption", "fallback"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "metadata.jsonl: line 2: not JSON"),
        ('{"file_name": "a.png"}', "line 2: expected file_name and text"),
        ("[1]", "line 2: expected file_name and text"),
        ('{"file_name": "a.png", "text": [1]}', "line 2: text must be a caption or a list"),
    ],
)
def test_broken_metadata_is_named_by_its_line(tmp_path: Path, line: str, message: str) -> None:
    save(tmp_path / "a.png")
    good = json.dumps({"file_name": "a.png", "text": "a"})
    (tmp_path / "metadata.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(DataError, match=message):
        find_pictures(config(tmp_path), captioned=True)


def test_caption_in_another_encoding_is_named(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes("ein Käfer".encode("latin-1"))
    with pytest.raises(DataError, match=r"a\.txt: not UTF-8"):
        find_pictures(config(tmp_path), captioned=True)


def test_fingerprint_follows_names_sizes_and_captions(tmp_path: Path) -> None:
    def current() -> str:
        return fingerprint(find_pictures(config(tmp_path), captioned=True), tmp_path)

    save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a")
    prints = [current()]
    (tmp_path / "a.txt").write_text("b")
    prints.append(current())
    save(tmp_path / "a.png", (9, 9))
    prints.append(current())
    save(tmp_path / "b.png")
    (tmp_path / "b.txt").write_text("b")
    prints.append(current())
    assert len(set(prints)) == 4
    assert current() == prints[-1]
    pictures = find_pictures(config(tmp_path), captioned=True)
    templates = {fingerprint(pictures, tmp_path, (line,)) for line in ("one", "two")}
    assert len({*templates, prints[-1]}) == 3


# Captions


def caption(text: str, seed: int = 0, **options: Any) -> str:
    return make_caption([text], CaptionConfig(**options), random.Random(seed))


def test_caption_without_options_stays() -> None:
    assert caption("a,  b") == "a,  b"


def test_every_caption_comes_up() -> None:
    draw = random.Random(0)
    assert {make_caption("abc", CaptionConfig(), draw) for _ in range(50)} == set("abc")


def test_dropout_rate_is_kept() -> None:
    empty = sum(caption("a", seed, dropout_rate=0.25) == "" for seed in range(1000))
    assert 200 < empty < 300


def test_shuffle_keeps_the_first_tags_and_all_words() -> None:
    made = {caption("x, a, b, c", seed, shuffle_tags=True, keep_tokens=1) for seed in range(50)}
    assert len(made) == 6
    assert all(text.startswith("x, ") for text in made)
    assert {tuple(sorted(text.split(", "))) for text in made} == {("a", "b", "c", "x")}


def test_tags_are_dropped_but_for_the_kept_ones() -> None:
    assert caption("x, y, a, b", tag_dropout_rate=1.0, keep_tokens=2) == "x, y"


# Transforms


def pixels(path: Path, resolution: int, seed: int = 0, **options: Any) -> torch.Tensor:
    place = Place(Size(resolution, resolution))
    return crop_image(path, DataConfig(**options), place, random.Random(seed)).pixels


@pytest.fixture
def ramp(tmp_path: Path) -> Path:
    """6x4 pixels; red is 10 times the column, green 10 times the row."""
    columns, rows = np.meshgrid(np.arange(6), np.arange(4))
    array = np.stack([columns * 10, rows * 10, np.zeros_like(rows)], -1).astype(np.uint8)
    Image.fromarray(array).save(tmp_path / "ramp.png")
    return tmp_path / "ramp.png"


def columns_of(square: torch.Tensor) -> list[int]:
    return [round((value + 1) * 12.75) for value in square[0, 0].tolist()]


def test_pixels_lie_between_minus_one_and_one(tmp_path: Path) -> None:
    square = pixels(save(tmp_path / "a.png", (8, 8), "red"), 8)
    assert square.shape == (3, 8, 8)
    assert square[:, 0, 0].tolist() == [1, -1, -1]


def test_centre_is_cut_out(ramp: Path) -> None:
    assert columns_of(pixels(ramp, 4)) == [1, 2, 3, 4]


def test_flip_mirrors(ramp: Path) -> None:
    assert columns_of(pixels(ramp, 4, flip=1.0)) == [4, 3, 2, 1]


def test_random_crops_reach_every_place(ramp: Path) -> None:
    starts = {columns_of(pixels(ramp, 4, seed, crop="random"))[0] for seed in range(40)}
    assert starts == {0, 1, 2}


def test_cover_scales_the_shorter_side(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20), "black")
    image.paste("white", (15, 0, 25, 20))  # a fourth of the width, in the middle
    image.save(tmp_path / "wide.png")
    white = pixels(tmp_path / "wide.png", 10)[0, 5] > 0
    assert white[3:7].all()
    assert not white[:2].any()
    assert not white[8:].any()


def test_none_refuses_what_is_too_small(ramp: Path) -> None:
    assert columns_of(pixels(ramp, 4, resize="none")) == [1, 2, 3, 4]
    with pytest.raises(DataError, match=r"ramp.png: 6x4 is smaller than data.resolution 5"):
        pixels(ramp, 5, resize="none")


@pytest.mark.parametrize(
    ("background", "value"), [("white", 255), ("black", 0), ("gray", 128), ("random", None)]
)
def test_transparent_pictures_lie_on_the_background(
    tmp_path: Path, background: str, value: int | None
) -> None:
    Image.new("RGBA", (4, 4), (9, 9, 9, 0)).save(tmp_path / "a.png")
    seen = [pixels(tmp_path / "a.png", 4, seed, background=background) for seed in (1, 1, 2)]
    assert torch.equal(seen[0], seen[1])
    if value is None:
        assert not torch.equal(seen[0], seen[2])
    else:
        assert seen[2].unique().tolist() == pytest.approx([value / 127.5 - 1], abs=1e-6)


def test_pictures_stand_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 4), "black")
    image.paste("white", (0, 0, 4, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    image.save(tmp_path / "a.png", exif=exif)
    square = pixels(tmp_path / "a.png", 4)
    assert square[0, 0, 0] == 1
    assert square[0, 3, 0] == -1


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n cut off"])
def test_broken_picture_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.png").write_bytes(content)
    with pytest.raises(DataError, match=r"broken\.png: cannot be read as a picture"):
        pixels(tmp_path / "broken.png", 4)


# The stream


def test_every_epoch_is_another_order_of_all_pictures() -> None:
    stream = Stream(seed=3, num_pictures=5)
    places = [stream[position] for position in range(15)]
    assert [epoch for epoch, _ in places] == [0] * 5 + [1] * 5 + [2] * 5
    epochs = [tuple(index for _, index in places[start : start + 5]) for start in (0, 5, 10)]
    assert all(sorted(order) == [0, 1, 2, 3, 4] for order in epochs)
    assert len(set(epochs)) > 1
    assert places != [Stream(seed=4, num_pictures=5)[position] for position in range(15)]


def micro_batches(rank: int, processes: int, accumulation: int, start: int = 0) -> list[list[int]]:
    batches = MicroBatches(
        batch_size=3,
        accumulation=accumulation,
        rank=rank,
        num_processes=processes,
        start_step=start,
        max_steps=4,
    )
    assert len(list(batches)) == len(batches)
    return list(batches)


def test_two_processes_see_what_one_sees_with_twice_the_accumulation() -> None:
    alone = micro_batches(0, 1, accumulation=4)
    pairs = zip(micro_batches(0, 2, 2), micro_batches(1, 2, 2), strict=True)
    assert [batch for pair in pairs for batch in pair] == alone
    assert [position for batch in alone for position in batch] == list(range(48))


def test_resumed_process_goes_on_where_it_stopped() -> None:
    assert micro_batches(1, 2, 2, start=3) == micro_batches(1, 2, 2)[6:]
    assert micro_batches(0, 1, 1, start=4) == []


# Examples and their loader


@pytest.fixture
def examples(pictures: Path) -> Examples:
    data = DataConfig(
        path=str(pictures),
        captions=CaptionConfig(dropout_rate=0.3, shuffle_tags=True),
        flip=0.5,
        resize="none",
        crop="random",
    )
    return Examples(find_pictures(data, captioned=True), data, resolution=12, seed=7)


def test_example_is_a_function_of_its_position(examples: Examples) -> None:
    before = examples[21]
    for position in (5, 0, 21):
        again = examples[position]
    for name in ("pixels", "sizes"):
        assert torch.equal(before.pop(name), again.pop(name))
    assert before == again
    assert before["positions"] == 21
    assert examples.stream[21] == (2, before["indices"])


def test_a_picture_looks_different_in_other_epochs(examples: Examples) -> None:
    seen = [examples.pixels(0, epoch) for epoch in range(8)]
    assert len({tuple(square.flatten().tolist()) for square in seen}) > 2
    assert len({examples.prompt(0, epoch) for epoch in range(8)}) > 2


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a single core
def test_loader_gives_the_same_with_any_number_of_workers(examples: Examples) -> None:
    batches = MicroBatches(
        batch_size=3, accumulation=1, rank=0, num_processes=1, start_step=2, max_steps=6
    )
    alone = list(build_loader(examples, batches))
    examples.config.num_workers = 2
    together = list(build_loader(examples, batches))
    assert [batch["positions"] for batch in alone] == list(batches)
    for one, two in zip(alone, together, strict=True):
        assert one.keys() == two.keys()
        assert torch.equal(one["pixels"], two["pixels"])
        assert torch.equal(one["sizes"], two["sizes"])
        assert one["prompts"] == two["prompts"]
        assert one["pixels"].shape == (3, 3, 12, 12)
        assert one["weight"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_what_is_wrong_with_a_picture_comes_as_a_value(tmp_path: Path, num_workers: int) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    data = DataConfig(path=str(tmp_path), num_workers=num_workers)
    examples = Examples(find_pictures(data, captioned=False), data, resolution=4, seed=0)
    batches = MicroBatches(
        batch_size=1, accumulation=1, rank=0, num_processes=1, start_step=0, max_steps=1
    )
    (fault,) = build_loader(examples, batches)
    assert isinstance(fault, DataError)
    assert str(fault).startswith(f"{tmp_path}/broken.png: cannot be read as a picture")


def test_seeds_depend_on_every_argument() -> None:
    asked = [(0, "a", 1, 2), (0, "a", 2, 1), (0, "b", 1, 2), (1, "a", 1, 2), (0, "a", 1), (-1, "a")]
    seeds = {derive_seed(*arguments) for arguments in asked}
    assert len(seeds) == len(asked)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(0, "noise", 0) == derive_seed(0, "noise", 0)


# Templates


def test_a_template_takes_captions_and_the_name(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("[filewords] by [name]\n\n  a [name] \n")
    template = read_template(str(tmp_path / "mine.txt"), "xyz")
    assert template == ("[filewords] by xyz", "a xyz")
    draw = random.Random(0)
    made = {make_caption(["cat", "dog"], CaptionConfig(), draw, template) for _ in range(99)}
    assert (
        made == {"cat by xyz", "dog by xyz", "a xyz"} == {*all_captions(["cat", "dog"], template)}
    )
    shuffled = CaptionConfig(tag_dropout_rate=0.9999)
    assert make_caption(["cat"], shuffled, draw, template[:1]) == " by xyz"


def test_shipped_templates_name_what_a1111_s_do() -> None:
    expected = {  # whether they ask for captions, and for the name
        "style": (False, True),
        "style_filewords": (True, True),
        "subject": (False, True),
        "subject_filewords": (True, True),
        "hypernetwork": (True, False),
        "none": (False, False),
    }
    for name, (captions, word) in expected.items():
        template = read_template(name, "xyz")
        assert asks_for_captions(template) == captions
        assert all(("[filewords]" in line) == captions for line in template)
        assert all(("xyz" in line) == word for line in template)
    assert read_template(None, "xyz") == ("[filewords]",)


def test_a_template_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither a file nor one of hypernetwork, none, style"):
        read_template("stile", "x")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(InputError, match="has no prompt in it"):
        read_template(str(tmp_path / "empty.txt"), "x")
