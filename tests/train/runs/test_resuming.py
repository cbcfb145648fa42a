"""What a run may be resumed with, what is refused, and with which message."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from inference.recipe.loader import dump_recipe, load_recipe
from train.common.errors import RunDirectoryError
from train.config.recipe import TrainRecipe
from train.config.schema import train_schema
from train.runs.comparison import Comparison, compare_environments
from train.runs.data_manifest import read_rows
from train.runs.environments import changes_since, continued, environments, parallel_in
from train.runs.identity import base_fingerprint, new_identity
from train.runs.manifests import run_metadata
from train.runs.resume_checks import keep_batch
from train.runs.run_directory import RunDirectory
from train.trainer import Trainer

OPTIONS = [
    "objective={type: lora, rank: 2}",
    "max_train_steps=2",
    "gradient_accumulation_steps=2",
    "saving={save_every_n_steps: 1, keep_last_n_checkpoints: 2}",
    "sampling.sample_every_n_steps=2",
]
Resume = Callable[..., Trainer]


@pytest.fixture(scope="module")
def trained(
    recipe_file: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """The folders of a run with the checkpoints of steps 1 and 2, and of its pictures."""
    folder = tmp_path_factory.mktemp("trained")
    own = Path(shutil.copytree(pictures, folder / "data"))
    overrides = [*OPTIONS, f"output_dir={folder}", f"data.path={own}"]
    Trainer(load_recipe(recipe_file, train_schema, overrides)).train()
    return folder / "run", own


@pytest.fixture
def run(trained: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the run: it has moved."""
    return Path(shutil.copytree(trained[0], tmp_path / "run", symlinks=True))


@pytest.fixture
def resume(
    run: Path, trained: tuple[Path, Path], make_recipe: Callable[..., TrainRecipe]
) -> Resume:
    """Resume the copy by its recipe with overrides, and return the trainer, which has trained."""

    def resumed(*overrides: str) -> Trainer:
        path = f"data.path={trained[1]}"
        trainer = Trainer(make_recipe(*OPTIONS, path, "resume=true", *overrides))
        trainer.train()
        return trainer

    return resumed


@pytest.fixture
def look(run: Path) -> Callable[[], None]:
    """Do everything that a resume does before it reads weights, with the run's own recipe."""
    recipe = (run / "recipe.yaml").read_text()
    environment = json.loads((run / "environment.json").read_text())
    facts = {key: environment[key] for key in ("pictures", "dataset_fingerprint")}
    rows = list(read_rows(run / "data.jsonl.gz"))

    def looked() -> None:
        folder = RunDirectory(run)
        folder.open(recipe, facts, resume=True, rows=rows)
        folder.take(recipe, facts, resume=True, rows=rows)
        try:
            folder.saved.newest_sound(pytest.fail, folder.identity)
        finally:
            folder.release()

    return looked


