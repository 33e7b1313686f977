"""How near the whole way comes to the model's own passes: a U-Net over an image, beside the bare passes over its tiles.

    python -m tests.benchmarks.efficiency [--size 4096] [--overlap 128] [--repeats 3] [--threads 2] [--encoder resnet18]

The bare passes are those over the least number of tiles of 512 px that cover the image with that overlap, one tile at a time,
channels last, on tiles that lie in memory already scaled: in a loop with all threads in one pass, and side by side with one
thread a pass. The quicker of the two is what we are held against. All ways are taken in turns, in one process.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import torch

from flows.console import Quiet
from pipeline.card import read_card
from pipeline.config import config_of
from pipeline.grid import Lattice
from pipeline.models import smp
from pipeline.models.cpu import compute_alone
from pipeline.single import segment_one
from tests.benchmarks.measure import REPO, machine, verdict, workshop
from tests.benchmarks.scenes import endless, usual_model


def process_start() -> float:
    """Seconds until a new process has imported what it predicts with."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import pipeline.single, pipeline.models.cpu"], check=True, cwd=REPO)
    return time.perf_counter() - started


def main() -> None:
    """Run all in turns and print seconds and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--overlap", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--encoder", default="resnet18")
    options = parser.parse_args()
    threads = options.threads
    torch.set_num_threads(threads)
    size, overlap = options.size, options.overlap
    print(
        f"{machine()}\nU-Net {options.encoder}, {size} x {size} px, overlap {overlap}, float32, {threads} threads\n", flush=True
    )
    tiles = Lattice(size, size, 512, overlap).tiles
    with workshop() as folder:
        image, model = endless(folder / "image.tif", size, size), usual_model(folder / "model", options.encoder)
        small = endless(folder / "small.tif", 700, 700)
        network = smp.load(model, read_card(model)).eval().to(memory_format=torch.channels_last)
        batch = torch.randn(1, 3, 512, 512).contiguous(memory_format=torch.channels_last)

        def bare(_: int = 0) -> None:
            with torch.inference_mode():
                network(batch)

        def loop() -> float:
            started = time.perf_counter()
            for _ in range(tiles):
                bare()
            return time.perf_counter() - started

        def side_by_side() -> float:
            with ThreadPoolExecutor(threads, initializer=compute_alone) as pool:
                list(pool.map(bare, range(threads)))
                started = time.perf_counter()
                list(pool.map(bare, range(tiles)))
                seconds = time.perf_counter() - started
            torch.set_num_threads(threads)
            return seconds

        def ours(path: Path = image) -> float:
            with tempfile.TemporaryDirectory() as out:
                settings = {
                    "name": "bench",
                    "output": out,
                    "archive": {"images": str(path)},
                    "model": {"path": str(model), "batch": max(4, threads)},
                    "tiling": {"tile": 512, "overlap": overlap},
                    "cluster": {"type": "serial", "threads": threads},
                }
                done = segment_one(config_of(settings, folder, "bench"), path, Path(out) / "mask.zarr", Quiet())
            predicted.append(done.result.tiles)
            loads.append(done.result.load_seconds)
            return done.seconds - done.result.load_seconds

        predicted: list[int] = []
        loads: list[float] = []
        bare(), ours(small)
        ways = {"bare, loop": loop, "bare, side by side": side_by_side, "gigamask": ours}
        found: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(options.repeats):
            for name, way in ways.items():
                found[name].append(way())
                print(f"  turn {turn + 1}, {name}: {found[name][-1]:.1f} s", flush=True)
        seconds = {name: median(times) for name, times in found.items()}
        limit = min(seconds["bare, loop"], seconds["bare, side by side"])
        print(f"\n{'':22}{'tiles':>7}{'seconds':>9}{'Mpx/s':>8}{'to the bare passes':>20}")
        for name, s in seconds.items():
            count = predicted[-1] if name == "gigamask" else tiles
            print(f"{name:22}{count:>7}{s:>9.1f}{size**2 / 1e6 / s:>8.2f}{s / limit:>20.3f}")
        print(f"\nNot in these seconds: {process_start():.1f} s to start a process, {loads[0]:.1f} s to load the model.")
        print("The folding of batch normalisation into convolutions is what makes less than 1 possible.")
        verdict(f"{seconds['gigamask'] / limit:.3f} of the bare passes (1.05 meant)", seconds["gigamask"] <= 1.05 * limit)


if __name__ == "__main__":
    main()
