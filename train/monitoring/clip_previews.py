"""Preview clips: the base model's row above the artifact's row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from inference.clips import (
    ClipDrawing,
    Way,
    contact_sheet,
    draw_clips,
    expand,
    write_webp,
)
from inference.config import ClipConfig
from inference.media import image_grid, read_clip, save_grid
from inference.runtime import StopSignals
from train.common import Share
from train.monitoring.previews import BaseRow, Shown


class ClipGrid:
    """Generates the recipe's clips; the base model's once, before the first step."""

    def __init__(
        self,
        base: Any,
        clips: Sequence[ClipConfig],
        folder: Path,
        image_latent_scale: Literal["pipeline", "raw", "scaled"] = "pipeline",
    ) -> None:
        self.base = base
        self.way = Way(image_latent_scale=image_latent_scale)
        self.requests = expand(base, clips)
        self.base_row = BaseRow(folder, ".webp")

    def __bool__(self) -> bool:
        return bool(self.requests)

    def draw(self, share: Share, signals: StopSignals | None = None) -> list[ClipDrawing]:
        """Generate the clips in all processes; return them in the first one, else []."""

        def draw_one(request: ClipConfig) -> ClipDrawing:
            (drawing,) = draw_clips(self.base, [request], self.way)
            return drawing

        with self.base.parts_alone():
            return share.divide(self.requests, draw_one, signals)

    def keep_base_row(self, share: Share) -> None:
        """Generate the row of the untrained model; call it before the first step."""
        for number, drawing in enumerate(self.draw(share)):
            self.base_row.folder.mkdir(parents=True, exist_ok=True)
            file = self.base_row.file(number)
            write_webp(file, drawing.frames, fps_of(drawing), drawing.infotext)

    def save(
        self, path: Path, step: int, share: Share, signals: StopSignals | None = None
    ) -> Shown | None:
        """Generate; save every clip losslessly, all side by side, and a contact sheet.

        Args:
            path: of the contact sheet, a PNG. Beside it are `NAME.webp`, and a folder `NAME`.
            step: for the label.
            share: of this process in generating; the first process saves, and returns the sheet.
            signals: a signal ends it early, if they are given.
        """
        drawings = self.draw(share, signals)
        if not share.is_main:
            return None
        with share.urgent(signals):
            return self.save_clips(path, step, drawings)

    def save_clips(self, path: Path, step: int, drawings: Sequence[ClipDrawing]) -> Shown:
        """Save drawings and the sheet."""
        folder, fps = path.with_suffix(""), fps_of(drawings[0])
        folder.mkdir(parents=True, exist_ok=True)
        for number, drawing in enumerate(drawings):
            file = folder / f"{number:03d}.webp"
            write_webp(file, drawing.frames, fps_of(drawing), drawing.infotext)
        learned = [drawing.frames for drawing in drawings]
        prompts = [drawing.request.prompt for drawing in drawings]
        infotexts = [drawing.infotext for drawing in drawings]
        base = [read_clip(file).frames for file in self.base_row.kept(infotexts)]
        rows = {"base": base, f"step {step}": learned}
        rows = {label: clips for label, clips in rows.items() if clips}
        animation = side_by_side(rows, prompts)
        write_webp(path.with_suffix(".webp"), animation, fps, "\n\n".join(infotexts))
        labels = [f"{label}: {prompt}" for label in rows for prompt in prompts]
        sheet = contact_sheet([clip for clips in rows.values() for clip in clips], labels)
        save_grid(path, sheet, infotexts)
        return Shown(sheet, animation, fps)


def side_by_side(rows: dict[str, list[np.ndarray]], labels: Sequence[str]) -> np.ndarray:
    """Combine rows of clips into one clip (f, h, w, 3); shorter ones hold their last frame."""
    longest = max(len(clip) for clips in rows.values() for clip in clips)
    return np.stack(
        [
            np.asarray(
                image_grid(
                    [
                        [Image.fromarray(clip[min(number, len(clip) - 1)]) for clip in clips]
                        for clips in rows.values()
                    ],
                    list(rows),
                    labels,
                ).convert("RGB")
            )
            for number in range(longest)
        ]
    )


def fps_of(drawing: ClipDrawing) -> float:
    """Return the frames per second, which `expand` has set."""
    assert drawing.request.fps is not None
    return drawing.request.fps
