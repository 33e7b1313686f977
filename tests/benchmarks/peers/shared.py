"""What both peers are measured by: one image's wall time from opening it to its labels on disk, peak memory, one JSON line."""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import rasterio
from rasterio.errors import NotGeoreferencedWarning
from rasterio.windows import Window

CLASSES = 5
CENTRE = SPREAD = 127.5
"""A network gets (sample - CENTRE) / SPREAD."""
WARM_UP = 1024
"""Side in px of the image that is segmented once before the clock is started."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a peer is asked to do."""

    model: Path
    """TorchScript: float32 (n, 3, t, t) to logits (n, CLASSES, t, t)."""
    tile: int
    """Side of a tile in px."""
    overlap: int
    """What neighbouring tiles share at least, in px."""
    threads: int
    """Threads of torch and of whatever else the peer lets run side by side."""
    batch: int
    """Tiles in one forward pass."""
    out: Path
    """Folder of the labels."""
    usual: bool
    """Whether the peer is used as its own documentation does, where there is a faster way."""


Segment = Callable[[Path, Path], Path]
"""(image, an empty folder) to the labels (h, w) that were written into the folder."""


def small(image: Path, path: Path) -> Path:
    """Write the top left corner of `image`, WARM_UP px at most, in the same layout."""
    with rasterio.open(image) as file:
        window = Window(0, 0, min(WARM_UP, file.width), min(WARM_UP, file.height))
        samples, layout = file.read(window=window), {name: file.profile[name] for name in ("blockxsize", "blockysize")}
    size = {"height": samples.shape[1], "width": samples.shape[2], "count": len(samples), "dtype": samples.dtype}
    kind = {"driver": "GTiff", "tiled": True, "compress": "JPEG", "photometric": "YCBCR"}
    with rasterio.open(path, "w", **kind, **layout, **size) as file:
        file.write(samples)
    return path


def peak_rss_mib() -> float:
    """The most memory this process has had at once since it was started, its children not counted."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def measure(peer: str, version: str, prepare: Callable[[Work], Segment]) -> None:
    """Read the arguments, load the model, warm up, segment the image `--repeats` times and print what it took as one JSON line.

    Imports, loading the model and the warm-up are not timed; reading the image and writing the labels are.
    """
    warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("image", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--overlap", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--usual", action="store_true")
    options = parser.parse_args()
    work = Work(options.model, options.tile, options.overlap, options.threads, options.batch, options.out, options.usual)
    segment = prepare(work)
    with rasterio.open(options.image) as file:
        pixels = file.height * file.width
    with tempfile.TemporaryDirectory() as folder:
        segment(small(options.image, Path(folder) / "small.tif"), Path(folder) / "warm")
    seconds: list[float] = []
    for _ in range(options.repeats):
        shutil.rmtree(folder_of_labels := work.out / peer, ignore_errors=True)
        started = time.perf_counter()
        labels = segment(options.image.resolve(), folder_of_labels)
        seconds.append(round(time.perf_counter() - started, 3))
    left = {
        "peer": peer,
        "version": version,
        "seconds": seconds,
        "pixels": pixels,
        "mpx_per_s": round(pixels / statistics.median(seconds) / 1e6, 3),
        "peak_rss_mib": round(peak_rss_mib()),
        "labels": str(labels),
    }
    print(json.dumps(left))
