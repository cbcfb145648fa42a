"""Kill Limner's commands at random moments, start them again, and compare with an undisturbed run.

    python -m scripts.kill_sweep --kills 1000 --seed 9

Each kind of command runs once undisturbed. It then runs in other folders, where SIGKILL ends it
several times, in half of the cases before a random one of its file operations, otherwise at a
random time. After that it runs to its end. What it leaves must equal the undisturbed result byte
for byte, with no temporary, hidden or empty file beside it. The exit status is 1 where that fails.

Importing the libraries takes longer than these commands, so this process imports them once and
forks for each command. It runs on one thread; 1,000 kills take about an hour.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import mmap
import os
import random
import re
import runpy
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from rich.table import Table

from inference.runtime import open_console

ROOT = Path(__file__).parents[1]
KILLS_A_RUN = 3
"""At most, before a run may reach its end."""
WIDTH = 110
"""Columns of the table in a file or pipe, so that no word of it is cut."""

PRELOADED = (
    "diffusers.models.autoencoders.autoencoder_kl_cogvideox",
    "diffusers.models.transformers.cogvideox_transformer_3d",
    "diffusers.schedulers.scheduling_ddim_cogvideox",
    "diffusers.schedulers.scheduling_dpm_cogvideox",
    "inference.clips.command",
    "inference.convert",
    "inference.deforum.animation",
    "inference.images.command",
    "omegaconf.vendor.antlr4.LL1Analyzer",
    "rich.progress",
    "torch.utils.serialization.config",
    "torch.utils.tensorboard.writer",
    "train.objectives.autoencoder",
    "train.objectives.lora",
    "train.objectives.whole_parts",
    "train.trainer",
    "transformers.models.clip.modeling_clip",
    "transformers.models.clip.tokenization_clip",
    "transformers.models.t5.modeling_t5",
    "transformers.optimization",
)
"""What the commands import, so that a forked one need not."""

PICTURES = (
    "data={path: {data}}",
    "data.captions={dropout_rate: 0.3}",
    "sampling.images.one={prompt: red, seed: 1}",
    "sampling.settings={steps: 1}",
)
CLIPS = (
    "base_model.path=picto-motion",
    "data={path: {clips}, clips: {frames: 25}}",
    "sampling.clips.one={prompt: red, seed: 1, frames: 25}",
    "sampling.clip_settings={steps: 1}",
)
EMBEDDING = "{type: textual_inversion, token: xyz, num_vectors_per_token: 2}"
LORA = "{type: lora, rank: 2, dropout: 0.2}"
OBJECTIVES: dict[str, tuple[str, ...]] = {
    "textual_inversion": (*PICTURES, f"objective={EMBEDDING}"),
    "hypernetwork": (*PICTURES, "objective={type: hypernetwork, dropout_structure: [0, 0.2, 0]}"),
    "dreambooth": (
        "objective={type: dreambooth, train_text_encoder: true}",
        "loss.prior_weight=0.5",
        "data={concepts: {it: {instance_data_dir: {data}, instance_token: x, class_token: sign, "
        "class_prompt: sign, class_infer_steps: 1, num_class_images_per: 1}}}",
        *PICTURES[2:],
    ),
    "lora": (*PICTURES, f"objective={LORA}", "data.cache=disk", "ema={decay: 0.8}"),
    "text_to_image": (*PICTURES, "objective={type: text_to_image}"),
    "autoencoder": (PICTURES[0], *PICTURES[2:], "objective={type: autoencoder}"),
    "combined": (
        *PICTURES,
        f"objective={{type: combined, members: {{word: {{objective: {EMBEDDING}, stop_step: 2}}, "
        f"look: {{objective: {LORA}}}}}}}",
    ),
    "lora of clips": (*CLIPS, f"objective={LORA}"),
}


@dataclass(frozen=True)
class Kind:
    """A command that is killed, and how its results are read."""

    command: Callable[[Path, Path], tuple[str, list[str]]]
    """(inputs, result folder) -> module and arguments, to begin with or to go on."""
    results: Callable[[Path], dict[str, str]]
    """Result folder -> what must be equal, with SHA-256."""


@dataclass
class Tally:
    """What happened to a kind."""

    at_operations: int = 0
    at_times: int = 0
    runs: int = 0
    seconds: float = 0
    differences: list[str] = field(default_factory=list)
    left_overs: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        """Return the number of kills."""
        return self.at_operations + self.at_times


def make_inputs(folder: Path) -> None:
    """Write pictures, clips and recipes."""
    colours = ("red", "lime", "blue", "cyan", "white", "yellow")
    for name in ("data", "clips"):
        (folder / name).mkdir()
    for number, colour in enumerate(colours):
        image = Image.new("RGB", (64, 64), colour)
        image.paste(colours[number - 2], (8 * number, 16, 64, 40))
        image.save(folder / "data" / f"{number}.png")
        (folder / "data" / f"{number}.txt").write_text(f"{colour} sign, number {number}")
    for number, colour in enumerate(colours[:2]):
        frames = [Image.new("RGB", (64, 64), colour) for _ in range(25)]
        for shift, frame in enumerate(frames):
            frame.paste(colours[number + 2], (2 * shift, 16, 2 * shift + 12, 40))
        clip = folder / "clips" / f"{number}.webp"
        frames[0].save(clip, save_all=True, append_images=frames[1:], lossless=True, duration=100)
        clip.with_suffix(".txt").write_text(f"{colour} sign, moving")
    (folder / "train.yaml").write_text(
        "name: run\nbase_model: {path: picto}\nmax_train_steps: 3\ntrain_batch_size: 2\n"
        "log_every_n_steps: 1\nsaving: {save_every_n_steps: 1}\nresume: true\n"
        "sampling: {sample_every_n_steps: 2}\n"
    )
    (folder / "images.yaml").write_text(
        "type: images\nbase_model: {path: picto}\nsettings: {steps: 1}\nimages:\n"
        "  {a: {prompt: cat, seed: 1}, b: {prompt: dog, seed: 2}, c: {prompt: owl, seed: 3}}\n"
    )
    (folder / "clip.yaml").write_text(
        "type: clip\nbase_model: {path: picto-motion}\nsettings: {steps: 1}\n"
        "clips: {a: {prompt: cat, seed: 1}, b: {prompt: dog, seed: 2}}\nformats: [webp, mp4]\n"
    )
    (folder / "animation.yaml").write_text(
        "type: animation\nbase_model: {path: picto}\nsettings: {W: 64, H: 64, max_frames: 5, "
        "steps: 2, seed: 1, batch_name: one, diffusion_cadence: 2, prompts: {'0': cat}}\n"
    )


def hashes(folder: Path, *names: str) -> dict[str, str]:
    """Return the SHA-256 of all files below some folders, by relative path."""
    files = sorted(file for name in names for file in (folder / name).rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): sha256(file) for file in files}


def sha256(file: Path) -> str:
    """Return a file's SHA-256."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def trained(folder: Path) -> dict[str, str]:
    """Return what a run leaves to use: artifacts, grids, class pictures."""
    return hashes(folder / "run", "artifacts", "samples", "class_images")


