"""The frame loop with generators whose pictures are known beforehand."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from inference.deforum.animation import Animation, open_generator
from inference.deforum.loop.generator import (
    AffineGenerator,
    ConstantGenerator,
    IdentityGenerator,
    OneByOne,
    RecordGenerator,
    SeededGenerator,
    random_picture,
)
from inference.deforum.products.finishing import figures
from inference.deforum.schedules.cadence import blocks, diffused_frames
from inference.runtime.errors import DrawWarning, InputError

SHIFT = {"translation_x": "0:(3)", "translation_y": "0:(-2)", "border": "wrap"}


def shifted(frames):
    """Frame k is frame 0, k times moved by 3 right and 2 up."""
    return [np.roll(frames[0], (-2 * k, 3 * k), (0, 1)) for k in range(len(frames))]


@pytest.mark.parametrize("compat", ["fixed", "deforum-3.0"])
@pytest.mark.parametrize("cadence", [1, 2, 3, 4, 5, 7])
def test_identity_moves_as_the_camera_at_every_cadence(animate, cadence, compat):
    frames = animate(max_frames=10, diffusion_cadence=cadence, recipe={"compat": compat}, **SHIFT)
    count = 10 if compat == "fixed" or cadence == 1 else (10 - 1) // cadence * cadence
    assert len(frames) == count
    assert np.array_equal(frames, shifted(frames))


def test_every_frame_is_shown_and_every_nth_one_diffused(animate):
    generator = RecordGenerator(SeededGenerator())
    frames = animate(generator, max_frames=10, diffusion_cadence=4)
    assert [request.frame for request in generator.requests] == [0, 4, 8]
    assert len(frames) == 10


@pytest.mark.parametrize(
    ("frames", "cadence", "shown"), [(120, 2, 118), (120, 5, 115), (10, 4, 8), (7, 1, 7)]
)
def test_deforum_leaves_the_last_block_out(frames, cadence, shown):
    diffused = diffused_frames(frames, cadence)
    assert sum(len(b.frames) for b in blocks(diffused, frames, cadence, True)) == shown
    assert sum(len(b.frames) for b in blocks(diffused, frames, cadence, False)) == frames


@pytest.mark.parametrize(
    ("distribution", "expected"),
    [
        ("Off", [0, 4, 8]),
        ("Keyframes Only", [0, 5, 9]),
        ("Additive", [0, 4, 5, 8]),
        ("Redistributed", [0, 5, 8]),
    ],
)
def test_keyframe_distributions(distribution, expected):
    assert diffused_frames(10, 4, [0, 5, 40], distribution) == expected


def test_diffused_pictures_come_in_slowly(animate):
    class Rising(OneByOne):
        def generate(self, request):
            return np.full((64, 64, 3), 10 * request.frame, np.uint8)

    frames = animate(Rising(), max_frames=6, diffusion_cadence=2)
    assert frames[:, 0, 0, 0].tolist() == [0, 0, 10, 20, 30, 40]
    at_once = animate(
        Rising(), "other", max_frames=6, diffusion_cadence=2, recipe={"cadence_blend": False}
    )
    assert at_once[:, 0, 0, 0].tolist() == [0, 0, 20, 20, 40, 40]


class Jumping(OneByOne):
    """A picture that has moved 6 pixels to the right at every call."""

    def generate(self, request):
        return np.roll(random_picture(128, 64, 5), 3 * request.frame, 1)


def test_flow_cadence_brings_the_pair_together(animate):
    """Between two pictures 6 pixels apart stands one that lies 3 from both."""
    settings = {"max_frames": 6, "diffusion_cadence": 2, "W": 128}
    plain = animate(Jumping(), "plain", **settings)
    flown = animate(Jumping(), "flown", optical_flow_cadence="DIS Fine", **settings)
    middle = np.roll(random_picture(128, 64, 5), 3, 1).astype(int)
    inside = np.s_[16:-16, 32:-32]
    errors = [abs(frames[2].astype(int) - middle)[inside].mean() for frames in (plain, flown)]
    assert errors[1] < 1.0 < errors[0] / 8
    assert np.array_equal(plain[3], flown[3])  # at the end of a block the new one stands alone


def test_deforums_flow_loses_its_length(animate):
    settings = {
        "max_frames": 7,
        "diffusion_cadence": 2,
        "W": 128,
        "optical_flow_cadence": "DIS Fine",
    }
    found = animate(Jumping(), "old", recipe={"compat": "deforum-3.0"}, **settings)
    back = np.roll(random_picture(128, 64, 5), 3, 1).astype(int)  # half of 6 pixels back
    inside = np.s_[16:-16, 32:-32]
    assert abs(found[3].astype(int) - np.roll(back, 1, 1))[inside].mean() < 2


BEHAVIORS = {
    "iter": [10, 11, 12, 13, 14, 15],
    "fixed": [10] * 6,
    "ladder": [10, 12, 11, 13, 12, 14],
    "alternate": [10, 11, 10, 11, 10, 11],
}


@pytest.mark.parametrize("behavior", BEHAVIORS)
@pytest.mark.parametrize("mode", ["2D", "Interpolation"])
def test_seeds_of_the_frames(animate, behavior, mode):
    generator = RecordGenerator(ConstantGenerator())
    animate(generator, seed_behavior=behavior, animation_mode=mode)
    assert [request.seed for request in generator.requests] == BEHAVIORS[behavior]


def test_seeds_of_a_schedule_are_the_same_every_time(animate):
    schedule = '0:(s), 1:(-1), "max_f-2":(-1), "max_f-1":(s)'
    runs = []
    for folder in ("one", "two"):
        generator = RecordGenerator(SeededGenerator())
        settings = {"seed_behavior": "schedule", "seed_schedule": schedule}
        frames = animate(generator, folder, noise_schedule="0:(0.1)", **settings)
        runs.append(([request.seed for request in generator.requests], frames.tobytes()))
    assert runs[0] == runs[1]
    seeds = runs[0][0]
    assert [seeds[0], seeds[-1]] == [10, 10]
    assert len(set(seeds[1:4])) == 3


FULL = {
    "max_frames": 7,
    "animation_mode": "2D",
    "zoom": "0:(1.03)",
    "angle": "0:(2)",
    "noise_schedule": "0:(0.05)",
    "amount_schedule": "0:(0.3)",
    "color_coherence": "LAB",
    "diffusion_redo": 1,
    "optical_flow_redo_generation": "DIS Medium",
    "contrast_schedule": "0:(1.02)",
}
"""Everything that carries something from frame to frame."""


DEPTH = {
    "animation_mode": "3D",
    "rotation_3d_y": "0:(1)",
    "depth_model": "cues",
    "save_depth_maps": True,
}
FLOW = {"optical_flow_cadence": "DIS Medium"}
ADDITIVE = {"keyframe_distribution": "Additive"}


class Stopped(BaseException):
    pass


@pytest.mark.parametrize(
    ("compat", "cadence", "behavior", "more"),
    [
        pytest.param("fixed", 1, "iter", {}, marks=pytest.mark.slow),
        ("deforum-3.0", 1, "fixed", {}),
        pytest.param("fixed", 3, "ladder", {}, marks=pytest.mark.slow),
        ("fixed", 3, "random", FLOW),
        pytest.param("deforum-3.0", 3, "random", FLOW, marks=pytest.mark.slow),
        ("fixed", 1, "schedule", DEPTH),
        pytest.param("fixed", 2, "alternate", ADDITIVE, marks=pytest.mark.slow),
    ],
)
def test_stopped_at_any_frame_and_resumed_is_the_same(animate, cadence, behavior, more, compat):
    settings = FULL | more | {"diffusion_cadence": cadence, "seed_behavior": behavior}
    recipe = {"compat": compat}
    whole = animate(SeededGenerator(), "whole", recipe=recipe, **settings)
    for stop in range(len(whole)):

        def stopped(frame, stop=stop):
            if frame == stop:
                raise Stopped

        folder = f"stop{stop}"
        with pytest.raises(Stopped):
            animate(SeededGenerator(), folder, recipe=recipe, show=stopped, **settings)
        if stop < cadence:  # no state yet
            continue
        resumed = animate(SeededGenerator(), folder, recipe=recipe | {"resume": True}, **settings)
        assert np.array_equal(resumed, whole), f"stopped at frame {stop}"


def test_written_settings_draw_the_same_again(animate, tmp_path):
    settings = FULL | {"seed": -1, "seed_behavior": "schedule", "diffusion_cadence": 2}
    first = animate(SeededGenerator(), **settings)
    written = animate.last.run.settings
    recipe = dataclasses.replace(
        animate.last.recipe, settings={}, settings_file=str(written), output_dir=str(tmp_path / "b")
    )
    again = Animation(recipe)
    again.prepare()
    again.draw(SeededGenerator(), log=lambda text: None)
    redrawn = np.stack([np.asarray(Image.open(path)) for path in again.run.frames()])
    assert np.array_equal(redrawn, first)
    assert again.run.settings.read_bytes() == written.read_bytes()


def test_with_nothing_to_resume_it_begins_anew_and_says_so(animate):
    with pytest.warns(DrawWarning, match="no animation of .* it starts over"):
        assert len(animate(recipe={"resume": True})) == 6


@pytest.mark.filterwarnings("ignore:.*written with other settings")
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"W": 32}, "the run has frames of 64x64 and cannot continue with 32x64"),
        ({"diffusion_cadence": 4}, "continues at frame 2, which this cadence does not diffuse"),
        ({"resume_timestring": "*"}, "resume_timestring: expected 14 digits"),
    ],
)
def test_settings_that_a_run_cannot_go_on_with(animate, changed, message):
    animate(max_frames=2)
    resumed = {"resume_from_timestring": True, "resume_timestring": animate.last.run.timestring}
    with pytest.raises(InputError, match=message):
        animate(**({"max_frames": 8} | resumed | changed))


@pytest.mark.filterwarnings("ignore:.*written with other settings")
def test_a_run_that_is_cut_short(animate):
    animate(max_frames=4)
    time = animate.last.run.timestring
    settings = {"max_frames": 2, "resume_from_timestring": True, "resume_timestring": time}
    animate(**settings)
    assert figures(animate.last.script, animate.last.run).frames == 2


def test_a_state_that_cannot_be_read_stands_in_no_ones_way(animate, tmp_path):
    frames = animate()
    (tmp_path / "out" / "20990101000000_state.npz").write_bytes(b"no state")
    with pytest.warns(DrawWarning, match="20990101000000_state.npz: cannot be read"):
        assert np.array_equal(animate(recipe={"resume": True}), frames)


def test_runs_begun_in_the_same_second_are_apart(animate):
    runs = []
    for number in range(3):
        animate(max_frames=3 - number)
        runs.append(animate.last.run)
    assert len({run.timestring for run in runs}) == 3
    assert [len(run.frames()) for run in runs] == [3, 2, 1]


def test_blank_frames(animate):
    class Dark(OneByOne):
        """Black for seeds below 13."""

        def generate(self, request):
            return np.full((64, 64, 3), 255 * (request.seed >= 13), np.uint8)

    rerolled = animate(Dark(), "a", reroll_blank_frames="reroll", reroll_patience=3, max_frames=2)
    assert rerolled.all()
    assert not animate(Dark(), "b", max_frames=2).any()
    with pytest.raises(FloatingPointError, match=r"frame 0: the picture is blank .* 3 seeds"):
        animate(Dark(), "c", reroll_blank_frames="reroll", reroll_patience=2)
    with pytest.raises(FloatingPointError, match=r"frame 0.*interrupt"):
        animate(Dark(), "d", reroll_blank_frames="interrupt")


def test_motion_preview_needs_no_model(animate):
    animate(ConstantGenerator(), "x", motion_preview_mode=True, max_frames=1)
    generator = open_generator(animate.last.recipe, animate.last.script)
    frames = animate(generator, "y", motion_preview_mode=True, max_frames=3, zoom="0:(1.1)")
    assert len({frame.tobytes() for frame in frames}) == 3


def test_noise_pulls_the_mean(animate):
    frames = animate(
        IdentityGenerator(np.full((64, 64, 3), 200, np.uint8)),
        noise_schedule="0:(0.1)",
        noise_type="uniform",
        max_frames=2,
    )
    assert frames[1].mean() == pytest.approx(200 - 0.1 * (200 - 127.5), abs=1.5)


def test_affine_generator_is_told_what_came_before(animate):
    frames = animate(AffineGenerator(0.5, 10), max_frames=3)
    halved = (frames[0].astype(float) * 0.5 + 10).round()
    assert abs(frames[1] - halved).max() == 0


def test_switches_reach_the_requests(animate):
    generator = RecordGenerator(ConstantGenerator((9, 9, 9)))
    animate(
        generator,
        max_frames=2,
        enable_steps_scheduling=True,
        steps_schedule="0:(11), 1:(12)",
        enable_sampler_scheduling=True,
        sampler_schedule='0:("Euler"), 1:("DPM++ 2M Karras")',
        enable_subseed_scheduling=True,
        subseed_schedule="0:(5)",
        subseed_strength_schedule="0:(0.25)",
        enable_clipskip_scheduling=True,
        clipskip_schedule="0:(2)",
        enable_ancestral_eta_scheduling=True,
        ancestral_eta_schedule="0:(0.4)",
        enable_checkpoint_scheduling=True,
        checkpoint_schedule='0:("a.safetensors"), 1:("b.safetensors")',
        freeu_enabled=True,
        network_schedules={"style": "0:(0), 1:(0.5)"},
        cfg_scale_schedule="0:(5)",
        noise_multiplier_schedule="0:(1.1)",
        prompts={"0": "a cat <lora:style:1> --neg dog"},
    )
    first, second = generator.requests
    assert (first.steps, second.steps) == (11, 12)
    assert (first.sampler, second.sampler) == ("Euler", "DPM++ 2M Karras")
    assert (first.subseed, first.subseed_strength) == (5, 0.25)
    assert (first.clip_skip, first.eta, first.cfg_scale) == (2, 0.4, 5)
    assert (first.checkpoint, second.checkpoint) == ("a.safetensors", "b.safetensors")
    assert first.freeu == (1.3, 1.4, 0.9, 0.2)
    assert (first.prompt, first.negative_prompt) == ("a cat <lora:style:0>", "dog")
    assert second.prompt == "a cat <lora:style:0.5>"
    assert first.init is None
    assert second.init is not None
    assert (second.strength, second.noise_multiplier) == (0.6, 1.1)


def test_unknown_network_is_refused(animate):
    with pytest.raises(InputError, match=r"network_schedules.style: neither an artifact"):
        animate(network_schedules={"style": "0:(1)"})


def test_flat_3d_is_warned_about(animate):
    with pytest.warns(DrawWarning, match="depth_model"):
        animate(animation_mode="3D", depth_model="", max_frames=1)


def test_masked_frames_keep_the_original_outside(animate, tmp_path):
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 32:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    original = random_picture(64, 64, 3)
    Image.fromarray(original).save(tmp_path / "init.png")
    for cadence in (1, 2):
        generator = RecordGenerator(ConstantGenerator((1, 2, 3)))
        frames = animate(
            generator,
            f"mask{cadence}",
            use_mask=True,
            mask_file=str(tmp_path / "mask.png"),
            use_init=True,
            init_image=str(tmp_path / "init.png"),
            mask_overlay_blur=0,
            diffusion_cadence=cadence,
            angle="0:(5)",
        )
        assert all(np.array_equal(frame[:, :32], original[:, :32]) for frame in frames)
        assert frames[-1][:, 36:60].max() <= 3
        masks = [request.mask for request in generator.requests]
    assert all(made is not None and np.array_equal(made, mask) for made in masks)


def test_guided_images_pull_towards_the_keyframes(animate, tmp_path):
    for name, value in (("a", 40), ("b", 240)):
        picture = np.full((64, 64, 3), value, np.uint8)
        picture[::2] -= 20
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    files = {"0": str(tmp_path / "a.png"), "max_f/2": str(tmp_path / "b.png")}
    generator = RecordGenerator(IdentityGenerator())
    frames = animate(
        generator, use_looper=True, init_images=json.dumps(files), max_frames=11,
        color_correction_factor="0:(0)", tweening_frames_schedule="0:(2)",
    )  # fmt: skip
    means = frames.mean(axis=(1, 2, 3))
    assert means[0] == pytest.approx(30, abs=1)
    assert np.all(np.diff(means[5:]) > 0)
    assert means[-1] > 80
    assert {request.strength for request in generator.requests} == {0.75}
