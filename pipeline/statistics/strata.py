"""Scores by stratum (season, sensor, site): an average hides the slice that fails."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.confusion import Counts, Scores, scores
from pipeline.statistics.bootstrap import RESAMPLES, Estimate, Estimates, estimates
from pipeline.statistics.units import Units, units


@dataclass(frozen=True)
class Slice:
    """The images that share a value of a stratum."""

    value: str | None
    """None: images of which no value is known."""
    images: int
    """With counts."""
    scores: Scores | None
    """None where nothing could be evaluated."""
    estimates: Estimates
    """With the number of units, which can be few: a slice below 5 units has scores and no intervals."""


def strata(
    matrices: Mapping[str, Counts],
    values: Mapping[str, str],
    groups: Mapping[str, str | None] | None = None,
    background: int | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[Slice, ...]:
    """One slice for each value, in alphabetical order, images without a value last.

    `matrices`: image id -> counts. `values`: image id -> value. `groups`: image id -> unit; a unit with images in several
    slices counts in each.
    """
    members: dict[str | None, dict[str, Counts]] = {}
    for image, matrix in matrices.items():
        members.setdefault(values.get(image), {})[image] = matrix
    found = []
    for value in sorted(members, key=lambda v: (v is None, v or "")):
        inside: Units = units(members[value], groups)
        found.append(
            Slice(
                value=value,
                images=len(members[value]),
                scores=scores(inside.counts.sum(0), background),
                estimates=estimates(inside, background, resamples=resamples, seed=seed),
            )
        )
    return tuple(found)


def worst(slices: tuple[Slice, ...], metric: str = "miou", code: int | None = None) -> tuple[Slice, Estimate] | None:
    """The slice with the lowest score and that score, of n = its `units`; None where it is defined in none.

    The lowest of many noisy scores is low partly by chance: show n and interval with it.
    """
    known = [(s, e) for s in slices if (e := s.estimates.of(metric, code)).value == e.value]
    return min(known, key=lambda pair: pair[1].value, default=None)
