"""Memory does not grow with the image: `gigamask segment` of a scene and of one four times as large, side by side.

    python tests/benchmarks/memory.py SCENE.tif --model DIR [--size 8192 4096] [--block 4096] [-- OPTIONS OF segment]

The scene is repeated until it fills the size asked for, then until it fills four times that. Each is segmented by one worker.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import rasterio


def repeated(scene: Path, path: Path, height: int, width: int) -> Path:
    """Write `scene`, repeated side by side, as a tiled JPEG TIFF of `height` x `width`."""
    with rasterio.open(scene) as file:
        samples = file.read()
        profile = {"count": file.count, "dtype": file.dtypes[0], "photometric": "YCBCR" if file.count == 3 else "MINISBLACK"}
    step = 1024
    layout = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "JPEG", "BIGTIFF": "IF_SAFER"}
    with rasterio.open(path, "w", driver="GTiff", height=height, width=width, **profile, **layout) as file:
        for row in range(0, height, step):
            rows = np.arange(row, min(row + step, height)) % samples.shape[1]
            cols = np.arange(width) % samples.shape[2]
            file.write(samples[:, rows][:, :, cols], window=((row, row + len(rows)), (0, width)))
    return path


def main() -> None:
    """Segment both and print what it took."""
    warnings.filterwarnings("ignore", category=rasterio.errors.NotGeoreferencedWarning)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--size", type=int, nargs=2, default=(8192, 4096), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--block", default="auto")
    options, rest = parser.parse_known_args()
    height, width = options.size
    print(
        f"{'image':>14}{'blocks':>8}{'twice':>8}{'seconds':>9}{'Mpx/s':>8}{'driver MiB':>12}{'worker MiB':>12}{'planned MiB':>13}"
    )
    with tempfile.TemporaryDirectory() as folder:
        for factor in (1, 2):
            image = repeated(options.scene, Path(folder) / f"x{factor}.tif", factor * height, factor * width)
            store = Path(folder) / f"x{factor}.zarr"
            command = [
                sys.executable,
                "-m",
                "flows.cli",
                "segment",
                str(image),
                "--model",
                str(options.model),
                "--out",
                str(store),
            ]
            command += ["--block", options.block, "--workers", "1", "--json", *(word for word in rest if word != "--")]
            facts = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
            peak = facts["peak_memory_mib"]
            print(
                f"{facts['height']:>7}x{facts['width']:<6}{facts['blocks']:>8}{facts['redundancy']:>8.1%}{facts['seconds']:>9.1f}"
                f"{facts['mpx_per_s']:>8.2f}{peak['driver']:>12,}{peak['worker 0']:>12,}{facts['planned_memory_mib']:>13,}",
                flush=True,
            )


if __name__ == "__main__":
    main()
