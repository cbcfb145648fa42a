"""Convert models and artifacts to another format: `python -m inference.convert IN OUT --to FORMAT`.

Only the command line is parsed here; torch is imported once it is valid.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference.recipe import DRAWING_GROUPS, load_plugins, warnings_reported
from inference.runtime import InputError, check_readable, output, quiet_libraries, run_command
from inference.shadowing import refuse_foreign_train

if TYPE_CHECKING:
    import torch

    from inference.artifacts import Artifact

FORMATS = ("kohya", "diffusers", "a1111", "single-file")
DTYPES = ("fp32", "fp16", "bf16")

POSSIBLE: dict[str, dict[str, tuple[str, ...]]] = {
    "LoRA": {"kohya": (".safetensors",), "diffusers": (".safetensors",)},
    "embedding": {
        "a1111": (".pt", ".png"),
        "kohya": (".safetensors",),
        "diffusers": (".safetensors", ".bin"),
    },
    "hypernetwork": {"a1111": (".pt",), "single-file": (".safetensors",)},
    "base model": {"single-file": (".safetensors",), "diffusers": ("",)},
}
"""Kind -> the formats it can be converted to, with the suffixes of such files (a folder has none).
"""

EXAMPLES = """examples:
  python -m inference.convert icons.safetensors icons_diffusers.safetensors --to diffusers
  python -m inference.convert model.safetensors model_folder --to diffusers
  python -m inference.convert model_folder merged.safetensors --to single-file --dtype fp16
    --merge icons.safetensors:0.8"""


@dataclass
class Request:
    """The options of a conversion."""

    input: str
    output: Path
    to: str
    dtype: str | None
    merge: list[str]
    prediction_type: str | None
    alpha: float | None = None


@refuse_foreign_train("convert")
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status: 0 done, 2 wrong input."""
    return run_command("convert", command, arguments)


