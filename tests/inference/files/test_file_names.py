"""Names of pictures by A1111's patterns, and that they stay where they belong."""

import dataclasses
import hashlib
import random
import re
from datetime import datetime
from pathlib import Path

import pytest
from PIL import Image

from inference.config.images import ImageConfig
from inference.config.recipes import ImagesRecipe
from inference.files.name_patterns import PATTERNS, Naming, fill_in, pattern_faults
from inference.images.infotext.reading import read_infotext
from inference.media.outputs import PictureForm, write_picture
from inference.runtime.errors import InputError

NAMING = Naming(
    seed=5, steps=20, cfg_scale=7.0, width=64, height=32, sampler="DPM++ 2M",
    schedule_type="Karras", prompt="A cat, (asleep:1.2)", negative_prompt="dog",
    plain_prompt="A cat", styles=("ink",), model_name="v1:5", model_hash="0123456789",
    clip_skip=2, denoising_strength=0.7, user="me", batch_index=1, batch_size=4,
    generation_index=5, num_generations=8, pixels=b"x", started=datetime(2026, 1, 2, 3, 4, 5),
)  # fmt: skip
ALONE = dataclasses.replace(NAMING, batch_size=1, num_generations=1, denoising_strength=None)
IMAGE = Image.new("RGB", (8, 8))


def digits(text, length):
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def name_of(pattern, naming=NAMING):
    name = fill_in(pattern, naming)
    return "/".join([*name.folders, f"{name.before}{'#' * name.has_number}{name.after}"])


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("[number]-[seed]", "#-5"),
        ("[seed]_[steps]_[cfg]_[width]x[height]", "5_20_7_64x32"),
        ("[styles] [sampler] [scheduler]", "ink DPM++ 2M Karras"),
        ("[model_name]-[model_hash]-[vae_filename]", "v1_5-0123456789-NoneType"),
        ("[job_timestamp]", "20260102030405"),
        ("[prompt]", "A_cat,_(asleep_1.2)"),
        ("[prompt_spaces]", "A cat, (asleep_1.2)"),
        ("[prompt_no_styles]", "A cat"),
        ("[prompt_words]", "A cat asleep 1 2"),
        ("[prompt_hash]", digits("A cat, (asleep:1.2)", 8)),
        ("[prompt_hash<4>]", digits("A cat, (asleep:1.2)", 4)),
        ("[negative_prompt_hash<10>]", digits("dog", 10)),
        ("[full_prompt_hash]", digits("A cat, (asleep:1.2) dog", 8)),
        ("[image_hash]", digits("x", 64)),
        ("[image_hash<6>]", digits("x", 6)),
        ("[hasprompt<cat><bird|none>]", "catnone"),
        ("[hasprompt<CAT|no>]x", "catx"),
        ("[clip_skip]-[denoising]-[user]", "2-0.7-me"),
        ("[batch_number] of [batch_size], [generation_number]", "2 of 4, 6"),
        ("[none]x[SEED]", "x5"),
        ("a/b-[seed]/[number]", "a/b-5/#"),
        ("a:b\\c?", "a_b_c_"),
        ("no pattern", "no pattern"),
        ("[hasprompt<bird>]", "#"),  # nothing is left: a number is a name
        ("[hasprompt<bird>]/[seed]", "5"),
        ("con/[seed]", "_con/5"),
        (".hidden/.[seed]", "_hidden/_5"),
        ("x. /[seed] .", "x/5"),
    ],
)
def test_patterns(pattern, expected):
    assert not list(pattern_faults(pattern))
    assert name_of(pattern) == expected


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("[seed]-[batch_number]", "5"),  # the text before goes too, as in A1111
        ("[seed]-[generation_number]-[steps]", "5-20"),
        ("a/x-[denoising]", "a/#"),
        ("[seed][denoising]", "5"),
        ("[prompt_words]", "empty"),
        ("[styles]", "None"),
    ],
)
def test_what_is_not_there(pattern, expected):
    naming = dataclasses.replace(ALONE, prompt=" .,", styles=())
    assert name_of(pattern, naming) == expected


def test_times():
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", name_of("[date]"))
    assert re.fullmatch(r"\d{14}", name_of("[datetime]"))
    before, found, after = datetime.now(), name_of("[datetime<%Y/%m>]"), datetime.now()
    assert found in {before.strftime("%Y_%m"), after.strftime("%Y_%m")}
    assert re.fullmatch(r"[+]0[12]00", name_of("[datetime<%z><Europe/Vienna>]"))


