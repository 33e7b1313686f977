"""Random changes of crops: turn, zoom and stretch for shape; gain, contrast and noise for colour."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.card import ModelCard
from pipeline.config import AugmentConfig
from pipeline.models.network import normalised, to_device
from pipeline.train.data import Crop

_SPAN = 5.0
"""Standard deviations that the colour scale 0...1 spans."""
_KERNEL = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16


def to_batch(crops: Sequence[Crop], card: ModelCard, config: AugmentConfig, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(images (n, bands, tile, tile) float32, normalised, filling 0; codes (n, tile, tile) int64, K where not labelled).

    Equal seeds give equal batches.
    """
    images, targets = [], []
    for crop, seed in zip(crops, seeds, strict=True):
        rng = np.random.default_rng(seed)
        image, valid, codes = _shape(_normalised(crop, card), crop, card, config, rng)
        images.append(_colour(image, config, rng) * valid)
        targets.append(codes)
    return torch.stack(images), torch.stack(targets)


def widest(tile: int, config: AugmentConfig) -> float:
    """How many times the tile's side a crop must be, at zoom 1, so that turning and stretching stay inside it."""
    turned = math.sqrt(2) if config.rotate == "any" else 1.0
    return turned * math.exp(config.stretch / 2)


def _normalised(crop: Crop, card: ModelCard) -> Tensor:
    """The crop as the network will see it in prediction: the same function scales it there."""
    offset = torch.tensor(card.scaling.offset)[:, None, None]
    divisor = torch.tensor(card.scaling.divisor)[:, None, None]
    samples = to_device(np.ascontiguousarray(crop.data)[None], torch.device("cpu"))
    return normalised(samples, torch.from_numpy(crop.valid)[None], offset, divisor)[0]


def _shape(
    image: Tensor, crop: Crop, card: ModelCard, config: AugmentConfig, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """The crop's middle at the card's tile size, turned, mirrored and stretched: (image, valid (1, h, w), codes)."""
    side, classes = card.tile, len(card.classes)
    angle = {"none": 0.0, "quarter": math.pi / 2 * rng.integers(4), "any": rng.uniform(0, 2 * math.pi)}[config.rotate]
    mirror = -1.0 if config.flip and rng.integers(2) else 1.0
    reach = 1 / widest(side, config)
    stretch = math.exp(config.stretch / 2 * rng.uniform(-1, 1))
    across, along = reach * stretch, reach / stretch
    cos, sin = math.cos(angle), math.sin(angle)
    theta = torch.tensor([[cos * across * mirror, -sin * along, 0.0], [sin * across * mirror, cos * along, 0.0]])
    grid = functional.affine_grid(theta[None].float(), [1, 1, side, side], align_corners=False)
    moved = functional.grid_sample(image[None], grid, mode="bilinear", padding_mode="reflection", align_corners=False)[0]
    labels = torch.from_numpy(np.where(crop.valid, crop.codes, classes).astype(np.float32)) - classes
    codes = functional.grid_sample(labels[None, None], grid, mode="nearest", padding_mode="zeros", align_corners=False)[0, 0]
    valid = torch.from_numpy(crop.valid.astype(np.float32))[None, None]
    valid = functional.grid_sample(valid, grid, mode="nearest", padding_mode="reflection", align_corners=False)[0]
    return moved, valid, codes.round().long() + classes


def _colour(image: Tensor, config: AugmentConfig, rng: np.random.Generator) -> Tensor:
    """Changes of a normalised image (bands, h, w), each of them four times out of five."""
    bands = image.shape[0]
    x = image / _SPAN + 0.5

    def gain(strength: float, *shape: int) -> Tensor:
        drawn = rng.uniform(-strength, strength, shape or (1,)) * (rng.random() < 0.8)
        return torch.from_numpy(np.exp(drawn)).float()

    if config.gamma:
        x = x.clamp_min(1e-3) ** gain(config.gamma)
    if config.channel:
        x = x * gain(config.channel, bands, 1, 1)
    if config.brightness:
        x = x * gain(config.brightness)
    if config.contrast:
        mean = x.mean()
        x = (x - mean) * gain(config.contrast) + mean
    if config.saturation and bands > 1:
        grey = x.mean(0, keepdim=True)
        x = grey + (x - grey) * gain(config.saturation)
    if config.shift:
        x = x + gain(config.shift, bands, 1, 1).log() + gain(config.shift).log()
    if rng.random() < config.blur:
        padded = functional.pad(x[None], (1, 1, 1, 1), mode="replicate")
        x = functional.conv2d(padded, _KERNEL.expand(bands, 1, 3, 3), groups=bands)[0]
    if config.noise:
        draw = torch.Generator().manual_seed(int(rng.integers(2**62)))
        x = x + torch.randn(x.shape, generator=draw) * rng.uniform(0, config.noise)
    return (x - 0.5) * _SPAN
