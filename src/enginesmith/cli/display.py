"""How things look: consoles, tables, quantities in readable units, progress with time left."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.table import Table

from enginesmith.plan.plan import SymbolRange

if TYPE_CHECKING:
    from enginesmith.builder import Progress

PLAIN_WIDTH = 160
"""Columns when the output is no terminal: a file or pipe shouldn't cut tables at 80."""


def console(*, stderr: bool = False) -> Console:
    """A console on the current stdout or stderr. Names of nodes and files are never markup."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PLAIN_WIDTH
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def table(*columns: str, title: str = "") -> Table:
    """A table. A column named `>time` holds numbers (to the right), `~nodes` text that may wrap."""
    result = Table(
        title=title or None,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for column in columns:
        wraps = column.startswith("~")
        result.add_column(
            column.lstrip(">~"),
            justify="right" if column.startswith(">") else "left",
            no_wrap=not wraps,
            overflow="fold" if wraps else "ellipsis",
        )
    return result


def emit_json(value: Any) -> None:
    """Print `value` as JSON on stdout, nothing else around it."""
    print(json.dumps(value, indent=2))


def seconds(value: float) -> str:
    """0.00123 -> `1.23 ms`."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= scale:
            return (
                f"{value / scale:.3g} {unit}"
                if value < 999 * scale
                else f"{value / scale:.0f} {unit}"
            )
    return f"{value / 1e-9:.3g} ns"


def size(value: float) -> str:
    """Bytes in binary units: 1536 -> `1.5 KiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


def shape_text(shape: tuple[int | str, ...]) -> str:
    """(1, 3, "h") -> `1x3xh`; a scalar is `scalar`."""
    return "x".join(str(d) if str(d).isalnum() else f"({d})" for d in shape) or "scalar"


def range_text(symbol: SymbolRange) -> str:
    """`1 to 8, tuned at 1`."""
    top = "any" if symbol.max is None else str(symbol.max)
    return f"{symbol.min} to {top}, tuned at {symbol.opt}"


class Listener(Protocol):
    """What es.build calls to report progress."""

    def __call__(self, progress: Progress, /) -> None: ...


@contextmanager
def progress_bars(*, verbose: bool = False) -> Iterator[Listener]:
    """A listener that draws one bar per stage on stderr, with the time it still needs; where stderr
    is no terminal, it prints a line as each stage ends (and with `verbose`, every step)."""
    out = console(stderr=True)
    if out.is_terminal:
        with _Drawn(out) as drawn:
            yield drawn
    else:
        lines = _Lines(out, verbose)
        yield lines
        lines.finish()


class _Drawn:
    """Bars on a terminal."""

    def __init__(self, out: Console) -> None:
        columns = (
            SpinnerColumn(), TextColumn("{task.description:<10}"), BarColumn(24),
            MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}", style="dim", markup=False),
        )  # fmt: skip
        self.bars = Bars(*columns, console=out)
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> _Drawn:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def __call__(self, progress: Progress) -> None:
        if progress.stage not in self.tasks:
            self._complete_all()
            self.tasks[progress.stage] = self.bars.add_task(progress.stage, detail="")
        self.bars.update(
            self.tasks[progress.stage],
            completed=progress.done,
            total=progress.total or None,
            detail=progress.detail[:60],
        )

    def _complete_all(self) -> None:
        for task in self.bars.tasks:
            total = task.total if task.total is not None else 1
            self.bars.update(task.id, total=total, completed=total, detail="")


class _Lines:
    """Plain lines elsewhere."""

    def __init__(self, out: Console, verbose: bool) -> None:
        self.out, self.verbose = out, verbose
        self.stage, self.start, self.done = "", 0.0, 0

    def __call__(self, progress: Progress) -> None:
        if progress.stage != self.stage:
            self.finish()
            self.stage, self.start = progress.stage, time.perf_counter()
        self.done = progress.done
        if self.verbose and progress.detail:
            text = f"{progress.stage} {progress.done}/{progress.total} {progress.detail}"
            self.out.print(text)

    def finish(self) -> None:
        """Print the line of the stage that just ended."""
        if self.stage:
            took = seconds(time.perf_counter() - self.start)
            self.out.print(f"{self.stage}: {self.done} done in {took}")
        self.stage = ""
