"""Configs of CompVis' latent-diffusion and Stability AI's generative-models, for A1111.

A1111 1.10.1 predicts noise with every file of SD 1.x and SDXL, unless `NAME.yaml` beside the file
says otherwise (`find_checkpoint_config_near_filename` in `modules/sd_models_config.py`). Keys and
values as in the models' published configs, v1-inference.yaml, sd_xl_base.yaml and
sd_xl_refiner.yaml.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inference.files import write_atomically
from inference.models.stable_diffusion.detect import NOISE_SCHEDULE
from inference.runtime import InputError

Config = dict[str, Any]

HEADER = "# Written by Limner: lets A1111 draw with the v-prediction of the file of the same name."
"""The first line, by which a config of ours is known."""
ZERO_SNR = (
    "# It was trained with zero terminal SNR: in A1111's settings choose the noise schedule "
    "'Zero Terminal SNR'."
)

_AUTOENCODER: Config = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}


def config_path(path: Path) -> Path:
    """Return where A1111 looks for the config of a file: `NAME.yaml` beside `NAME.safetensors`."""
    return path.with_suffix(".yaml")


def write_config(path: Path, key: str, in_channels: int, has_zero_snr: bool) -> None:
    """Write the config of a v-prediction file beside it, atomically.

    Args:
        path: the file of the model.
        key: the family: `sd1`, `sdxl` or `sdxl_refiner`.
        in_channels: of the UNet: 4, or 9 for inpainting.
        has_zero_snr: whether a comment asks for A1111's setting.

    Raises:
        InputError: another config is in its place.
    """
    import yaml

    place = config_path(path)
    if place.exists() and not is_ours(place):
        raise InputError(
            f"{place}: A1111 would take this config for {path.name}, which predicts v; it was not "
            "written by Limner and is not replaced: move it, or name another file"
        )
    content = yaml.safe_dump(CONFIGS[key](in_channels), sort_keys=False)
    lines = [HEADER, *([ZERO_SNR] if has_zero_snr else []), content]
    write_atomically(place, lambda file: file.write_text("\n".join(lines), encoding="utf-8"))


def remove_config(path: Path) -> None:
    """Remove a config that an earlier model under this name needed, if Limner wrote it."""
    place = config_path(path)
    if place.is_file() and is_ours(place):
        place.unlink()


def is_ours(place: Path) -> bool:
    """Return whether Limner wrote a config."""
    return place.read_text(encoding="utf-8", errors="replace").startswith(HEADER)


def sd1_config(in_channels: int) -> Config:
    """Return the config of SD 1.x with v-prediction."""
    inpaints = in_channels == 9
    name = "LatentInpaintDiffusion" if inpaints else "LatentDiffusion"
    extra: Config = {"finetune_keys": None} if inpaints else {"use_ema": False}
    return _model(
        f"ldm.models.diffusion.ddpm.{name}",
        parameterization="v",
        linear_start=NOISE_SCHEDULE["beta_start"],
        linear_end=NOISE_SCHEDULE["beta_end"],
        num_timesteps_cond=1,
        timesteps=NOISE_SCHEDULE["num_train_timesteps"],
        first_stage_key="jpg",
        cond_stage_key="txt",
        image_size=64,
        channels=4,
        cond_stage_trainable=False,
        conditioning_key="hybrid" if inpaints else "crossattn",
        monitor="val/loss_simple_ema",
        scale_factor=0.18215,
        **extra,
        unet_config=_part(
            "ldm.modules.diffusionmodules.openaimodel.UNetModel",
            image_size=32,
            in_channels=in_channels,
            out_channels=4,
            model_channels=320,
            attention_resolutions=[4, 2, 1],
            num_res_blocks=2,
            channel_mult=[1, 2, 4, 4],
            num_heads=8,
            use_spatial_transformer=True,
            transformer_depth=1,
            context_dim=768,
            use_checkpoint=False,
            legacy=False,
        ),
        first_stage_config=_part(
            "ldm.models.autoencoder.AutoencoderKL",
            embed_dim=4,
            monitor="val/rec_loss",
            ddconfig=_AUTOENCODER,
            lossconfig={"target": "torch.nn.Identity"},
        ),
        cond_stage_config={"target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder"},
    )


def sdxl_config(in_channels: int) -> Config:
    """Return the config of SDXL with v-prediction."""
    return _sgm_config(
        in_channels,
        "target_size_as_tuple",
        [_embedder("txt", "FrozenCLIPEmbedder", layer="hidden", layer_idx=11)],
        adm_in_channels=2816,
        model_channels=320,
        channel_mult=[1, 2, 4],
        transformer_depth=[1, 2, 10],
        context_dim=2048,
    )


def refiner_config(in_channels: int) -> Config:
    """Return the config of SDXL's refiner with v-prediction."""
    return _sgm_config(
        in_channels,
        "aesthetic_score",
        [],
        adm_in_channels=2560,
        model_channels=384,
        channel_mult=[1, 2, 4, 4],
        transformer_depth=4,
        context_dim=[1280] * 4,
    )


