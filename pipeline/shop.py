"""What the images of one run share: configuration, workers, ledger, and who is told how far the work is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.cluster import Workers
from pipeline.config import Config
from pipeline.ledger import Ledger
from pipeline.plan import Plan
from pipeline.survey import mask_path
from pipeline.work import Job


class Progress(Protocol):
    """Who is told how far the work is."""

    def expect(self, pixels: int) -> None:
        """So many pixels more are to be done."""

    def advance(self, pixels: int) -> None:
        """So many pixels are done."""

    def say(self, text: str) -> None:
        """Something worth a line has happened."""


@dataclass(frozen=True)
class Shop:
    """One run's means."""

    config: Config
    workers: Workers
    ledger: Ledger
    progress: Progress
    again: bool = False
    """Whether what failed in a published mask is tried again."""

    def mask(self, plan: Plan) -> Path:
        """Where the mask of a plan is published; the digest names what made it."""
        return mask_path(self.config.output, plan)

    def mask_name(self, plan: Plan) -> str:
        """The same, inside the output folder."""
        return f"masks/{plan.image.id}/{plan.digest}.zarr"

    def job(self, plan: Plan, work: Path) -> Job:
        """What workers must know to predict the blocks of a plan into the unfinished mosaic at `work`."""
        model = self.config.model
        return Job(plan=plan, store=str(work), device=model.device, threads=self.workers.threads, trust_code=model.trust_code)
