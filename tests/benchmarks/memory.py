"""Memory does not grow with the image: images of 4096, 16384 and 65536 px squared through one worker, at one block size.

    python -m tests.benchmarks.memory [--sizes 4096 16384 65536] [--block 4096] [--model DIR]

The images are tiled JPEG files that repeat 16 tiles without storing them again; every read decodes as in any other file.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.benchmarks.measure import machine, segment, verdict, workshop
from tests.benchmarks.scenes import endless, null_model


def measure(images: Iterable[tuple[int, Path]], model: Path, *options: Any) -> None:
    """Segment (side, path) of each image and print what it took, and whether memory is flat and as planned."""
    print(f"{machine()}\n")
    heads = ("image", 15), ("blocks", 8), ("twice", 8), ("seconds", 9), ("Mpx/s", 8)
    peaks = ("driver MiB", 12), ("worker MiB", 12), ("planned MiB", 13)
    print("".join(f"{head:>{width}}" for head, width in (*heads, *peaks)))
    measured, off = [], []
    for side, image in images:
        facts = segment(image, model, "--workers", 1, "--threads", 1, "--memory-gib", 8, *options)
        peak, planned = facts["peak_memory_mib"], facts["planned_memory_mib"]
        print(
            f"{side:>7} x {side:<5}{facts['blocks']:>8}{facts['redundancy']:>8.1%}{facts['work_seconds']:>9.1f}"
            f"{facts['mpx'] / facts['work_seconds']:>8.1f}{peak['driver']:>12,}{peak['worker 0']:>12,}{planned:>13,}",
            flush=True,
        )
        measured.append(peak["worker 0"])
        off.append(peak["worker 0"] / planned)
    print()
    spread = max(measured) / min(measured) - 1
    verdict(f"worker memory within {spread:.1%} from the smallest to the largest (10 % meant)", spread <= 0.1)
    verdict(
        f"measured is {min(off):.2f} to {max(off):.2f} of planned (0.75 to 1.25 meant)", min(off) >= 0.75 and max(off) <= 1.25
    )


def main() -> None:
    """Segment all and print what each took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[4096, 16384, 65536])
    parser.add_argument("--block", default="4096")
    parser.add_argument("--model", type=Path, help="model folder; default: a 1 x 1 convolution")
    options = parser.parse_args()
    with workshop() as folder:
        model = options.model or null_model(folder / "model")
        images = ((size, endless(folder / f"{size}.tif", size, size)) for size in options.sizes)
        measure(images, model, "--block", options.block)


if __name__ == "__main__":
    main()