@pytest.mark.parametrize(
    ("pattern", "fault"),
    [
        ("[sede]", r"does not know \[sede\]; known are \[number\], \[seed\]"),
        ("../[seed]", "must stay in output_dir"),
        ("a/../[seed]", "must stay in output_dir"),
        ("/tmp/[seed]", "must stay in output_dir"),
        ("~/[seed]", "must stay in output_dir"),
        ("[date]/", "must end in a file's name"),
        ("", "must end in a file's name"),
        ("[number]/[seed]", r"takes \[number\] once"),
        ("[number]-[number]", r"takes \[number\] once"),
        ("[seed<3>]", r"\[seed\] takes 0 arguments, got 1"),
        ("[prompt_hash<x>]", "takes a number of digits"),
        ("[datetime<%Y><Mars/Crater>]", "there is no time zone 'Mars/Crater'"),
    ],
)
def test_faults_are_told_at_the_door(pattern, fault):
    assert any(re.search(fault, message) for message in pattern_faults(pattern))
    with pytest.raises(InputError, match=r"^file_name: "):
        fill_in(pattern, NAMING)
    recipe = ImagesRecipe(images={"a": ImageConfig(prompt="a")}, file_name=pattern)
    assert [field for field, _ in recipe.faults()] == ["file_name"] * len(
        [*pattern_faults(pattern)]
    )


@pytest.mark.parametrize(
    "prompt",
    ["../../x", "/etc/passwd", "..", ".", "~", "a\0b", "a/../../b", "\\\\server\\x", "nul",
     "x" * 999, "é" * 999, "\ud800", "CON.txt", "a\nb", "   ", "%s$HOME`x`"],
)  # fmt: skip
@pytest.mark.parametrize("pattern", ["[prompt]", "[prompt_spaces]/[seed]", "[prompt]/[number]",
                                     "[number]-[prompt]", "[prompt]-[number]-[prompt]",
                                     "[styles]/[model_name]", "[user]"])  # fmt: skip
def test_nothing_leads_out_of_the_folder(tmp_path, prompt, pattern):
    naming = dataclasses.replace(
        NAMING, prompt=prompt, styles=(prompt,), model_name=prompt, user=prompt
    )
    folder = tmp_path / "out"
    path = write_picture(folder, IMAGE, "p", naming, PictureForm(pattern, save_text=True))
    assert path.resolve().is_relative_to(folder.resolve())
    assert all(len(part.encode()) <= 230 for part in path.relative_to(folder).parts)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out"]
    assert sum(entry.is_file() for entry in folder.rglob("*")) == 2


def test_any_pattern_of_known_parts_can_be_written(tmp_path):
    randomness = random.Random(0)
    parts = [f"[{name}]" for name in PATTERNS] + ["/", ".", "..", " ", "x", "-", "[number]"]
    for _ in range(300):
        pattern = "".join(randomness.choices(parts, k=randomness.randrange(1, 6)))
        if not [*pattern_faults(pattern)]:
            name = fill_in(pattern, randomness.choice([NAMING, ALONE]))
            assert name.before or name.has_number
            assert not {"", ".", ".."} & {*name.folders}


def written(folder, **options):
    path = write_picture(folder, IMAGE, "a cat\nSteps: 1", NAMING, PictureForm(**options))
    return path.relative_to(folder).as_posix()


def test_numbers_count_on_and_nothing_is_overwritten(tmp_path):
    names = [written(tmp_path) for _ in range(2)]
    names += [written(tmp_path, file_name=name) for name in ("[seed]", "[seed]", "[seed]")]
    names.append(written(tmp_path, file_name="[sampler]/[seed]-[number]", file_format="webp"))
    assert names == [
        "00000-5.png", "00001-5.png", "5.png", "5-1.png", "5-2.png", "DPM++ 2M/5-00000.webp",
    ]  # fmt: skip
    assert all(read_infotext(tmp_path / name) == "a cat\nSteps: 1" for name in names)


def test_text_beside_is_never_overwritten(tmp_path):
    (tmp_path / "5.txt").write_text("mine")
    assert written(tmp_path, file_name="[seed]", save_text=True) == "5-1.png"
    assert (tmp_path / "5.txt").read_text() == "mine"
    assert (tmp_path / "5-1.txt").read_text() == "a cat\nSteps: 1\n"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["5-1.png", "5-1.txt", "5.txt"]


def test_what_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    def fail(path: Path, *_: object) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("inference.media.outputs.picture_writer", lambda *_: fail)
    with pytest.raises(OSError, match="disk full"):
        written(tmp_path, save_text=True)
    assert not [*tmp_path.iterdir()]


def test_folder_that_is_a_file(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(InputError, match=r"file_name: .* cannot be a folder"):
        written(tmp_path, file_name="a/[seed]")