def numbered(folder: Path) -> dict[str, str]:
    """Return the distinct pictures of a folder: each start draws again, with new numbers."""
    return dict.fromkeys(hashes(folder, ".").values(), "")


def animated(folder: Path) -> dict[str, str]:
    """Return the frames and texts of an animation, without the time in their names."""
    found = hashes(folder, ".")
    return {
        re.sub(r"\d{14}", "TIME", name): content
        for name, content in found.items()
        if not name.endswith(("_settings.txt", "_recipe.yaml", "_state.npz"))
    }


def kinds() -> dict[str, Kind]:
    """Return everything that is killed."""

    def training(options: tuple[str, ...]) -> Kind:
        def command(inputs: Path, out: Path) -> tuple[str, list[str]]:
            given = [
                one.replace("{data}", str(inputs / "data")).replace(
                    "{clips}", str(inputs / "clips")
                )
                for one in options
            ]
            return "train", [str(inputs / "train.yaml"), f"output_dir={out}", *given]

        return Kind(command, trained)

    def drawing(name: str, results: Callable[[Path], dict[str, str]]) -> Kind:
        def command(inputs: Path, out: Path) -> tuple[str, list[str]]:
            is_begun = any(out.rglob("*_settings.txt"))  # of an animation
            resume = ["resume=true"] if is_begun else []
            return "inference", [str(inputs / f"{name}.yaml"), f"output_dir={out}", *resume]

        return Kind(command, results)

    def conversion(source: str, target: str, layout: str) -> Kind:
        def command(inputs: Path, out: Path) -> tuple[str, list[str]]:
            model = source.replace("{inputs}", str(inputs))
            return "inference.convert", [model, str(out / target), "--to", layout, "--overwrite"]

        return Kind(command, lambda folder: hashes(folder, "."))

    picto = str(ROOT / "inference" / "assets" / "picto")
    return {
        **{name: training(options) for name, options in OBJECTIVES.items()},
        "images": drawing("images", numbered),
        "clips": drawing("clip", numbered),
        "animation": drawing("animation", animated),
        "conversion to a file": conversion(picto, "model.safetensors", "single-file"),
        "conversion to a folder": conversion("{inputs}/model.safetensors", "model", "diffusers"),
    }


