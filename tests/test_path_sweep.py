"""Every command and path option with paths that cannot be used: one message, never a traceback."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.path_sweep import Answer, Case, answers

TRAIN = """
name: run
objective: {{type: lora, rank: 2}}
base_model: {{path: {base}}}
data: {{path: {data}, captions: {{fallback: a dog}}}}
max_train_steps: 1
train_batch_size: 1
sampling: {{settings: {{steps: 1}}}}
output_dir: {out}
"""
IMAGES = """
base_model: {{path: {base}}}
settings: {{steps: 1, seed: 1}}
images: {{a: {{prompt: cat}}}}
output_dir: {out}
grid: false
"""
CLIPS = """
type: clip
base_model: {{path: {base}}}
clips: {{a: {{prompt: cat}}}}
output_dir: {out}
"""
ANIMATION = """
type: animation
base_model: {{path: {base}}}
settings: {{max_frames: 2, W: 16, H: 16, steps: 1, prompts: {{"0": cat}}}}
output_dir: {out}
"""

HAZARDS = "locked", "below", "long", "longer", "pipe", "dangling", "circle", "other"
"""A file without access, one in such a folder, a name and a path that are too long, a named pipe, a
link to nothing, links in a circle, and a folder where a file is expected or the reverse."""

OPTIONS = {
    "train data.path": ("train", "data.path={}", "folder", ""),
    "train base_model.path": ("train", "base_model.path={}", "folder", ""),
    "train base_model.path of a file": ("train", "base_model.path={}", "file", ".safetensors"),
    "train output_dir": ("train", "output_dir={}", "folder", ""),
    "train cache_dir": ("train", "data.cache=disk data.cache_dir={}", "folder", ""),
    "train template": ("train", "data.captions.template={}", "file", ".txt"),
    "train metadata_file": (
        "train",
        "data.subsets.a.path=DATA data.path=null data.subsets.a.metadata_file={}",
        "file",
        ".json",
    ),
    "train masks.path": ("train", "data.masks.path={}", "folder", ""),
    "train validation.path": ("train", "validation.path={}", "folder", ""),
    "train kohya_config": ("train", "data.path=null data.kohya_config={}", "file", ".toml"),
    "train kohya_folders": ("train", "data.path=null data.kohya_folders={}", "folder", ""),
    "train concepts_list": ("train", "data.path=null data.concepts_list={}", "file", ".json"),
    "train instance_data_dir": (
        "train",
        "data.path=null data.concepts.a.instance_data_dir={}",
        "folder",
        "",
    ),
    "plan data.path": ("train", "data.path={}", "folder", ""),
    "plan base_model.path": ("train", "base_model.path={}", "folder", ""),
    "plan output_dir": ("train", "output_dir={}", "folder", ""),
    "plan template": ("train", "data.captions.template={}", "file", ".txt"),
    "draw base_model.path": ("images", "base_model.path={}", "folder", ""),
    "draw base_model.path of a file": ("images", "base_model.path={}", "file", ".safetensors"),
    "draw output_dir": ("images", "output_dir={}", "folder", ""),
    "draw artifact": ("images", "artifacts.a.path={}", "file", ".safetensors"),
    "draw pickled artifact": ("images", "artifacts.a.path={}", "file", ".pt"),
    "draw artifact_dirs": ("images", "artifact_dirs=[{}]", "folder", ""),
    "draw styles_file": ("images", "styles_file={} images.a.styles=[x]", "file", ".csv"),
    "draw init_image": ("images", "images.a.img2img.init_image={}", "file", ".png"),
    "clip base_model.path": ("clips", "base_model.path={}", "folder", ""),
    "clip image": ("clips", "clips.a.image={}", "file", ".png"),
    "clip output_dir": ("clips", "output_dir={}", "folder", ""),
    "animation output_dir": ("animation", "output_dir={}", "folder", ""),
    "animation settings_file": ("animation", "settings_file={}", "file", ".txt"),
    "animation init image": (
        "animation",
        "settings.use_init=true settings.init_image={}",
        "file",
        ".png",
    ),
    "animation video": (
        "animation",
        'settings.animation_mode="Video Input" settings.video_init_path={}',
        "file",
        ".mp4",
    ),
    "animation sound": (
        "animation",
        "settings.add_soundtrack=File settings.soundtrack_path={}",
        "file",
        ".wav",
    ),
    "recipe of train": (None, "train {}", "file", ".yaml"),
    "recipe of plan": (None, "plan {}", "file", ".yaml"),
    "recipe of draw": (None, "draw {}", "file", ".yaml"),
    "settings of draw": (None, "draw {}", "file", ".txt"),
    "picture of draw": (None, "draw {}", "file", ".png"),
    "diff": (None, "diff {} {}", "folder", ""),
    "rerun": (None, "rerun {}", "folder", ""),
    "stitch": (None, "stitch {}", "folder", ""),
    "stitch settings": (None, "stitch {}", "file", ".txt"),
    "inspect artifact": (None, "inspect {}", "file", ".safetensors"),
    "inspect pickle": (None, "inspect {}", "file", ".pt"),
    "inspect picture": (None, "inspect {}", "file", ".png"),
    "inspect video": (None, "inspect {}", "file", ".mp4"),
    "convert IN": (None, "convert {} out.safetensors --to kohya", "file", ".safetensors"),
    "convert merged": (
        None,
        "convert BASE out.safetensors --to single-file --merge {}",
        "file",
        ".safetensors",
    ),
}
"""Name -> kind of recipe (None: the whole command line), arguments, what is expected, suffix."""

PIPES_ARE_READ = ("recipe of train", "recipe of plan", "recipe of draw")
"""A recipe may come out of a pipe, as `<(generate)`; nobody writes to this one."""

ONLY_WARNED = ("plan output_dir",)
"""A plan may be for another machine."""

QUICK = (
    "train kohya_config",
    "train concepts_list",
    "recipe of draw",
    "settings of draw",
    "inspect picture",
)
"""Those that are answered before torch is imported, which takes longer than all of them."""


def hazard(folder: Path, kind: str, expected: str, suffix: str) -> Path:
    """Make a path that cannot be used, and return it."""
    path = folder / f"{kind}-{expected}{suffix}"
    is_too_long = kind in ("long", "longer")
    if path.is_symlink() or (not is_too_long and path.exists()):
        return path
    match kind:
        case "locked":
            path.mkdir() if expected == "folder" else path.write_text("x")
            path.chmod(0)
        case "below":
            path = folder / "closed" / path.name
            path.parent.mkdir(exist_ok=True)
            path.parent.chmod(0)
        case "long":
            path = folder / ("a" * 300 + suffix)
        case "longer":
            path = folder / ("/".join(["b" * 200] * 25) + suffix)
        case "pipe":
            os.mkfifo(path)
        case "dangling":
            path.symlink_to(folder / "nothing" / "there")
        case "circle":
            path.symlink_to(path)
        case _:
            path.write_text("x") if expected == "folder" else path.mkdir()
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder whose contents can be deleted afterwards by whoever runs the tests."""
    yield tmp_path
    for path in [tmp_path, *tmp_path.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o755)


