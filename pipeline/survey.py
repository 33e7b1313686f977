"""Which images of the archive can be segmented, how, and why the others cannot: known before any model is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.alignment import TruthSpec, plan_truth
from pipeline.archive import discover
from pipeline.card import ModelCard, read_card
from pipeline.cluster import memory_per_worker
from pipeline.config import Config, TruthConfig
from pipeline.errors import GigamaskError
from pipeline.image import ImageSpec
from pipeline.models import check_trusted, verify_weights
from pipeline.plan import MaskFacts, Plan, plan_image
from pipeline.sources import describe
from pipeline.truth import describe_truth


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


@dataclass(frozen=True)
class Survey:
    """The archive as it is about to be worked on."""

    config: Config
    card: ModelCard
    memory_bytes: int
    """What a worker may take."""
    planned: list[Planned]
    refused: list[Refused]

    @property
    def pixels(self) -> int:
        """Working pixels of all planned images."""
        return sum(p.plan.grid.height * p.plan.grid.width for p in self.planned)


def survey(config: Config) -> Survey:
    """Discover the archive and plan each image: only headers are read, nothing is written.

    Raises what makes the whole run impossible (model, weights, archive); what concerns one image is kept with it.
    """
    card = read_card(config.model.path)
    check_trusted(card, config.model.trust_code)
    verify_weights(config.model.path, card)
    memory = memory_per_worker(config.cluster)
    planned: list[Planned] = []
    refused: list[Refused] = []
    for image in discover(config):
        try:
            plan = plan_image(config, image, describe(image.uri), card, memory)
        except GigamaskError as e:
            refused.append(Refused(image, str(e)))
            continue
        planned.append(Planned(plan, *survey_truth(config.truth, image.truth, plan.mask)))
    return Survey(config, card, memory, planned, refused)


def survey_truth(config: TruthConfig, uri: str | None, mask: MaskFacts) -> tuple[TruthSpec | None, str | None]:
    """(how the labels at `uri` are read on the mask's grid, why they cannot be)."""
    if uri is None:
        return None, None
    try:
        return plan_truth(config, describe_truth(uri), mask), None
    except GigamaskError as e:
        return None, str(e)