class Command:
    """A command in a forked process."""

    def __init__(self, module: str, arguments: list[str], out: Path, strike: int = 0) -> None:
        """Start it.

        Args:
            module: run as `python -m MODULE`.
            arguments: the command line's.
            out: folder of the results; its parent gets `log`.
            strike: number of the file operation below `out` that the command does not survive;
                0 for none.
        """
        self.counter = mmap.mmap(-1, 8)
        self.log = out.parent / f"{out.name}.log"
        self.child = os.fork()
        if self.child == 0:
            self.become(module, arguments, str(out), strike)

    def become(self, module: str, arguments: list[str], out: str, strike: int) -> None:
        """Turn this process into the command; never return."""
        os.setsid()
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        done = 0

        def count(event: str, values: tuple[Any, ...]) -> None:
            nonlocal done
            if not is_write(event, values) or out not in os.fsdecode(os.fspath(values[0])):
                return
            done += 1
            self.counter[:8] = done.to_bytes(8)
            if done == strike:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        sys.argv = [module, *arguments]
        status: object = 1
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            status = end.code
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else 1)  # not into the parent's cleaning up

    def wait(self, seconds: float | None = None) -> int:
        """Return the exit status, negative for a signal.

        Args:
            seconds: kill the command after this time; None waits for its end.
        """
        deadline = time.monotonic() + (float("inf") if seconds is None else seconds)
        while time.monotonic() < deadline:
            done, status = os.waitpid(self.child, os.WNOHANG)
            if done:
                break
            time.sleep(0.002)
        else:
            os.kill(self.child, signal.SIGKILL)  # it may not lead a group yet
            _, status = os.waitpid(self.child, 0)
        with suppress(ProcessLookupError):
            os.killpg(self.child, signal.SIGKILL)  # what it started itself
        return os.waitstatus_to_exitcode(status)

    @property
    def operations(self) -> int:
        """Return how many file operations below the result folder it has begun."""
        return int.from_bytes(self.counter[:8])


WRITES = {"os.mkdir", "os.rename", "os.link", "os.symlink", "os.remove", "os.rmdir", "os.truncate"}


def is_write(event: str, values: tuple[Any, ...]) -> bool:
    """Return whether an audit event of Python changes files."""
    if event == "open":
        path, _, flags = values
        is_path = isinstance(path, str | bytes | os.PathLike)
        return is_path and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    return event in WRITES and isinstance(values[0], str | bytes | os.PathLike)


def left_overs(folder: Path) -> Iterator[str]:
    """Yield hidden, temporary and empty files below a folder."""
    for file in sorted(folder.rglob("*")):
        is_empty = file.is_file() and file.stat().st_size == 0
        if is_empty or (file.name.startswith(".") and file.name != ".last"):
            yield str(file.relative_to(folder))


def unreadable(folder: Path) -> Iterator[str]:
    """Yield files with a final name that cannot be read, such as checkpoints after a kill."""
    import torch
    from safetensors import safe_open

    for file in sorted(folder.rglob("step-*/*")):
        if any(part.startswith(".") for part in file.relative_to(folder).parts):
            continue
        try:
            if file.suffix == ".json":
                json.loads(file.read_text())
            elif file.suffix == ".safetensors":
                safe_open(file, "pt").__enter__().keys()
            elif file.suffix == ".pt":
                torch.load(file, weights_only=True)
        except (ValueError, OSError, RuntimeError) as error:
            yield f"{file.relative_to(folder)}: {error}"


