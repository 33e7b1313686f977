"""One small family of errors: each says what was wrong, the values, what it would have caused and what to do."""

from __future__ import annotations

import traceback


class GigamaskError(Exception):
    """What a user is told instead of a traceback."""

    exit_code = 1


class ConfigError(GigamaskError):
    """The configuration or the command line cannot mean anything."""

    exit_code = 2


class PlanError(GigamaskError):
    """What was asked cannot work on this image, model or machine; found before anything was spent."""

    exit_code = 2


class SourceError(GigamaskError):
    """An image cannot be opened or read."""


class ChangedError(GigamaskError):
    """A file is no longer the one that was planned: what was made of it so far and what would follow do not belong together."""


class TruthError(GigamaskError):
    """Reference labels cannot be read, or do not fit the image that they are meant for."""


class ModelError(GigamaskError):
    """A model folder is incomplete, does not match its card, or does not do what its card says."""


class StoreError(GigamaskError):
    """A mosaic store or ledger is missing, damaged, or already there."""


class RunEndedError(GigamaskError):
    """The run cannot go on. What is done is kept, and the same command goes on from there."""


class ClusterError(RunEndedError):
    """Workers cannot be had, or were lost."""


class OutputError(RunEndedError):
    """The output folder takes no more: full, read-only, gone, or held by another run."""


class InterruptedRunError(RunEndedError):
    """Somebody asked the run to end: Ctrl-C, SIGTERM, or a cancellation."""

    def __init__(self, signum: int, text: str) -> None:
        super().__init__(signum, text)
        self.exit_code = 128 + signum
        """As shells and systemd know it: 130 after SIGINT, 143 after SIGTERM."""

    def __str__(self) -> str:
        return str(self.args[1])


def explain(error: BaseException) -> str:
    """An error as a person is told: in its own words where it has such, else with its cause."""
    return str(error) if isinstance(error, GigamaskError) else cause(error)


def cause(error: BaseException) -> str:
    """An error as the ledger keeps it: what it says, and the last frames of where."""
    frames = "".join(traceback.format_tb(error.__traceback__)[-4:])
    return f"{type(error).__name__}: {error}\n{frames}".strip()