def edit(path: Path, **changes: Any) -> None:
    """Change values of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def refused(resume: Callable[..., object], *overrides: str) -> str:
    """Return the one line by which a resume is refused."""
    with pytest.raises(RunDirectoryError) as error:
        resume(*overrides)
    assert len(str(error.value).splitlines()) == 1, str(error.value)
    return str(error.value)


# Manifests


def test_every_manifest_names_the_run(run: Path) -> None:
    names = ("run_id", "result_hash")
    environment = json.loads((run / "environment.json").read_text())
    own = [environment[name] for name in names]
    assert all(own)
    listing = json.loads((run / "artifacts.json").read_text())
    assert [listing[name] for name in names] == own
    files = {"artifacts/step-000001.safetensors", "artifacts/step-000002.safetensors"}
    assert listing["files"].keys() == files
    for checkpoint in (run / "checkpoints").iterdir():
        manifest = json.loads((checkpoint / "manifest.json").read_text())["run"]
        assert [manifest[name] for name in names] == own


def test_what_decides_the_result_changes_the_hash() -> None:
    recipe = "{name: a, seed: 1, gradient_accumulation_steps: 2, data: {path: x}, output_dir: y}"
    facts = {"dataset_fingerprint": "1", "base_model_fingerprint": "2"}
    first = new_identity(recipe, facts, 1)

    def hash_of(old: str = "", new: str = "", processes: int = 1, **more: str) -> str:
        return new_identity(recipe.replace(old, new), facts | more, processes)["result_hash"]

    same = [("name: a", "name: b"), ("path: x", "path: z"), ("output_dir: y", "output_dir: z")]
    assert {hash_of(*one) for one in same} == {first["result_hash"]}
    assert hash_of("steps: 2", "steps: 1", processes=2) == first["result_hash"]
    parallel = "parallel: {strategy: fsdp, context: 2, cpu_offload: all}, name: a"
    assert hash_of("name: a", parallel, processes=2) == first["result_hash"]
    others = [
        hash_of("seed: 1", "seed: 2"),
        hash_of("steps: 2", "steps: 1"),
        hash_of(processes=2),
        hash_of("name: a", "name: a, parallel: {gradient_compression: bf16}"),
        hash_of(dataset_fingerprint="3"),
        hash_of(base_model_fingerprint="3"),
    ]
    assert first["result_hash"] not in others
    assert new_identity(recipe, facts, 1)["run_id"] != first["run_id"]


def of_another_run(run: Path) -> None:
    for checkpoint in (run / "checkpoints").iterdir():
        manifest = checkpoint / "manifest.json"
        content = json.loads(manifest.read_text())
        edit(manifest, run=content["run"] | {"run_id": "another"})


def of_another_recipe(run: Path) -> None:
    for checkpoint in (run / "checkpoints").iterdir():
        manifest = checkpoint / "manifest.json"
        content = json.loads(manifest.read_text())
        edit(manifest, run=content["run"] | {"result_hash": "other"})


def without_manifests(run: Path) -> None:
    for checkpoint in (run / "checkpoints").iterdir():
        (checkpoint / "manifest.json").unlink()


def without_files(run: Path) -> None:
    for checkpoint in (run / "checkpoints").iterdir():
        edit(checkpoint / "manifest.json", files={})


def list_alone(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    shutil.rmtree(run / "artifacts")


LOST = {
    "checkpoints of another run": (of_another_run, "is a checkpoint of another run (another)"),
    "checkpoints of another recipe": (of_another_recipe, "is a checkpoint of another recipe"),
    "artifacts of another run": (
        lambda run: edit(run / "artifacts.json", run_id="another"),
        "artifacts.json belongs to another run (another)",
    ),
    "no checkpoints": (
        lambda run: shutil.rmtree(run / "checkpoints"),
        "has artifacts, but no checkpoint to continue from",
    ),
    "a list alone": (list_alone, "has artifacts, but no checkpoint to continue from"),
    "no recipe": (lambda run: (run / "recipe.yaml").unlink(), "recipe.yaml: damaged or lost"),
    "no environment": (
        lambda run: (run / "environment.json").unlink(),
        "environment.json: damaged or lost",
    ),
    "an empty list of environments": (
        lambda run: edit(run / "environment.json", environments=[]),
        "environment.json: damaged or lost",
    ),
    "an environment without its step": (
        lambda run: edit(run / "environment.json", environments=[{"step": "1"}]),
        "environment.json: damaged or lost",
    ),
    "no manifests": (without_manifests, "manifest.json: is gone"),
    "manifests without files": (without_files, "it lists no files"),
}


@pytest.mark.parametrize("name", LOST)
def test_what_is_lost_or_mixed_is_refused(name: str, run: Path, look: Callable[[], None]) -> None:
    look()
    spoil, expected = LOST[name]
    spoil(run)
    assert expected in refused(look)
    assert not (run / "run.lock").exists()


FILES = ("recipe.yaml", "environment.json", "artifacts.json", "data.jsonl.gz")
IN_CHECKPOINTS = ("manifest.json", "progress.json", "trained.safetensors", "optimizer.pt")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", marks=pytest.mark.slow),
        b"\xff{",
        pytest.param(b"{}", marks=pytest.mark.slow),
        pytest.param(b"[" * 10_000, marks=pytest.mark.slow),
    ],
)
def test_any_damaged_file_is_one_message(
    content: bytes, run: Path, look: Callable[[], None]
) -> None:
    """Of the folder, and of all checkpoints."""
    places = {name: [run / name] for name in FILES}
    places |= {name: [*run.glob(f"checkpoints/*/{name}")] for name in IN_CHECKPOINTS}
    for name, files in places.items():
        before = [file.read_bytes() for file in files]
        for file in files:
            file.write_bytes(content)
        assert name in refused(look)
        for file, old in zip(files, before, strict=True):
            file.write_bytes(old)


def test_a_run_cut_in_its_first_saving_begins_anew_and_says_so(
    run: Path, resume: Resume, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its artifact is there, not yet listed, and no checkpoint."""
    shutil.rmtree(run / "checkpoints")
    (run / "artifacts.json").unlink()
    resume()
    assert f"nothing is saved in {run} yet, so the run starts" in capsys.readouterr().err


