"""Configs and options of other trainers, named where they are given as recipes and keys."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KOHYA, DIFFUSERS, ONETRAINER = "kohya", "diffusers", "OneTrainer"
AI_TOOLKIT, A1111 = "ai-toolkit", "A1111"

OPTIONS: dict[str, dict[str, str]] = {
    KOHYA: {
        "pretrained_model_name_or_path": "base_model.path",
        "v_parameterization": "base_model.prediction_type",
        "vae": "base_model.vae",
        "network_module": "objective.type",
        "network_dim": "objective.rank",
        "network_alpha": "objective.alpha",
        "network_dropout": "objective.dropout",
        "network_train_unet_only": "objective.train_text_encoder",
        "token_string": "objective.token",
        "init_word": "objective.initialization_text",
        "unet_lr": "optimizer.learning_rates",
        "text_encoder_lr": "optimizer.learning_rates",
        "optimizer_type": "optimizer.type",
        "optimizer_args": "optimizer.options",
        "use_8bit_adam": "optimizer.type",
        "lr_scheduler_type": "lr_scheduler.type",
        "lr_scheduler_args": "lr_scheduler.options",
        "lr_warmup_steps": "lr_scheduler.warmup_steps",
        "lr_scheduler_num_cycles": "lr_scheduler.num_cycles",
        "lr_scheduler_power": "lr_scheduler.power",
        "max_train_epochs": "max_train_steps",
        "epoch": "max_train_steps",
        "train_data_dir": "data.kohya_folders",
        "reg_data_dir": "data.kohya_reg_folders",
        "dataset_config": "data.kohya_config",
        "in_json": "data.subsets.<name>.metadata_file",
        "image_dir": "data.subsets.<name>.path",
        "num_repeats": "data.subsets.<name>.repeats",
        "class_tokens": "data.captions.fallback",
        "shuffle_caption": "data.captions.shuffle_tags",
        "caption_extension": "data.captions.extensions",
        "caption_dropout_rate": "data.captions.dropout_rate",
        "caption_dropout_every_n_epochs": "data.captions.dropout_every_n_epochs",
        "caption_tag_dropout_rate": "data.captions.tag_dropout_rate",
        "caption_prefix": "data.captions.prefix",
        "caption_suffix": "data.captions.suffix",
        "enable_wildcard": "data.captions.wildcards",
        "flip_aug": "data.flip",
        "color_aug": "data.color_jitter",
        "random_crop": "data.crop",
        "enable_bucket": "data.buckets",
        "min_bucket_reso": "data.buckets.min_side",
        "max_bucket_reso": "data.buckets.max_side",
        "bucket_reso_steps": "data.buckets.step",
        "bucket_no_upscale": "data.buckets.no_upscale",
        "cache_latents": "data.cache",
        "cache_latents_to_disk": "data.cache",
        "alpha_mask": "data.masks.source",
        "masked_loss": "data.masks",
        "max_data_loader_n_workers": "data.num_workers",
        "min_snr_gamma": "loss.snr_gamma",
        "prior_loss_weight": "loss.prior_weight",
        "output_name": "name",
        "logging_dir": "output_dir",
        "save_every_n_epochs": "saving.save_every_n_steps",
        "save_last_n_steps": "saving.keep_last_n_checkpoints",
        "sample_prompts": "sampling.images",
        "sample_sampler": "sampling.settings.sampler",
        "sample_every_n_epochs": "sampling.sample_every_n_steps",
        "full_bf16": "mixed_precision",
        "full_fp16": "mixed_precision",
        "validation_split": "validation.split",
        "validation_seed": "validation.seed",
    },
    DIFFUSERS: {
        "placeholder_token": "objective.token",
        "initializer_token": "objective.initialization_text",
        "checkpointing_steps": "saving.save_every_n_steps",
        "checkpoints_total_limit": "saving.keep_last_n_checkpoints",
        "validation_prompt": "sampling.images",
        "dataloader_num_workers": "data.num_workers",
        "adam_weight_decay": "optimizer.weight_decay",
        "adam_beta1": "optimizer.betas",
        "center_crop": "data.crop",
        "random_flip": "data.flip",
        "image_column": "data.columns.image",
        "caption_column": "data.columns.text",
        "dataset_name": "data.path",
        "num_class_images": "data.concepts.<name>.num_class_images_per",
        "enable_gradient_checkpointing": "gradient_checkpointing",
    },
    ONETRAINER: {
        "base_model_name": "base_model.path",
        "training_method": "objective.type",
        "lora_rank": "objective.rank",
        "lora_alpha": "objective.alpha",
        "placeholder": "objective.token",
        "token_count": "objective.num_vectors_per_token",
        "initial_embedding_text": "objective.initialization_text",
        "epochs": "max_train_steps",
        "batch_size": "train_batch_size",
        "learning_rate_warmup_steps": "lr_scheduler.warmup_steps",
        "learning_rate_scheduler": "lr_scheduler.type",
        "train_dtype": "mixed_precision",
        "output_dtype": "saving.save_precision",
        "aspect_ratio_bucketing": "data.buckets",
        "masked_training": "data.masks",
        "normalize_masked_area_loss": "data.masks.normalize",
        "offset_noise_weight": "loss.noise_offset",
        "loss_weight_fn": "loss.weighting",
        "loss_weight_strength": "loss.snr_gamma",
        "ema_decay": "ema.decay",
        "workspace_dir": "output_dir",
    },
    AI_TOOLKIT: {
        "name_or_path": "base_model.path",
        "linear": "objective.rank",
        "linear_alpha": "objective.alpha",
        "folder_path": "data.path",
        "caption_ext": "data.captions.extensions",
        "steps": "max_train_steps",
        "lr": "optimizer.learning_rate",
        "gradient_accumulation": "gradient_accumulation_steps",
        "save_every": "saving.save_every_n_steps",
        "max_step_saves_to_keep": "saving.keep_last_n_checkpoints",
        "sample_every": "sampling.sample_every_n_steps",
        "training_folder": "output_dir",
    },
    A1111: {
        "learn_rate": "optimizer.learning_rate",
        "data_root": "data.path",
        "template_file": "data.captions.template",
        "save_embedding_every": "saving.save_every_n_steps",
        "gradient_step": "gradient_accumulation_steps",
        "clip_grad_value": "max_grad_value",
        "tag_drop_out": "data.captions.tag_dropout_rate",
        "latent_sampling_method": "data.latent_sampling",
    },
}
"""Options of other trainers -> the key of a recipe that takes their place."""


def counterpart(name: str, known: Collection[str]) -> str:
    """Return what an unknown key is in another trainer, and what it is here; empty if nothing.

    Args:
        name: the unknown key.
        known: all keys of the recipe.
    """
    for program, options in OPTIONS.items():
        if (target := options.get(name)) in known:
            return f"{program}'s {name} is {target} here"
    return ""


@dataclass(frozen=True)
class Config:
    """A config file of another trainer."""

    words: str
    """What it is, and what reads it."""
    program: str
    """A key of `OPTIONS`."""
    keys: frozenset[str]
    """Keys that it has, all of them."""
    remedy: str = ""
    """How it is used here."""


CONFIGS = (
    Config(
        "a dataset config of kohya's sd-scripts (--dataset_config)",
        KOHYA,
        frozenset({"datasets"}),
        "name it in a recipe: data.kohya_config",
    ),
    Config(
        "a config of the kohya_ss GUI, which opens it",
        KOHYA,
        frozenset({"LoRA_type", "pretrained_model_name_or_path"}),
    ),
    Config(
        "a config of the kohya_ss GUI, which opens it",
        KOHYA,
        frozenset({"model_list", "pretrained_model_name_or_path"}),
    ),
    Config(
        "a config of kohya's sd-scripts, whose training scripts read it (--config_file)",
        KOHYA,
        frozenset({"pretrained_model_name_or_path"}),
    ),
    Config(
        "a config of kohya's sd-scripts, whose training scripts read it (--config_file)",
        KOHYA,
        frozenset({"network_module"}),
    ),
    Config(
        "a config of OneTrainer, which opens it (or scripts/train.py --config-path)",
        ONETRAINER,
        frozenset({"training_method", "model_type"}),
    ),
    Config(
        "a config of ai-toolkit, whose run.py reads it", AI_TOOLKIT, frozenset({"job", "config"})
    ),
    Config(
        "a db_config.json of A1111's DreamBooth extension, which opens it",
        A1111,
        frozenset({"concepts_list", "model_name"}),
        "its concepts_list, as a file of its own, is data.concepts_list of a recipe",
    ),
    Config(
        "settings that A1111's Train tab has saved",
        A1111,
        frozenset({"data_root", "learn_rate"}),
    ),
)
"""The configs that are recognized, by their keys; the first that fits."""
OWN = frozenset({"objective", "base", "base_model", "images", "clips", "settings"})
"""Keys of recipes, which a config of another trainer does not have."""
MOST_NAMED = 8


def foreign_file(path: Path, text: str) -> str:
    """Return what a file is that another trainer reads, and how to go on; empty for others.

    Only .toml and .json files are read for it; see `foreign_keys` for YAML.
    """
    ending = path.suffix.lower()
    try:
        if ending == ".toml":
            told = foreign_keys(tomllib.loads(text))
            return (
                told or "is TOML, and a recipe is YAML: write `key: value` instead of key = value"
            )
        if ending == ".json":
            return foreign_keys(json.loads(text))
    except (ValueError, RecursionError):
        return ""
    return ""


def foreign_keys(content: Any) -> str:
    """Return the same for the content of a file."""
    if not isinstance(content, Mapping) or OWN & content.keys():
        return ""
    names = dict.fromkeys(_names(content, 4))
    config = next((one for one in CONFIGS if one.keys <= names.keys()), None)
    if config is None:
        return ""
    options = OPTIONS[config.program]
    named = [f"{name} is {options[name]}" for name in names if name in options]
    more = ", …" if len(named) > MOST_NAMED else ""
    here = f"; {', '.join(named[:MOST_NAMED])}{more}" if named else ""
    remedy = config.remedy or f"begin with a recipe such as configs/lora.yaml{here}"
    return f"is {config.words}, not a recipe; {remedy}"


def _names(content: Any, depth: int) -> Iterator[str]:
    """Yield the names in nested tables."""
    if isinstance(content, Mapping):
        for name, value in content.items():
            yield str(name)
            if depth:
                yield from _names(value, depth - 1)
    elif isinstance(content, list) and depth:
        for value in content:
            yield from _names(value, depth - 1)
