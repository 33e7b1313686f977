"""The units that chance is reckoned over: images, or groups of them, never tiles; and the sums that every score needs."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.confusion import Counts
from pipeline.statistics.measures import MEASURES, measure

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Units:
    """What was counted, by unit: each an image, or all the images of a patient, a site, a flight."""

    names: tuple[str, ...]
    """In alphabetical order, so that nothing depends on the order of images."""
    counts: NDArray[np.int64]
    """(n, K + 1, K + 2): each unit's confusion matrix, see pipeline.confusion."""
    images: NDArray[np.int64]
    """(n,): images of the unit with at least one pixel to evaluate."""
    image_miou: Floats
    """(n,): sum over these of each image's own mIoU."""

    def __post_init__(self) -> None:
        n, rows, columns = self.counts.shape
        if not len(self.names) == n == len(self.images) == len(self.image_miou) or columns != rows + 1:
            raise ValueError(f"{len(self.names)} names, counts {self.counts.shape}: not units with matrices (K + 1, K + 2)")
        if list(self.names) != sorted(set(self.names)):
            raise ValueError("names of units must differ and stand in alphabetical order")

    @property
    def classes(self) -> int:
        """K."""
        return int(self.counts.shape[1]) - 1

    @property
    def evaluated(self) -> Units:
        """Those with at least one pixel that is labelled and has data; the others say nothing and are no evidence."""
        labelled = self.counts[:, : self.classes, : self.classes + 1].any(axis=(1, 2))
        return self.only({name for name, has in zip(self.names, labelled, strict=True) if has})

    def only(self, names: Collection[str]) -> Units:
        """The units of these names."""
        keep = np.array([name in names for name in self.names], bool)
        kept = tuple(name for name in self.names if name in names)
        return Units(kept, self.counts[keep], self.images[keep], self.image_miou[keep])

    @property
    def sums(self) -> Floats:
        """(n, 3 K + 2): hits, reference and predicted pixels by class, images, and their mIoUs: what `measure` reads.

        They add up over units, and no score needs more of a matrix: 3 K numbers instead of K (K + 1).
        """
        return np.hstack([margins(self.counts), self.images[:, None], self.image_miou[:, None]])


def margins(counts: NDArray[np.int64]) -> Floats:
    """(..., 3 K): hits, reference and predicted pixels by class of matrices (..., K + 1, K + 2); exact up to 2**53."""
    classes = counts.shape[-2] - 1
    labelled = counts[..., :classes, : classes + 1]
    hits = np.diagonal(labelled, axis1=-2, axis2=-1)
    return np.concatenate([hits, labelled.sum(-1), labelled.sum(-2)[..., :classes]], axis=-1).astype(np.float64)


def image_mious(counts: NDArray[np.int64]) -> Floats:
    """(n,): mIoU of each matrix by itself; NaN where it has nothing to evaluate."""
    sums = np.pad(margins(counts), [(0, 0), (0, 2)])
    return measure(sums, counts.shape[-2] - 1)[:, MEASURES.index("miou")]


def units(matrices: Mapping[str, Counts], groups: Mapping[str, str | None] | None = None) -> Units:
    """The units of scored images: each group's matrices summed, and every image without group by itself.

    `matrices`: image id -> counts (K + 1, K + 2). `groups`: image id -> group.

        patients = units({"a": one, "b": two, "c": three}, {"a": "P1", "b": "P1"})
        assert patients.names == ("P1", "c")
        assert (patients.counts[0] == one + two).all()
    """
    groups = groups or {}
    names = sorted(matrices)
    if not names:
        raise ValueError("no image has counts: there is nothing to make units of")
    stack = np.stack([matrices[name] for name in names])
    if stack.dtype.kind not in "iu":
        raise ValueError(f"counts are {stack.dtype}, not integers: they would not add up exactly")
    mious = image_mious(stack)
    members: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        members.setdefault(groups.get(name) or name, []).append(i)
    alone = {name for name in names if not groups.get(name)}
    if mixed := alone & {group for group in groups.values() if group}:
        raise ValueError(f"{sorted(mixed)} name both a group and an image without group; their units cannot be told apart")
    found = sorted(members)
    return Units(
        names=tuple(found),
        counts=np.stack([stack[members[name]].sum(0, dtype=np.int64) for name in found]),
        images=np.array([np.isfinite(mious[members[name]]).sum() for name in found], np.int64),
        image_miou=np.array([math.fsum(m for m in mious[members[name]] if m == m) for name in found]),
    )
