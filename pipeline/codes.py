"""What the values of a mask mean: classes first, then failed, then no data, so that a hole is never background."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class MaskCodes:
    """The two reserved codes of a mask and the type that holds them all."""

    dtype: str
    """uint8 up to 254 classes, uint16 above."""
    failed: int
    """Pixels that were to be segmented and could not be."""
    no_data: int
    """Pixels outside the valid area; also the store's fill value."""


def mask_codes(classes: int) -> MaskCodes:
    """The codes of a mask with `classes` classes (codes 0...classes - 1)."""
    if classes <= 254:
        return MaskCodes("uint8", failed=254, no_data=255)
    return MaskCodes("uint16", failed=65534, no_data=65535)


def label_type(classes: int) -> np.dtype[np.unsignedinteger]:
    """Type of reference labels: codes 0...classes - 1, and `classes` itself for `not labelled`."""
    return np.dtype(np.uint8 if classes <= 255 else np.uint16)
