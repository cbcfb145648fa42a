"""Where a run's files lie, what is refused, and that nothing is lost when it is cut."""

import json
from pathlib import Path
from typing import Any

import pytest

from inference.artifacts.adapters.lora import twin_of
from train.common.errors import RunDirectoryError, SavingError
from train.runs.checkpoint_files import CheckpointWriter
from train.runs.comparison import usual_place
from train.runs.run_directory import RunDirectory, differences

FACTS = {"pictures": 8, "dataset_fingerprint": "aa"}
RECIPE = "name: run\nseed: 1\noptimizer:\n  betas: [0.9, 0.999]\n"


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run of RECIPE with a checkpoint at step 10."""
    run = RunDirectory(tmp_path / "run")
    run.write_start(RECIPE, FACTS)
    add_checkpoint(run, 10)
    return run


def add_checkpoint(run: RunDirectory, step: int, keep: int = 2) -> Path:
    return run.write_checkpoint(step, lambda writer: writer.text("state", str(step)), keep)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_new_folder_is_free(tmp_path: Path) -> None:
    for resume in (False, True):
        RunDirectory(tmp_path / "new").open(RECIPE, FACTS, resume)


def test_start_writes_recipe_environment_and_folders(run: RunDirectory) -> None:
    assert run.recipe.read_text() == RECIPE
    environment = json.loads(run.environment.read_text())
    assert environment.items() >= FACTS.items()
    assert {"command", "python", "packages", "git_commit", "device"} <= environment.keys()
    assert environment["packages"]["torch"]
    expected = ["artifacts", "checkpoints", "environment.json", "logs", "recipe.yaml", "samples"]
    assert names(run.path) == expected


def test_used_folder_needs_resume(run: RunDirectory) -> None:
    with pytest.raises(RunDirectoryError, match=r"contains a run already: resume=true .* name="):
        run.open(RECIPE, FACTS, resume=False)
    run.open(RECIPE, FACTS, resume=True)


def test_overwrite_puts_the_old_run_aside(run: RunDirectory) -> None:
    for number in (1, 2):
        run.open(RECIPE, FACTS, resume=False, overwrite=True)
        assert run.newest_checkpoint() is not None  # nothing is changed before the lock is taken
        run.take(RECIPE, FACTS, resume=False, overwrite=True)
        assert names(run.path) == ["run.lock"]
        run.write_start(RECIPE, FACTS)
        add_checkpoint(run, 20)
        aside = run.path.parent / f"run.{number}"
        assert (aside / "recipe.yaml").is_file() and not (aside / "run.lock").exists()


def test_changed_keys_are_told_together_with_both_values(run: RunDirectory) -> None:
    changed = RECIPE.replace("seed: 1", "seed: 2").replace("0.999", "0.99")
    with pytest.raises(RunDirectoryError) as error:
        run.open(changed, FACTS, resume=True)
    for part in ("seed: 1 became 2", "optimizer.betas: [0.9, 0.999] became [0.9, 0.99]"):
        assert part in str(error.value)


def test_what_changes_no_weights_may_change(run: RunDirectory) -> None:
    more = "max_train_steps: 99\nsaving: {a: 1}\nsampling: {b: 2}\nlog_every_n_steps: 3\n"
    more += "data: {num_workers: 3}\noutput_dir: x\nresume: true\n"
    run.write_start(f"{RECIPE}data: {{num_workers: 0}}\n", FACTS)
    run.open(RECIPE + more, FACTS, resume=True)
    with pytest.raises(RunDirectoryError, match=r"data\.path: None became 'x'"):
        run.open(f"{RECIPE}data: {{num_workers: 0, path: x}}\n", FACTS, resume=True)


def test_changed_pictures_are_refused(run: RunDirectory) -> None:
    with pytest.raises(RunDirectoryError, match="started with 8 pictures, now there are 9"):
        run.open(RECIPE, {"pictures": 9, "dataset_fingerprint": "bb"}, resume=True)


def test_a_run_that_knows_no_fingerprint_goes_on(run: RunDirectory) -> None:
    run.environment.write_text('{"pictures": 8}')
    run.open(RECIPE, FACTS, resume=True)


def test_newest_checkpoint_is_that_of_the_highest_step(run: RunDirectory) -> None:
    for step in (999_999, 1_000_000):
        add_checkpoint(run, step)
    assert names(run.checkpoints) == ["step-1000000", "step-999999"]
    assert run.newest_checkpoint() == run.checkpoint(1_000_000)


def test_only_the_last_checkpoints_are_kept(run: RunDirectory) -> None:
    for step in (20, 30, 40):
        add_checkpoint(run, step, keep=2)
    assert names(run.checkpoints) == ["step-000030", "step-000040"]


def test_checkpoint_that_could_not_be_written_does_not_count(run: RunDirectory) -> None:
    def fail(writer: CheckpointWriter) -> None:
        writer.text("state", "half")
        raise OSError("disk full")

    with pytest.raises(SavingError, match=r"disk full.*resume=true continues from .*step-000010"):
        run.write_checkpoint(20, fail, keep=1)
    assert names(run.checkpoints) == ["step-000010"]
    assert run.newest_checkpoint() == run.checkpoint(10)
    add_checkpoint(run, 30)
    assert names(run.checkpoints) == ["step-000010", "step-000030"]


def test_what_was_being_written_when_a_run_was_cut_is_removed(run: RunDirectory) -> None:
    (run.artifacts / ".step-000010.safetensors.77").write_text("half")
    (run.artifacts / ".last").symlink_to("nowhere")
    (run.samples / ".step-000010.77" / "unet").mkdir(parents=True)
    drawn = run.path / "class_images" / "dog"
    drawn.mkdir(parents=True)
    (drawn / ".a dog-1.png.77").write_text("half")
    (drawn / "a dog-0.png").write_text("whole")
    run.write_start(RECIPE, FACTS)
    assert names(drawn) == ["a dog-0.png"]
    assert names(run.artifacts) == names(run.samples) == []


def test_checkpoint_is_not_written_twice(run: RunDirectory) -> None:
    run.write_checkpoint(10, lambda writer: writer.text("state", "other"), keep=2)
    assert (run.checkpoint(10) / "state").read_text() == "10"


@pytest.mark.parametrize("suffix", [".safetensors", ""])
def test_last_points_to_the_newest_artifact(run: RunDirectory, suffix: str) -> None:
    for step in (10, 20):
        path = run.artifact(step, suffix)
        if suffix:
            path.write_text(str(step))
        else:
            path.mkdir()
            (path / "step").write_text(str(step))
        last = run.point_last(path, pytest.fail)
        content = last if suffix else last / "step"
        assert content.read_text() == str(step)
    assert last.name == f"last{suffix}"
    assert not [name for name in names(run.artifacts) if "comfyui" in name]
    assert names(run.artifacts) == [f"last{suffix}", f"step-000010{suffix}", f"step-000020{suffix}"]


def test_last_points_to_the_twin_too(run: RunDirectory) -> None:
    for step in (10, 20):
        path = run.artifact(step, ".safetensors")
        path.write_text(str(step))
        twin_of(path).write_text(f"twin of {step}")
        last = run.point_last(path, pytest.fail)
    assert twin_of(last).name == "last.comfyui.safetensors"
    assert (last.read_text(), twin_of(last).read_text()) == ("20", "twin of 20")


@pytest.mark.parametrize("suffix", [".safetensors", ""])
@pytest.mark.parametrize("name", ["mine", "v1.5", "a-b-000003"])
def test_an_output_name_stands_for_step_and_last(name: str, suffix: str, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, name)
    run.artifacts.mkdir()
    for step in (10, 2_000_000):
        path = run.artifact(step, suffix)
        if suffix:
            path.write_text(str(step))
            twin_of(path).write_text(f"twin of {step}")
            path.with_suffix(".yaml").write_text(f"config of {step}")
        else:
            path.mkdir()
            (path / "step").write_text(str(step))
        assert run.point_last(path, pytest.fail) == run.last(suffix)
    expected = {f"{name}-000010{suffix}", f"{name}-2000000{suffix}", f"{name}{suffix}"}
    if suffix:
        stems = (f"{name}-000010", f"{name}-2000000", name)
        expected |= {f"{stem}{end}" for stem in stems for end in (".comfyui.safetensors", ".yaml")}
        assert (tmp_path / "artifacts" / f"{name}.yaml").read_text() == "config of 2000000"
        assert twin_of(run.last(suffix)).read_text() == "twin of 2000000"
    assert set(names(run.artifacts)) == expected


def test_files_are_named_as_usual_to_compare_runs_of_other_output_names() -> None:
    usual = {
        "artifacts/mine-000500.safetensors": "artifacts/step-000500.safetensors",
        "artifacts/mine.safetensors": "artifacts/last.safetensors",
        "artifacts/look/mine-000500.pt": "artifacts/look/step-000500.pt",
        "artifacts/mine-000500.comfyui.safetensors": "artifacts/step-000500.comfyui.safetensors",
        "artifacts/mine-000500/unet/config.json": "artifacts/step-000500/unet/config.json",
        "artifacts/other.safetensors": "artifacts/other.safetensors",
    }
    for place, expected in usual.items():
        assert usual_place(Path(place), "mine") == Path(expected)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": {"b": 1}}, {"a": {"b": 2}}, [("a.b", 1, 2)]),
        ({"a": None}, {"a": {"b": 2}}, [("a", None, {"b": 2})]),
        ({"a": 1}, {"b": 1}, [("a", 1, None), ("b", None, 1)]),
    ],
)
def test_differences(before: Any, after: Any, expected: list[Any]) -> None:
    assert differences(before, after) == expected


@pytest.mark.parametrize("place", ["/proc/limner/run", "/sys/limner/run"])
def test_a_folder_that_cannot_be_written_to_is_refused_at_the_start(place: str) -> None:
    """Of systems that not even root may make files in."""
    run = RunDirectory(Path(place))
    with pytest.raises(RunDirectoryError, match=r"cannot be written to \(.*output_dir="):
        run.open(RECIPE, FACTS, resume=False)


def test_what_a_cut_run_was_writing_is_removed_and_nothing_else(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    (run.artifacts / "look").mkdir(parents=True)
    for name in (".recipe.yaml.7", ".environment.json.12", ".data.jsonl.gz.3"):
        (run.path / name).write_text("")
    (run.artifacts / "look" / ".step-000001.safetensors.9").write_text("")
    (run.path / ".gitignore").write_text("")
    run.write_start(RECIPE, FACTS)
    assert [path.name for path in run.path.rglob(".*")] == [".gitignore"]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(RunDirectoryError, match=r"run is a file; .* another name="):
        RunDirectory(tmp_path / "run").open(RECIPE, FACTS, resume=False)
