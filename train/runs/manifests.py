"""Metadata of a run for its artifacts, in kohya's keys (ss_*)."""

import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import version
from typing import Any

from inference.files import old_hash, sha256
from inference.models import published_name, vae_file, vae_name
from inference.parallel import job_here
from inference.runtime import git, limner_version, without_passwords
from train.config import TrainRecipe

PACKAGES = (
    "torch", "accelerate", "diffusers", "transformers", "peft", "bitsandbytes", "omegaconf",
    "safetensors", "numpy", "pillow",
)  # fmt: skip


def describe_environment() -> dict[str, Any]:
    """Return versions, git commit of the clone, command line, machine."""
    import torch

    from train.common import uses_gpu

    on_gpu = uses_gpu()
    return {
        "limner": limner_version(),
        "git_commit": git("rev-parse", "HEAD"),
        "git_changed_files": (git("status", "--porcelain") or "").splitlines(),
        "command": without_passwords(shlex.join(sys.orig_argv)),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if on_gpu else platform.processor() or "cpu",
        **({"gpu": describe_gpu()} if on_gpu else {}),
        "threads": torch.get_num_threads(),
        "processes": processes_of_run(),
        **({"job": str(job)} if (job := job_here()) else {}),
        "packages": {name: version(name) for name in PACKAGES},
    }


def describe_gpu() -> dict[str, Any]:
    """Return the versions that a result on the GPU depends on; None where one is unknown."""
    import torch

    return {
        "driver": driver_version(),
        "cuda": torch.version.cuda or torch.version.hip,
        "cudnn": torch.backends.cudnn.version(),
        "capability": ".".join(map(str, torch.cuda.get_device_capability())),
    }


def driver_version() -> str | None:
    """Return the version of NVIDIA's driver, as `nvidia-smi` prints it."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        result = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(result.stdout.split()), None)


def processes_of_run() -> int:
    """Return the number of processes that accelerate or torchrun started for this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def run_metadata(
    recipe: TrainRecipe, step: int, num_pictures: int, num_class_pictures: int
) -> dict[str, str]:
    """Return ss_* values as kohya's sd-scripts write them: strings, `None` for what is not set.

    And the run's title.
    """
    optimizer, lr_scheduler = recipe.optimizer, recipe.lr_scheduler
    rates = optimizer.learning_rates
    denoiser = "unet" if recipe.data.clips is None else "transformer"
    facts = {
        "ss_output_name": recipe.saving.output_name or recipe.name,
        "ss_seed": recipe.seed,
        "ss_steps": step,
        "ss_max_train_steps": recipe.max_train_steps,
        "ss_num_train_images": num_pictures,
        "ss_num_reg_images": num_class_pictures,
        "ss_prior_loss_weight": recipe.loss.prior_weight if num_class_pictures else None,
        "ss_batch_size_per_device": recipe.train_batch_size,
        "ss_gradient_accumulation_steps": recipe.gradient_accumulation_steps,
        "ss_gradient_checkpointing": recipe.gradient_checkpointing,
        "ss_learning_rate": optimizer.learning_rate,
        "ss_unet_lr": rates.get(denoiser, optimizer.learning_rate),
        "ss_text_encoder_lr": rates.get("text_encoder", optimizer.learning_rate),
        "ss_optimizer": optimizer.type,
        "ss_lr_scheduler": lr_scheduler.type,
        "ss_lr_warmup_steps": lr_scheduler.warmup_steps,
        "ss_mixed_precision": "no" if recipe.mixed_precision == "fp32" else recipe.mixed_precision,
        "ss_max_grad_norm": recipe.max_grad_norm,
        "ss_clip_skip": recipe.base_model.clip_skip,
        "ss_noise_offset": recipe.loss.noise_offset or None,
        "ss_min_snr_gamma": recipe.loss.snr_gamma if recipe.loss.weighting == "min_snr" else None,
        "ss_caption_dropout_rate": recipe.data.captions.dropout_rate,
        "ss_caption_tag_dropout_rate": recipe.data.captions.tag_dropout_rate,
        "ss_shuffle_caption": recipe.data.captions.shuffle_tags,
        "ss_keep_tokens": recipe.data.captions.keep_tokens,
        "ss_sd_model_name": published_name(recipe.base_model.path),
    }
    if (vae := recipe.base_model.vae) is not None and (file := vae_file(vae)) is not None:
        facts |= {
            "ss_vae_name": vae_name(vae),
            "ss_vae_hash": old_hash(file),
            "ss_new_vae_hash": sha256(file),
        }
    title = {"modelspec.title": recipe.saving.output_name or recipe.name}
    return {key: str(value) for key, value in facts.items()} | title
