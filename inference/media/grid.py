"""Image grids: images in rows and columns with labels, which can be cut out again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from inference.media.outputs import write_new
from inference.media.pictures import save_png

GAP = 6
"""Pixels between cells, and around labels."""

SMALLEST_CELL = 128
"""Minimum length of a cell's longer side in pixels, by default."""

MOST_LINES = 4
"""Maximum lines of a column label; longer ones are shortened. Row labels may fill their row."""

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Box = tuple[int, int, int, int]


def image_grid(
    rows: Sequence[Sequence[Image.Image]],
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] | Sequence[Sequence[str]] = (),
    scale: int | None = None,
) -> Image.Image:
    """Arrange images in rows, with labels to the left and above. Rows may differ in length.

    Args:
        rows: the images, RGB.
        row_labels: one for each row, or none.
        column_labels: one for each column, above the first row; or a list of labels for each row.
        scale: each pixel becomes scale x scale equal pixels; by default, as large as needed to see
            the images well.

    Returns:
        The grid. `grid_cells` cuts the images out again, also after `save_grid`.
    """
    cells = [cell for row in rows for cell in row]
    if not cells:
        raise ValueError("a grid needs at least one picture")
    if row_labels and len(row_labels) != len(rows):
        raise ValueError(f"{len(row_labels)} row labels for {len(rows)} rows")
    scale = scale or -(-SMALLEST_CELL // max(max(cell.size) for cell in cells))
    width = scale * max(cell.width for cell in cells)
    height = scale * max(cell.height for cell in cells)
    font = ImageFont.load_default(max(12, min(24, width // 11)))
    headers = [wrap_all(labels, font, width) for labels in headers_of(column_labels, len(rows))]
    sides = wrap_all(
        row_labels, font, max(96, width), most_lines=max(1, height // line_height(font))
    )
    left = GAP + (max(text_width(label, font) for label in sides) + GAP if sides else 0)
    heads = [header_height(labels, font) for labels in headers]
    columns = max(len(row) for row in rows)
    size = left + columns * (width + GAP), GAP + sum(heads) + len(rows) * (height + GAP)
    grid = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(grid)
    boxes: list[list[Box]] = []
    top = GAP
    for number, row in enumerate(rows):
        for column, label in enumerate(headers[number]):
            pen.multiline_text((left + column * (width + GAP), top), label, "black", font)
        top += heads[number]
        if sides:
            pen.multiline_text((GAP, top), sides[number], "black", font)
        corners = [(left + column * (width + GAP), top) for column in range(len(row))]
        boxes.append([paste(grid, *pair, scale) for pair in zip(row, corners, strict=True)])
        top += height + GAP
    grid.info["grid"] = json.dumps({"scale": scale, "boxes": boxes})
    return grid


def headers_of(
    labels: Sequence[str] | Sequence[Sequence[str]], num_rows: int
) -> list[Sequence[str]]:
    """Return the labels above each row."""
    first: list[Sequence[str]] = []
    if labels and all(isinstance(label, str) for label in labels):
        first = [[str(label) for label in labels]]
    elif labels:
        first = [list(row) for row in labels]
    return first + [[]] * (num_rows - len(first))


def paste(grid: Image.Image, cell: Image.Image, corner: tuple[int, int], scale: int) -> Box:
    """Paste an image, enlarged by an integer factor; return its box."""
    size = cell.width * scale, cell.height * scale
    grid.paste(cell.convert("RGB").resize(size, Image.Resampling.NEAREST), corner)
    return (*corner, corner[0] + size[0], corner[1] + size[1])


def grid_cells(grid: Image.Image) -> list[list[Image.Image]]:
    """Cut the images out of a grid, pixel for pixel as they were.

    Raises:
        ValueError: the image is not a grid by `image_grid`.
    """
    if "grid" not in grid.info:
        raise ValueError("not a grid drawn by Limner: its layout is not in the file")
    layout = json.loads(grid.info["grid"])
    scale = layout["scale"]

    def cut(box: Box) -> Image.Image:
        size = (box[2] - box[0]) // scale, (box[3] - box[1]) // scale
        return grid.crop(box).resize(size, Image.Resampling.NEAREST)

    return [[cut(box) for box in row] for row in layout["boxes"]]


def save_grid(path: Path, grid: Image.Image, infotexts: Sequence[str] = ()) -> None:
    """Write a grid as PNG, with its layout and the infotexts of its images."""
    save_png(path, grid, grid_texts(grid, infotexts))


def write_new_grid(folder: Path, grid: Image.Image, infotexts: Sequence[str], before: str) -> Path:
    """Write the same under the next free number; return its path."""
    return write_new(folder, grid, grid_texts(grid, infotexts), before, digits=4)


def grid_texts(grid: Image.Image, infotexts: Sequence[str]) -> dict[str, str]:
    """Return the texts of a grid's file by keyword."""
    texts = {"parameters": "\n\n".join(infotexts), "grid": grid.info["grid"]}
    return {keyword: text for keyword, text in texts.items() if text}


def wrap_all(
    labels: Sequence[str], font: Font, width: int, most_lines: int = MOST_LINES
) -> list[str]:
    """Wrap labels into lines of at most `width` pixels."""
    return [wrap(label, font, width, most_lines) for label in labels]


def wrap(label: str, font: Font, width: int, most_lines: int) -> str:
    """Wrap a label between words, and within words that are too long; end in … if shortened."""
    lines = [""]
    for word in label.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    if len(lines) > most_lines:
        last = lines[most_lines - 1]
        while last and font.getlength(f"{last}…") > width:
            last = last[:-1]
        lines = [*lines[: most_lines - 1], f"{last}…"]
    return "\n".join(lines)


def line_height(font: Font) -> int:
    """Return the distance between lines in pixels, as Pillow sets them."""
    one, two = (ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox(
        (0, 0), text, font) for text in ("Ag", "Ag\nAg"))  # fmt: skip
    return round(two[3] - one[3])


def text_width(label: str, font: Font) -> int:
    """Return the width of the longest line in pixels."""
    return round(max(font.getlength(line) for line in label.split("\n")))


def header_height(labels: Sequence[str], font: Font) -> int:
    """Return the height of a row's labels in pixels, with the gap below them."""
    if not labels:
        return 0
    return max(label.count("\n") + 1 for label in labels) * line_height(font) + GAP
