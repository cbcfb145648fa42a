"""The bans that keep the design, and the size of the embedded models (CONTRIBUTING.md)."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(
    path for name in ("train", "inference", "scripts") for path in ROOT.glob(f"{name}/**/*.py")
)

MAX_ASSET_BYTES = 80_000_000

CONFIG_NAMES = ("cfg", "config")
COMMAND_LINES = ("click", "fire", "getopt", "optparse", "typer")
POSITIONALS = ("recipe", "overrides", "files", "input", "output")
OPTIONS = {
    "inference/convert.py": (
        "--to", "--dtype", "--merge", "--prediction-type", "--alpha", "--overwrite",
    )
}  # fmt: skip
HEAVY = ("torch", "diffusers", "transformers", "accelerate", "peft", "bitsandbytes", "datasets")
GONE = {  # removed, renamed or broken in the pinned libraries -> what stands in its place
    "torch_dtype=": "dtype=",
    "enable_vae_slicing": "vae.enable_slicing()",
    "register_new_resolver": "register_resolver",
    "convert_state_dict_to_kohya": "our own key map",
    "import torchvision": "Pillow and torch; it is never required",
    "from torchvision": "Pillow and torch; it is never required",
    "use_stateful_dataloader": "train.data (its resume was out of order)",
}
UNFINISHED = ("TODO", "FIXME", "XXX", "HACK")

Finding = tuple[int, str]  # line, what is wrong and what to do


@cache
def parsed(source: str) -> ast.Module:
    """Parse a file once for all checks."""
    return ast.parse(source)


def imports(source: str) -> Iterator[tuple[int, str]]:
    """Every imported module, wherever in the file, with its line."""
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.lineno, node.module


def is_config(node: ast.expr) -> bool:
    """`config`, `lora_config`, `self.config`; not `unet.config`, which is the library's."""
    if isinstance(node, ast.Attribute):
        of_self = isinstance(node.value, ast.Name) and node.value.id == "self"
        return of_self and is_config(ast.Name(node.attr))
    return isinstance(node, ast.Name) and node.id.split("_")[-1] in CONFIG_NAMES


def untyped_look_ups(path: str, source: str) -> Iterator[Finding]:
    for node in ast.walk(parsed(source)):
        match node:
            case ast.Call(func=ast.Attribute(attr="get", value=owner)) if is_config(owner):
                yield node.lineno, "config.get: a recipe is a dataclass; use the attribute"
            case ast.Call(func=ast.Name(id="getattr" | "hasattr"), args=[owner, *_]) if is_config(
                owner
            ):
                yield node.lineno, "getattr on a config: a recipe is a dataclass; use the attribute"


def extra_options(path: str, source: str) -> Iterator[Finding]:
    if path.startswith("scripts/"):
        return
    known = (*POSITIONALS, *OPTIONS.get(path, ()))
    for line, name in imports(source):
        if name.split(".")[0] in COMMAND_LINES:
            yield line, f"import {name}: the command line is RECIPE [key=value ...]; use argparse"
    for node in ast.walk(parsed(source)):
        match node:
            case ast.Call(func=ast.Attribute(attr="add_argument"), args=names):
                for name in map(ast.unparse, names):
                    if name.strip("'") not in known:
                        yield node.lineno, f"option {name}: make it a key of the recipe"


def swallowed_exceptions(path: str, source: str) -> Iterator[Finding]:
    for node in ast.walk(parsed(source)):
        if not isinstance(node, ast.ExceptHandler):
            continue
        if node.type is None:
            yield node.lineno, "bare except: name what is caught"
        if all(isinstance(statement, ast.Pass) or is_literal(statement) for statement in node.body):
            yield node.lineno, "an exception is swallowed: handle it, or contextlib.suppress"


