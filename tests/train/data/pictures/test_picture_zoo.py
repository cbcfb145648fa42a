"""Picture files as they are met with: right pixels, or a message with the file's name."""

import io
import os
import random
import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from inference.recipe.loader import RecipeWarning
from tests.train.data.pictures import zoo
from train.common.errors import DataError
from train.config.concepts import ConceptConfig
from train.config.data import DataConfig
from train.config.examples import Size
from train.data.examples.picture_buckets import Place
from train.data.examples.transforms import crop_image
from train.data.pictures.colours import planes
from train.data.pictures.reading import read_header, read_picture, shown
from train.data.pictures.soundness import sound_paths
from train.data.sources.concepts import ClassFolder, class_pictures

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
ORANGE = (200, 100, 50)
SIZE = (6, 4)


SWAPPED = zoo.rgb_profile(zoo.srgb_curve(), (2, 1, 0))


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def plain(mode: str, colour: Any) -> Image.Image:
    return Image.new(mode, SIZE, colour)


def palette(**options: Any) -> bytes:
    """Left half red, right half blue."""
    image = Image.new("P", SIZE, 1)
    image.putpalette([*RED, *BLUE])
    image.paste(0, (0, 0, 3, 4))
    return saved(image, "PNG", **options)


def exif(orientation: int) -> bytes:
    data = Image.Exif()
    data[0x0112] = orientation
    return data.tobytes()


def corner(orientation: int) -> Image.Image:
    """What a picture of 6x4 with a red left upper quarter is stored as."""
    image = Image.new("RGB", SIZE, "white")
    image.paste(RED, (0, 0, 3, 2))
    way_back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # numbers of Image.Transpose
    return image.transpose(Image.Transpose(way_back[orientation])) if orientation > 1 else image


def animation(form: str) -> bytes:
    first, *others = (plain("RGB", colour) for colour in (ORANGE, BLUE, RED))
    return saved(first, form, save_all=True, append_images=others, lossless=True)


GREY16 = np.array([[0, 32896, 65535]] * 3, np.uint16)
GREYS = [(0, 0, 0), (128, 128, 128), (255, 255, 255)]
RED16 = struct.pack(">3H", 65535, 0, 0)
TAGS = {256: 3, 257: 3, 258: 16, 259: 1, 262: 1, 277: 1, 278: 3}
RGB_TAGS = TAGS | {258: (16, 16, 16), 262: 2, 277: 3}
NOISE = Image.effect_noise((64, 64), 90).convert("RGB")

