"""Made-up archives for benchmarks: scenes of patches with labels and a georeference, and models that cost next to nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import yaml
from affine import Affine
from numpy.typing import NDArray

from tests.benchmarks.scenes import card_facts, null_model

CLASSES = 5
_PATCH = 64
"""Side in px of the patches that scenes are made of."""


def patches(height: int, width: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(scene (3, height, width), labels (height, width)): patches of one class each, under mild noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, CLASSES, (-(-height // _PATCH), -(-width // _PATCH)), np.uint8)
    labels = np.repeat(np.repeat(coarse, _PATCH, 0), _PATCH, 1)[:height, :width]
    noise = rng.integers(0, 24, (3, min(height, 1024), min(width, 1024)), np.uint8)
    repeats = (1, -(-height // noise.shape[1]), -(-width // noise.shape[2]))
    return labels * 48 + 8 + np.tile(noise, repeats)[:, :height, :width], labels


def write_scenes(folder: Path, count: int, height: int, width: int, *, truth: bool) -> None:
    """Write `count` scenes as JPEG TIFFs into `folder`/scenes, and where wanted their labels into `folder`/labels."""
    layout = {"driver": "GTiff", "height": height, "width": width, "dtype": "uint8", "tiled": True, "BIGTIFF": "IF_SAFER"}
    side = min(512, -(-height // 16) * 16, -(-width // 16) * 16)
    layout |= {"blockxsize": side, "blockysize": side, "crs": "EPSG:32633"}
    for name in ("scenes", "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        scene, labels = patches(height, width, index)
        place = layout | {"transform": Affine(0.5, 0, 500_000 + index * width / 2, 0, -0.5, 4_600_000)}
        image = {"count": 3, "photometric": "YCBCR", "compress": "JPEG"}
        with rasterio.open(folder / "scenes" / f"scene{index:05d}.tif", "w", **place, **image) as file:
            file.write(scene)
        if truth:
            with rasterio.open(folder / "labels" / f"scene{index:05d}.tif", "w", **place, count=1, compress="DEFLATE") as file:
                file.write(labels, 1)


def write_model(folder: Path, kind: str) -> Path:
    """A null model in `folder`: `threshold` needs no torch, `pointwise` is a convolution of 1 x 1 px by torch.export."""
    if kind == "pointwise":
        return null_model(folder)
    folder.mkdir(parents=True, exist_ok=True)
    architecture = {"band": 0, "thresholds": [48 * code - 4 for code in range(1, CLASSES)]}
    card = card_facts(kind, "threshold", None, architecture=architecture, multiple_of=1, activation="none")
    (folder / "model.json").write_text(json.dumps(card))
    return folder


def write_config(folder: Path, model: Path, workers: int, output: str = "out", **sections: Any) -> Path:
    """A configuration over `folder`/scenes; `workers` 0 is this process, and every worker has one thread."""
    local = {"type": "local", "workers": workers, "threads": 1}
    content = {
        "name": "benchmark",
        "output": output,
        "archive": {"images": "scenes/*.tif"},
        "truth": {"pattern": "labels/{stem}.tif"},
        "model": {"path": str(model.resolve()), "trust_code": True},
        "cluster": local if workers else {"type": "serial", "threads": 1},
    }
    path = folder / f"{output}.yaml"
    path.write_text(yaml.safe_dump(content | sections))
    return path


def forget(folder: Path, output: str = "out") -> None:
    """Remove what runs have left in `folder`."""
    shutil.rmtree(folder / output, ignore_errors=True)