def command(arguments: list[str]) -> int:
    """Convert a file by the options of the command line; return the exit status."""
    options = parsed(arguments)
    request = Request(
        input=options.input,
        output=Path(options.output),
        to=options.to,
        dtype=options.dtype,
        merge=options.merge,
        prediction_type=options.prediction_type,
        alpha=options.alpha,
    )
    quiet_libraries()
    check_output(request, options.overwrite)
    with warnings_reported("convert"):
        load_plugins({}, DRAWING_GROUPS)
        lines = convert(request)
    for line in lines:
        output(line)
    return 0


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options; argparse prints its messages, which quote names of files, by itself."""
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            return command_line().parse_args(arguments)
    finally:
        if text := messages.getvalue().rstrip("\n"):
            output(text, is_error=True)


def command_line() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(
        prog="python -m inference.convert",
        description="Writes a LoRA, an embedding, a hypernetwork or a base model in another "
        "format, and merges LoRAs into base models.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("input", metavar="IN", help="input file or folder (type is detected)")
    parser.add_argument("output", metavar="OUT", help="file or folder to write")
    parser.add_argument("--to", required=True, choices=FORMATS, help="format of OUT")
    parser.add_argument(
        "--dtype", choices=DTYPES, help="data type of the weights; by default unchanged"
    )
    parser.add_argument(
        "--merge",
        metavar="LORA[:STRENGTH]",
        action="extend",
        nargs="+",
        default=[],
        help="add LoRAs to a base model's weights",
    )
    parser.add_argument(
        "--prediction-type",
        choices=("epsilon", "v_prediction"),
        help="prediction type of a single file, if the file does not specify it",
    )
    parser.add_argument(
        "--alpha",
        type=float,
        help="alpha of a LoRA, if the file does not specify it",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    return parser


def check_output(request: Request, overwrite: bool) -> None:
    """Raise InputError if OUT exists and must not be replaced."""
    output = request.output
    if not output.exists():
        return
    if Path(request.input).exists() and output.samefile(request.input):
        raise InputError(f"{output}: is IN itself; name another OUT")
    if not overwrite:
        raise InputError(f"{output}: exists; --overwrite replaces it")
    if output.is_dir() and not (output / "model_index.json").is_file():
        raise InputError(f"{output}: a folder that is no base model is not replaced; remove it")


def convert(request: Request) -> list[str]:
    """Write OUT, and return the lines to print.

    Raises:
        InputError: IN cannot be read, or cannot be converted to this format.
    """
    from inference.files import NotFiniteError

    try:
        return converted(request)
    except NotFiniteError as error:
        raise InputError(f"{request.output}: was not written: {error}") from error


def converted(request: Request) -> list[str]:
    """Write OUT, and return the lines to print.

    Raises:
        InputError: IN cannot be read, or cannot be converted to this format.
        NotFiniteError: a value is not finite.
    """
    from inference.artifacts import Checkpoint, load_artifact
    from inference.models import is_single_file, resolve_path

    source = Path(resolve_path(request.input))
    check_readable(source)
    if not source.exists():
        raise InputError(f"{request.input}: no such file or folder")
    if (source / "model_index.json").is_file():
        return convert_base_model(request, "diffusers")
    if is_single_file(source) and is_checkpoint(source):
        return convert_base_model(request, "single-file")
    artifact = load_artifact(source) if request.alpha is None else load_at(source, request.alpha)
    if isinstance(artifact, Checkpoint):
        raise InputError(
            f"{source}: only some parts of a base model; expected all, beside a model_index.json"
        )
    return convert_artifact(request, source, artifact)


def load_at(path: Path, alpha: float) -> Artifact:
    """Load a LoRA whose file does not specify its alpha.

    Raises:
        InputError: it specifies its alpha, or is not a LoRA.
    """
    from inference.artifacts import Lora, read_keys, read_lora, says_alpha

    if alpha <= 0:
        raise InputError(f"--alpha: must be above 0, got {alpha:g}")
    if not Lora.recognizes(path, [] if path.is_dir() else read_keys(path)):
        raise InputError(f"--alpha: is for LoRAs; {path} is not one")
    if says_alpha(*read_lora(path)):
        raise InputError(f"--alpha: {path} specifies its alpha")
    return Lora.load(path, alpha)


def is_checkpoint(path: Path) -> bool:
    """Return whether a file contains a base model, by the names in it."""
    from inference.artifacts import read_keys
    from inference.models import single_file_format

    return single_file_format(read_keys(path)) is not None


def check_format(request: Request, kind: str, current: str) -> None:
    """Raise InputError unless this kind can be converted to the format with OUT's suffix."""
    possible = POSSIBLE[kind]
    if request.to not in possible:
        raise InputError(
            f"{request.input}: {an(kind)} cannot be converted to {request.to}; possible are "
            f"{' and '.join(possible)}"
        )
    suffix, expected = request.output.suffix.lower(), possible[request.to]
    is_right = suffix in expected or (
        expected == ("",) and suffix not in (".safetensors", ".ckpt", ".pt", ".bin")
    )
    if not is_right:
        ends = " or ".join(end or "no ending (it is a folder)" for end in expected)
        raise InputError(
            f"{request.output}: {an(kind)} in {request.to}'s format is written under a name that "
            f"ends in {ends}".replace("ends in no ending", "has no ending")
        )
    is_same = request.to == current and Path(request.input).suffix.lower() == suffix
    if is_same and request.dtype is None and request.alpha is None and not request.merge:
        raise InputError(
            f"{request.input}: is in {current}'s format already; copy it, or give the --dtype "
            "to write it"
        )
    if request.merge and kind != "base model":
        raise InputError(
            f"--merge: LoRAs are merged into base models; {request.input} is {an(kind)}"
        )
    if request.alpha is not None and kind != "LoRA":
        raise InputError(f"--alpha: is for LoRAs; {request.input} is {an(kind)}")
    if request.prediction_type and current != "single-file":
        raise InputError(
            f"--prediction-type: is for base models in single files; {request.input} is not one"
        )


def an(kind: str) -> str:
    """Return a kind with its article."""
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"


