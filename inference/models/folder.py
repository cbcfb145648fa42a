"""Write base models as folders in the diffusers layout, also readable by older tools."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from inference.config import BaseModelConfig
from inference.files import refuse_not_finite
from inference.memory import packed_layers, plain_shape, plain_weight
from inference.models.base import DiffusionModel
from inference.models.families import folder_family
from inference.models.names import resolve_path
from inference.runtime import ArtifactError, BaseModelError

FACTS = "limner.json"
"""The trained parts, and the run's metadata. Other tools ignore it."""


WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:-\d+-of-\d+)?"
    r"(?:\.(?P<variant>\w+))?(?:-\d+-of-\d+)?\.(?:safetensors|bin)"
)
"""Names of a part's weight files as diffusers and transformers write them, also sharded."""


def variant_of(part: Path, wanted: str | None) -> str | None:
    """Return the variant of a part's weights to load; None is the usual files.

    A folder that was downloaded with `variant="fp16"` has no others: the only variant is taken.

    Args:
        part: the folder of the part.
        wanted: `base_model.variant`.

    Raises:
        BaseModelError: there are several variants, none of them is wanted, and no usual files.
    """
    if wanted is not None or not part.is_dir():
        return wanted
    matches = [WEIGHTS.fullmatch(file.name) for file in part.iterdir()]
    variants = {match["variant"] for match in matches if match}
    if len(variants) < 2 or None in variants:
        return next(iter(variants)) if len(variants) == 1 else None
    raise BaseModelError(
        f"base_model.variant: {part} has weights of several variants; choose one of "
        f"{', '.join(sorted(map(str, variants)))}"
    )


WEIGHT_FILE = re.compile(r"\.(bin|safetensors)\b")
VARIANT_ONLY = ". If it has weights of a variant only, name that: base_model.variant=fp16"


def unloadable(config: BaseModelConfig, is_local: bool, error: Exception) -> BaseModelError:
    """Return the error for a folder, or a model on the hub, whose parts cannot be read."""
    if isinstance(error, BaseModelError):
        return error
    hint = ""
    if not is_local and isinstance(error, OSError):
        hint = (
            ". Check the id, and whether the hub can be reached; folders and files need no network"
        )
        if WEIGHT_FILE.search(str(error)):
            hint = VARIANT_ONLY if config.variant is None else ""
    reason = f"cannot be loaded: {str(error).rstrip('.')}{hint}"
    return BaseModelError(f"base_model.path: {config.path!r} {reason}")


def weights_of(part: nn.Module) -> dict[str, Tensor]:
    """Return the live weights of a part by name, without injected LoRAs.

    Those of packed layers (quantized) are not live: they are unpacked, in the dtype that their
    layers compute in.
    """
    return live_weights(part) | {
        f"{path}.weight": plain_weight(layer) for path, layer in packed_by_name(part).items()
    }


def live_weights(part: nn.Module) -> dict[str, Tensor]:
    """Return the same without those of packed layers."""
    packed = packed_layers(part)
    left_out = tuple(f"{path}.{name}" for path in packed for name in ("weight", "SCB"))
    return {
        key.replace(".base_layer.", "."): value
        for key, value in part.state_dict().items()
        if ".lora_" not in key and not key.startswith(left_out)
    }


def packed_by_name(part: nn.Module) -> dict[str, Any]:
    """Return the packed layers of a part by their paths without injected LoRAs."""
    return {path.removesuffix(".base_layer"): layer for path, layer in packed_layers(part).items()}


