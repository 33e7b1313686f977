"""Nights that a person starts: as a Prefect flow, or the same steps without it; retries and merges are always without."""

from __future__ import annotations

import shlex
from pathlib import Path

from flows.hooks import telling
from pipeline.config import load_config
from pipeline.merge import merge_parts
from pipeline.night import Morning, run_night
from pipeline.shop import Progress
from pipeline.survey import division


def night(config: Path, root: Path | None, part: str | None, progress: Progress, *, prefect: bool) -> tuple[int, Path]:
    """(exit code, folder of the report) of the night, or of a part of it."""
    if not prefect:
        morning = run(config, root, part, progress)
        return morning.exit_code, morning.folder
    from flows.nightly import run_flow

    left = run_flow(config, root, part, progress)
    return int(left["exit_code"]), Path(left["folder"])


def run(config: Path, root: Path | None, part: str | None, progress: Progress) -> Morning:
    """The night, or a part of it."""
    own = division(part) if part else None
    loaded = load_config(config, root=root)
    with telling(loaded) as told:
        morning = run_night(loaded, progress, words("run", config, root, part, "--no-prefect"), own)
        told.ended(morning)
    return morning


def retry(config: Path, root: Path | None, progress: Progress) -> Morning:
    """Only what failed before."""
    loaded = load_config(config, root=root)
    with telling(loaded) as told:
        morning = run_night(loaded, progress, words("retry", config, root), retry=True)
        told.ended(morning)
    return morning


def merge(config: Path, root: Path | None, progress: Progress) -> Morning:
    """Join what the parts have made."""
    loaded = load_config(config, root=root)
    with telling(loaded) as told:
        morning = merge_parts(loaded, progress, words("merge", config, root))
        told.ended(morning)
    return morning


def words(command: str, config: Path | str, root: Path | str | None, part: str | None = None, *others: str) -> str:
    """Return the command that runs it again, quoted for a shell."""
    options = [*others, *(["--root", str(root)] if root else []), *(["--part", part] if part else [])]
    return shlex.join(["gigamask", command, str(config), *options])