def test_a_run_of_nothing_begins_and_says_so(
    make_recipe: Callable[..., TrainRecipe], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Trainer(make_recipe("max_train_steps=1", "name=typo", "resume=true")).train()
    reported = f"nothing is saved in {tmp_path / 'typo'} yet, so the run starts from the beginning"
    assert reported in capsys.readouterr().err


def test_an_artifact_that_is_not_what_was_written_is_written_again(
    run: Path, resume: Resume
) -> None:
    artifact = run / "artifacts" / "step-000002.safetensors"
    before = artifact.read_bytes()
    save_file({"a": torch.zeros(1)}, artifact)
    resume()
    assert artifact.read_bytes() == before


def test_fewer_steps_than_were_taken_are_refused(run: Path, resume: Resume) -> None:
    """Its recipe.yaml would describe another run than its artifacts."""
    before = (run / "recipe.yaml").read_text()
    assert "has taken 2 steps already" in refused(resume, "max_train_steps=1")
    assert (run / "recipe.yaml").read_text() == before


# Another environment


def test_another_environment_is_one_warning_and_listed(
    run: Path, resume: Resume, capsys: pytest.CaptureFixture[str]
) -> None:
    file = run / "environment.json"
    content = json.loads(file.read_text())
    (first,) = content["environments"]
    assert first["step"] == 0 and first["processes"] == 1
    for old in (first, content):
        old["threads"], old["packages"]["torch"], old["device"] = 77, "1.0", "abacus"
    file.write_text(json.dumps(content))
    resume("max_train_steps=3")
    (line,) = [one for one in capsys.readouterr().err.splitlines() if "warning" in one]
    for part in ("threads: 77 became ", "torch: 1.0 became ", "device: abacus became "):
        assert part in line
    content = json.loads(file.read_text())
    assert [one["step"] for one in content["environments"]] == [0, 2]
    assert content["environments"][0]["threads"] == 77
    assert content["environments"][1]["threads"] == content["threads"] != 77
    assert content["pictures"] == 8  # on the top level, as before
    resume("max_train_steps=4")
    assert "warning" not in capsys.readouterr().err


def test_environments_are_compared_between_runs() -> None:
    first = {"step": 0, "threads": 1}
    runs = [{"threads": 1, "run_id": name} for name in "ab"]
    found = Comparison()
    compare_environments(runs[0], runs[1], found)
    assert found.environment == []
    compare_environments(runs[0], runs[1] | {"environments": [first, first | {"step": 4}]}, found)
    assert found.environment == [("environments began at step", "0", "0, 4")]


def test_environments_of_an_earlier_version_are_read() -> None:
    before = {"limner": "0.1", "threads": 1, "packages": {"torch": "2"}, "pictures": 4}
    expected = {"step": 0, "limner": "0.1", "threads": 1, "packages": {"torch": "2"}}
    assert environments(before) == [expected]
    now = {"limner": "0.1", "threads": 2, "processes": 1, "packages": {"torch": "2", "new": "1"}}
    assert changes_since(before, now) == ["threads: 1 became 2"]
    history = continued(before, now, 5)
    assert history == [expected, {"step": 5} | now]
    kept = {"environments": history}
    assert continued(kept, now, 7) == history
    other = now | {"threads": 3}
    assert continued(kept, other, 5) == [expected, {"step": 5} | other]
    assert continued(kept, other, 0) == [{"step": 0} | other]


@pytest.mark.parametrize(
    ("processes", "options", "expected"),
    [
        ("2", ["gradient_accumulation_steps=4"], "gradient_accumulation_steps=1 keeps that"),
        (
            "3",
            [],
            "takes 4 examples a step (train_batch_size 2 x gradient_accumulation_steps 2 x "
            "1 process): 3 processes cannot take 4 examples a step: 1 or 2 can",
        ),
        ("2", ["gradient_accumulation_steps=1"], None),
        ("2", [], None),
        ("1", ["gradient_accumulation_steps=1"], "gradient_accumulation_steps: 2 became 1"),
    ],
)
def test_another_number_of_processes_keeps_the_batch_or_is_refused(
    processes: str,
    options: list[str],
    expected: str | None,
    run: Path,
    resume: Resume,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", processes)
    if expected:
        assert expected in refused(resume, *options)
        return
    with pytest.raises(Exception, match="2 processes were asked for, accelerate started 1"):
        resume(*options)  # the recipe is accepted; here are no two processes


@pytest.fixture
def past(tmp_path: Path, make_recipe: Callable[..., TrainRecipe]) -> Callable[..., Path]:
    """Write the folder of a run that began on the first of these numbers of processes."""

    def write(
        *processes: int,
        saved: bool = True,
        make: Callable[..., TrainRecipe] = make_recipe,
        **options: object,
    ) -> Path:
        run = tmp_path / "run"
        given = [f"{key}={value}" for key, value in options.items()]
        text = dump_recipe(make("train_batch_size=1", *given))
        (run / "checkpoints" / "step-000001").mkdir(parents=True) if saved else run.mkdir()
        (run / "recipe.yaml").write_text(text)
        parallel = parallel_in(yaml.safe_load(text))
        listed = [
            {"step": step, "processes": count} | parallel for step, count in enumerate(processes)
        ]
        (run / "environment.json").write_text(json.dumps({**listed[-1], "environments": listed}))
        return run

    return write


STAGES = "{a: {steps: 2, gradient_accumulation_steps: 6}, b: {gradient_accumulation_steps: 2}}"


def test_accumulation_follows_the_number_of_processes(
    past: Callable[..., Path],
    make_recipe: Callable[..., TrainRecipe],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Begun on four without accumulation, it went on on two, and does now on others."""
    run = past(4, 2, gradient_accumulation_steps=2)
    own = make_recipe("train_batch_size=1", "resume=true")
    for processes, steps in ((1, 4), (2, 2), (4, 1)):
        monkeypatch.setenv("WORLD_SIZE", str(processes))
        assert own.gradient_accumulation_steps == 1  # as in the file, on the first four
        kept, note = keep_batch(own, run)
        assert kept.gradient_accumulation_steps == steps
        assert bool(note) == (steps > 1)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert keep_batch(own, run)[1] == (
        "1 process with gradient_accumulation_steps=4 take as many examples a step as 2 processes "
        "with gradient_accumulation_steps=2 did"
    )
    for other in ("resume=false", "gradient_accumulation_steps=3"):
        changed = make_recipe("train_batch_size=1", "resume=true", other)
        assert keep_batch(changed, run) == (changed, None)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(RunDirectoryError, match=r"3 processes cannot take 4 .*: 1, 2 or 4 can"):
        keep_batch(own, run)


def test_accumulation_of_each_stage_follows(
    past: Callable[..., Path],
    make_recipe: Callable[..., TrainRecipe],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = {"stages": STAGES, "max_train_steps": 4}
    run = past(3, **options)
    own = make_recipe(*(f"{key}={value}" for key, value in options.items()), "resume=true")
    monkeypatch.setenv("WORLD_SIZE", "6")
    kept, _ = keep_batch(own, run)
    assert [stage and stage.gradient_accumulation_steps for stage in kept.stages.values()] == [3, 1]
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(RunDirectoryError, match=r"4 processes cannot .*: 1, 2, 3 or 6 can"):
        keep_batch(own, run)


def test_processes_that_share_frames_count_once(
    past: Callable[..., Path],
    make_clip_recipe: Callable[..., TrainRecipe],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = past(4, make=make_clip_recipe, parallel="{context: 2}")
    monkeypatch.setenv("WORLD_SIZE", "4")
    kept, _ = keep_batch(make_clip_recipe("resume=true", "parallel.context=4"), run)
    assert kept.gradient_accumulation_steps == 2
    same = make_clip_recipe("resume=true", "parallel.context=2")
    assert keep_batch(same, run) == (same, None)


def test_a_restart_before_the_first_checkpoint_keeps_the_batch(
    past: Callable[..., Path],
    make_recipe: Callable[..., TrainRecipe],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a job whose launcher has lost a node; a command given anew begins anew."""
    run, own = past(2, saved=False), make_recipe("resume=true")
    assert keep_batch(own, run) == (own, None)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert keep_batch(own, run)[0].gradient_accumulation_steps == 2


def test_what_may_change_between_processes_is_listed() -> None:
    before = {"processes": 2, "parallel": {"strategy": "ddp", "context": 1}}
    now = {"processes": 2, "parallel": {"strategy": "fsdp", "context": 2}}
    assert changes_since(before, now) == ["strategy: ddp became fsdp", "context: 1 became 2"]


# Moved


def test_moved_data_are_the_same_data(
    run: Path, trained: tuple[Path, Path], resume: Resume, tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(trained[1], tmp_path / "moved"))
    for path in (f"{trained[1]}/../data/", f"{moved}/"):
        resume(f"data.path={path}")
    recipe = run / "recipe.yaml"  # a user writes the new place into it
    recipe.write_text(recipe.read_text().replace(f"{moved}/", str(trained[1])))
    resume()
    next(moved.glob("*.txt")).write_text("another caption")
    with pytest.raises(RunDirectoryError, match="1 other captions: "):
        resume(f"data.path={moved}")
    (picture,) = moved.glob("7-*.png")
    picture.unlink()
    with pytest.raises(RunDirectoryError, match=r"1 removed: .*7-white\.png"):
        resume(f"data.path={moved}")


def test_moved_concepts_are_the_same_concepts(
    pictures: Path, make_recipe: Callable[..., TrainRecipe], tmp_path: Path
) -> None:
    def recipe(folder: Path, *overrides: str) -> TrainRecipe:
        concept = f"data.concepts.it={{instance_data_dir: {folder}, instance_token: x}}"
        return make_recipe("data.path=null", concept, *overrides)

    moved = Path(shutil.copytree(pictures, tmp_path / "moved"))
    Trainer(recipe(pictures, "max_train_steps=1")).train()
    more = ["max_train_steps=2", "resume=true"]
    Trainer(recipe(moved, *more)).train()
    next(moved.glob("*.png")).unlink()
    with pytest.raises(RunDirectoryError, match="1 removed: "):
        Trainer(recipe(moved, *more))


def test_a_moved_base_model_is_the_same_if_its_weights_are(
    tiny_base_folder: Path, run: Path, resume: Resume, tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(tiny_base_folder, tmp_path / "base"))
    resume(f"base_model.path={tiny_base_folder}/")
    resume(f"base_model.path={moved}")
    file = next((moved / "unet").glob("*.safetensors"))
    tensors = load_file(file)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, file)
    assert "the base model's weights are not those" in refused(resume, f"base_model.path={moved}")
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(str(moved), str(tiny_base_folder)))
    said = refused(resume, f"base_model.path={moved}")
    assert "base_model.path: " in said and "which holds other weights" in said


def test_fingerprints_of_base_models(tiny_base_folder: Path, tmp_path: Path) -> None:
    first = base_fingerprint({"base_model": {"path": str(tiny_base_folder)}})
    assert first and base_fingerprint({"base_model": {"path": "picto"}}) not in (None, first)
    for path in ("no/such/model", "/no/such/model", str(tmp_path / "none.safetensors")):
        assert base_fingerprint({"base_model": {"path": path}}) is None


def test_a_vae_decides_the_result_by_its_weights(tiny_base_folder: Path, tmp_path: Path) -> None:
    def print_of(vae: Path | None) -> str | None:
        recipe = {"base_model": {"path": str(tiny_base_folder), "vae": vae and str(vae)}}
        return base_fingerprint(recipe)

    one, two, moved = (tmp_path / name for name in ("one.vae.pt", "two.vae.pt", "moved.vae.pt"))
    for file, content in ((one, b"1"), (two, b"2"), (moved, b"1")):
        file.write_bytes(content)
    plain = base_fingerprint({"base_model": {"path": str(tiny_base_folder)}})
    assert print_of(None) == plain
    assert len({plain, print_of(one), print_of(two)}) == 3
    assert print_of(moved) == print_of(one)
    recipe = "{name: a, base_model: {path: x, vae: %s}}"
    hashes = {new_identity(recipe % vae, {}, 1)["result_hash"] for vae in ("null", one, moved)}
    assert len(hashes) == 1  # its weights count, by the fingerprint


def test_artifacts_name_the_vae_that_replaces_the_models_own(
    recipe_file: Path, tmp_path: Path
) -> None:
    """By kohya's keys; nothing else changes."""
    vae = tmp_path / "other.vae.pt"
    vae.write_bytes(b"weights")
    plain, own = (
        run_metadata(load_recipe(recipe_file, train_schema, [*OPTIONS, *more]), 2, 3, 0)
        for more in ([], [f"base_model.vae={vae}"])
    )
    assert {key: value for key, value in own.items() if plain.get(key) != value} == {
        "ss_vae_name": "other.vae.pt",
        "ss_vae_hash": "e3b0c442",  # of nothing: the file is below 1 MiB
        "ss_new_vae_hash": hashlib.sha256(b"weights").hexdigest(),
    }
