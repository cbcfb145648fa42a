"""Masks: files, alpha, expressions, and that nothing changes outside of them."""

import numpy as np
import pytest
from PIL import Image

from inference.deforum.geometry.pixels import composite
from inference.deforum.pictures.masks import (
    MaskSources,
    alpha_mask,
    compose_mask,
    is_blank,
    parse_mask,
    prepare_mask,
    read_mask,
)
from inference.deforum.settings.compat import DEFORUM, FIXED, Compat
from inference.runtime.errors import InputError

WIDTH, HEIGHT = 8, 4


def columns(first, last):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[:, first:last] = 255
    return mask


A, B = columns(0, 4), columns(2, 6)
SOURCES = MaskSources(
    WIDTH, HEIGHT, {"a": A, "b": B, "video_mask": A}, words=lambda text: columns(0, len(text))
)


def row(text, compat: Compat = FIXED, sources=SOURCES):
    mask = compose_mask(parse_mask(text), sources, compat)
    assert mask.shape == (HEIGHT, WIDTH)
    return "".join("#" if value else "." for value in mask[0])


@pytest.mark.parametrize("compat", [DEFORUM, FIXED])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{a}", "####...."),
        ("{everywhere}", "########"),
        ("", "########"),
        ("!{a}", "....####"),
        ("!!{a}", "####...."),
        ("{a}&{b}", "..##...."),
        ("{a} | {b}", "######.."),
        ("{a} ^ {b}", "##..##.."),
        (r"{a} \ {b}", "##......"),
        ("<cat>", "###....."),
        ("<cat> & (!{b})", "##......"),
        ("!({a} | {b})", "......##"),
        # precedence: ! & | ^ \
        ("!{a} & {b}", "....##.."),
        ("{a} | {b} & <x>", "####...."),
        ("({a} | {b}) & <x>", "#......."),
        ("{a} ^ {b} | <x>", ".#..##.."),
        (r"{a} \ {b} ^ {a}", "..##...."),
        (r"{a} \ <x> \ <xxx>", "...#...."),
    ],
)
def test_expressions(text, expected, compat):
    assert row(text, compat) == expected


def test_greys_are_kept_unless_deforum_dithers_them():
    grey = np.full((HEIGHT, WIDTH), 100, np.uint8)
    sources = MaskSources(WIDTH, HEIGHT, {"grey": grey, "a": A})
    assert np.all(compose_mask(parse_mask("!{grey}"), sources) == 155)
    assert np.all(compose_mask(parse_mask("{grey} & {a}"), sources) == np.minimum(grey, A))
    dithered = compose_mask(parse_mask("{grey}"), sources, DEFORUM)
    assert set(np.unique(dithered)) == {0, 255}
    assert 0.2 < dithered.mean() / 255 < 0.6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{a} {b}", r"mask_schedule: '\{a\} \{b\}', column 5: expected an operator"),
        ("{a} & ", "column 7: expected {name}"),
        ("({a}", r"column 5: expected \"\)\""),
        ("<cat", 'column 1: expected ">" somewhere'),
        ("cat", "column 1: expected {name}"),
        ("{a})", "column 4: expected an operator"),
    ],
)
def test_what_cannot_be_read_says_where(text, message):
    with pytest.raises(InputError, match=message):
        parse_mask(text)


def test_the_key_is_named():
    with pytest.raises(InputError, match="noise_mask_schedule: "):
        parse_mask("&", "noise_mask_schedule")


def test_what_is_not_there():
    with pytest.raises(InputError, match=r"mask \{c\}: no such mask here; there are \{every"):
        row("{c}")
    with pytest.raises(InputError, match="mask <cat>: words need a CLIPSeg model"):
        row("<cat>", sources=MaskSources(WIDTH, HEIGHT, {}))
    with pytest.raises(InputError, match="nowhere"):
        row("[nowhere.png]")


def test_leaves_tell_what_an_expression_needs():
    leaves = parse_mask(r"<a cat> \ ([m.png] | !{tracked})").leaves()
    assert [(leaf.operator, leaf.text) for leaf in leaves] == [
        ("words", "a cat"),
        ("file", "m.png"),
        ("name", "tracked"),
    ]


def test_mask_files_are_found_beside_the_settings(tmp_path):
    Image.fromarray(A).save(tmp_path / "m.png")
    sources = MaskSources(WIDTH, HEIGHT, {}, folder=tmp_path)
    assert row("![m.png]", sources=sources) == "....####"
    assert np.array_equal(read_mask(tmp_path / "m.png", WIDTH, HEIGHT), A)


def test_a_mask_is_prepared():
    halves = Image.fromarray(np.array([[40, 160]], np.uint8).repeat(2, 0))
    assert prepare_mask(halves, 2, 2)[0].tolist() == [40, 160]
    assert prepare_mask(halves, 2, 2, brightness=1.5)[0].tolist() == [60, 240]
    assert prepare_mask(halves, 2, 2, contrast=2)[0].tolist() == [0, 220]  # about the mean, 100
    assert prepare_mask(halves, 2, 2, 1.5, 2)[0].tolist() == [0, 255]
    assert prepare_mask(halves, 2, 2, invert=True)[0].tolist() == [215, 95]
    assert prepare_mask(halves, 7, 3).shape == (3, 7)


def test_alpha_is_a_mask_unless_it_says_nothing():
    image = Image.new("RGBA", (2, 1), (9, 9, 9, 255))
    assert alpha_mask(image, 2, 1) is None
    assert alpha_mask(image.convert("RGB"), 2, 1) is None
    image.putpixel((1, 0), (9, 9, 9, 0))
    mask = alpha_mask(image, 2, 1)
    assert mask is not None and mask.tolist() == [[255, 0]]


def test_blank_masks():
    assert is_blank(columns(0, 0))
    assert not is_blank(columns(0, 1))


def test_outside_of_the_mask_nothing_changes():
    rng = np.random.default_rng(0)
    drawn, original = rng.integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    mask = np.zeros((64, 64), np.uint8)
    mask[20:50, 10:30] = rng.integers(1, 256, (30, 20))
    mask[25:45, 15:25] = 255
    result = composite(drawn, original, mask)
    assert np.array_equal(result[mask == 0], original[mask == 0])
    assert np.array_equal(result[mask == 255], drawn[mask == 255])