def convert_artifact(request: Request, source: Path, artifact: Artifact) -> list[str]:
    """Convert a LoRA, an embedding or a hypernetwork."""
    from inference.artifacts import Lora

    kind, current, dtype = describe(source, artifact)
    check_format(request, kind, current)
    dtype = number_format(request) or dtype
    if isinstance(artifact, Lora):
        from inference.artifacts import save_diffusers, save_kohya

        writers: dict[str, Callable[[Lora, Path, torch.dtype], None]] = {
            "kohya": save_kohya,
            "diffusers": save_diffusers,
        }
        writers[request.to](artifact, request.output, dtype)
    elif kind == "embedding" and request.to == "diffusers":
        save_diffusers_embedding(artifact, request.output, dtype)
    else:
        artifact.save(request.output, dtype, {})
    return [f"{request.output}: {kind} of {current} -> {request.to}, {name_of(dtype)}"]


def describe(source: Path, artifact: Artifact) -> tuple[str, str, torch.dtype]:
    """Return kind and format of an artifact's file, and the data type of its weights."""
    import torch

    from inference.artifacts import format_of, is_lora, read_keys, read_lora
    from inference.files import PICKLES, read_tensors

    keys = [] if source.is_dir() else read_keys(source)
    if artifact.kind == "hypernetwork":
        pairs: Any = artifact.pairs  # type: ignore[attr-defined]
        first = next(next(iter(pairs.values())).parameters())
        current = "single-file" if source.suffix.lower() == ".safetensors" else "a1111"
        return "hypernetwork", current, first.dtype
    if artifact.kind == "embedding":
        if "string_to_param" in keys:
            return "embedding", "a1111", torch.float32
        dtype = next(iter(read_tensors(source)[0].values())).dtype
        forms = ({"emb_params"}, {"emp_params"}, {"clip_l", "clip_g"})
        is_kohyas = source.suffix.lower() not in PICKLES and {*keys} in forms
        return "embedding", "kohya" if is_kohyas else "diffusers", dtype
    tensors, _ = read_lora(source)
    dtype = next(
        value.dtype
        for key, value in tensors.items()
        if not key.endswith(".alpha") and is_lora([key])
    )
    return "LoRA", format_of(tensors), dtype


def save_diffusers_embedding(artifact: Any, path: Path, dtype: torch.dtype) -> None:
    """Save a single tensor, whose key is the token, as diffusers' training script does."""
    from inference.files import refuse_not_finite, serialize, write_atomically, write_pickle

    if len(artifact.learned.by_encoder()) > 1:
        raise InputError(
            f"{artifact.name}: has vectors for both of SDXL's text encoders, which no single file "
            "of diffusers' format holds; --to kohya keeps them together"
        )
    tensors = {artifact.name: artifact.learned.vectors.detach().to("cpu", dtype).contiguous()}
    refuse_not_finite(tensors)
    if path.suffix.lower() == ".bin":
        write_pickle(path, tensors)
        return
    content = serialize(tensors, {"format": "pt"})
    write_atomically(path, lambda unfinished: unfinished.write_bytes(content))


def convert_base_model(request: Request, current: str) -> list[str]:
    """Convert a base model, and merge LoRAs into it."""
    from inference.artifacts import merge, write_file_of, write_folder_of
    from inference.config import BaseModelConfig
    from inference.models import load_model

    check_format(request, "base model", current)
    base = load_model(
        BaseModelConfig(path=request.input, prediction_type=request.prediction_type)  # type: ignore
    )
    merged = [merge(base, text) for text in request.merge]
    dtype = number_format(request)
    write = write_folder_of if request.to == "diffusers" else write_file_of
    notes = write(base, request.output, dtype, merged)
    said = f"{request.output}: base model of {current} -> {request.to}, "
    return [
        *(f"merged {one}" for one in merged),
        said + (name_of(dtype) if dtype else "no value rounded"),
        *notes,
    ]


def number_format(request: Request) -> torch.dtype | None:
    """Return the requested data type; None leaves it unchanged."""
    from inference.models import DTYPES

    return DTYPES[request.dtype] if request.dtype else None


def name_of(dtype: torch.dtype) -> str:
    """Return the name of a data type, such as `fp16`."""
    from inference.models import DTYPES

    return next((name for name, known in DTYPES.items() if known == dtype), str(dtype))


if __name__ == "__main__":
    sys.exit(main())
