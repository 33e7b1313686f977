"""Real slides: train on purple-stained nuclei, segment a real Aperio slide and a montage of cytology fields, score the montage.

    python -m tests.benchmarks.nuclei DATA [--minutes 12] [--model DIR] [--out FOLDER]

DATA has `dsb2018_nuclei` and `wsi`. The montage is of another stain and preparation than the training: a hard test, and not one
that anything was chosen by. Masks and their reports stay in FOLDER, to be looked at.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import yaml

from tests.benchmarks.measure import REPO, machine

NUCLEI = "dsb2018_nuclei"


def training_masks(data: Path, folder: Path) -> None:
    """Masks of 0 and 1 from images of numbered nuclei."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted((data / NUCLEI / "purple_stain" / "instances").glob("*.png")):
        with rasterio.open(path) as file:
            mask = (file.read(1) > 0).astype(np.uint8)
        profile = {"driver": "PNG", "count": 1, "height": mask.shape[0], "width": mask.shape[1], "dtype": "uint8"}
        with rasterio.open(folder / path.name, "w", **profile) as file:
            file.write(mask, 1)


def config(data: Path, folder: Path, model: Path, minutes: float) -> Path:
    """The configuration of training and night."""
    content: dict[str, Any] = {
        "name": "nuclei",
        "root": str(data.resolve()),
        "output": str(folder / "output"),
        "archive": {
            "images": [str((data / "wsi" / "CMU-1-Small-Region.svs").resolve()), f"{NUCLEI}/cytology_montage_a.tif"],
            "tissue": "auto",
        },
        "truth": {"pattern": "{dir}/{stem}_mask.tif"},
        "model": {"path": str(model.resolve()), "batch": 4, "test_time_flips": 4},
        "resolution": "native",
        "cluster": {"type": "serial"},
        "report": {"title": "Nuclei", "quicklook_px": 1024},
        "train": {
            "name": "purple-nuclei",
            "licence": "CC0-1.0",
            "images": f"{NUCLEI}/purple_stain/image",
            "labels": str(folder / "masks" / "{stem}.png"),
            "validation": 0.15,
            "classes": {0: {"name": "background", "color": "#56B4E9"}, 1: {"name": "nucleus", "color": "#D55E00"}},
            "tile": 192,
            "minutes": minutes,
            "learning_rate": 0.002,
            "ema": 0.98,
            "augment": {"rotate": "any", "scale": [0.6, 1.6], "saturation": 0.5, "channel": 0.12},
        },
    }
    path = folder / "nuclei.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def gigamask(*arguments: Any) -> str:
    """What a command prints; its messages go on."""
    command = [sys.executable, "-m", "flows.cli", *map(str, arguments)]
    return subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True, cwd=REPO).stdout


def main() -> None:
    """Train, plan, run, export; print the scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", type=Path, help="a model trained before")
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--out", type=Path, default=REPO / "output" / "nuclei")
    options = parser.parse_args()
    print(machine())
    options.out.mkdir(parents=True, exist_ok=True)
    training_masks(options.data, options.out / "masks")
    path = config(options.data, options.out, options.model or options.out / "model", options.minutes)
    if not (Path(yaml.safe_load(path.read_text())["model"]["path"]) / "model.json").exists():
        print(gigamask("train", path))
    print(gigamask("plan", path))
    started = time.perf_counter()
    left = json.loads(gigamask("run", path, "--no-prefect", "--json"))
    print(f"the night over both took {time.perf_counter() - started:.0f} s; report: {left['report']}")
    for name, scores in left["classes"].items():
        print(f"montage: {name:12} IoU {scores['iou']:.3f} Dice {scores['dice']:.3f}")
    print(f"montage: mIoU {left['miou']:.3f}")
    for store in sorted((options.out / "output" / "masks").glob("*/*.zarr")):
        print(gigamask("export", store, "--to", "geojson", "--min-area", "20px", "--tolerance", "1px", "--overwrite"))


if __name__ == "__main__":
    main()
