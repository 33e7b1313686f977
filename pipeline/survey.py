"""Which images of the archive can be segmented, how, and why the others cannot: known before any model is loaded."""

from __future__ import annotations

import hashlib
import re
import shutil
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.alignment import MaskFacts, TruthSpec
from pipeline.archive import discover
from pipeline.areas import with_area
from pipeline.card import ModelCard
from pipeline.cluster import worker_budget
from pipeline.config import Config, TruthConfig
from pipeline.errors import ConfigError, PlanError, RunEndedError, explain
from pipeline.gdal import gdal
from pipeline.image import ImageSpec, WorkingGrid
from pipeline.models import usable_card
from pipeline.plan import Budget, Plan, plan_image
from pipeline.sources import describe_image
from pipeline.truth import describe_truth, plan_labels
from pipeline.vectorfile import is_vector

GIB = 1024**3


@dataclass(frozen=True)
class Planned:
    """An image that can be segmented."""

    plan: Plan
    truth: TruthSpec | None
    truth_error: str | None
    """Why it cannot be scored, though labels were named."""


@dataclass(frozen=True)
class Refused:
    """An image that cannot be segmented."""

    image: ImageSpec
    error: str
    mask: MaskFacts | None = None
    """The grid of its labels, where it has such: what its mask would have been scored on."""
    truth: TruthSpec | None = None
    """Its labels: all of them are misses."""


@dataclass(frozen=True)
class Survey:
    """The archive as it is about to be worked on."""

    config: Config
    card: ModelCard
    budget: Budget
    """What a worker may take."""
    planned: list[Planned]
    refused: list[Refused]

    @property
    def images(self) -> list[ImageSpec]:
        """All that were found."""
        return [*(p.plan.image for p in self.planned), *(r.image for r in self.refused)]

    @property
    def missing_bytes(self) -> int:
        """About what the masks that are not there yet will still take on disk."""
        return sum(missing_bytes(self.config.output, p.plan) for p in self.planned)

    @property
    def is_finished(self) -> bool:
        """Whether every mask is there, so that a run writes no more than its report."""
        return all(mask_path(self.config.output, p.plan).exists() for p in self.planned)

    @property
    def pixels(self) -> int:
        """Working pixels of all planned images."""
        return sum(p.plan.grid.height * p.plan.grid.width for p in self.planned)


@dataclass(frozen=True)
class Division:
    """One of several parts of an archive, which independent runs share between them."""

    part: int
    """1...parts."""
    parts: int

    def __str__(self) -> str:
        return f"{self.part}/{self.parts}"

    def holds(self, image: ImageSpec) -> bool:
        """Whether the image belongs to this part: by a hash of its path, so that new images move no others."""
        return int(hashlib.sha256(image.uri.encode()).hexdigest(), 16) % self.parts == self.part - 1


def division(text: str) -> Division:
    """The part that `2/5` names."""
    match = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", text)
    if match is None or int(match[1]) > int(match[2]):
        raise ConfigError(f"--part {text}: write 2/5 for the second of five parts")
    return Division(int(match[1]), int(match[2]))


def survey(config: Config, part: Division | None = None, *, keep: bool = False) -> Survey:
    """Discover the archive, or a part of it, and plan each image: only headers are read, and slides looked at from afar where
    tissue is to be found. Nothing is written, but with `keep` the tissue that was found, so that it is found once.

    Raises what makes the whole run impossible (model, weights, archive); what concerns one image is kept with it.
    """
    card = usable_card(config.model.path, trust_code=config.model.trust_code)
    budget = worker_budget(config.cluster, config.model.device)
    planned: list[Planned] = []
    refused: list[Refused] = []
    free = free_bytes(config.output)
    with gdal():
        for image in discover(config):
            if part is not None and not part.holds(image):
                continue
            try:
                plan = plan_image(config, image, describe_image(config.archive, image), card, budget)
                plan = with_area(plan, config.archive.tissue, config.output / "tissue", keep=keep)
                _check_room(config, plan, free)
            except RunEndedError:
                raise
            except Exception as e:  # noqa: BLE001 - whatever a file makes a library do costs that image, not the night
                refused.append(Refused(image, explain(e), *_missed(config, image, card)))
                continue
            planned.append(Planned(plan, *survey_truth(config.truth, image.truth, plan.mask)))
    return Survey(config, card, budget, planned, refused)