class Sweep:
    """The kills of one kind."""

    def __init__(self, name: str, kind: Kind, work: Path, seed: int) -> None:
        """Run the command undisturbed once.

        Args:
            name: the kind's.
            kind: the command.
            work: folder with the inputs, in which the runs get folders.
            seed: of the random moments, with the name.
        """
        self.name, self.kind, self.work = name, kind, work
        self.random = random.Random(f"{seed} {name}")
        self.tally = Tally()
        start = time.monotonic()
        straight = self.start(self.folder("straight"))
        self.check(straight.wait(), straight)
        self.duration, self.operations = time.monotonic() - start, straight.operations
        self.expected = kind.results(self.folder("straight"))
        if not self.expected:
            raise SystemExit(f"{name}: no results")

    def folder(self, name: str) -> Path:
        """Return the result folder of a run."""
        return self.work / f"{self.name.replace(' ', '_')}_{name}"

    def start(self, out: Path, strike: int = 0) -> Command:
        """Start the command."""
        out.mkdir(exist_ok=True)
        module, arguments = self.kind.command(self.work, out)
        return Command(module, arguments, out, strike)

    def check(self, status: int, command: Command) -> None:
        """End the sweep where a command fails that was not killed."""
        if status:
            text = command.log.read_text(errors="replace")
            raise SystemExit(f"{self.name}: exit status {status}\n{text[-3000:]}")

    def run(self, kills: int) -> Tally:
        """Kill the command so many times; return what happened."""
        begun = time.monotonic()
        while self.tally.kills < kills:
            self.kill_and_finish(min(KILLS_A_RUN, kills - self.tally.kills))
        self.tally.seconds = time.monotonic() - begun
        return self.tally

    def kill_and_finish(self, most: int) -> None:
        """Kill one run up to so many times, let it end, and compare."""
        out, tally = self.folder(str(tally_number := self.tally.runs)), self.tally
        tally.runs += 1
        for _ in range(most):
            if self.random.random() < 0.5:
                command = self.start(out, self.random.randint(1, self.operations))
                status = command.wait()
                tally.at_operations += status == -signal.SIGKILL
            else:
                command = self.start(out)
                status = command.wait(self.random.uniform(0, self.duration))
                tally.at_times += status == -signal.SIGKILL
            if status != -signal.SIGKILL:
                self.check(status, command)
                break
            found = [f"run {tally_number}: unreadable {one}" for one in unreadable(out)]
            tally.differences += found
        else:
            command = self.start(out)
            self.check(command.wait(), command)
        results = self.kind.results(out)
        for name in sorted(results.keys() | self.expected.keys()):
            if results.get(name) != self.expected.get(name):
                tally.differences.append(f"run {tally_number}: {name}")
        tally.left_overs += [f"run {tally_number}: {one}" for one in left_overs(out)]
        shutil.rmtree(out)


def report(tallies: dict[str, Tally]) -> Table:
    """Return the table of what happened."""
    table = Table("command", "kills", "at file operations", "at random times", "runs compared")
    for heading in ("byte differences", "left-overs", "seconds"):
        table.add_column(heading, justify="right")
    rows = {**tallies, "all": total(tallies)}
    for name, one in rows.items():
        figures = one.kills, one.at_operations, one.at_times, one.runs
        faults = len(one.differences), len(one.left_overs), round(one.seconds)
        table.add_row(name, *map(str, figures), *map(str, faults))
    return table


def total(tallies: dict[str, Tally]) -> Tally:
    """Return the sum over all commands."""
    result = Tally()
    for one in tallies.values():
        result.at_operations += one.at_operations
        result.at_times += one.at_times
        result.runs += one.runs
        result.seconds += one.seconds
        result.differences += one.differences
        result.left_overs += one.left_overs
    return result


def sweep(kills: int, seed: int, names: list[str], work: Path) -> dict[str, Tally]:
    """Kill commands, and return what happened to each kind.

    Args:
        kills: of all kinds together.
        seed: of the moments.
        names: the kinds.
        work: an empty folder.
    """
    make_inputs(work)
    known, console = kinds(), open_console(is_error=True)
    if "conversion to a folder" in names:
        module, arguments = known["conversion to a file"].command(work, work)
        Command(module, arguments, work).wait()
    tallies = {}
    for number, name in enumerate(names):
        share = kills // len(names) + (number < kills % len(names))
        if share:
            tallies[name] = Sweep(name, known[name], work, seed).run(share)
            console.print(f"{name}: {tallies[name].kills} kills, {tallies[name].seconds:.0f} s")
    return tallies


def prepare() -> None:
    """Import what the commands import, on one thread, so that a fork is safe."""
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    from inference.runtime import quiet_libraries

    quiet_libraries()
    for name in PRELOADED:
        importlib.import_module(name)
    Image.init()


def main() -> int:
    """Print the table; return 1 if something differs or is left over."""
    parser = argparse.ArgumentParser(description="Kill commands at random and compare the results.")
    parser.add_argument("--kills", type=int, default=60, help="of all commands together")
    parser.add_argument("--seed", type=int, default=9, help="of the random moments")
    parser.add_argument("--only", nargs="*", default=list(kinds()), metavar="COMMAND")
    given = parser.parse_args()
    unknown = set(given.only) - set(kinds())
    if unknown or given.kills < 1:
        parser.error(f"--only takes {', '.join(kinds())}; --kills takes at least 1")
    prepare()
    with tempfile.TemporaryDirectory() as work:
        tallies = sweep(given.kills, given.seed, given.only, Path(work))
    console = open_console(width=None if sys.stdout.isatty() else WIDTH)
    console.print(report(tallies))
    faults = total(tallies)
    for one in [*faults.differences, *faults.left_overs]:
        console.print(one, markup=False)
    return 1 if faults.differences or faults.left_overs else 0


if __name__ == "__main__":
    sys.exit(main())
