"""Cross-entropy plus Dice over labelled pixels: Dice alone would leave absent classes unpunished."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def segmentation_loss(
    logits: Tensor, codes: Tensor, *, dice_weight: float, smoothing: float = 0.0, weights: Tensor | None = None
) -> Tensor:
    """Loss of `logits` (n, K, h, w) against `codes` (n, h, w), where code K is not labelled and costs nothing;
    `weights` (K,) of the classes are for cross-entropy.

    Dice is soft, over the batch, and the mean over the classes present in it (Milletari et al. 2016, arXiv:1606.04797,
    with the squares left out). A batch without any labelled pixel costs 0.
    """
    classes = logits.shape[1]
    labelled = codes < classes
    if not bool(labelled.any()):
        return logits.sum() * 0.0
    logits = logits.float()
    loss = functional.cross_entropy(logits, codes, weight=weights, ignore_index=classes, label_smoothing=smoothing)
    if not dice_weight:
        return loss
    truth = functional.one_hot(torch.where(labelled, codes, 0), classes).permute(0, 3, 1, 2) * labelled[:, None]
    answer = logits.softmax(1) * labelled[:, None]
    axes = (0, 2, 3)
    amount = truth.sum(axes)
    dice = 2 * (truth * answer).sum(axes) / (amount + answer.sum(axes)).clamp_min(1e-6)
    return loss + dice_weight * (1 - dice[amount > 0]).mean()
