"""Build the images that `picto` is pretrained on: icon packages -> 64x64 PNG -> scenes.

Source: `datasets/picto/manifest.jsonl` names every icon (npm package, style, name, tags, split).
Iconify's `icons.json` format: https://iconify.design/docs/types/iconify-json.html

    python -m scripts.picto.build_picto_dataset            # about two minutes on two cores

Makes, below `datasets/picto/`:
    packages/*.tgz                      the npm packages, checked against npm_sha256.txt
    images/{train,val,demo}/*.png       64x64 RGBA, one per manifest line, with metadata.jsonl
    composed/{plain,scenes}/*.png       64x64 RGB training scenes (split train only), with
                                        metadata.jsonl whose `text` is a list of caption variants
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import multiprocessing
import random
import subprocess
import tarfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from inference.runtime import output

SIZE = 64  # pixels
SPLITS = ("train", "val", "demo")
WHITE = (255, 255, 255)
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 60, 55),
    "orange": (245, 150, 55),
    "yellow": (250, 220, 90),
    "green": (90, 180, 95),
    "blue": (70, 120, 215),
    "sky blue": (170, 210, 245),
    "purple": (140, 90, 190),
    "pink": (250, 190, 210),
    "grey": (170, 170, 175),
    "black": (20, 20, 24),
    "sand": (240, 225, 190),
    "mint": (190, 235, 205),
}
WHITE_SHARE = 1 / 3  # of the variants after the first, so that half of all scenes are white
PAIR_SHARE = 0.13  # of the variants after the first, so that a tenth of all scenes are pairs
SCALES = (0.6, 1.0)
SMALL_BELOW, LARGE_ABOVE = 0.68, 0.94
MAX_SHIFT = 6  # pixels; the icon's square never leaves the image

Record = dict[str, Any]


class BuildError(RuntimeError):
    """A package or a manifest line is not what the build expects; the message names the remedy."""


# ------------------------------------------------------------------------------------- packages


def read_checksums(path: Path) -> dict[str, tuple[str, str]]:
    """Read `sha256  scope-name-version.tgz` lines into {npm name: (tarball name, sha256)}."""
    pinned = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        digest, tarball = line.split()
        stem = tarball.removesuffix(".tgz").rsplit("-", 1)[0]
        pinned["@" + stem.replace("iconify-json-", "iconify-json/", 1)] = (tarball, digest)
    return pinned


def fetch_package(name: str, tarball: str, digest: str, folder: Path) -> Path:
    """Return the checked tarball of one npm package, fetched with `npm pack` unless cached.

    Raises:
        BuildError: npm is missing or fails, or the bytes differ from the pinned checksum.
    """
    path = folder / tarball
    if not path.exists():
        version = tarball.removesuffix(".tgz").rsplit("-", 1)[1]
        target = f"{name}@{version}"
        command = ["npm", "pack", "--silent", "--pack-destination", str(folder), target]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise BuildError(
                f"{path}: not there, and `npm` was not found to fetch {target}. "
                f"Install Node.js (it brings npm), or put the tarball there by hand."
            ) from error
        except subprocess.CalledProcessError as error:
            raise BuildError(
                f"`{' '.join(command)}` failed with status {error.returncode}:\n{error.stderr}\n"
                f"Check the network or npm's settings, or put the tarball at {path}."
            ) from error
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != digest:
        raise BuildError(
            f"{path}: sha256 is {found}, expected {digest} (npm_sha256.txt). "
            f"Delete the file to fetch it again; if it stays so, the package was changed: "
            f"do not train from it."
        )
    return path


def read_icons(tarball: Path) -> Record:
    """Return the package's `icons.json` as a dict."""
    with tarfile.open(tarball) as archive:
        member = archive.extractfile("package/icons.json")
        if member is None:
            raise BuildError(f"{tarball}: package/icons.json is not a file; expected an icon set.")
        return json.load(member)


# ------------------------------------------------------------------------------------ rendering


def svg_of(icons: Record, name: str, transform: dict[str, Any]) -> str:
    """Return a square SVG document of one icon (an oblong icon is centred in its square).

    Raises:
        BuildError: the package has no icon of that name.
    """
    icon = icons["icons"].get(name)
    if icon is None:
        raise BuildError(
            f"icon {name!r} is not in package {icons.get('prefix')!r}, though the manifest names "
            f"it. Manifest and npm_sha256.txt must be of the same version."
        )
    left, top = (icon.get(key, icons.get(key, 0)) for key in ("left", "top"))
    width, height = (icon.get(key, icons.get(key, 16)) for key in ("width", "height"))
    body = icon["body"]
    if transform.get("hFlip"):
        body = f'<g transform="translate({2 * left + width} 0) scale(-1 1)">{body}</g>'
    side = max(width, height)
    box = f"{left - (side - width) / 2} {top - (side - height) / 2} {side} {side}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{SIZE}" height="{SIZE}" viewBox="{box}">{body}</svg>'
    )


