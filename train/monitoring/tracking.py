"""TensorBoard, the progress bar, and lines in a log file."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from inference.runtime import open_console, output


class Board:
    """TensorBoard: scalars, grids and the recipe. Entries after `step` are removed.

    If its files cannot be written, a warning is shown once, and the run continues without.
    """

    def __init__(self, folder: Path, step: int, recipe: str, say: Callable[[str], None]) -> None:
        self.folder = folder
        self.say = say
        self.is_broken = False
        self._usual_hook = threading.excepthook
        threading.excepthook = self._report_thread
        with self._told(step):
            from torch.utils.tensorboard.writer import SummaryWriter

            leave_writers_to_boards()
            wait_for_a_later_name(folder)
            self.writer = SummaryWriter(str(folder), purge_step=step + 1)
            if step == 0:
                indented = "".join(f"    {line}\n" for line in recipe.splitlines())
                self.writer.add_text("recipe", indented, 0)

    @contextmanager
    def _told(self, step: int) -> Iterator[None]:
        try:
            yield
            if hasattr(self, "writer"):
                self.writer.flush()
        except OSError as error:
            self.tell_broken(error, f"what comes from step {step} on")

    def tell_broken(self, error: OSError, missing: str) -> None:
        """Warn once that the event file lacks something from now on."""
        self.is_broken = True
        self.say(
            f"warning: {self.folder} cannot be written to ({error.strerror or error}): "
            f"TensorBoard misses {missing}; training goes on"
        )

    def scalars(self, values: dict[str, float], step: int) -> None:
        if self.is_broken:
            return
        with self._told(step):
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)

    def image(self, name: str, image: Image.Image, step: int) -> None:
        if self.is_broken:
            return
        with self._told(step):
            self.writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def animation(self, name: str, frames: np.ndarray, fps: float, step: int) -> None:
        """Return frames (f, h, w, 3), uint8, as a GIF, which TensorBoard's image page plays.

        (torch's `add_video` writes nothing if moviepy is missing.)
        """
        if self.is_broken:
            return
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore

        first, *rest = [Image.fromarray(frame) for frame in frames]
        content, height, width = io.BytesIO(), *frames.shape[1:3]
        first.save(
            content, "GIF", save_all=True, append_images=rest, duration=round(1000 / fps), loop=0
        )
        shown = Summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=content.getvalue()
        )
        summary = Summary(value=[Summary.Value(tag=name, image=shown)])
        with self._told(step):
            self.writer._get_file_writer().add_summary(summary, step)

    def _report_thread(self, args: threading.ExceptHookArgs) -> None:
        """Report an exception of a thread, except for the writer's, which its next call raises."""
        if not (isinstance(args.exc_value, OSError) and is_writer(args.thread)):
            self._usual_hook(args)

    def close(self) -> None:
        """End the event file."""
        try:
            if not self.is_broken:
                self.writer.close()
        except OSError as error:
            self.tell_broken(error, "the last entries")
        finally:
            threading.excepthook = self._usual_hook


def is_writer(thread: threading.Thread | None) -> bool:
    """Return whether a thread writes a file of TensorBoard."""
    return type(thread).__module__.startswith("tensorboard.")


@cache
def leave_writers_to_boards() -> None:
    """Keep threads that write TensorBoard's files from printing tracebacks.

    The next call of the writer raises the same error, which `Board` reports.
    """
    from tensorboard.summary.writer.event_file_writer import _AsyncWriterThread

    usual = threading.excepthook

    def report(error: threading.ExceptHookArgs) -> None:
        if not isinstance(error.thread, _AsyncWriterThread):
            usual(error)

    threading.excepthook = report


def wait_for_a_later_name(folder: Path) -> None:
    """Wait, at most a second, until a new event file sorts after those of the folder.

    TensorBoard reads event files in the order of their names (`events.out.tfevents.SECONDS.host.
    pid.count`); of two files of one second, the one that removes entries could come first.
    """
    seconds = [int(path.name.split(".")[3]) for path in folder.glob("events.out.tfevents.*")]
    wait = max(seconds, default=0) + 1 - time.time()
    if 0 < wait <= 1:
        time.sleep(wait)


class StepClock:
    """Measures the duration of steps, without the work between them (previews, saving)."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since = time.perf_counter()

    def go_on(self) -> None:
        self._since = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        self.seconds += time.perf_counter() - self._since
        try:
            yield
        finally:
            self.go_on()

    def take(self) -> float:
        """Return the seconds since the last call."""
        with self.paused():
            taken, self.seconds = self.seconds, 0.0
        return taken


class ProgressBar:
    """Step, loss, time per step and time left: a bar in a terminal, lines elsewhere."""

    def __init__(self, total: int, visible: bool) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self.console = open_console(is_error=True)
        self.visible = visible
        self.total = total
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not (visible and self.console.is_terminal),
        )
        self.task = self.bar.add_task("training", total=total, text="")

    def __enter__(self) -> ProgressBar:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def advance(self, step: int) -> None:
        self.bar.update(self.task, completed=step)

    def report(self, step: int, loss: float, seconds_per_step: float) -> None:
        """Show loss and speed; without a terminal, as one line."""
        pace = f"{seconds_per_step:.2f} s/step"
        self.bar.update(self.task, text=f"loss {loss:.4f}  {pace}")
        if self.visible and not self.console.is_terminal:
            left = (self.total - step) * seconds_per_step
            line = f"step {step}/{self.total}  loss {loss:.4f}  {pace}  {duration(left)} left"
            output(line, is_error=True)

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        if self.visible:
            self.bar.console.print(line, highlight=False, soft_wrap=True, markup=False)

    def track(self, sequence: Sequence[Any], title: str) -> Iterable[Any]:
        """Iterate over a sequence with a bar of its own; without a terminal, log one line."""
        if self.visible and not self.console.is_terminal:
            output(f"{title}: {len(sequence)} batches", is_error=True)
        task = self.bar.add_task(title, total=len(sequence), text="")
        for item in sequence:
            yield item
            self.bar.advance(task)
        self.bar.remove_task(task)


def duration(seconds: float) -> str:
    """Format as 1:02:03 or 2:03."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
