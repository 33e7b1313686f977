"""Counting a confusion matrix: ours beside torchmetrics and scikit-learn, and the whole way of `gigamask evaluate`.

python -m tests.benchmarks.scoring [--size 8192] [--classes 5] [--repeats 5]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix
from torchmetrics.classification import MulticlassConfusionMatrix

from pipeline import mosaic
from pipeline.cluster import Workers
from pipeline.config import ScoringConfig, TruthConfig
from pipeline.confusion import count
from pipeline.measures import Measures, measures_of
from pipeline.scoring import score_mask
from pipeline.survey import survey_truth
from pipeline.work import ScoreJob
from tests.benchmarks.measure import machine, medians, verdict, workshop
from tests.benchmarks.scenes import endless, null_model
from tests.making import plan_of


def timed(way: Callable[[], object]) -> Callable[[], float]:
    """`way`, answering the seconds it took."""

    def run() -> float:
        started = time.perf_counter()
        way()
        return time.perf_counter() - started

    return run


def main() -> None:
    """Time all in turns, on one thread, and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=8192)
    parser.add_argument("--classes", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    size, classes = options.size, options.classes
    rng = np.random.default_rng(0)
    patch = np.kron(rng.integers(0, classes, (size // 32 + 1,) * 2, np.uint8), np.ones((32, 32), np.uint8))[:size, :size]
    reference, mask = np.ascontiguousarray(patch), np.ascontiguousarray(patch)
    wrong = rng.random(mask.shape) < 0.1
    mask[wrong] = rng.integers(0, classes, int(wrong.sum()), np.uint8)
    peer = MulticlassConfusionMatrix(classes, validate_args=False)
    truth, answer = torch.from_numpy(reference), torch.from_numpy(mask)

    def torchmetrics() -> None:
        peer.reset()
        for top in range(0, size, 2048):
            peer.update(answer[top : top + 2048], truth[top : top + 2048])

    def scikit_learn() -> NDArray[np.int64]:
        every = range(classes)
        strips = (slice(top, top + 2048) for top in range(0, size, 2048))
        parts = [confusion_matrix(reference[at].ravel(), mask[at].ravel(), labels=every) for at in strips]
        total: NDArray[np.int64] = np.sum(parts, axis=0)
        return total

    counts = count(reference, mask, classes)
    torchmetrics()
    assert (counts[:classes, :classes] == peer.compute().numpy()).all()
    assert (counts[:classes, :classes] == scikit_learn()).all()
    print(f"{machine()}\n{size} x {size} px, {classes} classes, one thread; all count the same\n", flush=True)
    with workshop() as folder:
        image = endless(folder / "image.tif", size, size)
        labels = folder / "labels.tif"
        tiled = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate"}
        with rasterio.open(labels, "w", driver="GTiff", height=size, width=size, count=1, dtype="uint8", **tiled) as file:
            file.write(reference, 1)
        plan = plan_of(image, null_model(folder / "model"), folder, memory=8 << 30)
        store = folder / "mask.zarr"
        mosaic.create(store, plan)
        for block in plan.blocks:
            mosaic.write_block(store, plan, block.core, mask[block.core.slices])
        spec, error = survey_truth(TruthConfig(), str(labels), plan.mask)
        assert spec is not None, error
        here = Workers(None, 1, 1, 8 << 30, "this process")

        def evaluate(measures: Measures) -> None:
            job = ScoreJob(store=str(store), mask=plan.mask, truth=spec, measures=measures)
            scores, problem = score_mask(job, plan.blocks, here, "bench")
            assert problem is None
            assert sum(np.array(s.counts).sum() for s in scores) == size * size

        asked = measures_of(ScoringConfig(), plan)
        ways = (
            timed(lambda: count(reference, mask, classes)),
            timed(torchmetrics),
            timed(scikit_learn),
            timed(lambda: evaluate(Measures())),
            timed(lambda: evaluate(asked)),
        )
        ours, theirs, learn, whole, measured = medians(options.repeats, *ways)
    mpx = size * size / 1e6
    print(f"{'':44}{'Mpx/s':>8}")
    print(f"{'gigamask, counts':44}{mpx / ours:>8.0f}")
    print(f"{'torchmetrics MulticlassConfusionMatrix':44}{mpx / theirs:>8.0f}")
    print(f"{'scikit-learn confusion_matrix':44}{mpx / learn:>8.1f}")
    print(f"{'gigamask, mosaic and labels read and counted':44}{mpx / whole:>8.0f}")
    print(f"{'the same, and what is measured by default':44}{mpx / measured:>8.0f}\n")
    verdict(f"{theirs / ours:.1f} times torchmetrics (15 meant), {learn / ours:.0f} times scikit-learn", theirs / ours >= 15)


if __name__ == "__main__":
    main()
