"""Infotext of a clip: its settings, in the words of images' infotext if they fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from inference.artifacts import UsedArtifact
from inference.config import ClipConfig
from inference.images import TAGS, hash_list, tag_of, write_infotext
from inference.models import ClipModel, base_name, low_bits, model_hash, model_name
from inference.runtime import limner_version, number
from inference.sampling import SAMPLERS, resolve_schedule


def describe_clip(
    request: ClipConfig,
    base: ClipModel,
    artifacts: Sequence[UsedArtifact] = (),
    extra: Mapping[str, object | None] | None = None,
) -> str:
    """Return the infotext of one clip, whose request has seed, size, frames, fps and sampler.

    Args:
        request: from `inference.clips.requests.expand`.
        base: the model.
        artifacts: the attached ones; those of strength 0 are left out.
        extra: other entries, such as the cache.
    """
    at_work = [artifact for artifact in artifacts if artifact.is_at_work]
    tags = [tag_of(artifact) for artifact in at_work if artifact.kind in TAGS]
    models = [(a.name, a.hash) for a in at_work if a.kind == "checkpoint"]
    name, hash_ = models[-1] if models else (model_name(base), model_hash(base))
    scales = ";".join(map(number, request.cfg_scales))
    fps = request.fps or 0.0
    name_of_sampler = str(request.sampler)
    sampler = SAMPLERS[name_of_sampler]
    parameters: dict[str, object | None] = {
        "Steps": request.steps,
        "Sampler": sampler.title or name_of_sampler,
        "Schedule type": (
            None if sampler.uses_model_steps else resolve_schedule(name_of_sampler, "Automatic")
        ),
        "CFG scale": scales or request.cfg_scale,
        "Dynamic CFG": None if request.dynamic_cfg == "none" else request.dynamic_cfg,
        "Seed": request.seed,
        "Size": f"{request.width}x{request.height}",
        "Frames": request.frames,
        "FPS": number(fps),
        "Model hash": hash_[:10] if hash_ else None,
        "Model": name,
        "Diffusion in Low Bits": low_bits(base),
        "Denoising strength": request.strength if request.video else None,
        "Eta": request.eta if request.eta not in (None, sampler.default_eta) else None,
        "Window": request.window,
        "Window overlap": request.overlap if request.window else None,
        **{
            title: base_name(path) if (path := getattr(request, key)) else None
            for key, title in SOURCES.items()
        },
        "Lora hashes": hash_list([a for a in at_work if a.kind == "lora"]),
        **(extra or {}),
        "Version": f"limner {limner_version()}",
    }
    return write_infotext(" ".join([request.prompt, *tags]), request.negative_prompt, parameters)


SOURCES = {
    "image": "First frame",
    "end_image": "Last frame",
    "video": "Init video",
    "control_video": "Control video",
}
