from types import SimpleNamespace
from typing import Any

import pytest
import torch

from inference.models.cogvideox.arithmetic import (
    FrameRule,
    check_positions,
    padding,
    size_step,
    video_to_video_multiple,
    video_tokens,
)
from inference.models.size_rules import RoundedSize, check_size, rounded_size
from inference.runtime.errors import InputError
from tests.inference.models.cogvideox.tiny import tiny_transformer, tiny_vae

RULE = FrameRule()


def config(**changes: Any) -> SimpleNamespace:
    """Of CogVideoX-5B."""
    values = {
        "patch_size": 2,
        "patch_size_t": None,
        "sample_width": 90,
        "sample_height": 60,
        "sample_frames": 49,
        "temporal_compression_ratio": 4,
        "max_text_seq_length": 226,
        "use_rotary_positional_embeddings": True,
        "use_learned_positional_embeddings": False,
    }
    return SimpleNamespace(**values | changes)


def test_frames_are_counted_as_the_vae_counts_them():
    vae = tiny_vae()
    rule = FrameRule.of(vae)
    assert rule == RULE
    with torch.no_grad():
        for frames in (1, 2, 5, 7, 8, 9, 12, 13, 16, 17, 21, 24, 25, 33, 49):
            latents = vae.encode(torch.zeros(1, 3, frames, 8, 8)).latent_dist.mode()
            assert latents.shape[2] == rule.latent_frames(frames), frames
            decoded = vae.decode(latents).sample
            assert decoded.shape[2] == rule.decoded_frames(latents.shape[2]), frames
            assert rule.fits(frames) == (decoded.shape[2] == frames)


def test_frames_of_another_ratio_are_counted_as_the_vae_counts_them():
    vae = tiny_vae(temporal_compression_ratio=8)
    rule = FrameRule.of(vae)
    with torch.no_grad():
        for frames in (1, 8, 9, 16, 17):
            latents = vae.encode(torch.zeros(1, 3, frames, 8, 8)).latent_dist.mode()
            assert latents.shape[2] == rule.latent_frames(frames), frames
            decoded = vae.decode(latents).sample.shape[2]
            assert decoded == rule.decoded_frames(latents.shape[2]), frames
    assert [frames for frames in range(1, 40) if rule.fits(frames)] == [1, 16, 17, 32, 33]


def test_only_1_8k_and_8k_plus_1_frames_come_back():
    allowed = [frames for frames in range(1, 170) if RULE.fits(frames)]
    assert allowed == [frames for frames in range(1, 170) if frames % 8 in (0, 1)]
    assert [RULE.decoded_frames(RULE.latent_frames(n)) for n in (5, 13, 21)] == [8, 16, 24]


@pytest.mark.parametrize(
    ("frames", "multiple", "nearest"),
    [
        (-3, 1, (None, 1)),
        (0, 1, (None, 1)),
        (1, 1, (1, 1)),
        (2, 1, (1, 8)),
        (5, 1, (1, 8)),
        (13, 1, (9, 16)),
        (50, 1, (49, 56)),
        (81, 1, (81, 81)),
        (1, 2, (None, 8)),
        (77, 2, (72, 80)),
        (81, 2, (80, 88)),
    ],
)
def test_nearest_numbers_of_frames(
    frames: int, multiple: int, nearest: tuple[int | None, int]
) -> None:
    assert RULE.nearest(frames, multiple) == nearest


@pytest.mark.parametrize(
    ("frames", "multiple", "message"),
    [
        (13, 1, "frames: 13 frames; the VAE gives back 1, 8k or 8k + 1 frames as they went in; "
         "use 9 or 16"),
        (0, 1, "frames: 0 frames; the VAE gives back 1, 8k or 8k + 1 frames as they went in; "
         "use 1"),
        (81, 2, "frames: 81 frames; a clip that this model draws over needs a multiple of 2 "
         "latent frames, so 8k frames; use 80 or 88"),
        (1, 2, "frames: 1 frames; a clip that this model draws over needs a multiple of 2 "
         "latent frames, so 8k frames; use 8"),
    ],
)  # fmt: skip
def test_frames_that_do_not_come_back_are_refused(frames: int, multiple: int, message: str) -> None:
    with pytest.raises(InputError) as error:
        RULE.check("frames", frames, multiple)
    assert str(error.value) == message


