"""Run by the Python of another environment: load files with diffusers' own loaders.

`python in_diffusers.py JOB.json` loads what each case names, and writes what the model then
computes to `NAME.safetensors` in the job's folder, or the error to `results.json`. It also makes
LoRAs with peft and saves them with `save_lora_weights`. Nothing of Limner is imported.
"""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path
from typing import Any

import diffusers
import peft
import torch
import transformers
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from safetensors.torch import load_file, save_file

PROMPT = "a thing, b"
TIMESTEPS = (500, 20)
TARGETS = {
    "unet": ["to_q", "to_k", "to_v", "to_out.0", "ff.net.2", "conv1"],
    "text_encoder": ["q_proj", "k_proj", "v_proj", "out_proj"],
    "text_encoder_2": ["q_proj", "k_proj", "v_proj", "out_proj"],
    "transformer": ["to_q", "to_k", "to_v", "to_out.0"],
}


def pipeline_of(case: dict[str, Any]) -> Any:
    """The case's base model in a pipeline, from its folder or from a single file."""
    folder = case["base"]
    if case["family"] == "video":
        kind: Any = CogVideoXTransformer3DModel
        transformer = kind.from_pretrained(folder, subfolder="transformer")
        sampler: Any = CogVideoXDDIMScheduler()
        nothing: Any = None
        return CogVideoXPipeline(nothing, nothing, nothing, transformer, sampler)
    pipeline = StableDiffusionXLPipeline if case["family"] == "sdxl" else StableDiffusionPipeline
    if case["kind"] == "single file":
        return pipeline.from_single_file(case["file"], config=folder, local_files_only=True)
    return pipeline.from_pretrained(folder, local_files_only=True)


def load(pipe: Any, case: dict[str, Any]) -> None:
    """Load the case's artifact as diffusers' documentation says."""
    if case["kind"] == "lora":
        file = Path(case["file"])
        pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name="one")
        pipe.set_adapters(["one"], [case["strength"]])
    elif case["kind"] == "embedding" and case["family"] == "sdxl":
        vectors = load_file(case["file"])
        for key, number in (("clip_l", ""), ("clip_g", "_2")):
            pipe.load_textual_inversion(
                vectors[key],
                token="thing",
                text_encoder=getattr(pipe, f"text_encoder{number}"),
                tokenizer=getattr(pipe, f"tokenizer{number}"),
            )
    elif case["kind"] == "embedding":
        pipe.load_textual_inversion(case["file"], token="thing")


@torch.no_grad()
def outputs(pipe: Any, family: str, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the denoiser, the text encoders and the VAE compute from fixed inputs."""
    found: dict[str, torch.Tensor] = {}
    if family == "video":
        for timestep in TIMESTEPS:
            found[f"transformer {timestep}"] = pipe.transformer(
                hidden_states=inputs["frames"],
                encoder_hidden_states=inputs["states"],
                timestep=torch.tensor([timestep]),
                image_rotary_emb=(inputs["cos"], inputs["sin"]),
                return_dict=False,
            )[0]
        return found
    extra = {}
    if family == "sdxl":
        extra = {"text_embeds": inputs["pooled"], "time_ids": inputs["sizes"]}
    for timestep in TIMESTEPS:
        found[f"unet {timestep}"] = pipe.unet(
            inputs["latents"],
            timestep,
            encoder_hidden_states=inputs["states"],
            added_cond_kwargs=extra,
        ).sample
    encoded = pipe.encode_prompt(
        PROMPT, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    found["text"] = encoded[0]
    if family == "sdxl":
        found["pooled"] = encoded[2]
    found["vae"] = pipe.vae.decode(inputs["latents"]).sample
    return found


def make(pipe: Any, case: dict[str, Any]) -> None:
    """A LoRA of random numbers by peft, saved by the pipeline with or without its alpha."""
    numbers = torch.Generator().manual_seed(5)
    options: dict[str, Any] = {}
    has_metadata = False
    for part in case["parts"]:
        module = getattr(pipe, part)
        config = peft.LoraConfig(
            r=4, lora_alpha=case["alpha"], target_modules=TARGETS[part], init_lora_weights=True
        )
        peft.inject_adapter_in_model(config, module, adapter_name="one")
        module.peft_config = {"one": config}
        for name, parameter in module.named_parameters():
            if "lora_" in name:
                parameter.data = torch.randn(parameter.shape, generator=numbers) * 0.3
        layers = peft.get_peft_model_state_dict(module, adapter_name="one")
        options[f"{part}_lora_layers"] = {k: v.detach().clone() for k, v in layers.items()}
        options[f"{part}_lora_adapter_metadata"] = config.to_dict()
    known = inspect.signature(pipe.save_lora_weights).parameters
    has_metadata = f"{case['parts'][0]}_lora_adapter_metadata" in known
    if case["alpha"] != 4 and not has_metadata:
        raise NotImplementedError("save_lora_weights has no metadata in this version")
    options = {
        key: value
        for key, value in options.items()
        if key in known and (case["alpha"] != 4 or not key.endswith("metadata"))
    }
    file = Path(case["file"])
    pipe.save_lora_weights(str(file.parent), weight_name=file.name, **options)


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Do every case; return the error of each by name, or None."""
    folder, inputs = Path(job["folder"]), load_file(job["inputs"])
    results: dict[str, Any] = {
        "versions": {one.__name__: one.__version__ for one in (diffusers, transformers, peft)}
    }
    for case in job["cases"]:
        own = {
            key.partition(":")[2]: value
            for key, value in inputs.items()
            if key.startswith(f"{case['family']}:")
        }
        try:
            pipe = pipeline_of(case)
            if case["kind"] == "made":
                make(pipe, case)
            else:
                load(pipe, case)
            found = outputs(pipe, case["family"], own)
        except Exception as error:  # whatever a loader of any version raises is the result
            results[case["name"]] = f"{type(error).__name__}: {error}"
            continue
        save_file(
            {key: value.contiguous() for key, value in found.items()},
            folder / f"{case['name']}.safetensors",
        )
        results[case["name"]] = None
    return results


if __name__ == "__main__":
    torch.set_num_threads(1)
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    answer = json.dumps(run(job), indent=1)
    (Path(job["folder"]) / "results.json").write_text(answer, encoding="utf-8")
