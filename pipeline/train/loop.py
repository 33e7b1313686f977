"""The training loop: a time budget, validation by the real tiled inference, best weights kept, resumable."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.atomic import replacing
from pipeline.card import ModelCard, digest_of
from pipeline.config import TrainConfig
from pipeline.models.smp import build
from pipeline.train.augment import to_batch, widest
from pipeline.train.data import Crops, Labelled
from pipeline.train.loss import segmentation_loss

WARM_UP = 0.05
"""Share of the budget in which the learning rate rises."""
LOWEST_RATE = 0.02
"""The learning rate ends at this share of its peak."""
CHECKPOINT = "training.pt"


@dataclass(frozen=True)
class Step:
    """A point of the learning curve."""

    step: int
    minutes: float
    """Training time so far, validations included."""
    loss: float
    """Mean over the steps since the point before."""
    miou: float | None
    """Data-set-wide over the validation images; None without validation."""


@dataclass
class State:
    """All that a training is, between two steps."""

    network: nn.Module
    average: nn.Module | None
    """Moving mean of the weights; None where it is not wanted."""
    optimizer: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0
    best: float = -1.0
    best_weights: dict[str, Tensor] | None = None
    curve: list[Step] = field(default_factory=list)

    @property
    def result(self) -> nn.Module:
        """The network that is validated and kept."""
        return self.average if self.average is not None else self.network


def fit(
    config: TrainConfig,
    card: ModelCard,
    training: Sequence[Labelled],
    validate: Callable[[nn.Module], float] | None,
    folder: Path,
    *,
    device: str,
    report: Callable[[Step, float], None],
) -> State:
    """Train the card's network on `training` for `config.minutes`; the state holds the best weights at the end.

    `validate(network)` gives the score that decides; without it the last weights are the best. `report(step, share of
    the budget)` is told now and then. A checkpoint in `folder` lets a killed training go on where it last validated.
    """
    torch.manual_seed(config.seed)
    state = _new_state(config, card, device)
    checkpoint, setting = folder / CHECKPOINT, _setting(config, training)
    if checkpoint.exists():
        _resume(state, checkpoint, setting, device)
    budget = config.minutes * 60
    every = budget / config.validations
    with Crops(training, len(card.classes), config, widest(card.tile, config.augment)) as crops:
        weights = class_weights(crops.class_sites, config.rare_class_weight).to(device)
        batches = crops.batches(state.step)
        began = time.monotonic() - state.seconds
        due = (math.floor(state.seconds / every) + 1) * every
        losses: list[float] = []
        told = time.monotonic()
        while state.seconds < budget:
            seeds = [hash((config.seed, state.step, item)) & 0x7FFFFFFF for item in range(config.batch)]
            images, codes = to_batch(next(batches), card, config.augment, seeds)
            losses.append(_step(state, config, images.to(device), codes.to(device), weights, state.seconds / budget))
            state.seconds = time.monotonic() - began
            if time.monotonic() - told > 5:
                told = time.monotonic()
                report(Step(state.step, state.seconds / 60, sum(losses) / len(losses), None), min(1.0, state.seconds / budget))
            if state.seconds >= min(due, budget):
                score = validate(state.result) if validate is not None else None
                state.seconds = time.monotonic() - began
                due = max(due + every, state.seconds)
                _note(state, sum(losses) / len(losses), score)
                losses.clear()
                report(state.curve[-1], min(1.0, state.seconds / budget))
                _save(state, checkpoint, setting)
    if state.best_weights is not None:
        state.result.load_state_dict(state.best_weights)
    return state


def class_weights(sites: Sequence[int], power: float) -> Tensor:
    """Weights (K,) of the classes in cross-entropy: share ** -power, mean 1 over the pixels, at most 10; 0 where absent."""
    counts = torch.tensor(sites, dtype=torch.float64)
    share = counts / counts.sum()
    weights = torch.where(counts > 0, share.clamp_min(1e-12) ** -power, 0.0)
    return (weights / (weights * share).sum()).clamp_max(10).float()


def learning_rate(peak: float, progress: float) -> float:
    """Rate at `progress` 0...1 of the budget: a linear rise, then half a cosine (Loshchilov & Hutter 2017)."""
    if progress < WARM_UP:
        return peak * max(progress / WARM_UP, LOWEST_RATE)
    falling = 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - WARM_UP) / (1 - WARM_UP))))
    return peak * max(falling, LOWEST_RATE)


def _new_state(config: TrainConfig, card: ModelCard, device: str) -> State:
    network = build(card).to(device)
    if config.dropout:
        add_dropout(network, config.dropout)
    decayed = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    average = copy.deepcopy(network).eval() if config.ema else None
    return State(network, average, torch.optim.AdamW(groups, lr=config.learning_rate))


def add_dropout(network: nn.Module, share: float) -> None:
    """Drop whole feature maps before the segmentation head, while training; the weights' names do not change."""
    head: Any = network.segmentation_head
    dropout = nn.Dropout2d(share)

    def drop(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        dropout.train(head.training)
        return tuple(dropout(x) for x in inputs)

    head.register_forward_pre_hook(drop)


def _step(state: State, config: TrainConfig, images: Tensor, codes: Tensor, weights: Tensor, progress: float) -> float:
    """One step of the optimizer; the loss."""
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(config.learning_rate, progress)
    state.network.train()
    with torch.autocast(images.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
        logits = state.network(images.contiguous(memory_format=torch.channels_last))
    loss = segmentation_loss(logits, codes, dice_weight=config.dice_weight, smoothing=config.label_smoothing, weights=weights)
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(state.network.parameters(), 1.0)
    state.optimizer.step()
    state.step += 1
    if state.average is not None:
        _average(state.average, state.network, min(config.ema, (1 + state.step) / (10 + state.step)))
    return float(loss.detach())


@torch.no_grad()
def _average(average: nn.Module, network: nn.Module, decay: float) -> None:
    for mean, value in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if mean.dtype.is_floating_point:
            mean.lerp_(value, 1 - decay)
        else:
            mean.copy_(value)


def _note(state: State, loss: float, score: float | None) -> None:
    """Add a point to the curve; keep the weights if they are the best so far."""
    state.curve.append(Step(state.step, state.seconds / 60, loss, score))
    if score is None or score >= state.best:
        state.best = -1.0 if score is None else score
        state.best_weights = {name: value.detach().cpu().clone() for name, value in state.result.state_dict().items()}


def _setting(config: TrainConfig, training: Sequence[Labelled]) -> str:
    """What a checkpoint belongs to: the configuration, and the images trained on. Weights that have seen an image which is held
    out by now would be validated on what they know."""
    images = sorted([x.read.source.uri, *x.read.source.identity, x.truth.digest] for x in training)
    return digest_of([config.model_dump(mode="json", exclude={"minutes", "validations"}), images])


def _save(state: State, path: Path, setting: str) -> None:
    kept = {
        "setting": setting,
        "network": state.network.state_dict(),
        "average": None if state.average is None else state.average.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "best_weights": state.best_weights,
        "scalars": {"step": state.step, "seconds": state.seconds, "best": state.best},
        "curve": [[p.step, p.minutes, p.loss, p.miou] for p in state.curve],
    }
    with replacing(path) as draft:
        torch.save(kept, draft)


def _resume(state: State, path: Path, setting: str, device: str) -> None:
    """Continue from a checkpoint of the same configuration and training images; another one's is left unused."""
    saved: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    if saved.get("setting") != setting:
        return
    state.network.load_state_dict(saved["network"])
    if state.average is not None:
        state.average.load_state_dict(saved["average"])
    state.optimizer.load_state_dict(saved["optimizer"])
    state.best_weights = saved["best_weights"]
    state.step, state.seconds, state.best = (saved["scalars"][key] for key in ("step", "seconds", "best"))
    state.curve = [Step(*point) for point in saved["curve"]]
