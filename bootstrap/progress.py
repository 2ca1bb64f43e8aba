"""What a person sees: lines, tables, and the progress of each node with its elapsed time.

On a terminal the progress is drawn in place; anywhere else it is one unwrapped line for each change.
Writes to standard output and error only; the other modules of `bootstrap` print through it.
"""

import sys
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TextIO

from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table

UNWRAPPED = 4096


def _console(stream: TextIO) -> Console:
    width = None if stream.isatty() else UNWRAPPED
    return Console(
        file=stream, width=width, markup=False, highlight=False, emoji=False, soft_wrap=width is not None
    )


class Output:
    """Standard output for what was asked for, standard error for warnings and errors."""

    def __init__(self, out: TextIO | None = None, err: TextIO | None = None) -> None:
        self.out = _console(out or sys.stdout)
        self._err = _console(err or sys.stderr)

    def line(self, text: str = "") -> None:
        """One line, never wrapped by us."""
        self.out.print(text, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Something to look at, which does not stop the command."""
        self._err.print(f"warning: {text}", style="yellow", soft_wrap=True)

    def error(self, text: str) -> None:
        """Why the command fails."""
        self._err.print(f"error: {text}", style="red", soft_wrap=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table with a blank line above it."""
        self.line()
        if not self.out.is_terminal:
            self._plain(title, columns, rows)
            return
        table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*row)
        self.out.print(title, style="bold", soft_wrap=True)
        self.out.print(table)

    def _plain(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        shown = [row for row in (columns, *rows) if any(row)]
        widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
        self.line(title)
        for row in shown:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            self.line("  ".join(cells).rstrip())


class Progress:
    """Who is how far, for how long. Safe to report to from several threads."""

    def __init__(self, output: Output, names: Sequence[str]) -> None:
        self._output = output
        self._width = max((len(name) for name in names), default=0)
        self._rows: dict[str, tuple[str, float | None]] = {}
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._live = (
            Live(get_renderable=self._draw, console=output.out, refresh_per_second=8)
            if output.out.is_terminal
            else None
        )

    def __enter__(self) -> "Progress":
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def elapsed(self) -> float:
        """Seconds since the start of the work."""
        return time.monotonic() - self._began

    def report(self, name: str, text: str, *, done: bool = False) -> None:
        """Say how far this one is; a repetition is not shown again."""
        with self._lock:
            if self._rows.get(name, ("", None))[0] == text:
                return
            now = self.elapsed()
            self._rows[name] = (text, now if done else None)
        if self._live is None:
            self._output.line(f"[{now:5.1f}s] {name.ljust(self._width)}  {text}")

    def _draw(self) -> RenderableType:
        table = Table(box=None, pad_edge=False, show_header=False)
        now = self.elapsed()
        with self._lock:
            for name, (text, ended) in self._rows.items():
                table.add_row(name, f"{ended if ended is not None else now:5.1f}s", text)
        return table
