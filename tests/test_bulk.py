"""How many small images go into one call."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pipeline.bulk import BATCH_SECONDS, LEAST_SECONDS, Pace
from pipeline.cluster import Workers
from pipeline.survey import Planned

SECONDS_AN_IMAGE = 0.01


@dataclass
class Image:
    """As much of a `Planned` as `Pace` looks at: 100 x 100 px."""

    @property
    def plan(self) -> Any:
        """The size of the image."""
        return SimpleNamespace(grid=SimpleNamespace(height=100, width=100))


def sizes(images: int, workers: int) -> list[int]:
    """How many images each call takes, where each takes its time and every call ends before the next is made."""
    planned = cast(list[Planned], [Image() for _ in range(images)])
    pace = Pace(images * 10_000, Workers(None, workers, 1, 1 << 30, ""))
    found = []
    for batch in pace.batches(planned):
        found.append(len(batch))
        pace.learn(batch, len(batch) * SECONDS_AN_IMAGE)
    assert sum(found) == images
    return found


def test_one_worker_gets_calls_of_the_same_length() -> None:
    calls = sizes(301, workers=1)
    full = round(BATCH_SECONDS / SECONDS_AN_IMAGE)
    assert calls == [1, *[full] * 6]


@pytest.mark.parametrize("workers", [2, 8])
def test_several_workers_end_together_and_no_call_is_too_short(workers: int) -> None:
    calls = sizes(1000, workers)
    least = round(LEAST_SECONDS / SECONDS_AN_IMAGE)
    assert calls[0] == 1
    assert calls[1:] == sorted(calls[1:], reverse=True)
    assert max(calls) <= round(BATCH_SECONDS / SECONDS_AN_IMAGE)
    assert max(calls[-workers:]) <= least + 1
    assert min(calls[1:-1]) >= least
