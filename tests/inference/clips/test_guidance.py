from typing import Any, cast

import pytest
import torch

from inference.clips.guidance import guidance_scales
from inference.runtime.errors import InputError
from tests.inference.models.cogvideox.tiny import good_schedule, tiny_transformer, tiny_vae


def trailing(steps: int) -> list[int]:
    return [round(1000 - 1000 / steps * step) - 1 for step in range(steps)]


def test_first_ten_of_diffusers_dynamic_guidance():
    scales = guidance_scales(6.0, trailing(50), "diffusers")
    assert [round(scale, 1) for scale in scales[:10]] == [
        2.3, 2.5, 7.0, 6.4, 2.8, 4.3, 1.0, 4.2, 1.6, 7.0
    ]  # fmt: skip
    assert sum(scales) / len(scales) == pytest.approx(3.8, abs=0.05)


def test_cosine_of_the_step_rises_late():
    scales = guidance_scales(6.0, trailing(50), "cosine")
    assert scales[0] == 1 and scales == sorted(scales)
    assert scales[25] == pytest.approx(1 + 3 * (1 - 0.995185), abs=1e-4)  # cos(pi / 32)
    assert 6.6 < scales[-1] < 7


def test_constant_and_listed():
    assert guidance_scales(6, [999, 499]) == [6.0, 6.0]
    assert guidance_scales([7, 1.5], [999, 499]) == [7.0, 1.5]
    with pytest.raises(InputError, match="guidance_scale: 3 numbers for 2 steps; give one per"):
        guidance_scales([7, 1, 1], [999, 499])
    with pytest.raises(InputError, match="cfg: a list already says"):
        guidance_scales([7, 1], [999, 499], "cosine", key="cfg")


@pytest.mark.parametrize("strength", [None, 0.5], ids=["text to video", "video to video"])
def test_dynamic_guidance_is_the_pipelines(strength: float | None) -> None:
    from diffusers.pipelines.cogvideo.pipeline_cogvideox import CogVideoXPipeline
    from diffusers.pipelines.cogvideo.pipeline_cogvideox_video2video import (
        CogVideoXVideoToVideoPipeline,
    )
    from diffusers.schedulers.scheduling_ddim_cogvideox import CogVideoXDDIMScheduler

    pipeline_class = CogVideoXPipeline if strength is None else CogVideoXVideoToVideoPipeline
    pipeline = pipeline_class(
        tokenizer=None,
        text_encoder=None,
        vae=tiny_vae(),
        transformer=tiny_transformer(num_layers=1),
        scheduler=cast(Any, CogVideoXDDIMScheduler.from_config(good_schedule())),
    )
    pipeline.set_progress_bar_config(disable=True)
    timesteps, scales = [], []

    def note(pipe: Any, step: int, timestep: torch.Tensor, tensors: dict) -> dict:
        timesteps.append(int(timestep))
        scales.append(pipe.guidance_scale)
        return tensors

    states = torch.zeros(1, 16, 32)
    size = {"height": 16, "width": 16}
    clip = {"num_frames": 1, **size} if strength is None else {
        "video": torch.zeros(1, 1, 3, 16, 16), "strength": strength, **size
    }  # fmt: skip
    called: Any = pipeline
    called(
        prompt_embeds=states,
        negative_prompt_embeds=states,
        num_inference_steps=8,
        guidance_scale=6.0,
        use_dynamic_cfg=True,
        callback_on_step_end=note,
        output_type="latent",
        **clip,
    )
    assert len(timesteps) == (8 if strength is None else 4)
    assert guidance_scales(6.0, timesteps, "diffusers") == scales
