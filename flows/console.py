"""What a person sees while gigamask works: a progress bar in a terminal, plain lines elsewhere; all on stderr."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

if TYPE_CHECKING:
    from pipeline.shop import Progress as Listener
    from pipeline.train.loop import Step

LINE_SECONDS = 10.0
"""How often a line is printed where there is no terminal."""


class _Rate(ProgressColumn):
    """Megapixels done, of how many, and a second."""

    def render(self, task: Task) -> Text:
        speed = f" · {task.speed / 1e6:.2f} Mpx/s" if task.speed else ""
        return Text(f"{task.completed / 1e6:,.1f}/{(task.total or 0) / 1e6:,.1f} Mpx{speed}", style="cyan")


class Bar:
    """Progress in a terminal."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=0)

    def expect(self, pixels: int) -> None:
        """So many pixels more are to be done."""
        self._progress.update(self._task, total=(self._progress.tasks[self._task].total or 0) + pixels)

    def advance(self, pixels: int) -> None:
        """So many pixels are done."""
        self._progress.advance(self._task, pixels)

    def say(self, text: str) -> None:
        """A line above the bar."""
        self._progress.console.print(text, highlight=False, markup=False)


class Lines:
    """Progress where there is no terminal: a line now and then."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._total = self._done = 0
        self._started = self._last = time.monotonic()

    def expect(self, pixels: int) -> None:
        """So many pixels more are to be done."""
        with self._lock:
            self._total += pixels

    def advance(self, pixels: int) -> None:
        """So many pixels are done."""
        with self._lock:
            self._done += pixels
            now = time.monotonic()
            if not self._done or now - self._last < LINE_SECONDS:
                return
            self._last = now
            rate = self._done / (now - self._started)
            left = f", {max(self._total - self._done, 0) / rate:,.0f} s left" if rate else ""
            self.say(f"{self._done / 1e6:,.1f} of {self._total / 1e6:,.1f} Mpx, {rate / 1e6:.2f} Mpx/s{left}")

    def say(self, text: str) -> None:
        """A line."""
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


class Quiet:
    """Progress for nobody."""

    def expect(self, pixels: int) -> None:
        """Nobody asks."""

    def advance(self, pixels: int) -> None:
        """Nobody asks."""

    def say(self, text: str) -> None:
        """Nobody listens."""


@contextmanager
def progress(*, quiet: bool = False) -> Iterator[Listener]:
    """A listener that fits where stderr goes."""
    if quiet:
        yield Quiet()
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Lines()
        return
    columns = (TextColumn("[bold]gigamask"), BarColumn(), _Rate(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        yield Bar(bar)


@contextmanager
def training(*, quiet: bool = False) -> Iterator[tuple[Callable[[Step, float], None], Callable[[str], None]]]:
    """(who is told of a step and the share of the budget, who is told in words), as fits where stderr goes."""
    console = Console(stderr=True, quiet=quiet, highlight=False)
    columns = (TextColumn("[bold]training"), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task("", total=1.0)
        last = 0.0

        def report(step: Step, share: float) -> None:
            nonlocal last
            words = f"step {step.step:,}, {step.minutes:.1f} min ({share:.0%}), loss {step.loss:.4f}"
            bar.update(task, completed=share, description=words)
            if step.miou is not None:
                console.print(f"{words}, validation mIoU {step.miou:.4f}", markup=False)
            elif not console.is_terminal and time.monotonic() - last > 6 * LINE_SECONDS:
                last = time.monotonic()
                console.print(words, markup=False)

        yield report, lambda text: console.print(text, markup=False)
