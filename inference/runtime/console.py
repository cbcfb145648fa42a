"""Tables and progress bars in the terminal, by rich."""

from __future__ import annotations

from typing import Any

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
from rich.segment import Segment

from inference.runtime.text import printable


class PrintableHook(RenderHook):
    """Lets texts pass `printable`; what rich itself adds for colours and bars stays."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """Wrap everything that is about to be rendered."""
        return [_Printable(one) for one in renderables]


class _Printable:
    """Something to be rendered, with its texts made printable."""

    def __init__(self, inner: ConsoleRenderable) -> None:
        self.inner = inner

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self.inner, options):
            if segment.control:
                yield segment
            else:
                yield Segment(printable(segment.text), segment.style)


def open_console(*, is_error: bool = False, **options: Any) -> Console:
    """Return a console of standard output, or of standard error; texts pass `printable`."""
    console = Console(stderr=is_error, **options)
    console.push_render_hook(PrintableHook())
    return console