def render(task: tuple[str, str]) -> str | None:
    """Rasterise one (SVG text, output path) to 64x64 RGBA; return the path if nothing was drawn."""
    from resvg_py import svg_to_bytes

    svg, path = task
    png = bytes(svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE, skip_system_fonts=True))
    with Image.open(io.BytesIO(png)) as opened:
        image = opened.convert("RGBA")
    image.save(path, compress_level=1)
    return path if image.getchannel("A").getbbox() is None else None


def image_name(record: Record) -> str:
    """Return the file name of the record's image in the folder of its split."""
    return f"{record['style']}-{record['hex']}.png"


def write_jsonl(path: Path, rows: list[Record]) -> None:
    """Write one JSON object per line, UTF-8."""
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")


def render_all(
    manifest: list[Record], icon_sets: dict[str, Record], folder: Path, workers: int
) -> None:
    """Render every manifest line below `folder`/{split}/ and write each split's metadata.jsonl."""
    tasks, rows = [], defaultdict(list)
    for record in manifest:
        split_folder = folder / record["split"]
        split_folder.mkdir(parents=True, exist_ok=True)
        svg = svg_of(icon_sets[record["package"]], record["icon"], record.get("transform", {}))
        tasks.append((svg, str(split_folder / image_name(record))))
        text = f"{record['name']}, {record['style_words']}"
        kept = {k: v for k, v in record.items() if k not in ("package", "icon", "transform")}
        rows[record["split"]].append({"file_name": image_name(record), "text": text, **kept})
    with multiprocessing.Pool(workers) as pool:
        results = pool.imap_unordered(render, tasks, chunksize=32)
        empty = [path for path in tqdm(results, "rendering", len(tasks), unit="img") if path]
    if empty:
        raise BuildError(f"{len(empty)} icons came out empty, first {empty[0]}; update resvg-py.")
    for split, split_rows in rows.items():
        write_jsonl(folder / split / "metadata.jsonl", split_rows)


# -------------------------------------------------------------------------------------- captions


def caption_variants(
    subject: str, style_words: str, tags: list[str], background: str | None, rng: random.Random
) -> list[str]:
    """Return 18 captions; drawing one uniformly gives the forms' weights 10 : 2 : 3 : 3.

    With a tenth of the captions dropped by the trainer these are 50, 10, 15 and 15 per cent:
    `{name}, {style}`; `{name}`; `{style}, {name}, {1-3 tags}`; `a {style} picture of {name}`.
    """
    captions = [f"{subject}, {style_words}"] * 10 + [subject] * 2
    for count in (1, 2, 3):
        chosen = rng.sample(tags, min(count, len(tags)))
        captions.append(", ".join([style_words, subject, *chosen]))
    captions += [f"a {style_words} picture of {subject}"] * 3
    suffix = f", {background} background" if background else ""
    return [caption + suffix for caption in captions]


# ----------------------------------------------------------------------------------- composition


def paste(
    canvas: Image.Image, icon: Image.Image, scale: float, centre: tuple[float, float]
) -> None:
    """Draw an RGBA icon on the canvas at `scale` of the canvas side, centred at (x, y) pixels."""
    side = round(SIZE * scale)
    if side != icon.width:
        icon = icon.resize((side, side), Image.Resampling.LANCZOS)
    x, y = (round(c - side / 2) for c in centre)
    canvas.paste(icon, (x, y), icon)


def load_icon(folder: Path, record: Record) -> Image.Image:
    """Open a rendered train icon as RGBA, 64x64."""
    with Image.open(folder / image_name(record)) as opened:
        return opened.convert("RGBA")


def plain_scene(record: Record, images: Path, rng: random.Random) -> tuple[Image.Image, list[str]]:
    """Return the icon at full size, centred, on white, and its captions."""
    canvas = Image.new("RGB", (SIZE, SIZE), WHITE)
    paste(canvas, load_icon(images, record), 1.0, (SIZE / 2, SIZE / 2))
    captions = caption_variants(record["name"], record["style_words"], record["tags"], None, rng)
    return canvas, captions


def pick_background(rng: random.Random, white_share: float) -> tuple[str | None, tuple[int, ...]]:
    """Return a named colour (name, RGB); white is named in half of its captions."""
    if rng.random() < white_share:
        return rng.choice((None, "white")), WHITE
    name = rng.choice(list(COLOURS))
    return name, COLOURS[name]


def single_scene(record: Record, images: Path, rng: random.Random) -> tuple[Image.Image, list[str]]:
    """Return the icon scaled and shifted on white or a named colour; extreme sizes are named."""
    background, colour = pick_background(rng, WHITE_SHARE)
    scale = rng.uniform(*SCALES)
    room = min(MAX_SHIFT, SIZE * (1 - scale) / 2)
    centre = (SIZE / 2 + rng.uniform(-room, room), SIZE / 2 + rng.uniform(-room, room))
    canvas = Image.new("RGB", (SIZE, SIZE), colour)
    paste(canvas, load_icon(images, record), scale, centre)
    size = "small " if scale < SMALL_BELOW else "large " if scale > LARGE_ABOVE else ""
    subject = size + record["name"]
    style, tags = record["style_words"], record["tags"]
    return canvas, caption_variants(subject, style, tags, background, rng)


