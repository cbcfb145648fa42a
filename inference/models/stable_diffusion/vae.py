"""Read VAEs that replace a base model's own: files and diffusers folders.

Files have the names of CompVis' latent-diffusion, as A1111 and ComfyUI open them, or diffusers'.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inference.files import open_tensors, read_json
from inference.models.finding import BESIDE_VAE, VaeForm, vae_form
from inference.models.folder import variant_of
from inference.models.names import vae_folder
from inference.models.stable_diffusion.keys import KNOWN_EXTRAS, Place, from_file, places
from inference.models.stable_diffusion.single_file import listed
from inference.runtime import BaseModelError, DrawWarning, InputError, check_readable

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

KEY = "base_model.vae"
Shapes = Mapping[str, tuple[int, ...]]
OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
"""Layers of attention -> their names in diffusers before 0.17."""


def read_vae(path: str, own: AutoencoderKL, without_weights: bool = False) -> AutoencoderKL:
    """Return a VAE in fp32, on the CPU, that takes the place of a base model's own.

    That of a file has the settings of the model's own: files contain weights only.

    Args:
        path: a file or folder.
        own: the base model's VAE.
        without_weights: the VAE stays on the meta device, and weights are not read.

    Raises:
        BaseModelError: it cannot be read, or does not fit.
    """
    place = Path(path)
    check_readable(place, KEY)
    if not place.exists():
        raise BaseModelError(f"{KEY}: no such file or folder: {path!r}")
    try:
        if place.is_dir():
            return vae_of_folder(vae_folder(place), own, without_weights)
        return vae_of_file(place, own, without_weights)
    except BaseModelError:
        raise
    except (InputError, OSError, ValueError) as error:
        raise BaseModelError(f"{KEY}: {path!r} cannot be loaded: {error}") from error


def vae_of_folder(folder: Path, own: AutoencoderKL, without_weights: bool) -> AutoencoderKL:
    """Return the VAE of a diffusers folder, with its own settings."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    if not (folder / "config.json").is_file():
        raise BaseModelError(f"{KEY}: {str(folder)!r}: config.json is missing; expected a VAE")
    settings = read_json(folder / "config.json")
    kind = settings.get("_class_name", "AutoencoderKL")
    if kind != "AutoencoderKL":
        raise BaseModelError(f"{KEY}: {str(folder)!r} is an {kind}; expected an AutoencoderKL")
    if without_weights:
        with torch.device("meta"):
            vae: Any = AutoencoderKL.from_config(settings)
    else:
        options: dict[str, Any] = {"variant": variant_of(folder, None), "dtype": torch.float32}
        vae = AutoencoderKL.from_pretrained(str(folder), local_files_only=True, **options)
    for name, count in (("latent_channels", int), ("block_out_channels", len)):
        theirs, ours = count(vae.config[name]), count(own.config[name])  # type: ignore[operator]
        if theirs != ours:
            raise BaseModelError(
                f"{KEY}: {str(folder)!r} has {theirs} {name}; the base model's own VAE {ours}"
            )
    if vae.config.scaling_factor != own.config.scaling_factor:
        warnings.warn(
            f"{KEY}: {str(folder)!r} scales latents by {vae.config.scaling_factor}, the base "
            f"model's own VAE by {own.config.scaling_factor}: it was made for other models",
            DrawWarning,
            stacklevel=4,
        )
    return vae


def vae_of_file(path: Path, own: AutoencoderKL, without_weights: bool) -> AutoencoderKL:
    """Return the VAE in a file, with the settings of the base model's own."""
    from accelerate import init_empty_weights
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    file = open_tensors(path)
    form = vae_form(file.shapes)
    if form is None:
        names = ", ".join(list(file.shapes)[:3]) or "none"
        raise BaseModelError(
            f"{KEY}: {str(path)!r} contains no VAE by its names ({names}); expected names such as "
            "decoder.conv_in.weight, first_stage_model.decoder.conv_in.weight"
        )
    with init_empty_weights(include_buffers=False):
        vae: Any = AutoencoderKL.from_config(own.config)
    empty: dict[str, Tensor] = vae.state_dict()
    found = vae_places(form, empty, file.shapes)
    shapes = {name: tuple(value.shape) for name, value in empty.items()}
    if faults := list(misfits(form, found, shapes, file.shapes)):
        raise BaseModelError(
            f"{KEY}: {str(path)!r} does not have the layers of the base model's own VAE; "
            f"{'; '.join(faults)}"
        )
    if not without_weights:
        vae.load_state_dict(filled(file.read, found, empty), strict=True, assign=True)
    return vae


def misfits(
    form: VaeForm, found: Mapping[str, Place], expected: Shapes, shapes: Shapes
) -> Iterator[str]:
    """Yield what is missing, superfluous or of another shape in a file, by its names.

    Args:
        form: the form of the file.
        found: the place of each weight.
        expected: shape of each weight.
        shapes: shapes in the file, by its names.
    """
    known = {place.key for place in found.values()}
    missing = [key for key in known if key not in shapes]
    misshapen = [
        f"{place.key} {shapes[place.key]}, expected {expected[name]}"
        for name, place in found.items()
        if place.key in shapes and not fits(shapes[place.key], expected[name])
    ]
    own = [key for key in shapes if key.startswith(form.prefix) and not is_beside(key)]
    over = [key for key in own if key not in known]
    named = {"missing": missing, "of other shapes": misshapen, "superfluous": over}
    yield from (f"{what}: {listed(names)}" for what, names in named.items() if names)


def filled(
    read: Callable[[str], Tensor], found: dict[str, Place], empty: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return the weights of a file in fp32, by diffusers' names and in their shapes."""
    return {
        name: from_file(place, read(place.key)).reshape(empty[name].shape).float().contiguous()
        for name, place in found.items()
    }


def vae_places(form: VaeForm, names: Iterable[str], shapes: Shapes) -> dict[str, Place]:
    """Return the place of each weight of a VAE in a file of a form."""
    if form.naming == "LDM":
        return places("vae", names, {"vae": form.prefix})
    found = {}
    for name in names:
        key = form.prefix + name
        for new, old in OLD_ATTENTION.items():
            before = key.replace(f".attentions.0.{new}.", f".attentions.0.{old}.")
            key = before if key not in shapes and before in shapes else key
        found[name] = Place(key)
    return found


def is_beside(key: str) -> bool:
    """Return whether a name in a VAE's file is known not to be needed."""
    return key.startswith(BESIDE_VAE) or KNOWN_EXTRAS.fullmatch(key) is not None


def fits(found: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Return whether shapes agree; a linear layer may be a convolution of size 1 in files."""
    is_point = len(expected) == 2 and all(side == 1 for side in found[2:])
    return found == expected or (is_point and found[:2] == expected)