def _check_room(config: Config, plan: Plan, free: int) -> None:
    """PlanError where the disk of the output cannot take the mask of this image alone: others may still fit."""
    room, missing = free - config.faults.min_free_gib * GIB, missing_bytes(config.output, plan)
    if 0 < room < missing:
        raise PlanError(
            f"{plan.image.uri}: its mask of {plan.grid.height} x {plan.grid.width} px needs about "
            f"{missing / GIB:,.2f} GiB, and {config.output} has {max(room, 0) / GIB:,.2f} GiB beside the "
            f"{config.faults.min_free_gib:g} GiB that are to stay free (faults.min_free_gib). Make room, choose another output "
            "or a coarser resolution, or check the image's header"
        )


def space_problem(found: Survey) -> str | None:
    """Why the disk of the output cannot take the masks that are missing; None where it can, or where none is missing."""
    config = found.config
    needed, free = found.missing_bytes, free_bytes(config.output)
    if needed + config.faults.min_free_gib * GIB <= free or found.is_finished:
        return None
    unit, name = (GIB, "GiB") if max(needed, free) >= GIB // 10 else (GIB >> 10, "MiB")
    return (
        f"the masks that are missing need about {needed / unit:,.2f} {name}, and {config.faults.min_free_gib:g} GiB are to stay "
        f"free (faults.min_free_gib): {config.output} has {free / unit:,.2f} {name} left, and the run would end in its middle. "
        "Make room, choose another output, or lower faults.min_free_gib"
    )


def free_bytes(folder: Path) -> int:
    """What this user may still write on the disk of `folder`, which need not exist yet."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(there).free


def mask_path(output: Path, plan: Plan) -> Path:
    """Where the mask of a plan is published; the digest names what made it."""
    return output / "masks" / plan.image.id / f"{plan.digest}.zarr"


def work_path(final: Path, plan: Plan) -> Path:
    """Return where a mask grows until it is published."""
    return final.with_name(f".{final.name}.{plan.digest}.partial")


def missing_bytes(output: Path, plan: Plan) -> int:
    """Return about how many bytes of a plan's mask are still to be written: none where it is published, fewer where it was
    begun."""
    final = mask_path(output, plan)
    if final.exists():
        return 0
    return max(0, plan.expected_bytes - _bytes_in(work_path(final, plan)))


def _bytes_in(folder: Path) -> int:
    """Return the size of all files below `folder`, which a run may be writing to; 0 where there is no such folder."""
    size = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # a draft that has its name by now
            facts = path.lstat()
            size += facts.st_size * stat.S_ISREG(facts.st_mode)
    return size


def survey_truth(config: TruthConfig, uri: str | None, mask: MaskFacts) -> tuple[TruthSpec | None, str | None]:
    """(how the labels at `uri` are read on the mask's grid, why they cannot be)."""
    if uri is None:
        return None, None
    try:
        return plan_labels(config, uri, mask), None
    except Exception as e:  # noqa: BLE001 - as above
        return None, explain(e)


def _missed(config: Config, image: ImageSpec, card: ModelCard) -> tuple[MaskFacts | None, TruthSpec | None]:
    """What an image that cannot be segmented misses: its labels, where they can be read, on their own grid; polygons, which
    have none, on the image's."""
    if image.truth is None:
        return None, None
    try:
        own = describe_image(config.archive, image) if is_vector(image.truth) else describe_truth(image.truth)
        grid = WorkingGrid(
            height=own.height, width=own.width, crs_wkt=own.crs_wkt, transform=own.transform, pixel_size_m=own.pixel_size_m
        )
        mask = MaskFacts(image=image.uri, model=card.name, classes=card.classes, grid=grid, native_shape=(own.height, own.width))
        return mask, plan_labels(config.truth, image.truth, mask)
    except Exception:  # noqa: BLE001 - as above
        return None, None
