"""All that is not the model: a 1 x 1 convolution over a JPEG-compressed tiled image, from the file to the published mosaic.

    python -m tests.benchmarks.around [--size 8192] [--repeats 3] [--workers 2]

Tiles of 512 px, overlap 128, 5 classes, Hann blending, one thread a worker. Beside it MONAI's sliding window and TIAToolbox's
engine on the same image with the same network and as many threads, where `make peers` has installed them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from pipeline import mosaic
from tests.benchmarks.measure import REPO, machine, segment, verdict, workshop
from tests.benchmarks.scenes import endless, null_model
from tests.making import plan_of

PEERS: dict[str, tuple[str, int, list[str]]] = {
    "MONAI, as taught": ("monai_window.py", 6, ["--usual"]),
    "MONAI, fastest": ("monai_window.py", 6, []),
    "TIAToolbox, as taught": ("tiatoolbox_engine.py", 10, ["--usual"]),
    "TIAToolbox, fastest": ("tiatoolbox_engine.py", 10, []),
}
"""Script of each peer, how many times as fast we mean to be, and options."""


def peer(script: str, image: Path, model: Path, threads: int, repeats: int, more: list[str]) -> dict[str, Any] | str:
    """What a peer's script says, or why it was not run."""
    python = REPO / ".venv-peers" / "bin" / "python"
    if not python.exists():
        return "not installed: make peers"
    here = Path(__file__).parent / "peers" / script
    options = ["--tile", "512", "--overlap", "128", "--threads", str(threads), "--repeats", str(repeats)]
    command = [
        str(python),
        str(here),
        str(image),
        str(model / "network.pt"),
        *options,
        "--out",
        str(image.parent / script),
        *more,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return f"failed: {done.stderr.strip().splitlines()[-1:]}"
    facts: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return facts


def levels_share(image: Path, model: Path, folder: Path, seconds: float, workers: int) -> float:
    """Seconds for pyramid and publishing as a share of a whole run's: coarser levels are written beside level 0, so they are
    written again here, block by block, from labels like those of the run. Workers write theirs side by side; the end is alone."""
    plan = plan_of(image, model, folder, memory=8 << 30)
    labels = np.kron(np.random.default_rng(0).integers(0, 5, (300, 300), np.uint8), np.ones((32, 32), np.uint8))
    times = []
    for turn in range(3):
        work, final = folder / f"work{turn}.zarr", folder / f"final{turn}.zarr"
        mosaic.create(work, plan)
        spent = 0.0
        for block in plan.blocks:
            own = labels[: block.core.height, : block.core.width]
            started = time.perf_counter()
            shards = mosaic.draft_levels(work, plan, block.core, own, "levels")
            mosaic.commit_block(work, plan, block.core, tuple(shard for shard in shards if shard is not None), "levels")
            spent += time.perf_counter() - started
        started = time.perf_counter()
        mosaic.finish_pyramid(work, plan)
        mosaic.publish(work, final)
        times.append(spent / min(workers, len(plan.blocks)) + time.perf_counter() - started)
    return median(times) / seconds


def main() -> None:
    """Run all and print their speeds side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--no-peers", action="store_true")
    options = parser.parse_args()
    print(f"{machine()}\n{options.size} x {options.size} px, 3 bands, JPEG; 5 classes; tile 512, overlap 128\n")
    with workshop() as folder:
        image, model = endless(folder / "image.tif", options.size, options.size), null_model(folder / "model")
        segment(endless(folder / "small.tif", 1024, 1024), model, "--workers", options.workers, "--threads", 1)
        runs = [segment(image, model, "--workers", options.workers, "--threads", 1) for _ in range(options.repeats)]
        speeds = [run["mpx"] / run["work_seconds"] for run in runs]
        ours, seconds = median(speeds), median(run["work_seconds"] for run in runs)
        peak = max(max(run["peak_memory_mib"].values()) for run in runs)
        print(f"{'':22}{'Mpx/s':>8}{'ours is':>10}{'peak MiB':>10}   seconds")
        each = " ".join(f"{run['work_seconds']:.2f}" for run in runs)
        print(f"{'gigamask':22}{ours:>8.1f}{'':>10}{peak:>10,}   {each}", flush=True)
        found: list[tuple[str, float, int]] = []
        for name, (script, target, more) in PEERS.items():
            said = "not asked" if options.no_peers else peer(script, image, model, options.workers, options.repeats, more)
            if isinstance(said, str):
                print(f"{name:22}{said}", flush=True)
                continue
            ratio = ours / said["mpx_per_s"]
            each = " ".join(f"{s:.2f}" for s in said["seconds"])
            print(f"{name:22}{said['mpx_per_s']:>8.1f}{ratio:>9.1f}x{said['peak_rss_mib']:>10,.0f}   {each}", flush=True)
            found.append((f"{name} ({said['version']})", ratio, target))
        share = levels_share(image, model, folder, seconds, options.workers)
        print(f"\npyramid and publishing: {share:.1%} of the run; peak memory is that of the largest process\n")
        verdict(f"{ours:.1f} Mpx/s (12 meant)", ours >= 12)
        for name, ratio, target in found:
            verdict(f"{ratio:.1f} times {name} ({target} meant)", ratio >= target)
        verdict(f"pyramid and publishing {share:.1%} (5 % meant)", share <= 0.05)


if __name__ == "__main__":
    main()
