"""Memory does not grow with the slide: one of 8192 px and one 16 times as large through one worker, at one block size.

    python -m tests.benchmarks.slides [--block 4096]

The slides are Aperio files of JPEG tiles, written as a stream; they are worked at level 0, with tissue found first.
"""

from __future__ import annotations

import argparse

import numpy as np

from tests import slides
from tests.benchmarks.measure import workshop
from tests.benchmarks.memory import measure
from tests.benchmarks.scenes import null_model

SIDE = 2048
"""Side in px of what the slides repeat."""


def main() -> None:
    """Segment both and print what each took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--block", default="4096")
    options = parser.parse_args()
    noise = np.random.default_rng(0).integers(-6, 7, (SIDE, SIDE, 1))
    block = np.clip(slides.tissue(SIDE, SIDE).astype(int) + noise, 0, 255).astype(np.uint8)
    with workshop() as folder:
        made = ((SIDE * n, slides.write_big(folder / f"{n}.svs", block, n, n)) for n in (4, 16))
        measure(made, null_model(folder / "model"), "--block", options.block, "--tissue", "auto")


if __name__ == "__main__":
    main()