def pair_scene(
    record: Record, other: Record, images: Path, rng: random.Random
) -> tuple[Image.Image, list[str]]:
    """Return two icons of one style side by side, the first named on the left."""
    background, colour = pick_background(rng, 0.5)
    canvas = Image.new("RGB", (SIZE, SIZE), colour)
    scale = rng.uniform(0.44, 0.5)
    for side, icon in ((0.25, record), (0.75, other)):
        centre = (SIZE * side, SIZE / 2 + rng.uniform(-MAX_SHIFT, MAX_SHIFT))
        paste(canvas, load_icon(images, icon), scale, centre)
    subject = f"{record['name']} and {other['name']}"
    tags = record["tags"][:2] + other["tags"][:2]
    return canvas, caption_variants(subject, record["style_words"], tags, background, rng)


def compose(task: tuple[Record, Record, int, int, str, str]) -> Record:
    """Compose one scene and return its metadata row. Choices depend on (seed, icon, variant)."""
    record, other, variant, seed, images, out = task
    rng = random.Random(f"{seed}:{record['style']}:{record['hex']}:{variant}")
    if variant == 0:
        kind, (scene, captions) = "plain", plain_scene(record, Path(images), rng)
    elif rng.random() < PAIR_SHARE:
        kind, (scene, captions) = "pair", pair_scene(record, other, Path(images), rng)
    else:
        kind, (scene, captions) = "single", single_scene(record, Path(images), rng)
    file_name = f"{record['style']}-{record['hex']}-{variant}.png"
    scene.save(Path(out) / scene_folder(kind) / file_name, compress_level=1)
    kept = {key: record[key] for key in ("name", "style", "hex", "tier", "licence")}
    return {"file_name": file_name, "text": captions, "kind": kind, **kept}


def scene_folder(kind: str) -> str:
    """Return plain/ for one icon on white, scenes/ for everything else."""
    return "plain" if kind == "plain" else "scenes"


def compose_all(
    manifest: list[Record], images: Path, out: Path, variants: int, seed: int, workers: int
) -> list[Record]:
    """Compose `variants` scenes per train icon into `out` and return the metadata rows."""
    for name in ("plain", "scenes"):
        (out / name).mkdir(parents=True, exist_ok=True)
    train = [record for record in manifest if record["split"] == "train"]
    by_style = defaultdict(list)
    for record in train:
        by_style[record["style"]].append(record)
    rng = random.Random(f"{seed}:partners")
    tasks = [
        (record, rng.choice(by_style[record["style"]]), variant, seed, str(images), str(out))
        for record in train
        for variant in range(variants)
    ]
    with multiprocessing.Pool(workers) as pool:
        results = pool.imap(compose, tasks, chunksize=64)
        rows = list(tqdm(results, "composing", len(tasks), unit="img"))
    for name in ("plain", "scenes"):
        of_folder = [row for row in rows if scene_folder(row["kind"]) == name]
        write_jsonl(out / name / "metadata.jsonl", of_folder)
    return rows


# ------------------------------------------------------------------------------------------ main


def build(folder: Path, variants: int, seed: int, workers: int) -> None:
    """Download, render and compose everything below `folder`, and print a summary."""
    lines = (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    manifest = [json.loads(line) for line in lines]
    pinned = read_checksums(folder / "npm_sha256.txt")
    packages = folder / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    icon_sets = {}
    for name in tqdm(sorted({r["package"] for r in manifest}), "packages", unit="pkg"):
        if name not in pinned:
            raise BuildError(f"{folder}/npm_sha256.txt: no checksum for {name}; add its tarball.")
        icon_sets[name] = read_icons(fetch_package(name, *pinned[name], packages))
    images = folder / "images"
    render_all(manifest, icon_sets, images, workers)
    rows = compose_all(manifest, images / "train", folder / "composed", variants, seed, workers)
    splits = Counter(record["split"] for record in manifest)
    for split in SPLITS:
        output(f"{images / split}: {splits[split]} pictures, RGBA {SIZE}x{SIZE}, metadata.jsonl")
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(r["kind"] for r in rows).items())
    output(
        f"{folder / 'composed'}: {len(rows)} scenes, RGB {SIZE}x{SIZE} ({kinds}), metadata.jsonl"
    )


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("datasets/picto"))
    parser.add_argument("--variants", type=int, default=4, help="scenes per train icon")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    try:
        build(arguments.folder, arguments.variants, arguments.seed, arguments.workers)
    except BuildError as error:
        raise SystemExit(f"build_picto_dataset: {error}") from error


if __name__ == "__main__":
    main()
