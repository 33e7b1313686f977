"""How a run is ended from outside: once to take in what executes, twice to end at once."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.errors import InterruptedRunError, RunEndedError

STOP_SECONDS = 20.0
"""How long what is executing may go on after the run was asked to end."""
GO_ON = "what is done is kept: run the same command again to go on"


class Stop:
    """Whether a run is to end: on request, which leaves what executes STOP_SECONDS, or at once, by an error that ends the run.
    Either way nothing more is started."""

    def __init__(self, *, at_once: bool = False) -> None:
        self.at_once = at_once
        """Whether a signal breaks the call under way off: in a single process nobody could take in what it returns."""
        self.signum: int | None = None
        """What asked."""
        self._asked_at = 0.0
        self._ended: RunEndedError | None = None

    def ask(self, signum: int) -> None:
        """End the run. Only notes it, as signal handlers must."""
        if self.signum is None:
            self._asked_at = time.monotonic()
            self.signum = signum

    def end(self, error: RunEndedError) -> None:
        """Note what has ended the run, for everything else that is under way in it; the first error stays."""
        if self._ended is None and not isinstance(error, InterruptedRunError):  # what interrupts is `asked`, and leaves time
            self._ended = error

    def check(self) -> None:
        """Raise what has ended the run elsewhere, if anything has."""
        if self._ended is not None:
            raise type(self._ended)(*self._ended.args) from self._ended

    @property
    def asked(self) -> bool:
        """Whether the run is to end."""
        return self.signum is not None

    @property
    def overdue(self) -> bool:
        """Whether what still executes is to be dropped."""
        return self.asked and time.monotonic() - self._asked_at >= STOP_SECONDS

    def error(self, dropped: int) -> InterruptedRunError:
        """What whoever ends early for it raises, with so many blocks in flight."""
        assert self.signum is not None
        name = signal.Signals(self.signum).name
        blocks = f"{dropped} block{'s' * (dropped != 1)} in flight {'were' if dropped != 1 else 'was'} dropped"
        return InterruptedRunError(self.signum, f"interrupted by {name}: {blocks}; {GO_ON}")


@contextmanager
def stopping_on_signals(stop: Stop) -> Iterator[None]:
    """Within, the first SIGINT or SIGTERM asks the run to end; a second one raises KeyboardInterrupt.

    Where there is only this process (`stop.at_once`), the first one raises InterruptedRunError in the midst of what is under
    way. Signals belong to the main thread: in any other this does nothing.
    """

    def on_signal(signum: int, _frame: object) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.ask(signum)
        if stop.at_once:
            raise stop.error(1)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.signal(signum, on_signal) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
