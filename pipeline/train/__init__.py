"""The smallest honest trainer: labelled rasters in, a model folder that `segment` takes out."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from torch import nn

from pipeline.atomic import sweep_drafts, write_bytes
from pipeline.card import CARD_NAME, ModelCard
from pipeline.config import Config
from pipeline.confusion import Scores, count, no_counts, scores
from pipeline.errors import ConfigError, ModelError
from pipeline.models import choose_device, network_predictor, save_model
from pipeline.models.network import Inference, Network
from pipeline.plan import Plan, chunk_side
from pipeline.sources import open_source
from pipeline.train.curve import draw_curve
from pipeline.train.data import Labelled
from pipeline.train.loop import CHECKPOINT, State, Step, fit
from pipeline.train.prepare import prepare, required
from pipeline.truth import open_truth
from pipeline.work import predict_core

__all__ = ["Trained", "train"]


@dataclass(frozen=True)
class Trained:
    """What a training has left."""

    folder: Path
    card: ModelCard
    curve: list[Step]
    validation: Scores | None
    """Scores of the kept weights on the validation images; None without any."""


def train(config: Config, report: Callable[[Step, float], None], say: Callable[[str], None]) -> Trained:
    """Train the model that the configuration describes and save it in `config.model.path`.

    A training that was killed goes on where it last validated. ConfigError where there is a finished model already.
    """
    section, folder = required(config), config.model.path
    if (folder / CARD_NAME).exists():
        raise ConfigError(f"{folder} holds a model already: remove it, or choose another model.path")
    lesson = prepare(config)
    card = lesson.card
    device = choose_device(config.model.device)
    names = ", ".join(c.name for c in card.classes)
    say(f"{len(lesson.training)} images to train on, {len(lesson.validation)} to validate on; classes {names}; {device}")
    if lesson.by_group:
        names = ", ".join(Path(uri).name for uri in lesson.by_group[:5]) + (", ..." if len(lesson.by_group) > 5 else "")
        say(f"{len(lesson.by_group)} of these are held out with the rest of their group: {names}")
    if not lesson.validation:
        say("no image is held out: the last weights are kept, and nothing says how good they are")
    folder.mkdir(parents=True, exist_ok=True)
    for name in (CHECKPOINT, CARD_NAME, card.weights):
        if name is not None:
            sweep_drafts(folder / name)  # a killed training leaves drafts as large as its network

    def validate(network: nn.Module) -> float:
        found = validation_scores(network, card, lesson.validation, device, config.model.batch)
        return found.miou if found is not None else 0.0

    state = fit(section, card, lesson.training, validate if lesson.validation else None, folder, device=device, report=report)
    final = validation_scores(state.result, card, lesson.validation, device, config.model.batch) if lesson.validation else None
    facts = _facts(config, lesson.training, lesson.validation, state, final, card)
    card = save_model(folder, card.model_copy(update={"training": facts}), state.result)
    write_bytes(folder / "training.json", json.dumps([asdict(point) for point in state.curve], indent=1).encode())
    draw_curve(state.curve, folder / "training.png", f"{card.name}: {section.architecture} with {section.encoder}")
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return Trained(folder, card, state.curve, final)


def validation_scores(network: nn.Module, card: ModelCard, images: Sequence[Labelled], device: str, batch: int) -> Scores | None:
    """Scores of `network` on `images` by the same tiled inference and the same counts as `run` and `evaluate`.

    ModelError where outputs are not finite: weights that have diverged are not to be kept as the best so far.
    """
    was_training = network.training
    how = Inference(device=device, batch=batch, precision="float32", flips=1)
    predictor = network_predictor(card, Network(network.eval(), any_layout=True), how)
    counts = no_counts(len(card.classes))
    for image in images:
        plan = _plan(card, image, batch)
        with open_truth(image.truth, plan.classes, *plan.grid.shape) as truth:
            for block in plan.blocks:
                found = predict_core(plan, predictor, partial(open_source, plan.read), block.core)
                if found.lost:
                    raise ModelError(f"{image.image.uri}: {found.error}")
                counts += count(truth.read(block.core).codes, found.labels, plan.classes)
    network.train(was_training)
    return scores(counts)


def _plan(card: ModelCard, image: Labelled, batch: int) -> Plan:
    """The plan for an image whose mask is counted and not kept."""
    chunk = chunk_side(card.tile - card.overlap)
    side = 8 * chunk
    return Plan(
        image=image.image,
        read=image.read,
        model_path="",
        card=card,
        tile=card.tile,
        overlap=card.overlap,
        blend="hann",
        block_shape=(side, side),
        chunk_shape=(chunk, chunk),
        batch=batch,
        precision="float32",
        flips=1,
        store_confidence=False,
    )


def _facts(
    config: Config,
    training: Sequence[Labelled],
    validation: Sequence[Labelled],
    state: State,
    final: Scores | None,
    card: ModelCard,
) -> dict[str, object]:
    """What the card says of how the model came about."""
    names = [c.name for c in card.classes]
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "minutes": round(state.seconds / 60, 1),
        "steps": state.step,
        "images": sorted(x.image.stem for x in training),
        "validation_images": sorted(x.image.stem for x in validation),
        "validation_miou": None if final is None else round(final.miou, 4),
        "validation_iou": None if final is None else {n: round(c.iou, 4) for n, c in zip(names, final.classes, strict=True)},
        "config": required(config).model_dump(mode="json", exclude={"images", "labels"}),
    }
