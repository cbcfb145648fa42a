"""A run of 24 frames killed before any of them is saved, and resumed: equal in every byte."""

import json
import shutil
from contextlib import nullcontext

import pytest
from PIL import Image

from inference.deforum.animation import Animation
from inference.deforum.loop.generator import SeededGenerator, random_picture
from inference.runtime.errors import DrawWarning, InputError

FRAMES = 24
CARRIED = {
    "W": 40,
    "H": 32,
    "max_frames": FRAMES,
    "seed_behavior": "ladder",
    "angle": "0:(2)",
    "zoom": "0:(1.02)",
    "noise_schedule": "0:(0.05)",
    "amount_schedule": "0:(0.3)",
    "contrast_schedule": "0:(1.02)",
    "color_coherence": "LAB",
    "diffusion_redo": 1,
    "optical_flow_redo_generation": "DIS Medium",
    "hybrid_motion": "Optical Flow",
    "hybrid_flow_method": "DIS Medium",
    "hybrid_composite": "Normal",
}
"""What frames take over from those before: seeds, colours, cadence pair, flow, pictures."""

FLOW = {"optical_flow_cadence": "DIS Medium", "seed_behavior": "random"}


@pytest.mark.parametrize(
    ("cadence", "more", "compat"),
    [
        pytest.param(1, {}, "fixed", marks=pytest.mark.slow),
        pytest.param(3, FLOW, "fixed", marks=pytest.mark.slow),
        pytest.param(3, {}, "fixed", marks=pytest.mark.slow),
        pytest.param(1, {}, "deforum-3.0", marks=pytest.mark.slow),
        pytest.param(3, FLOW, "deforum-3.0", marks=pytest.mark.slow),
    ],
)
def test_killed_at_any_frame_and_resumed_is_the_same(animate, tmp_path, cadence, more, compat):
    video = tmp_path / "video"
    video.mkdir()
    for number in range(FRAMES):
        Image.fromarray(random_picture(40, 32, number // 4)).save(video / f"{number:03}.png")
    settings = CARRIED | more | {"diffusion_cadence": cadence, "video_init_path": str(video)}
    recipe = {"compat": compat}

    def killed(frame):
        """What SIGKILL leaves when a frame is about to be saved."""
        shutil.copytree(tmp_path / "whole", tmp_path / f"killed{frame}")

    animate(SeededGenerator(), "whole", show=killed, recipe=recipe, **settings)
    whole = {path.name: path.read_bytes() for path in animate.last.run.frames()}
    assert len(whole) == (FRAMES if compat == "fixed" or cadence == 1 else FRAMES - cadence)
    assert len(set(whole.values())) == len(whole)
    for frame in range(len(whole)):
        again = {"recipe": recipe | {"resume": True}, **settings}
        expected = nullcontext()
        if frame < cadence:
            expected = pytest.warns(DrawWarning, match="was stopped before its first frame")
        left = len(list((tmp_path / f"killed{frame}").rglob(f"*_{'[0-9]' * 9}.png")))
        assert left == frame
        with expected:
            animate(SeededGenerator(), f"killed{frame}", **again)
        resumed = {path.name: path.read_bytes() for path in animate.last.run.frames()}
        assert resumed == whole, f"killed at frame {frame}"


SHORT = {"max_frames": 2, "W": 8, "H": 8, "seed": -1}


@pytest.mark.parametrize(
    ("left", "message", "is_same"),
    [
        ("_settings.txt _state.npz", "was stopped before its first frame; it starts there", True),
        ("_state.npz", "was stopped before its first frame; it starts there", True),
        ("_settings.txt", "_state.npz is missing, so .* starts from frame 0", True),
        ("", "no animation of these settings was begun in .*; it starts over", False),
    ],
)
def test_killed_before_its_first_frame_it_starts_from_the_beginning(
    animate, tmp_path, left, message, is_same
):
    """Also with a random seed, which the run has saved."""

    def killed(frame):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        animate(SeededGenerator(), show=killed, **SHORT)
    (settings,) = tmp_path.rglob("*_settings.txt")
    seed = json.loads(settings.read_text())["seed"]
    for file in settings.parent.iterdir():
        if not left or not file.name.endswith(tuple(left.split())):
            file.unlink()
    with pytest.warns(DrawWarning, match=message):
        again = animate(SeededGenerator(), recipe={"resume": True}, **SHORT)
    assert len(again) == 2
    assert (animate.last.script.seed == seed) == is_same
    assert (animate.last.run.settings == settings) or not is_same
    assert not list(tmp_path.rglob(".*"))


def test_of_two_that_begin_in_one_second_the_second_takes_the_next(
    animate, monkeypatch: pytest.MonkeyPatch
):
    """The first takes the name after the second has chosen it."""
    plan = Animation.plan

    def first_is_faster(self, settings):
        plan(self, settings)
        monkeypatch.setattr(Animation, "plan", plan)
        animate(SeededGenerator(), **SHORT)
        taken.append(animate.last.run)
        chosen.append(self.run)

    taken, chosen = [], []
    monkeypatch.setattr(Animation, "plan", first_is_faster)
    animate(SeededGenerator(), **SHORT)
    assert taken == chosen
    assert animate.last.run != taken[0]
    for run in (taken[0], animate.last.run):
        assert len(run.frames()) == 2
        assert run.settings.is_file()


def test_of_two_that_resume_at_once_the_second_says_why_it_does_not(animate, tmp_path):
    """Also beside the one that began."""

    def another_begins(frame):
        before = {file: file.read_bytes() for file in tmp_path.rglob("*.*")}
        early = pytest.warns(DrawWarning, match="before its first frame")
        with (
            early if frame == 0 else nullcontext(),
            pytest.raises(InputError, match=r"_settings.txt: another process is drawing this"),
        ):
            animate(SeededGenerator(), recipe={"resume": True}, **SHORT)
        assert before == {file: file.read_bytes() for file in tmp_path.rglob("*.*")}
        tried.append(frame)

    tried = []
    animate(SeededGenerator(), show=another_begins, **SHORT)
    assert tried == [0, 1]
    animate(SeededGenerator(), recipe={"resume": True}, **SHORT)
