"""Memory does not grow with the slide: one of 8192 px and one 16 times as large through one worker, at one block size.

    python -m tests.benchmarks.slides [--block 4096]

The slides are Aperio files of JPEG tiles, written as a stream; they are worked at level 0, with tissue found first.
"""

from __future__ import annotations

import argparse

import numpy as np

from tests import slides
from tests.benchmarks.measure import machine, segment, verdict, workshop
from tests.benchmarks.scenes import null_model

SIDE = 2048
"""Side in px of what the slides repeat."""


def main() -> None:
    """Segment both and print what each took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--block", default="4096")
    options = parser.parse_args()
    print(f"{machine()}\n")
    print(f"{'slide':>15}{'blocks':>8}{'seconds':>9}{'Mpx/s':>8}{'driver MiB':>12}{'worker MiB':>12}{'planned MiB':>13}")
    noise = np.random.default_rng(0).integers(-6, 7, (SIDE, SIDE, 1))
    block = np.clip(slides.tissue(SIDE, SIDE).astype(int) + noise, 0, 255).astype(np.uint8)
    peaks, off = [], []
    with workshop() as folder:
        model = null_model(folder / "model")
        for times in (4, 16):
            slide = slides.write_big(folder / f"{times}.svs", block, times, times)
            how = ("--workers", 1, "--threads", 1, "--block", options.block, "--memory-gib", 8, "--tissue", "auto")
            facts = segment(slide, model, *how)
            peak, planned = facts["peak_memory_mib"], facts["planned_memory_mib"]
            side = SIDE * times
            print(
                f"{side:>7} x {side:<5}{facts['blocks']:>8}{facts['work_seconds']:>9.1f}"
                f"{facts['mpx'] / facts['work_seconds']:>8.1f}{peak['driver']:>12,}{peak['worker 0']:>12,}{planned:>13,}",
                flush=True,
            )
            peaks.append(peak["worker 0"])
            off.append(peak["worker 0"] / planned)
    print()
    spread = max(peaks) / min(peaks) - 1
    verdict(f"worker memory within {spread:.1%} from the slide to one 16 times as large (10 % meant)", spread <= 0.1)
    verdict(f"measured is {min(off):.2f} to {max(off):.2f} of planned (0.75 to 1.25 meant)", 0.75 <= min(off) <= max(off) <= 1.25)


if __name__ == "__main__":
    main()
