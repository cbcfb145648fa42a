"""Infotext of a drawing: its parameters in A1111's words, order and rules for what is written.

Source: A1111 1.10.1 `modules/processing.py` (`create_infotext`, and where
`extra_generation_params` are set), `modules/sd_samplers_*.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from inference.artifacts import UsedArtifact
from inference.config import (
    HiresConfig,
    ImageConfig,
    ImageToImageConfig,
)
from inference.images.infotext.text import write_infotext
from inference.models import model_hash, model_name
from inference.runtime import limner_version, number
from inference.sampling import SAMPLERS, SCHEDULES, resolve_schedule

if TYPE_CHECKING:
    from inference.models import ImageModel


TAGS = {"lora": "lora", "hypernetwork": "hypernet"}
"""Kind of artifact -> what A1111 calls it by in prompts."""


def tag_of(used: UsedArtifact) -> str:
    """Return its tag in A1111: `<lora:name:1>`, or `<lora:name:text encoder:unet>`."""
    is_split = used.te_strength is not None and used.te_strength != used.strength
    strengths = [used.te_strength, used.strength] if is_split else [used.strength]
    return f"<{':'.join([TAGS[used.kind], used.name, *map(number, strengths)])}>"


Parameters = dict[str, object]


def describe_drawing(
    request: ImageConfig,
    base: ImageModel,
    artifacts: Sequence[UsedArtifact] = (),
    extra: Mapping[str, object | None] | None = None,
) -> str:
    """Infotext of a picture drawn by `inference.images.drawing`.

    LoRAs and hypernetworks at work that the prompt does not call are added to it as A1111 calls
    them, `<lora:name:strength>` and `<hypernet:name:strength>`; a checkpoint takes the place of the
    base model.

    Args:
        request: one picture, with seed and size.
        base: what it was drawn with.
        artifacts: what was attached; those of strength 0 are left out.
        extra: what drawing adds or knows better. A key that is there already keeps its place; None
            takes it out.
    """
    at_work = [artifact for artifact in artifacts if artifact.is_at_work]
    tags = [tag_of(a) for a in at_work if a.kind in TAGS and not a.is_called]
    models = [(a.name, a.hash) for a in at_work if a.kind == "checkpoint"]
    name, hash_ = models[-1] if models else (model_name(base), model_hash(base))
    parameters = {
        **first_parameters(request),
        "Model hash": hash_[:10] if hash_ else None,
        "Model": name,
        **seed_parameters(request),
        "Denoising strength": None,
        "Conditional mask weight": mask_weight(request, base),
        "Clip skip": base.clip_skip if base.clip_skip > 1 else None,
        "ENSD": request.ensd if uses_ensd(request) else None,
        "Init image hash": None,
        "RNG": noise_origin(request, base),
        "Tiling": "True" if request.tiling else None,
    }
    if request.hires is not None:
        parameters |= hires_parameters(request, request.hires, tags)
    if request.img2img is not None:
        parameters |= img2img_parameters(request.img2img)
    parameters["Lora hashes"] = hash_list([a for a in at_work if a.kind == "lora"])
    parameters |= prompt_parameters(request, base, at_work)
    parameters |= sampling_parameters(request)
    parameters |= own_parameters(request)
    parameters |= {**(extra or {})}
    parameters.setdefault("Version", f"limner {limner_version()}")
    return write_infotext(" ".join([request.prompt, *tags]), request.negative_prompt, parameters)


def first_parameters(request: ImageConfig) -> Parameters:
    """From Steps to Size (that of the first pass)."""
    return {
        "Steps": request.steps,
        "Sampler": request.sampler,
        "Schedule type": resolve_schedule(request.sampler, request.schedule_type),
        "CFG scale": request.cfg_scale,
        "Seed": request.seed,
        "Face restoration": request.restore_faces,
        "Size": f"{request.width}x{request.height}",
    }


def seed_parameters(request: ImageConfig) -> Parameters:
    """What changes the first noise."""
    is_varied = request.variation_strength > 0
    width, height = request.seed_resize_from_width, request.seed_resize_from_height
    return {
        "Variation seed": request.variation_seed if is_varied else None,
        "Variation seed strength": request.variation_strength if is_varied else None,
        "Seed resize from": f"{width}x{height}" if width > 0 and height > 0 else None,
    }


def mask_weight(request: ImageConfig, base: ImageModel) -> float | None:
    """How strictly the mask hides; only of models that see it."""
    if not base.sees_masks or request.img2img is None:
        return None
    inpaint = request.img2img.inpaint
    return inpaint.conditioning_mask_strength if inpaint else None


def uses_ensd(request: ImageConfig) -> bool:
    """Whether the eta noise seed delta changes the picture.

    A1111 tells it of ancestral samplers only, though those with churn, LCM and Restart heed it too.
    """
    used = [SAMPLERS[name] for name, _ in passes(request)]
    draws = any(one.draws_further_noise(request.eta, request.s_churn) for one in used)
    return request.ensd != 0 and draws


def noise_origin(request: ImageConfig, base: ImageModel) -> str | None:
    """Whose noise it was; None is a GPU's. A CPU told to take the GPU's takes its own."""
    if request.rng != "GPU":
        return request.rng
    return "CPU" if base.device.type in ("cpu", "mps") else None


def passes(request: ImageConfig) -> list[tuple[str, str]]:
    """Sampler and schedule type of every pass, `Automatic` taken for what it stands for.

    A1111 tells what the first one heeds; ours what either does.
    """
    found = [(request.sampler, request.schedule_type)]
    if (hires := request.hires) is not None and hires.denoising_strength > 0:
        later = hires.sampler or request.sampler, hires.schedule_type or request.schedule_type
        found.append(later)
    return [(name, resolve_schedule(name, schedule)) for name, schedule in found]


def hires_parameters(
    request: ImageConfig, hires: HiresConfig, tags: Sequence[str] = ()
) -> Parameters:
    """Hires. fix: what its second pass does, and what it does otherwise than the first.

    What is attached works in both passes: its tags are added to both prompts.
    """

    def unlike(value: str | None, first: str) -> str | None:
        return value if value not in (None, first) else None

    sampler = hires.sampler or request.sampler
    schedule = resolve_schedule(sampler, hires.schedule_type or request.schedule_type)
    first_schedule = resolve_schedule(request.sampler, request.schedule_type)
    prompt = unlike(hires.prompt, request.prompt)
    has_size = hires.resize_x > 0 or hires.resize_y > 0
    return {
        "Denoising strength": hires.denoising_strength,
        "Hires sampler": unlike(hires.sampler, request.sampler),
        "Hires prompt": None if prompt is None else " ".join([prompt, *tags]),
        "Hires negative prompt": unlike(hires.negative_prompt, request.negative_prompt),
        "Hires schedule type": unlike(schedule, first_schedule),
        "Hires upscale": None if has_size else hires.upscale,
        "Hires resize": f"{hires.resize_x}x{hires.resize_y}" if has_size else None,
        "Hires steps": hires.steps or None,
        "Hires upscaler": hires.upscaler,
    }


def img2img_parameters(img2img: ImageToImageConfig) -> Parameters:
    """How much of the picture was drawn anew, and where.

    A1111 leaves a mask blur of 0 out, and then takes the last one that was set.
    """
    parameters: Parameters = {"Denoising strength": img2img.denoising_strength}
    if (inpaint := img2img.inpaint) is not None:
        is_part = inpaint.area == "Only masked"
        parameters |= {
            "Mask mode": inpaint.mask_mode if inpaint.mask_mode != "Inpaint masked" else None,
            "Mask blur": inpaint.mask_blur,
            "Inpaint area": "Only masked" if is_part else None,
            "Masked area padding": inpaint.padding if is_part else None,
            "Masked content": (
                inpaint.masked_content if inpaint.masked_content != "original" else None
            ),
        }
    return parameters


def prompt_parameters(
    request: ImageConfig, base: ImageModel, at_work: Sequence[UsedArtifact]
) -> Parameters:
    """How the prompts were read, and the embeddings that they call."""
    texts = [request.prompt, request.negative_prompt]
    if request.hires is not None:
        texts += filter(None, (request.hires.prompt, request.hires.negative_prompt))
    called = base.embeddings_called(texts)
    embeddings = [a for a in at_work if a.kind == "embedding" and a.name in called]
    signs = "".join(texts)
    has_brackets = "(" in signs or "[" in signs
    is_told = request.emphasis != "Original" and has_brackets
    is_old = request.old_prompt_editing and "[" in signs
    return {
        "Old prompt editing timelines": "True" if is_old else None,
        "TI hashes": hash_list(embeddings),
        "Emphasis": request.emphasis if is_told else None,
    }


def sampling_parameters(request: ImageConfig) -> Parameters:
    """What is unusual in schedule, sampler and guidance, in the order in which they set to work."""
    img2img = request.img2img
    used = [SAMPLERS[name] for name, _ in passes(request)]
    etas = [one.default_eta for one in used if one.default_eta is not None]
    is_usual = all(request.eta in (None, eta) for eta in etas)
    is_churned = request.s_churn > 0 and any(one.uses_churn for one in used)
    is_noisy = any(one.uses_churn or one.uses_s_noise for one in used)
    is_guided = request.cfg_scale != 1 or any(one.needs_uncond for one in used)
    return {
        "Noise multiplier": unless(1, img2img.noise_multiplier) if img2img else None,
        **schedule_parameters(request),
        "Extra noise": img2img.extra_noise or None if img2img else None,
        "SGM noise multiplier": "True" if request.sgm_noise_multiplier and not img2img else None,
        "Eta DDIM" if request.sampler.startswith("DDIM") else "Eta": (
            None if is_usual else request.eta
        ),
        "Sigma churn": request.s_churn if is_churned else None,
        "Sigma tmin": request.s_tmin or None if is_churned else None,
        "Sigma tmax": request.s_tmax or None if is_churned else None,
        "Sigma noise": unless(1, request.s_noise) if is_noisy else None,
        "Skip Early CFG": request.skip_early_cond or None if is_guided else None,
        "Pad conds": "True" if request.pad_conds and is_guided else None,
        "NGMS": request.s_min_uncond or None if is_guided else None,
    }


def schedule_parameters(request: ImageConfig) -> Parameters:
    """What was changed of the noise schedule."""
    schedule = request.schedule
    samplers, names = zip(*passes(request), strict=True)
    types = [SCHEDULES[name] for name in names if name != "Automatic"]
    has_sigmas = any(one.heeds_range for one in types)
    rhos = [one.default_rho for one in types if one.default_rho is not None]
    always_discards = all(SAMPLERS[sampler].discards_penultimate for sampler in samplers)
    is_discarding = schedule.discard_next_to_last_sigma and not always_discards
    is_beta = "Beta" in names
    return {
        "Discard penultimate sigma": "True" if is_discarding else None,
        "Schedule min sigma": schedule.sigma_min if has_sigmas else None,
        "Schedule max sigma": schedule.sigma_max if has_sigmas else None,
        "Schedule rho": (schedule.rho if any(rho != schedule.rho for rho in rhos) else None),
        "Beta schedule alpha": schedule.beta_alpha if is_beta else None,
        "Beta schedule beta": schedule.beta_beta if is_beta else None,
    }


def own_parameters(request: ImageConfig) -> Parameters:
    """Settings that A1111 has and does not tell; without them a picture cannot be drawn again."""
    img2img = request.img2img
    told: Parameters = {
        "Old Karras sigmas": "True" if request.schedule.use_old_karras else None,
        "Comma backtrack": unless(20, request.comma_padding_backtrack),
    }
    if img2img is None:
        return told
    inpaint = img2img.inpaint
    return told | {
        "Resize mode": unless("Just resize", img2img.resize_mode),
        "Exact steps": "True" if img2img.exact_steps else None,
        "Color correction": "True" if img2img.color_correction else None,
        "Background color": unless("#ffffff", img2img.background_color),
        "Soft edges": "True" if inpaint and inpaint.soft_edges else None,
        "Mask transparency": (inpaint.mask_transparency or None) if inpaint else None,
    }


def unless(usual: object, value: object) -> object:
    """The value; None where it is the usual one."""
    return None if value == usual else value


def hash_list(artifacts: Sequence[UsedArtifact]) -> str | None:
    """`name: hash, …` of those whose hash is known, each name once; None for none."""
    hashes = {plain(a.name): a.hash[:12] for a in artifacts if a.hash}
    return ", ".join(f"{name}: {hash_}" for name, hash_ in hashes.items()) or None


def plain(name: str) -> str:
    """A name without what separates names from hashes."""
    return name.replace(":", "").replace(",", "")