# Name -> (content, the first row of pixels, or one colour for all).
RIGHT: dict[str, tuple[bytes, Any]] = {
    "rgb.png": (saved(plain("RGB", ORANGE), "PNG"), ORANGE),
    "rgba.png": (saved(plain("RGBA", (*ORANGE, 77)), "PNG"), (*ORANGE, 77)),
    "rgba.webp": (saved(plain("RGBA", (*ORANGE, 77)), "WEBP", lossless=True), (*ORANGE, 77)),
    "rgba.tif": (saved(plain("RGBA", (*ORANGE, 77)), "TIFF"), (*ORANGE, 77)),
    "grey.png": (saved(plain("L", 99), "PNG"), (99, 99, 99)),
    "grey_alpha.png": (saved(plain("LA", (99, 5)), "PNG"), (99, 99, 99, 5)),
    "grey_alpha.tif": (saved(plain("LA", (99, 5)), "TIFF"), (99, 99, 99, 5)),
    "grey_transparent.png": (saved(plain("L", 99), "PNG", transparency=99), (99, 99, 99, 0)),
    "rgb_transparent.png": (saved(plain("RGB", RED), "PNG", transparency=RED), (*RED, 0)),
    "palette.png": (palette(), [RED] * 3 + [BLUE] * 3),
    "palette_index.png": (palette(transparency=1), [(*RED, 255)] * 3 + [(*BLUE, 0)] * 3),
    "palette_alphas.png": (
        palette(transparency=bytes([9, 200])),
        [(*RED, 9)] * 3 + [(*BLUE, 200)] * 3,
    ),
    "palette.gif": (saved(plain("RGB", RED).quantize(2), "GIF"), RED),
    "one_bit.png": (zoo.png((8, 2), 1, 0, b"\xc0"), [GREYS[2]] * 2 + [GREYS[0]] * 6),
    "one_bit_transparent.png": (
        zoo.png((8, 2), 1, 0, b"\xc0", zoo.chunk(b"tRNS", b"\0\1")),
        [(255, 255, 255, 0)] * 2 + [(0, 0, 0, 255)] * 6,
    ),
    "two_bits_transparent.png": (
        zoo.png((4, 2), 2, 0, b"\x1b", zoo.chunk(b"tRNS", b"\0\2")),
        [(0, 0, 0, 255), (85, 85, 85, 255), (170, 170, 170, 0), (255, 255, 255, 255)],
    ),
    "four_bits_transparent.png": (
        zoo.png((2, 2), 4, 0, b"\x3f", zoo.chunk(b"tRNS", b"\0\3")),
        [(51, 51, 51, 0), (255, 255, 255, 255)],
    ),
    "one_bit.tif": (saved(plain("1", 1), "TIFF", compression="group4"), (255, 255, 255)),
    "grey16.png": (saved(Image.fromarray(GREY16), "PNG"), GREYS),
    "grey16_transparent.png": (
        zoo.png((3, 2), 16, 0, GREY16[0].astype(">u2").tobytes(), zoo.chunk(b"tRNS", b"\x80\x80")),
        [(0, 0, 0, 255), (128, 128, 128, 0), (255, 255, 255, 255)],
    ),
    "grey16_alpha.png": (
        zoo.png((2, 2), 16, 4, struct.pack(">4H", 0x8080, 0xFFFF, 0xFFFF, 0)),
        [(128, 128, 128, 255), (255, 255, 255, 0)],
    ),
    "rgb16.png": (zoo.png((1, 1), 16, 2, struct.pack(">3H", 51400, 25700, 12850)), ORANGE),
    "rgb16_transparent.png": (
        zoo.png((1, 1), 16, 2, RED16, zoo.chunk(b"tRNS", RED16)),
        (*RED, 0),
    ),
    "rgba16.png": (
        zoo.png((1, 1), 16, 6, struct.pack(">4H", 51400, 25700, 12850, 32896)),
        (*ORANGE, 128),
    ),
    "grey16.tif": (zoo.tiff(TAGS, GREY16.astype("<u2").tobytes()), GREYS),
    "grey16_big_endian.tif": (zoo.tiff(TAGS, GREY16.astype(">u2").tobytes(), True), GREYS),
    "grey16_from_white.tif": (
        zoo.tiff(TAGS | {262: 0}, GREY16.astype("<u2").tobytes()),
        GREYS[::-1],
    ),
    "grey12.tif": (
        zoo.tiff(TAGS | {256: 2, 257: 1, 258: 12, 278: 1}, b"\x00\x0f\xff"),
        [GREYS[0], GREYS[2]],
    ),
    "grey8_from_white.tif": (
        zoo.tiff(TAGS | {258: 8, 262: 0}, bytes([0, 155, 255] * 3)),
        [GREYS[2], (100, 100, 100), GREYS[0]],
    ),
    "rgb16.tif": (
        zoo.tiff(RGB_TAGS | {256: 1, 257: 1, 278: 1}, struct.pack("<3H", 51400, 25700, 12850)),
        ORANGE,
    ),
    "grey16.pgm": (b"P5 3 1 65535\n" + GREY16[0].astype(">u2").tobytes(), GREYS),
    "rgb.bmp": (saved(plain("RGB", ORANGE), "BMP"), ORANGE),
    "rgb.jp2": (saved(plain("RGB", ORANGE), "JPEG2000"), ORANGE),
    "ycbcr.tif": (saved(plain("YCbCr", (255, 128, 128)), "TIFF"), GREYS[2]),
    "lab.tif": (saved(plain("LAB", (255, 128, 128)), "TIFF"), GREYS[2]),
    "cmyk.jpg": (saved(plain("CMYK", (0, 0, 255, 0)), "JPEG", quality=100), (255, 255, 0)),
    "cmyk.tif": (saved(plain("CMYK", (0, 0, 255, 0)), "TIFF"), (255, 255, 0)),
    "ink_profile.tif": (
        saved(plain("CMYK", (255, 0, 0, 0)), "TIFF", icc_profile=zoo.ink_profile()),
        GREYS[0],
    ),
    "ink_profile.jpg": (
        saved(plain("CMYK", (0, 0, 0, 255)), "JPEG", icc_profile=zoo.ink_profile()),
        GREYS[2],
    ),
    "swapped_profile.png": (
        saved(plain("RGB", ORANGE), "PNG", icc_profile=SWAPPED),
        ORANGE[::-1],
    ),
    "swapped_profile_alpha.webp": (
        saved(
            plain("RGBA", (*RED, 60)),
            "WEBP",
            lossless=True,
            icc_profile=SWAPPED,
        ),
        (*BLUE, 60),
    ),
    "swapped_profile_palette.png": (palette(icc_profile=SWAPPED), [BLUE] * 3 + [RED] * 3),
    # Linear light: half of it is 188 in sRGB.
    "linear_profile.tif": (
        saved(plain("RGB", (128, 128, 128)), "TIFF", icc_profile=zoo.rgb_profile(zoo.gamma(1))),
        (188, 188, 188),
    ),
    "linear_grey_profile.png": (
        saved(plain("L", 128), "PNG", icc_profile=zoo.grey_profile(zoo.gamma(1))),
        (188, 188, 188),
    ),
    "linear_profile_of_colour_on_grey.png": (
        saved(plain("L", 128), "PNG", icc_profile=zoo.rgb_profile(zoo.gamma(1))),
        (188, 188, 188),
    ),
    "grey16_linear_profile.png": (
        saved(Image.fromarray(GREY16), "PNG", icc_profile=zoo.grey_profile(zoo.gamma(1))),
        [GREYS[0], (188, 188, 188), GREYS[2]],
    ),
    "exif_of_no_sense.jpg": (saved(plain("RGB", "white"), "JPEG", exif=exif(9)), GREYS[2]),
    "png_called.jpg": (saved(plain("RGB", ORANGE), "PNG"), ORANGE),
    "gif_called.png": (saved(plain("RGB", RED).quantize(2), "GIF"), RED),
    "one_pixel.png": (saved(Image.new("RGB", (1, 1), ORANGE), "PNG"), ORANGE),
    "ümläut 字 \n.png": (saved(plain("RGB", ORANGE), "PNG"), ORANGE),
    "not_utf8_\udcff.png": (saved(plain("RGB", ORANGE), "PNG"), ORANGE),
}