def _sgm_config(
    in_channels: int, last_number: str, first_encoders: list[Config], **unet: Any
) -> Config:
    """Return the config of a model of generative-models with v-prediction.

    Args:
        in_channels: of the UNet.
        last_number: the numbers that follow the image's size and the crop's corner.
        first_encoders: text encoders before OpenCLIP's.
        unet: settings of the UNet that differ between the models.
    """
    sgm = "sgm.modules.diffusionmodules"
    sizes = ("original_size_as_tuple", "crop_coords_top_left", last_number)
    return _model(
        "sgm.models.diffusion.DiffusionEngine",
        scale_factor=0.13025,
        disable_first_stage_autocast=True,
        denoiser_config=_part(
            f"{sgm}.denoiser.DiscreteDenoiser",
            num_idx=NOISE_SCHEDULE["num_train_timesteps"],
            weighting_config={"target": f"{sgm}.denoiser_weighting.EpsWeighting"},
            scaling_config={"target": f"{sgm}.denoiser_scaling.VScaling"},
            discretization_config={"target": f"{sgm}.discretizer.LegacyDDPMDiscretization"},
        ),
        network_config=_part(
            f"{sgm}.openaimodel.UNetModel",
            adm_in_channels=unet["adm_in_channels"],
            num_classes="sequential",
            use_checkpoint=False,
            in_channels=in_channels,
            out_channels=4,
            model_channels=unet["model_channels"],
            attention_resolutions=[4, 2],
            num_res_blocks=2,
            channel_mult=unet["channel_mult"],
            num_head_channels=64,
            use_spatial_transformer=True,
            use_linear_in_transformer=True,
            transformer_depth=unet["transformer_depth"],
            context_dim=unet["context_dim"],
            spatial_transformer_attn_type="softmax-xformers",
            legacy=False,
        ),
        conditioner_config=_part(
            "sgm.modules.GeneralConditioner",
            emb_models=[
                *first_encoders,
                _embedder(
                    "txt",
                    "FrozenOpenCLIPEmbedder2",
                    arch="ViT-bigG-14",
                    version="laion2b_s39b_b160k",
                    freeze=True,
                    layer="penultimate",
                    always_return_pooled=True,
                    legacy=False,
                ),
                *(_embedder(size, "ConcatTimestepEmbedderND", outdim=256) for size in sizes),
            ],
        ),
        first_stage_config=_part(
            "sgm.models.autoencoder.AutoencoderKLInferenceWrapper",
            embed_dim=4,
            monitor="val/rec_loss",
            ddconfig={"attn_type": "vanilla-xformers", **_AUTOENCODER},
            lossconfig={"target": "torch.nn.Identity"},
        ),
    )


CONFIGS = {"sd1": sd1_config, "sdxl": sdxl_config, "sdxl_refiner": refiner_config}
"""Family -> its config by the UNet's channels. A1111 finds out about SD 2.x by trying its UNet."""


def _model(target: str, **params: Any) -> Config:
    return {"model": _part(target, **params)}


def _part(target: str, **params: Any) -> Config:
    return {"target": target, "params": params}


def _embedder(key: str, name: str, **params: Any) -> Config:
    target = f"sgm.modules.encoders.modules.{name}"
    return {"is_trainable": False, "input_key": key, **_part(target, **params)}
