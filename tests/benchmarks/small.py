"""Many small images against one large one: 200 of 512 x 512 px, and one of as many pixels, by the same model on the same workers.

    python -m tests.benchmarks.small                  the null model: a convolution of 1 x 1 px
    python -m tests.benchmarks.small --model DIR      another model for three bands of uint8, without a resolution of its own
    python -m tests.benchmarks.small --workers 2      Dask workers of one thread each; 0: this process

Timed is what each image costs from its header to its published mask: describing, planning, predicting, writing, the ledger.
Left out is what a run costs once, whatever it holds: starting processes, importing, loading the model, drawing the report.
Both kinds of archive are worked through in turn, after a first round that does not count; the medians are compared. Each round
writes to a folder of its own, and nothing is deleted in between: on ext4 creating files was seen to take up to twice as long
right after many were deleted.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from flows.console import Quiet
from pipeline.cluster import open_workers
from pipeline.config import Config, load_config
from pipeline.ledger import Ledger
from pipeline.night import for_each
from pipeline.process import portions, process_images
from pipeline.shop import Shop
from pipeline.survey import survey
from tests.benchmarks.archives import write_config, write_model, write_scenes
from tests.benchmarks.measure import verdict

TARGET = 0.7
"""Throughput of the small images as a share of the large one's."""


def seconds_of(config: Config, shop_workers: object) -> tuple[float, float]:
    """(seconds of the survey, seconds of all images through to their masks) of an archive of which nothing is done."""
    started = time.perf_counter()
    found = survey(config)
    surveyed = time.perf_counter()
    with Ledger(config.output / "ledger.sqlite") as ledger:
        shop = Shop(config, shop_workers, ledger, Quiet())  # type: ignore[arg-type]
        parts = for_each(shop.workers, lambda part: process_images(shop, part), portions(found.planned))
    done = time.perf_counter()
    states = {result.state for part in parts for result in part}
    assert states == {"complete"}, states
    return surveyed - started, done - surveyed


def main() -> None:
    """Work through both archives in turn and print what each took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="model folder, instead of the null model")
    parser.add_argument("--null", choices=("pointwise", "threshold"), default="pointwise", help="which null model")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=200, help="a multiple of 10")
    parser.add_argument("--side", type=int, default=512)
    options = parser.parse_args()
    many, side = options.images, options.side
    with tempfile.TemporaryDirectory(prefix="gigamask-small-") as name:
        folder = Path(name)
        model = options.model or write_model(folder / "model", options.null)
        write_scenes(folder / "small", many, side, side, truth=False)
        write_scenes(folder / "large", 1, side * 10, side * many // 10, truth=False)
        taken: dict[str, list[tuple[float, float]]] = {"small": [], "large": []}
        with open_workers(load_config(write_config(folder / "small", model, options.workers)).cluster) as workers:
            for turn in range(1 + options.rounds):
                for kind, found in taken.items():
                    config = write_config(folder / kind, model, options.workers, f"out{turn}")
                    found.append(seconds_of(load_config(config), workers))
    megapixels = many * side * side / 1e6
    print(f"model {model.name}, {options.workers or 'no'} worker(s), {megapixels:.1f} Mpx each, medians of {options.rounds}")
    print(f"{'archive':<24}{'survey s':>10}{'masks s':>10}{'all s':>10}{'ms an image':>13}{'Mpx/s':>9}")
    speed = {}
    for kind, count in (("small", many), ("large", 1)):
        rounds = taken[kind][1:]
        surveyed, masks, whole = (statistics.median(column) for column in zip(*((a, b, a + b) for a, b in rounds), strict=True))
        speed[kind] = megapixels / whole
        words = f"{count} of {side} x {side}" if count > 1 else f"1 of {side * 10} x {side * many // 10}"
        print(f"{words:<24}{surveyed:>10.2f}{masks:>10.2f}{whole:>10.2f}{whole / count * 1e3:>13.1f}{speed[kind]:>9.1f}")
    ratio = speed["small"] / speed["large"]
    verdict(f"small images at {ratio:.2f} of the speed of one large ({TARGET} meant)", ratio >= TARGET)


if __name__ == "__main__":
    main()