def weight_shapes(part: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of `weights_of`, without unpacking anything."""
    shapes = {key: tuple(value.shape) for key, value in live_weights(part).items()}
    return shapes | {
        f"{path}.weight": plain_shape(layer) for path, layer in packed_by_name(part).items()
    }


def untied(part: nn.Module) -> dict[str, Tensor]:
    """Return the same with each tensor under one name only: T5 has its embeddings under two."""
    found: dict[int, str] = {}
    weights = weights_of(part)
    return {
        key: value
        for key, value in weights.items()
        if not value.numel() or found.setdefault(value.data_ptr(), key) == key
    }


def read_part(folder: Path, part: str) -> nn.Module:
    """Return a part of a base model in fp32, frozen, on the CPU.

    Raises:
        ArtifactError: its files are missing or cannot be read.
    """
    part_class = folder_family(folder).parts[part].load_class()
    options: dict[str, Any] = {"variant": variant_of(folder / part, None), "dtype": torch.float32}
    try:
        module = part_class.from_pretrained(
            str(folder), subfolder=part, local_files_only=True, **options
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ArtifactError(f"{folder / part}: cannot be read: {error}") from error
    return module.requires_grad_(False).eval()


def load_auto(kind: Any, source: str | Path, **options: Any) -> Any:
    """Return a part that transformers loads by its configuration.

    A configuration can name classes in Python files beside it (`auto_map`). They are never run, and
    transformers does not ask whether to.

    Args:
        kind: an Auto class.
        source: a folder, or the id of a model on the hub.
        options: others of `from_pretrained`.

    Raises:
        BaseModelError: it works only with code of its own.
        OSError, ValueError, KeyError: its files cannot be read.
    """
    try:
        return kind.from_pretrained(source, trust_remote_code=False, **options)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise BaseModelError(
            f"{source}: needs Python code of its own (auto_map), which is never run; take a model "
            "that transformers knows"
        ) from error


def tokenizer_names(base: DiffusionModel) -> list[str]:
    """Return the names of a model's tokenizers in the diffusers layout: those of its encoders."""
    return [name.replace("text_encoder", "tokenizer") for name in base.text_encoders]


def write_base_model(
    folder: Path,
    base: DiffusionModel,
    trained: Collection[str],
    dtype: torch.dtype,
    metadata: dict[str, str],
) -> None:
    """Write all parts of a base model into a folder.

    Args:
        folder: an empty folder.
        base: the model.
        trained: names of the parts that are rounded to `dtype`; the others keep their values.
        dtype: dtype of the trained parts.
        metadata: the run's, for FACTS.

    Raises:
        NotFiniteError: a value is not finite.
    """
    for part, module in base.parts.items():
        weights = {key: value.detach().cpu() for key, value in untied(module).items()}
        weights = cast(weights, dtype) if part in trained else compact(weights, dtype)
        refuse_not_finite({f"{part}.{key}": value for key, value in weights.items()})
        (folder / part).mkdir()
        weights = {base.portable_key(part, key): value for key, value in weights.items()}
        _write_json(folder / part / "config.json", _config(module, weights))
        save_file(weights, folder / part / _weight_file(module), metadata={"format": "pt"})
    for name, tokenizer in zip(tokenizer_names(base), base.tokenizers, strict=True):
        _write_tokenizer(folder / name, tokenizer, Path(resolve_path(base.path)) / name)
    sampler = _write_noise_schedule(folder / "scheduler", base)
    _write_json(folder / "model_index.json", base.model_index(sampler))
    facts = {"artifact": "checkpoint", "parts": sorted(trained), "metadata": metadata}
    _write_json(folder / FACTS, facts)


def cast(weights: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the weights in a dtype; integers are unchanged."""
    return {
        key: value.to(dtype if value.is_floating_point() else value.dtype).contiguous()
        for key, value in weights.items()
    }


def compact(weights: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the weights in the first half-width dtype that loses nothing, trying `dtype` first."""
    for narrow in (dtype, torch.float16, torch.bfloat16):
        narrowed = cast(weights, narrow)
        if all(torch.equal(narrowed[key].to(value.dtype), value) for key, value in weights.items()):
            return narrowed
    return {key: value.contiguous() for key, value in weights.items()}


def _weight_file(module: Any) -> str:
    """Return the file name that transformers, or else diffusers, expects."""
    library = "model" if _is_of_transformers(module) else "diffusion_pytorch_model"
    return f"{library}.safetensors"


def _is_of_transformers(module: Any) -> bool:
    """Return whether transformers defines a part; diffusers defines the others."""
    return hasattr(module.config, "to_json_string")


def _config(module: Any, weights: dict[str, Tensor]) -> dict[str, Any]:
    """Return a part's config.json, without the path that it was loaded from."""
    if _is_of_transformers(module):
        config = json.loads(module.config.to_json_string())
        config["architectures"] = [type(module).__name__]
        config["dtype"] = str(next(iter(weights.values())).dtype).removeprefix("torch.")
    else:
        config = json.loads(module.to_json_string())
    config.pop("_name_or_path", None)
    return config


def _write_tokenizer(folder: Path, tokenizer: Any, source: Path) -> None:
    """Write the tokenizer's own files, with vocab.json and merges.txt for tools that need these."""
    if source.is_dir():
        shutil.copytree(source, folder, copy_function=shutil.copyfile)
    else:
        tokenizer.save_pretrained(str(folder))
    files = (folder / "vocab.json").is_file(), (folder / "merges.txt").is_file()
    if all(files) or not hasattr(tokenizer, "backend_tokenizer"):
        return
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    if "merges" not in model:  # T5's is a unigram model
        return
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    vocabulary = json.dumps(tokenizer.get_vocab(), ensure_ascii=False, sort_keys=True)
    (folder / "vocab.json").write_text(vocabulary, encoding="utf-8")
    lines = "\n".join(["#version: 0.2", *merges, ""])
    (folder / "merges.txt").write_text(lines, encoding="utf-8")


def _write_noise_schedule(folder: Path, base: DiffusionModel) -> str:
    """Write the source's scheduler, or DDIM's with the same noise schedule; return its class."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    source = Path(resolve_path(base.path)) / "scheduler"
    if source.is_dir():
        shutil.copytree(source, folder, copy_function=shutil.copyfile)
    else:
        sampler: Any = DDIMScheduler.from_config(base.noise_schedule, clip_sample=False)
        sampler.save_pretrained(str(folder))
    config = json.loads((folder / "scheduler_config.json").read_text(encoding="utf-8"))
    return config["_class_name"]


def _write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
