"""Modes whose frames do not depend on one another, and hybrid video."""

import numpy as np
import pytest
from PIL import Image

from inference.deforum.loop.generator import (
    ConstantGenerator,
    IdentityGenerator,
    OneByOne,
    RecordGenerator,
    SeededGenerator,
    random_picture,
)
from inference.media.video_writing import Mp4Options, write_mp4
from inference.runtime.errors import InputError


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A folder of 8 pictures 64x64 that move 4 pixels to the right each."""
    folder = tmp_path_factory.mktemp("clip")
    for number in range(8):
        picture = np.roll(random_picture(64, 64, 7), 4 * number, 1)
        Image.fromarray(picture).save(folder / f"{number:03}.png")
    return folder


def moved(number):
    return np.roll(random_picture(64, 64, 7), 4 * number, 1)


def test_interpolation_mixes_prompts_in_batches(animate):
    generator = RecordGenerator(SeededGenerator())
    frames = animate(
        generator,
        animation_mode="Interpolation",
        max_frames=9,
        prompts={"0": "cat --neg dark", "4": "dog --neg dark", "8": "fox --neg blue"},
        recipe={"batch_size": 4},
    )
    assert generator.batches == [4, 4, 1]
    prompts = [(request.prompt, request.negative_prompt) for request in generator.requests]
    assert prompts[0] == ("cat", "dark")
    assert prompts[1] == ("(cat):0.75 AND (dog):0.25", "dark")
    assert prompts[4] == ("dog", "dark")
    assert prompts[6] == ("(dog):0.5 AND (fox):0.5", "(dark):0.5 AND (blue):0.5")
    assert all(request.init is None for request in generator.requests)
    assert len(frames) == 9


def test_batches_are_the_same_after_a_stop(animate):
    settings = {"animation_mode": "Interpolation", "max_frames": 7, "seed_behavior": "random"}

    class Batches(SeededGenerator):
        """Whose pictures depend on their place in the batch, as rounding does."""

        def generate_batch(self, requests):
            return [one + np.uint8(n) for n, one in enumerate(map(self.generate, requests))]

    whole = animate(Batches(), "whole", recipe={"batch_size": 3}, **settings)
    for stop in range(3, 7):

        def stopped(frame, stop=stop):
            if frame == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            animate(Batches(), f"s{stop}", recipe={"batch_size": 3}, show=stopped, **settings)
        recipe = {"batch_size": 3, "resume": True}
        assert np.array_equal(animate(Batches(), f"s{stop}", recipe=recipe, **settings), whole)


def test_video_input_draws_over_every_frame(animate, clip):
    generator = RecordGenerator(IdentityGenerator())
    frames = animate(
        generator,
        animation_mode="Video Input",
        video_init_path=str(clip),
        extract_nth_frame=2,
        max_frames=99,
        strength_schedule="0:(0.2), 3:(0.5)",
    )
    assert np.array_equal(frames, [moved(number) for number in (0, 2, 4, 6)])
    assert [round(request.strength, 6) for request in generator.requests] == [0.2, 0.3, 0.4, 0.5]
    assert generator.batches == [4]


def test_video_files_are_read(animate, tmp_path):
    grey = [np.full((64, 64, 3), 20 * number, np.uint8) for number in range(10)]
    write_mp4(tmp_path / "in.mp4", grey, 10, Mp4Options(preset="ultrafast"))
    frames = animate(
        animation_mode="Video Input",
        video_init_path=str(tmp_path / "in.mp4"),
        extract_from_frame=3,
        extract_to_frame=6,
    )
    assert frames.mean(axis=(1, 2, 3)) == pytest.approx([60, 80, 100, 120], abs=2)
    assert len(list((animate.last.run.path / "inputframes").glob("in*.png"))) == 4


def test_video_that_is_not_there_is_named(animate):
    with pytest.raises(InputError, match=r"video_init_path: there is no file 'gone.mp4'"):
        animate(animation_mode="Video Input", video_init_path="gone.mp4")
    with pytest.raises(InputError, match="is not downloaded"):
        animate(animation_mode="Video Input")


def test_mode_none_draws_each_prompt(animate):
    generator = RecordGenerator(ConstantGenerator())
    prompts = {"0": "cat", "30": "dog", "60": "fox"}
    animate(generator, animation_mode="None", max_frames=100, prompts=prompts)
    assert [request.prompt for request in generator.requests] == ["cat", "dog", "fox"]


@pytest.mark.parametrize("motion", ["Optical Flow", "Affine"])
def test_hybrid_motion_moves_as_the_video_does(animate, clip, motion):
    first = random_picture(64, 64, 99)
    frames = animate(
        IdentityGenerator(first),
        hybrid_motion=motion,
        hybrid_flow_method="DIS Fine",
        video_init_path=str(clip),
        hybrid_use_first_frame_as_init_image=False,
        max_frames=99,
    )
    assert len(frames) == 8
    inside = np.s_[16:48, 28:52]
    error = abs(frames[3].astype(int) - np.roll(first, 12, 1))[inside].mean()
    still = abs(first.astype(int) - np.roll(first, 12, 1))[inside].mean()
    assert error < still / 4


def test_hybrid_composite_mixes_the_video_in(animate, clip):
    black = ConstantGenerator((0, 0, 0))
    settings = {"video_init_path": str(clip), "hybrid_comp_alpha_schedule": "0:(0.25)",
                "max_frames": 8}  # fmt: skip
    generator = RecordGenerator(black)
    animate(generator, "n", hybrid_composite="Normal", **settings)
    first, second = (request.init for request in generator.requests[:2])
    assert first is not None and second is not None
    assert abs(second - moved(1) * 0.25).max() <= 1
    assert np.array_equal(first, moved(0))  # the video's first frame
    after = animate(black, "a", hybrid_composite="After Generation", **settings)
    assert not after[0].any()
    assert abs(after[2] - moved(2) * 0.25).max() <= 1


def test_colors_follow_the_video_or_an_image(animate, clip, tmp_path):
    class Grey(OneByOne):
        def generate(self, request):
            return np.repeat(random_picture(64, 64, request.frame)[..., :1], 3, 2)

    video = animate(
        Grey(),
        "v",
        color_coherence="Video Input",
        hybrid_composite="Normal",
        video_init_path=str(clip),
        max_frames=8,
    )
    assert np.ptp(video[2].astype(int), axis=2).mean() > 20
    red = random_picture(64, 64, 1)
    red[..., 1:] //= 4
    Image.fromarray(red).save(tmp_path / "red.png")
    image = animate(
        Grey(), "i", color_coherence="Image", color_coherence_image_path=str(tmp_path / "red.png")
    )
    assert all(frame[..., 0].mean() > 1.5 * frame[..., 1].mean() for frame in image)


def test_tracked_mask_follows_the_video(animate, tmp_path):
    folder = tmp_path / "clip"
    folder.mkdir()
    for number in range(4):
        picture = random_picture(64, 64, 1) // 4
        picture[20:40, 8 + 4 * number : 28 + 4 * number] = random_picture(20, 20, 2)
        Image.fromarray(picture).save(folder / f"{number}.png")
    generator = RecordGenerator(IdentityGenerator())
    animate(
        generator,
        animation_mode="Video Input",
        video_init_path=str(folder),
        use_mask=True,
        mask_file=str(folder / "0.png"),
        mask_schedule='0:("{tracked}")',
        tracked_box=[8, 20, 20, 20],
    )
    masks = [request.mask for request in generator.requests]
    centres = [np.argwhere(mask > 128).mean(0) for mask in masks if mask is not None]
    assert len(centres) == len(masks)
    assert centres[0] == pytest.approx([29.5, 17.5])
    assert centres[3] == pytest.approx([29.5, 29.5], abs=2)


def test_hybrid_flow_goes_on_after_a_stop(animate, clip):
    settings = {
        "hybrid_motion": "Optical Flow", "hybrid_flow_method": "DIS Medium",
        "hybrid_composite": "Normal", "hybrid_flow_consistency": True, "diffusion_cadence": 2,
        "video_init_path": str(clip), "noise_schedule": "0:(0.05)", "color_coherence": "RGB",
        "max_frames": 8,
    }  # fmt: skip
    whole = animate(SeededGenerator(), "whole", **settings)
    for stop in (2, 5):

        def stopped(frame, stop=stop):
            if frame == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            animate(SeededGenerator(), f"h{stop}", show=stopped, **settings)
        resumed = animate(SeededGenerator(), f"h{stop}", recipe={"resume": True}, **settings)
        assert np.array_equal(resumed, whole)
