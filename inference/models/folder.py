"""Base models as folders in the diffusers layout, readable by older tools as well."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from inference.models.base import DiffusionModel
from inference.models.families import folder_family
from inference.models.names import resolve_path
from inference.runtime import ArtifactError

TOKENIZERS = ("tokenizer", "tokenizer_2")
FACTS = "limner.json"
"""Which parts were trained, and the run's metadata. Other tools pass over it."""


def weights_of(part: nn.Module) -> dict[str, Tensor]:
    """The live weights of a part by name, as if no LoRA hung in it."""
    return {
        key.replace(".base_layer.", "."): value
        for key, value in part.state_dict().items()
        if ".lora_" not in key
    }


def untied(part: nn.Module) -> dict[str, Tensor]:
    """The same, each tensor under one name only: T5 has its embeddings under two."""
    found: dict[int, str] = {}
    weights = weights_of(part)
    return {
        key: value
        for key, value in weights.items()
        if not value.numel() or found.setdefault(value.data_ptr(), key) == key
    }


def read_part(folder: Path, part: str) -> nn.Module:
    """A part of a base model in fp32, frozen, on the CPU.

    Raises:
        ArtifactError: its files are missing or cannot be read.
    """
    part_class = folder_family(folder).parts[part].load_class()
    try:
        module = part_class.from_pretrained(
            str(folder), subfolder=part, local_files_only=True, dtype=torch.float32
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ArtifactError(f"{folder / part}: cannot be read: {error}") from error
    return module.requires_grad_(False).eval()


def write_base_model(
    folder: Path,
    base: DiffusionModel,
    trained: Collection[str],
    dtype: torch.dtype,
    metadata: dict[str, str],
) -> None:
    """Fills a folder with all parts of a base model.

    Args:
        folder: an empty folder.
        base: what is written.
        trained: names of the parts that are rounded to `dtype`; the others keep their values.
        dtype: number format of the trained parts.
        metadata: facts of the run, for FACTS.
    """
    for part, module in base.parts.items():
        weights = {key: value.detach().cpu() for key, value in untied(module).items()}
        weights = cast(weights, dtype) if part in trained else compact(weights, dtype)
        (folder / part).mkdir()
        weights = {base.portable_key(part, key): value for key, value in weights.items()}
        _write_json(folder / part / "config.json", _config(module, weights))
        save_file(weights, folder / part / _weight_file(module), metadata={"format": "pt"})
    for name, tokenizer in zip(TOKENIZERS, base.tokenizers, strict=False):
        _write_tokenizer(folder / name, tokenizer, Path(resolve_path(base.path)) / name)
    sampler = _write_noise_schedule(folder / "scheduler", base)
    _write_json(folder / "model_index.json", base.model_index(sampler))
    facts = {"artifact": "checkpoint", "parts": sorted(trained), "metadata": metadata}
    _write_json(folder / FACTS, facts)


def cast(weights: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights in a number format; whole numbers stay what they are."""
    return {
        key: value.to(dtype if value.is_floating_point() else value.dtype).contiguous()
        for key, value in weights.items()
    }


def compact(weights: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights in the first half-width format, `dtype` before others, that loses nothing."""
    for narrow in (dtype, torch.float16, torch.bfloat16):
        narrowed = cast(weights, narrow)
        if all(torch.equal(narrowed[key].to(value.dtype), value) for key, value in weights.items()):
            return narrowed
    return {key: value.contiguous() for key, value in weights.items()}


def _weight_file(module: Any) -> str:
    """Return the file name that transformers, or else diffusers, looks for."""
    library = "model" if _is_of_transformers(module) else "diffusion_pytorch_model"
    return f"{library}.safetensors"


def _is_of_transformers(module: Any) -> bool:
    """Whether transformers defines a part; diffusers defines the others."""
    return hasattr(module.config, "to_json_string")


def _config(module: Any, weights: dict[str, Tensor]) -> dict[str, Any]:
    """A part's config.json, without the place that it was once loaded from."""
    if _is_of_transformers(module):
        config = json.loads(module.config.to_json_string())
        config["architectures"] = [type(module).__name__]
        config["dtype"] = str(next(iter(weights.values())).dtype).removeprefix("torch.")
    else:
        config = json.loads(module.to_json_string())
    config.pop("_name_or_path", None)
    return config


def _write_tokenizer(folder: Path, tokenizer: Any, source: Path) -> None:
    """The tokenizer's own files, with vocab.json and merges.txt for tools that know only those."""
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
    """The source's scheduler, or DDIM's with the same noise schedule; returns its class."""
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