def at(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", RIGHT)
def test_right_pixels(name: str, tmp_path: Path) -> None:
    content, expected = RIGHT[name]
    path = at(tmp_path, name, content)
    image = read_picture(path)
    row = np.asarray(image)[0].astype(int)
    wanted = np.array(expected if isinstance(expected, list) else [expected] * image.width)
    assert row.shape == wanted.shape
    assert np.abs(row - wanted).max() <= 1, row
    assert read_header(path) == (*image.size, ())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_upright(form: str, orientation: int, tmp_path: Path) -> None:
    options: Any = {"exif": exif(orientation), "quality": 100, "lossless": True}
    if form == "TIFF":
        options = {"tiffinfo": {0x0112: orientation}}
    path = at(tmp_path, "a", saved(corner(orientation), form, **options))
    image = read_picture(path)
    assert read_header(path) == (*SIZE, ())
    assert image.size == SIZE
    pixels = np.asarray(image).astype(int)
    assert pixels[0, 0, 1] < 90
    assert (pixels[[0, 3, 3], [5, 0, 5], 1] > 200).all()


SOME_SRGB = zoo.rgb_profile(zoo.srgb_curve())


@pytest.mark.parametrize("profile", [None, SOME_SRGB])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_srgb_keeps_every_byte(profile: bytes | None, mode: str, tmp_path: Path) -> None:
    image = NOISE.convert(mode)
    path = at(tmp_path, "a.png", saved(image, "PNG", icc_profile=profile))
    assert read_picture(path).tobytes() == image.tobytes()


def mpo() -> bytes:
    return saved(NOISE, "MPO", save_all=True, append_images=[NOISE])


NOTED: dict[str, tuple[bytes, Any, tuple[str, ...]]] = {
    "animated.gif": (animation("GIF"), ORANGE, ("animated",)),
    "animated.png": (animation("PNG"), ORANGE, ("animated",)),
    "animated.webp": (animation("WEBP"), ORANGE, ("animated",)),
    "pages.tif": (animation("TIFF"), ORANGE, ("pages",)),
    "broken_profile.png": (
        saved(plain("RGB", ORANGE), "PNG", icc_profile=b"no profile" * 30),
        ORANGE,
        ("profile",),
    ),
    "cut_profile.png": (
        saved(plain("RGB", ORANGE), "PNG", icc_profile=SOME_SRGB[:300]),
        ORANGE,
        ("profile",),
    ),
    "profile_of_ink.png": (
        saved(plain("RGB", ORANGE), "PNG", icc_profile=zoo.ink_profile()),
        ORANGE,
        ("profile",),
    ),
    "profile_of_light.tif": (
        saved(plain("CMYK", (0, 0, 255, 0)), "TIFF", icc_profile=SOME_SRGB),
        (255, 255, 0),
        ("profile",),
    ),
    "broken_exif.png": (
        saved(plain("RGB", ORANGE), "PNG", exif=b"Exif\0\0no TIFF at all"),
        ORANGE,
        ("exif",),
    ),
}


@pytest.mark.parametrize("name", NOTED)
def test_what_is_told_of(name: str, tmp_path: Path) -> None:
    content, colour, notes = NOTED[name]
    path = at(tmp_path, name, content)
    assert np.asarray(read_picture(path))[0, 0].tolist() == pytest.approx(colour, abs=1)
    assert read_header(path).notes == notes
    with pytest.warns(RecipeWarning, match=f"1 of 1 pictures .*: .*{name}"):
        assert sound_paths([path], "refuse") == [path]


def test_what_stands_behind_the_pixels_counts(tmp_path: Path) -> None:
    """ExifTool appends EXIF data to a PNG; other PNGs are not decoded for their size."""
    content = saved(corner(6), "PNG")
    at_end = zoo.chunk(b"eXIf", exif(6).removeprefix(b"Exif\0\0"))
    path = at(tmp_path, "a.png", content[:-12] + at_end + content[-12:])
    assert read_header(path) == (*SIZE, ())
    assert read_picture(path).size == SIZE
    assert read_header(at(tmp_path, "b.png", cut("PNG"))) == (64, 64, ())


def test_a_photo_with_a_preview_is_no_animation(tmp_path: Path) -> None:
    assert read_header(at(tmp_path, "a.jpg", mpo())).notes == ()


def test_transparent_palettes_of_tiff() -> None:
    image = Image.new("PA", SIZE)
    image.putpalette([*ORANGE, *BLUE])
    image.putalpha(40)
    colours, alpha = planes(image)
    assert colours.getpixel((0, 0)) == ORANGE
    assert alpha is not None
    assert alpha.getpixel((0, 0)) == 40


def cut(form: str, **options: Any) -> bytes:
    content = saved(NOISE, form, **options)
    return content[: len(content) // 2]


def with_wrong_sum() -> bytes:
    content = bytearray(saved(NOISE, "PNG"))
    content[29] ^= 1  # IHDR's
    return bytes(content)


HUGE = 60_000
HEAD = b"\x89PNG\r\n\x1a\n" + zoo.chunk(b"IHDR", struct.pack(">2I5B", 9, 9, 8, 2, 0, 0, 0))
TEXT = zoo.chunk(b"zTXt", b"a\0\0" + zlib.compress(b"a" * 10**7))
BROKEN: dict[str, tuple[bytes, str]] = {
    "empty.png": (b"", "the file is empty"),
    "text.png": (b"this is no picture", "its content is none of AVIF, BMP, GIF, JPEG"),
    "page.jpg": (b"<!DOCTYPE html><html></html>", "its content is none of"),
    "drawing.png": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "its content is none of"),
    "program.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "its content is none of"),
    "archive.png": (b"PK\3\4" + b"\0" * 60, "its content is none of"),
    "zeros.jpg": (b"\0" * 4096, "its content is none of"),
    "only_a_head.png": (b"\x89PNG\r\n\x1a\n", r"\w"),
    "cut.png": (cut("PNG"), "truncated"),
    "cut.jpg": (cut("JPEG"), "truncated"),
    "cut.webp": (cut("WEBP"), r"\w"),
    "cut.gif": (cut("GIF"), "truncated"),
    "cut.bmp": (cut("BMP"), "truncated"),
    "cut.tif": (cut("TIFF"), r"\w"),
    "cut_lzw.tif": (cut("TIFF", compression="tiff_lzw"), r"\w"),
    "cut.avif": (cut("AVIF"), r"\w"),
    "cut.jp2": (cut("JPEG2000"), r"\w"),
    "wrong_sum.png": (with_wrong_sum(), r"\w"),
    "no_pixels.png": (HEAD, r"\w"),
    "no_width.png": (zoo.png((0, 4), 8, 2, b""), r"\w"),
    "bomb.png": (zoo.png((HUGE, HUGE), 8, 0, b"", rows=0), "more than 178956970 pixels"),
    "bomb.gif": (
        b"GIF89a" + struct.pack("<HH", HUGE, HUGE) + RIGHT["gif_called.png"][0][10:],
        "more than 178956970 pixels",
    ),
    "bomb_of_text.png": (
        zoo.png((1, 1), 8, 0, b"a", TEXT),
        r"\w",
    ),
    "float.tif": (saved(plain("F", 0.5), "TIFF"), "floating-point numbers; save it with 8 or 16"),
    "integers.tif": (saved(plain("I", 70000), "TIFF"), "integers of 32 bits or with a sign"),
    "not_utf8_\udcfe.png": (b"", r"\w"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_named_report(name: str, tmp_path: Path) -> None:
    content, reason = BROKEN[name]
    path = at(tmp_path, name, content)
    with pytest.raises(
        DataError, match=f"cannot be read as a picture: .*{reason}.*; mend"
    ) as reported:
        read_picture(path)
    assert str(reported.value).startswith(shown(path) + ":")
    str(reported.value).encode("utf-8")
    good = at(tmp_path, "good.png", RIGHT["rgb.png"][0])
    with pytest.warns(RecipeWarning, match="left out: 1 of 2 pictures"):
        assert sound_paths([path, good], "skip") == [good]


def make_folder(path: Path) -> None:
    path.mkdir()


def make_loop(path: Path) -> None:
    path.symlink_to(path.name)


def make_dangling(path: Path) -> None:
    path.symlink_to("gone.png")


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (make_folder, "is not a file"),
        (make_loop, "its links go in a circle"),
        (make_dangling, "No such file"),
        (make_pipe, "is not a file"),
    ],
)
def test_what_is_no_file(make: Callable[[Path], None], reason: str, tmp_path: Path) -> None:
    make(path := tmp_path / "x.png")
    with pytest.raises(DataError, match=rf"x\.png: .*{reason}"):
        read_picture(path)
    with pytest.raises(DataError, match=r"1 of 1 pictures cannot be used:\n.*x\.png: "):
        sound_paths([path], "refuse")


def test_a_link_is_what_it_leads_to(tmp_path: Path) -> None:
    at(tmp_path, "a", RIGHT["rgb.png"][0])
    (tmp_path / "b.png").symlink_to("a")
    assert read_picture(tmp_path / "b.png").getpixel((0, 0)) == ORANGE


def test_without_permission(tmp_path: Path) -> None:
    path = at(tmp_path, "a.png", RIGHT["rgb.png"][0])
    path.chmod(0)
    if os.access(path, os.R_OK):  # as root
        assert read_picture(path).getpixel((0, 0)) == ORANGE
    else:
        with pytest.raises(DataError, match=r"a\.png: .*Permission denied"):
            read_picture(path)


def test_too_long_to_be_scaled(tmp_path: Path) -> None:
    path = at(tmp_path, "long.png", saved(Image.new("L", (1, 2000)), "PNG"))
    with pytest.raises(
        DataError, match=r"long\.png: 1x2000 is too long to be scaled to 512x1024000"
    ):
        crop_image(path, DataConfig(path=""), Place(Size(512, 512)), random.Random(0))


def test_all_broken_pictures_are_told_together(tmp_path: Path) -> None:
    good = at(tmp_path, "good.png", RIGHT["rgb.png"][0])
    bad = [at(tmp_path, f"{number:02}.png", b"") for number in range(13)]
    with pytest.raises(DataError) as reported:
        sound_paths([*bad, good], "refuse")
    first, *named, more, remedy = str(reported.value).splitlines()
    assert first == "13 of 14 pictures cannot be used:"
    assert [line.partition(": ")[0] for line in named] == [str(path) for path in bad[:10]]
    assert (more, remedy) == ("… and 3 more", "data.broken_pictures: skip leaves such pictures out")
    with pytest.raises(DataError, match="skip leaves nothing: 13 of 13"):
        sound_paths(bad, "skip")


def test_refuse_reads_heads_and_skip_all_pixels(tmp_path: Path) -> None:
    """What is cut off behind its head is found by decoding only."""
    good = at(tmp_path, "good.png", RIGHT["rgb.png"][0])
    bad = at(tmp_path, "bad.png", BROKEN["cut.png"][0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sound_paths([bad, good], "refuse") == [bad, good]
    with pytest.warns(
        RecipeWarning, match=r"data\.broken_pictures: left out: 1 of 2 .*\n.*bad\.png"
    ):
        assert sound_paths([bad, good], "skip") == [good]


def test_broken_class_pictures(tmp_path: Path) -> None:
    good = at(tmp_path, "a dog.png", RIGHT["rgb.png"][0])
    bad = at(tmp_path, "b dog.png", BROKEN["cut.png"][0])
    config = ConceptConfig(class_data_dir=str(tmp_path), class_prompt="a dog")
    folder = ClassFolder(tmp_path, "dog", config, Counter({"a dog": 2}))
    with pytest.warns(RecipeWarning, match="left out: 1 of 2 pictures"):
        assert [one.path for one in class_pictures([folder], [".txt"], "skip")] == [good]
    bad.write_bytes(b"")
    with pytest.raises(DataError, match=r"1 of 2 pictures cannot be used:\n.*b dog\.png"):
        class_pictures([folder], [".txt"], "refuse")