def is_literal(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def bare_schedulers(path: str, source: str) -> Iterator[Finding]:
    """What we name; a library's `scheduler=` argument and `pipeline.scheduler` are its own."""
    for node in ast.walk(parsed(source)):
        match node:
            case (
                ast.Name(id="scheduler" | "schedulers")
                | ast.arg(arg="scheduler" | "schedulers")
                | ast.alias(asname="scheduler" | "schedulers")
                | ast.Attribute(value=ast.Name(id="self"), attr="scheduler" | "schedulers")
                | ast.FunctionDef(name="scheduler" | "schedulers")
            ):
                yield node.lineno, "scheduler: say noise_scheduler, lr_scheduler or sampler"


def gone_words(path: str, source: str) -> Iterator[Finding]:
    for number, line in enumerate(source.splitlines(), 1):
        for word, instead in GONE.items():
            if word in line:
                yield number, f"{word!r} is gone or broken: {instead}"
        for word in UNFINISHED:
            if word in line:
                yield number, f"{word}: finish it, or file an issue"


def is_torch_free(path: str) -> bool:
    """Whether a module answers a wrong recipe before anything heavy is imported."""
    folder, *rooms, name = path.removesuffix(".py").split("/")
    return folder in ("train", "inference") and bool({"config", "recipe"} & {*rooms[:1], name})


def heavy_imports(path: str, source: str) -> Iterator[Finding]:
    if not is_torch_free(path):
        return
    for line, name in imports(source):
        if name.split(".")[0] in HEAVY:
            yield line, f"import {name}: config and recipe modules import nothing heavy"


def unfiltered_output(path: str, source: str) -> Iterator[Finding]:
    """Texts of files may contain commands to the terminal; `train.shadowing` escapes by itself."""
    if path in ("inference/runtime/text.py", "inference/runtime/console.py", "train/shadowing.py"):
        return
    for node in ast.walk(parsed(source)):
        match node:
            case ast.Call(func=ast.Name(id="print")):
                yield node.lineno, "print: use inference.runtime.output, which escapes"
            case ast.Call(func=ast.Name(id="Console") | ast.Attribute(attr="Console")):
                yield node.lineno, "Console: use inference.runtime.open_console, which escapes"


CHECKS = (
    untyped_look_ups,
    extra_options,
    swallowed_exceptions,
    bare_schedulers,
    gone_words,
    heavy_imports,
    unfiltered_output,
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_code_keeps(check):
    found = []
    for path in FILES:
        name = path.relative_to(ROOT).as_posix()
        found += [f"{name}:{line}: {fault}" for line, fault in check(name, path.read_text("utf-8"))]
    assert not found, "\n".join(["", *found])


VIOLATIONS = [
    (untyped_look_ups, "train/a.py", "config.get('rank', 4)"),
    (untyped_look_ups, "train/a.py", "self.config.get('rank')"),
    (untyped_look_ups, "train/a.py", "getattr(cfg, 'rank', 4)"),
    (untyped_look_ups, "train/a.py", "hasattr(lora_config, 'rank')"),
    (extra_options, "train/__main__.py", "parser.add_argument('--seed', type=int)"),
    (extra_options, "inference/convert.py", "parser.add_argument('--rank')"),
    (extra_options, "inference/a.py", "import click"),
    (extra_options, "inference/a.py", "from typer import Option"),
    (swallowed_exceptions, "train/a.py", "try:\n f()\nexcept OSError:\n pass"),
    (swallowed_exceptions, "train/a.py", "try:\n f()\nexcept:\n g()"),
    (swallowed_exceptions, "train/a.py", "try:\n f()\nexcept OSError:\n ..."),
    (bare_schedulers, "train/a.py", "scheduler = build()"),
    (bare_schedulers, "train/a.py", "def f(scheduler): g()"),
    (bare_schedulers, "train/a.py", "self.scheduler = build()"),
    (bare_schedulers, "train/a.py", "import a as scheduler"),
    (gone_words, "train/a.py", "load(path, torch_dtype=x)"),
    (gone_words, "train/a.py", "x = 1  # TODO"),
    (heavy_imports, "train/config.py", "import torch"),
    (heavy_imports, "inference/recipe.py", "from diffusers.models import x"),
    (heavy_imports, "train/config/data.py", "import torch"),
    (heavy_imports, "inference/recipe/loader.py", "def f():\n import transformers"),
    (unfiltered_output, "scripts/a.py", "print(name, flush=True)"),
    (unfiltered_output, "train/a.py", "rich.console.Console().show(name)"),
]


@pytest.mark.parametrize(("check", "path", "source"), VIOLATIONS)
def test_violation_is_found(check, path, source):
    assert len(list(check(path, source))) == 1


ALLOWED = [
    (
        untyped_look_ups,
        "train/a.py",
        "unet.config.get('x'), table.get('config'), getattr(unet.config, 'x')",
    ),
    (
        extra_options,
        "train/__main__.py",
        "parser.add_argument('recipe'); parser.add_argument('overrides')",
    ),
    (extra_options, "scripts/a.py", "parser.add_argument('--seed')"),
    (extra_options, "inference/convert.py", "parser.add_argument('--to')"),
    (bare_schedulers, "train/a.py", "Pipeline(scheduler=noise_scheduler).scheduler"),
    (heavy_imports, "train/trainer.py", "import torch"),
    (heavy_imports, "scripts/recipe.py", "import torch"),
    (unfiltered_output, "train/shadowing.py", "print(shown(message))"),
    (unfiltered_output, "scripts/a.py", "output(name); open_console().print(name)"),
]


@pytest.mark.parametrize(("check", "path", "source"), ALLOWED)
def test_good_code_is_left_alone(check, path, source):
    assert not list(check(path, source))


def test_config_modules_import_nothing_heavy_by_way_of_others():
    names = [path.relative_to(ROOT) for path in FILES]
    modules = [
        ".".join(name.with_suffix("").parts).removesuffix(".__init__")
        for name in names
        if is_torch_free(name.as_posix())
    ]
    code = f"import sys, {', '.join(modules)}; print(*sorted(set({HEAVY}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == []


def test_data_sets_are_data():
    import datasets

    assert callable(datasets.load_dataset)  # Hugging Face's, though the folder datasets/ is here
    assert not sorted((ROOT / "datasets").rglob("*.py"))


def test_embedded_models_are_small():
    assets = [path for path in ROOT.glob("inference/assets/**/*") if path.is_file()]
    assert sum(path.stat().st_size for path in assets) <= MAX_ASSET_BYTES
