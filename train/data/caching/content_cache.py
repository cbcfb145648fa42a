"""A cache of encoded images, clips and captions in files that other runs share.

A file is named by a hash of everything that determines its tensors: the bytes of the image or clip,
its crop, the encoder's weights and precision. So entries never become stale, any number of runs may
share a folder, and deleting it costs only time. Files are written atomically, and each contains the
hash of its content.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from inference.files import write_atomically
from inference.models import Conditions, DiffusionModel, resolve_path, vae_file
from inference.runtime import InputError
from train.common import DataError, normal

FORMAT = 1
"""Part of every key: increase it when the same origin gives other tensors."""


def key_of(kind: str, origin: Mapping[str, Any]) -> str:
    """Return the name of what is determined by an origin of plain values, 40 hexadecimal digits."""
    text = json.dumps([FORMAT, kind, origin], sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=20).hexdigest()


def tensors_digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return a hash of names, dtypes, shapes and values."""
    digest = hashlib.blake2b(digest_size=20)
    for name, tensor in tensors:
        digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def module_digest(module: nn.Module) -> str:
    """Return a hash of a network's weights as they are loaded; takes about a second per GB."""
    return tensors_digest(sorted(module.state_dict().items()))


class ContentCache:
    """A folder of tensors, addressed by content."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def path(self, key: str) -> Path:
        """Return the path of an entry, which need not exist."""
        return self.folder / key[:2] / f"{key}.safetensors"

    def has(self, key: str) -> bool:
        """Return whether an entry exists and its file has the right length."""
        try:
            with safe_open(self.path(key), "pt") as file:
                return "digest" in (file.metadata() or {})
        except (OSError, SafetensorError):
            return False

    def read(self, key: str) -> dict[str, Tensor]:
        """Return the tensors of an entry, on the CPU.

        Raises:
            DataError: the entry is missing or damaged; the message names the file.
        """
        path = self.path(key)
        try:
            with safe_open(path, "pt") as file:
                digest = (file.metadata() or {}).get("digest")
                tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
        except (OSError, SafetensorError) as error:
            raise DataError(_damaged(path, str(error))) from None
        if tensors_digest(tensors.items()) != digest:
            raise DataError(_damaged(path, "its content is not what was written"))
        return tensors

    def write(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Write tensors, replacing an existing entry.

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
        """Store what is determined by a model's weights, for runs that do not read them.

        Args:
            kind: `vae` or `text`.
            base: the model; nothing is stored for one that was not loaded from files.
            origin: the result of `vae_origin` or `text_origin`.
        """
        if (path := self._memory(kind, base)) is not None and not path.is_file():
            text = json.dumps(origin, sort_keys=True)
            try:
                write_atomically(path, lambda new: new.write_text(text, "utf-8"))
            except OSError as error:
                raise _unwritable(self.folder, error) from error

    def remembered(self, kind: str, base: DiffusionModel) -> dict[str, Any] | None:
        """Return what `remember` stored for these files, or None."""
        path = self._memory(kind, base)
        if path is None or not path.is_file():
            return None
        return json.loads(path.read_text(encoding="utf-8"))

    def _memory(self, kind: str, base: DiffusionModel) -> Path | None:
        """Return a file named by the paths, sizes and times of the model's files."""
        source = base.source
        root = Path(resolve_path(source.path)) if source is not None else None
        if source is None or root is None or not root.exists():
            return None
        files = sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root]
        vae = vae_file(source.vae) if source.vae is not None else None
        files += [vae] if vae is not None else []
        states = [(str(p.resolve()), (s := p.stat()).st_size, s.st_mtime_ns) for p in files]
        dtypes = str(base.dtype), str(base.vae.dtype)
        origin = {"files": states, "variant": source.variant, "dtypes": dtypes}
        return self.path(key_of(kind, origin)).with_suffix(".json")


def _unwritable(path: Path, error: Exception) -> InputError:
    return InputError(
        f"data.cache_dir: {str(path)!r} cannot be written: {error}; give another folder, or "
        "data.cache: auto"
    )


def _damaged(path: Path, why: str) -> str:
    return f"{path}: damaged ({why}); delete this file, and it is rebuilt when the run is resumed"


def vae_origin(base: DiffusionModel) -> dict[str, Any]:
    """Return what determines latents besides pixels."""
    vae = base.vae
    return {
        "vae": module_digest(vae),
        "scaling_factor": float(vae.config.scaling_factor),
        "tiling": bool(vae.use_tiling),
    }


class StoredLatents:
    """Latents of every image or clip of a run, read on access."""

    def __init__(
        self,
        cache: ContentCache,
        keys: Sequence[str],
        indices: Sequence[int] | np.ndarray,
        sampling: str,
        seed: int,
    ) -> None:
        """Name the entries of a run.

        Args:
            cache: the folder.
            keys: the key of each row.
            indices: the image or clip of each row.
            sampling: `data.latent_sampling`.
            seed: the run's.
        """
        self.cache = cache
        self.keys = list(keys)
        self.indices = indices
        self.sampling = sampling
        self.seed = seed

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        """Return the tensors that replace the pixels of an example in a batch.

        Raises:
            DataError: the file is missing or damaged.
        """
        content, index = self.cache.read(self.keys[row]), int(self.indices[row])
        mean, std = content.pop("mean"), content.pop("std")
        latents = latents_kept(mean[None], std[None], self.sampling, self.seed, [index])
        return content | {name: value[0] for name, value in latents.items()}


def latents_kept(
    mean: Tensor, std: Tensor, sampling: str, seed: int, indices: Sequence[int]
) -> dict[str, Tensor]:
    """Return what is stored of the distributions (b, …) that the VAE gives, on the CPU.

    `once` draws from each by (seed, index); `random` also stores the standard deviation.
    """
    if sampling == "once":
        mean = mean + std * normal(mean, seed, "latents once", indices)
    kept = {"latents": mean.cpu()}
    if sampling == "random":
        kept["latents_std"] = std.cpu()
    return kept


def text_origin(base: DiffusionModel) -> dict[str, Any]:
    """Return what determines prompt embeddings besides the prompt, if encoders stay as loaded."""
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
    """Prompt embeddings, one file per prompt."""

    def __init__(self, cache: ContentCache, origin: Mapping[str, Any]) -> None:
        self.cache = cache
        self.origin = dict(origin)

    def key(self, prompt: str) -> str:
        return key_of("prompt", {**self.origin, "prompt": prompt})

    def has(self, prompt: str) -> bool:
        return self.cache.has(self.key(prompt))

    def read(self, prompt: str) -> Conditions:
        """Return the embeddings of one prompt, on the CPU.

        Raises:
            DataError: the file is missing or damaged.
        """
        content = self.cache.read(self.key(prompt))
        return Conditions(content["states"], content.get("pooled"))

    def write(self, prompt: str, conditions: Conditions) -> None:
        """Write the embeddings of one prompt."""
        content = {"states": conditions.states}
        if conditions.pooled is not None:
            content["pooled"] = conditions.pooled
        self.cache.write(self.key(prompt), content)
