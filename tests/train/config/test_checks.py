"""Rules that concern several keys: each applies to some recipe; their sentences name the keys."""

import re
import warnings
from pathlib import Path

import pytest

from inference.recipe.layers import RecipeError
from inference.recipe.loader import load_recipe
from train.config.checks import REFUSALS, UNUSED, Rule, Rules
from train.config.recipe import TrainRecipe
from train.config.rules import Faults
from train.config.schema import train_schema

SOUND = "name: dog\nobjective: {type: lora}\ndata: {path: dog}\n"
AUTOENCODER = "objective={type: autoencoder}"
CLIPS, PRIOR = "data.clips={}", "loss.prior=prediction"
SHARDS = "hf://owner/name@0123456789012345678901234567890123456789"
STREAMED = [f"data.path={SHARDS}", "data.streaming={}"]
CONCEPT = (
    "data={path: null, concepts: {it: {instance_data_dir: x, class_data_dir: y, "
    "num_class_images_per: 1}}}"
)
CLASS_IMAGES = ["data.path=null", "data.subsets={own: {path: x}, reg: {path: y, is_reg: true}}"]
LORA = "objective: {type: lora}"


def members(first: str, second: str = "") -> str:
    both = f"{{a: {{{LORA}{first}}}, b: {{{LORA}{second}}}}}"
    return f"objective={{type: combined, members: {both}}}"


REFUSED = [
    ["max_train_steps=0", "train_batch_size=0", "gradient_accumulation_steps=0",
     "log_every_n_steps=0", "seed=-1", "max_grad_norm=0", "max_grad_value=0", "name=a/b",
     "overwrite=true", "resume=true", "base_model.quantization=nf4", *STREAMED,
     "data.subsets={reg: {path: y, is_reg: true, streaming: {window: 3}}}",
     f"validation.path={SHARDS}"],
    ["lr_scheduler={type: schedule, schedule: '1e-3:200', warmup_steps: 1000}",
     "optimizer.learning_rate=0", "stages={a: {}, b: {steps: 5, frames: 9, height: 32, width: 32}}",
     *STREAMED, "data.cache=off", "validation.split=0.1"],
    [members(", stop_step: 2000, lr_scheduler: {type: schedule, schedule: '1e-3:20'}")],
    [members(", stop_step: 5, lr_scheduler: {warmup_steps: 5}", ", stop_step: 6")],
    ["speed.compile=blocks", "parallel.context=2", CLIPS],
    ["stages={a: {resolution: 32, steps: 5}, b: {}}", "data.masks={}", PRIOR, CLIPS],
    ["base_model.quantization=nf4", PRIOR, "objective={type: dreambooth}",
     "memory={fused_backward: true, trained_weights: bf16, blocks_to_swap: 2}",
     "mixed_precision=fp16", "stages={a: {steps: 5, gradient_accumulation_steps: 2}, b: {}}"],
    ["data.masks={}", "data.clips.pack=true", "base_model.vae=x", AUTOENCODER,
     "vae_tiling=true"],
    [CONCEPT, AUTOENCODER],
    [*CLASS_IMAGES, AUTOENCODER],
    ["parallel={strategy: zero3, context: 2}", "max_grad_value=1", "mixed_precision=fp16", PRIOR,
     "base_model.quantization=nf4", "optimizer.type=adamw8bit", "speed.compile=blocks",
     "memory={fused_backward: true, optimizer_on_cpu: true, trained_weights: bf16, "
     "blocks_to_swap: 2, activation_offload: true, offload: model_offload}"],
    ["parallel=zero1", AUTOENCODER],
    ["parallel.context=2", AUTOENCODER],
    ["parallel=zero1", "objective={type: dreambooth, train_text_encoder: true, "
     "stop_text_encoder_training: 0.5}"],
    ["deterministic=true", "speed={attention: flash, cudnn_benchmark: true, compile: blocks}"],
    ["parallel=fsdp", "mixed_precision=fp16", "base_model.quantization=nf4", AUTOENCODER,
     "memory={fused_backward: true, blocks_to_swap: 2, optimizer_on_cpu: true, trained_weights: "
     "bf16, activation_offload: true}", "speed={compile: blocks, channels_last: true}",
     "loss.prior_copy=true", "optimizer.type=adamw8bit"],
]  # fmt: skip
WARNED_OF = [
    ["sampling.images.one.prompt=cat", "sampling.sanity_prompt=dog",
     "validation={split: 0.1, timesteps: [5]}", AUTOENCODER, "gradient_checkpointing=true",
     "memory.blocks_to_swap=2"],
    ["data.clips.pack=true", "train_batch_size=1", "sampling.images.one.prompt=cat",
     "memory.ema_on_cpu=true"],
    ["loss={motion_ratio: 0.1, prior_weight: 0.5, prior_weight_min: 0.2, prior: prediction, "
     "prior_copy: true}", "image_condition.dropout_rate=0.3", "drop_learned_positions=true",
     "sampling.clips.one={prompt: cat, seed: 1}"],
    [*CLASS_IMAGES, "loss.prior_weight=0"],
    [*CLASS_IMAGES, "loss={prior_weight_min: 0.2, prior_weight_target: 2000, prior: prediction}",
     "objective={type: textual_inversion, token: xyz}"],
    ["memory.trained_weights=bf16", "parallel.gradient_compression=bf16", "mixed_precision=bf16",
     "objective={type: text_to_image}"],
    ["base_model.attention=eager", "speed={attention: math, channels_last: true}", CLIPS],
]  # fmt: skip


def test_every_rule_applies_to_some_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules that are computed together yield the keys of their sentences, and no others."""
    (tmp_path / "sound.yaml").write_text(SOUND, encoding="utf-8")
    found: set[tuple[Rules, str]] = set()

    def recorded(self: Rules, recipe: TrainRecipe) -> Faults:
        for key, message in self.faults(recipe):
            found.add((self, re.sub(r"(stages|subsets|members|concepts)\.\w+", r"\1.<name>", key)))
            yield key, message

    (tmp_path / "data" / "inner").mkdir(parents=True)
    outer, inner = tmp_path / "data", tmp_path / "data" / "inner"
    written = (
        f"output_dir={inner} data.cache_dir={inner} validation.path={inner} "
        f"data.streaming.folder={inner} data.path={outer}"
    )
    concept = f"{{instance_data_dir: {inner}, class_data_dir: {inner}, num_class_images_per: 1}}"
    nested = [
        written.split(),
        [f"validation.path={outer}", f"data.path={inner}"],
        [f"validation.path={outer}", "data.path=null", f"data.subsets.one.path={inner}"],
        [f"validation.path={outer}", "data.path=null", f"data.concepts.it={concept}"],
    ]
    monkeypatch.setattr(Rules, "__call__", recorded)
    lines: list[str] = []
    for overrides in (*REFUSED, *WARNED_OF, *nested):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                load_recipe(tmp_path / "sound.yaml", train_schema, overrides)
            except RecipeError as error:
                lines += str(error).splitlines()
        lines += [str(warning.message) for warning in caught]
    for check in (*REFUSALS, *UNUSED):
        if isinstance(check, Rule):
            message = re.sub(r"\\\{.*?\\\}", ".+", re.escape(f" {check.key}: {check.message}"))
            assert any(re.search(message, line) for line in lines), (message, lines)
    computed = [check for check in (*REFUSALS, *UNUSED) if isinstance(check, Rules)]
    assert found == {(check, key) for check in computed for key, _ in check.sentences}