def test_frames_that_come_back_give_latent_frames():
    counts = {1: 1, 8: 2, 9: 3, 17: 5, 25: 7, 33: 9, 49: 13, 81: 21, 161: 41}
    assert {frames: RULE.check("frames", frames) for frames in counts} == counts
    assert RULE.check("frames", 80, video_to_video_multiple(2)) == 20
    assert RULE.check("frames", 81, video_to_video_multiple(None)) == 21


def test_a_ratio_of_which_no_clip_comes_back_is_refused():
    with pytest.raises(ValueError, match="come back"):
        FrameRule(temporal_ratio=16)


def test_padding_of_1_5():
    assert [padding(n, 2) for n in (2, 3, 4, 5, 7, 13, 21, 41)] == [0, 1, 0, 1, 1, 1, 1, 1]
    assert [padding(n, None) for n in (3, 13)] == [0, 0]


@pytest.mark.parametrize(
    ("clip", "changes", "tokens"),
    [
        ((13, 60, 90), {}, 17_550),
        ((21, 96, 170), {"patch_size_t": 2}, 44_880),
        ((41, 96, 170), {"patch_size_t": 2}, 85_680),
        ((1, 60, 90), {}, 1_350),
    ],
)
def test_tokens_of_a_clip(clip: tuple[int, int, int], changes: dict[str, Any], tokens: int) -> None:
    assert video_tokens(*clip, config(**changes)) == tokens


def test_sizes():
    step = size_step(8, 2)
    assert step == 16
    check_size("width", 720, step)
    for pixels, use in ((24, "16 or 32"), (8, "16"), (-16, "16"), (0, "16")):
        with pytest.raises(InputError) as error:
            check_size("height", pixels, step)
        assert str(error.value) == (
            f"height: {pixels} is no multiple of 16, as this model needs; use {use}"
        )
    assert rounded_size(720, 480, step) == RoundedSize(720, 480)
    assert rounded_size(727, 3, step) == RoundedSize(
        720,
        16,
        (
            "width: 720 instead of 727, which is no multiple of 16",
            "height: 16 instead of 3, which is no multiple of 16",
        ),
    )
    halves = rounded_size(728, 712, step)
    assert (halves.width, halves.height) == (736, 720)


def test_learned_positions_fit_the_trained_size_and_length_only():
    learned = config(use_learned_positional_embeddings=True)
    assert check_positions(learned, 720, 480, 13, 8) is None
    for width, height, latent_frames in ((480, 720, 13), (720, 480, 5)):
        with pytest.raises(InputError) as error:
            check_positions(learned, width, height, latent_frames, 8)
        assert f"{width}x{height} with {latent_frames} latent frames" in str(error.value)
        assert "720x480 with 13 (49 frames) only" in str(error.value)


def test_computed_positions_are_noted_and_rotary_ones_fit_all_sizes():
    assert check_positions(config(), 256, 256, 3, 8) is None
    sines = config(use_rotary_positional_embeddings=False)
    assert check_positions(sines, 720, 480, 5, 8) is None
    note = check_positions(sines, 256, 256, 13, 8)
    assert note is not None and note.startswith("256x256:") and "720x480" in note


@pytest.mark.parametrize("is_rotary", [True, False])
def test_the_transformer_agrees_on_prompts_of_another_length(is_rotary: bool) -> None:
    transformer = tiny_transformer(
        use_rotary_positional_embeddings=is_rotary, num_layers=1, sample_width=2, sample_height=2
    )
    arguments = (torch.zeros(1, 3, 4, 2, 2), torch.zeros(1, 15, 32), torch.tensor([5]))
    with torch.no_grad():
        if is_rotary:
            assert transformer(*arguments).sample.shape == (1, 3, 4, 2, 2)
        else:
            with pytest.raises(RuntimeError, match="size of tensor"):
                transformer(*arguments)