def cases(folder: Path, base: Path, names: list[str]) -> list[Case]:
    """Return the command lines of options with each hazard."""
    data = folder / "data"
    data.mkdir()
    (data / "a.png").write_bytes(PICTURE)
    recipes = {"train": TRAIN, "images": IMAGES, "clips": CLIPS, "animation": ANIMATION}
    for name, text in recipes.items():
        content = text.format(base=base, data=data, out=folder / "out" / name)
        (folder / f"{name}.yaml").write_text(content)
    found: list[Case] = []
    for name in names:
        recipe, arguments, expected, suffix = OPTIONS[name]
        for kind in HAZARDS:
            if kind == "pipe" and name in PIPES_ARE_READ:
                continue
            path = str(hazard(folder, kind, expected, suffix))
            places = arguments.replace("BASE", str(base)).replace("DATA", str(data))
            given = [one.format(path) for one in places.split(" ")]
            if recipe is not None:
                command = "draw" if recipe in ("images", "clips", "animation") else name.split()[0]
                given = [command, str(folder / f"{recipe}.yaml"), *quoted(given)]
            found.append((f"{name}: {kind}", given, None))
    return found


def quoted(arguments: list[str]) -> list[str]:
    """Join the parts of a quoted value again."""
    return (
        " ".join(arguments)
        .replace('"Video Input"', '"Video\0Input"')
        .replace(" ", "\n")
        .replace("\0", " ")
        .split("\n")
    )


PICTURE = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c4944415408d763f8"
    "cfc000000301010018dd8db00000000049454e44ae426082"
)
"""A PNG of one red pixel."""


def is_warned(one: Answer) -> bool:
    """Return whether a command went on after a warning, which only some may do."""
    name = one.name.partition(": ")[0]
    return one.status == 0 and name in ONLY_WARNED and bool(one.err.strip())


def faults(folder: Path, base: Path, names: list[str]) -> list[str]:
    """Return the cases that do not end with one message, and what they do instead."""
    found = []
    for one in answers(cases(folder, base, names), folder):
        print(f"{one.name}: {one.status}, {one.seconds:.1f} s: {one.err}")
        if not one.is_a_message and not is_warned(one):
            found.append(f"{one.name}: {one.status}: {one.err}")
    return found


@pytest.mark.parametrize(
    "names",
    [pytest.param([*QUICK], id="quick")]
    + [
        pytest.param([name], marks=pytest.mark.slow, id=name)
        for name in OPTIONS
        if name not in QUICK
    ],
)
def test_a_path_that_cannot_be_used_is_one_message(
    names: list[str], folder: Path, tiny_base_folder: Path
) -> None:
    assert faults(folder, tiny_base_folder, names) == []
