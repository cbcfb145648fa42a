"""What encoders make of pictures, clips and captions, kept in files for other runs.

A file's name is a hash of everything that its tensors follow from: the bytes of the picture or
clip, what is cut out of it, the encoder's weights and number format. So nothing in it gets out of
date, any number of runs may share a folder, and deleting it costs time only. Files are written
whole or not at all, and each says what its content hashes to.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from inference.files import write_atomically
from inference.models import Conditions, DiffusionModel, resolve_path
from inference.runtime import InputError
from train.common import DataError, normal

FORMAT = 1
"""Part of every key: to be raised when the same origin shall give other tensors."""


def key_of(kind: str, origin: Mapping[str, Any]) -> str:
    """The name of what follows from an origin of plain values, 40 hexadecimal digits."""
    text = json.dumps([FORMAT, kind, origin], sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=20).hexdigest()


def tensors_digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """A hash of names, number formats, shapes and values."""
    digest = hashlib.blake2b(digest_size=20)
    for name, tensor in tensors:
        digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def module_digest(module: nn.Module) -> str:
    """A hash of a network's weights as they are loaded: about a second per GB."""
    return tensors_digest(sorted(module.state_dict().items()))


class ContentCache:
    """A folder of tensors by content."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def path(self, key: str) -> Path:
        """The file of an entry, there or not."""
        return self.folder / key[:2] / f"{key}.safetensors"

    def has(self, key: str) -> bool:
        """Whether there is an entry and its file is as long as it should be."""
        try:
            with safe_open(self.path(key), "pt") as file:
                return "digest" in (file.metadata() or {})
        except (OSError, SafetensorError):
            return False

    def read(self, key: str) -> dict[str, Tensor]:
        """The tensors of an entry, on the CPU.

        Raises:
            DataError: the entry is gone or damaged; names the file.
        """
        path = self.path(key)
        try:
            with safe_open(path, "pt") as file:
                told = (file.metadata() or {}).get("digest")
                tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
        except (OSError, SafetensorError) as error:
            raise DataError(_damaged(path, str(error))) from None
        if tensors_digest(tensors.items()) != told:
            raise DataError(_damaged(path, "its content is not what was written"))
        return tensors

    def write(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keeps tensors; what lies there already is replaced.

        Raises:
            InputError: the folder cannot be written to.
        """
        plain = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
        metadata = {"digest": tensors_digest(plain.items())}
        path = self.path(key)
        try:
            write_atomically(path, lambda file: save_file(plain, file, metadata))
        except (OSError, SafetensorError) as error:
            raise _unwritable(path, error) from error

    def remember(self, kind: str, base: DiffusionModel, origin: Mapping[str, Any]) -> None:
        """Keeps what follows from a model's weights, for those who do not read them.

        Args:
            kind: `vae` or `text`.
            base: the model; nothing is kept of one that was not loaded from files.
            origin: what `vae_origin` or `text_origin` gave.
        """
        if (path := self._memory(kind, base)) is not None and not path.is_file():
            text = json.dumps(origin, sort_keys=True)
            try:
                write_atomically(path, lambda new: new.write_text(text, "utf-8"))
            except OSError as error:
                raise _unwritable(self.folder, error) from error

    def remembered(self, kind: str, base: DiffusionModel) -> dict[str, Any] | None:
        """What `remember` keeps of these very files; None where nothing is known."""
        path = self._memory(kind, base)
        if path is None or not path.is_file():
            return None
        return json.loads(path.read_text(encoding="utf-8"))

    def _memory(self, kind: str, base: DiffusionModel) -> Path | None:
        """A file named by paths, sizes and times of the model's files."""
        source = base.source
        root = Path(resolve_path(source.path)) if source is not None else None
        if source is None or root is None or not root.exists():
            return None
        files = sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root]
        states = [(str(p.resolve()), (s := p.stat()).st_size, s.st_mtime_ns) for p in files]
        dtypes = str(base.dtype), str(base.vae.dtype)
        told = {"files": states, "variant": source.variant, "dtypes": dtypes}
        return self.path(key_of(kind, told)).with_suffix(".json")


def _unwritable(path: Path, error: Exception) -> InputError:
    return InputError(
        f"data.cache_dir: {str(path)!r} cannot be written: {error}; give another folder, or "
        "data.cache: auto"
    )


def _damaged(path: Path, why: str) -> str:
    return f"{path}: damaged ({why}); delete this file, and it is made anew when the run goes on"


def vae_origin(base: DiffusionModel) -> dict[str, Any]:
    """What latents follow from besides pixels."""
    vae = base.vae
    return {
        "vae": module_digest(vae),
        "scaling_factor": float(vae.config.scaling_factor),
        "tiling": bool(vae.use_tiling),
    }


class StoredLatents:
    """Latents of every picture or clip of a run, each read when it is asked for."""

    def __init__(self, cache: ContentCache, keys: Sequence[str], sampling: str, seed: int) -> None:
        self.cache = cache
        self.keys = list(keys)
        self.sampling = sampling
        self.seed = seed

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """What a batch holds of an example in the place of its pixels.

        Raises:
            DataError: the file is gone or damaged.
        """
        content = self.cache.read(self.keys[index])
        mean, std = content.pop("mean"), content.pop("std")
        latents = latents_kept(mean[None], std[None], self.sampling, self.seed, [index])
        return content | {name: value[0] for name, value in latents.items()}


def latents_kept(
    mean: Tensor, std: Tensor, sampling: str, seed: int, indices: Sequence[int]
) -> dict[str, Tensor]:
    """What is kept of the distributions (b, …) that the VAE gives; on the CPU.

    `once` draws from each by (seed, index); `random` keeps its width too.
    """
    if sampling == "once":
        mean = mean + std * normal(mean, seed, "latents once", indices)
    kept = {"latents": mean.cpu()}
    if sampling == "random":
        kept["latents_std"] = std.cpu()
    return kept


def text_origin(base: DiffusionModel) -> dict[str, Any]:
    """What the states of a prompt follow from besides its words, where encoders stay as loaded."""
    tokenizers = []
    for tokenizer in base.tokenizers:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        text = repr(sorted(tokenizer.get_vocab().items())) if backend is None else backend.to_str()
        tokenizers.append(hashlib.blake2b(text.encode(), digest_size=20).hexdigest())
    return {
        "encoders": {name: module_digest(one) for name, one in base.text_encoders.items()},
        "tokenizers": tokenizers,
        "shape": list(base.prompt_shape),
        "dtype": str(base.dtype),
        "model": type(base).__name__,
    }


class StoredStates:
    """What text encoders make of prompts, each in a file."""

    def __init__(self, cache: ContentCache, origin: Mapping[str, Any]) -> None:
        self.cache = cache
        self.origin = dict(origin)

    def key(self, prompt: str) -> str:
        return key_of("prompt", {**self.origin, "prompt": prompt})

    def has(self, prompt: str) -> bool:
        return self.cache.has(self.key(prompt))

    def read(self, prompt: str) -> Conditions:
        """The conditions of one prompt, on the CPU.

        Raises:
            DataError: the file is gone or damaged.
        """
        content = self.cache.read(self.key(prompt))
        return Conditions(content["states"], content.get("pooled"))

    def write(self, prompt: str, conditions: Conditions) -> None:
        """Keeps the conditions of one prompt."""
        content = {"states": conditions.states}
        if conditions.pooled is not None:
            content["pooled"] = conditions.pooled
        self.cache.write(self.key(prompt), content)
