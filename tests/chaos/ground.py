"""What faults are caused on: a small archive whose pixels say where they lie, and a model that notes every tile it is given."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import yaml
from affine import Affine
from numpy.typing import NDArray

from tests.making import COLORS, NAMES

SCENES = {"a": (780, 780), "b": (520, 1040), "c": (264, 2100), "d": (60, 50), "e": (200, 250)}
"""Name -> (height, width): two of several blocks, one whose mosaic has a level that mixes blocks, two of one block."""
THRESHOLDS = (100, 200)
TILE, OVERLAP, BLOCK, BATCH = 32, 8, 264, 16

MODEL = '''
"""A model of three classes by thresholds. It notes each tile in the file $CHAOS_LOG, and makes the trouble in $CHAOS_TROUBLE."""

import json
import os
import time
from pathlib import Path

import numpy as np

TROUBLE = json.loads(os.environ.get("CHAOS_TROUBLE", "{}"))
LOG = os.environ["CHAOS_LOG"]


def predict(data, valid):
    places = [tuple(int(n) for n in tile[1:, 0, 0]) for tile in data if tile[1, 0, 0]]
    if places:
        note("".join(f"{os.getpid()} {scene} {row} {col}\\n" for scene, row, col in places))
        for kind, trouble in TROUBLE.items():
            if tuple(trouble["at"]) in places and first_times(trouble):
                globals()[kind](trouble)
        time.sleep(float(os.environ.get("CHAOS_SECONDS", "0")))
    first = data[:, 0]
    return np.stack([first < 100, (first >= 100) & (first < 200), first >= 200], axis=1).astype(np.float32)


def note(lines):
    log = os.open(LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(log, lines.encode())
    os.close(log)


def first_times(trouble):
    """Whether it is to happen: always, or only so many times."""
    marker, times = Path(trouble["marker"]), trouble.get("times")
    if times is None:
        return True
    for n in range(times):
        try:
            marker.with_name(f"{marker.name}-{n}").touch(exist_ok=False)
            return True
        except FileExistsError:
            continue
    return False


def die(trouble):
    time.sleep(0.3)  # so that word of the block's begin gets out
    os.kill(os.getpid(), 9)


def hang(trouble):
    time.sleep(3600)


def devour(trouble):
    """Take memory, fast and without end."""
    taken = []
    while True:
        taken.append(np.ones(32 << 20, np.uint8))
        time.sleep(0.02)


def linger(trouble):
    """Say that it has begun, and take its time."""
    Path(trouble["marker"]).touch()
    time.sleep(trouble["seconds"])


def replace(trouble):
    """Another image comes in place of one that is being read."""
    os.replace(trouble["by"], trouble["image"])


def vanish(trouble):
    """An image that is being read goes away."""
    Path(trouble["image"]).unlink()
'''

TRAPDOOR = '''
"""Kills this process (kill -9) right before what $CHAOS_KILL names: {"event": of sys.audit, "like": pattern, "nth": 1...}."""

import json
import os
import re
import sys

WANTED = json.loads(os.environ.get("CHAOS_KILL", "{}"))
seen = 0


def hook(event, arguments):
    global seen
    if event == WANTED["event"] and re.search(WANTED["like"], " ".join(str(one) for one in arguments[:2])):
        seen += 1
        if seen == WANTED["nth"]:
            os.kill(os.getpid(), 9)


if WANTED:
    sys.addaudithook(hook)
'''


@dataclass(frozen=True)
class Ground:
    """A folder with scenes, labels and a model."""

    folder: Path

    @property
    def scenes(self) -> dict[str, Path]:
        """Name -> image."""
        return {name: self.folder / "scenes" / f"{name}.tif" for name in SCENES}

    @property
    def log(self) -> Path:
        """Where the model notes tiles, unless told otherwise."""
        return self.folder / "tiles.log"

    def config(self, name: str, output: Path, workers: int, sections: dict[str, Any]) -> Path:
        """A configuration file over all scenes; `workers` 0 is the driver's own process, and `sections` replace its own."""
        local = {"type": "local", "workers": workers, "threads": 1, "memory_gib": 1.5}
        content = {
            "name": "chaos",
            "output": str(output),
            "archive": {"images": "scenes/*.tif"},
            "truth": {"pattern": "labels/{stem}.tif"},
            "model": {"path": "model", "batch": BATCH, "trust_code": True},
            "tiling": {"block": BLOCK},
            "cluster": local if workers else {"type": "serial", "threads": 1},
            "faults": {"min_free_gib": 0},
            "report": {"max_quicklooks": 1, "quicklook_px": 64},
        }
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content | sections))
        return path


def make_ground(folder: Path, seed: int = 7) -> Ground:
    """Scenes, labels and a model in `folder`."""
    for name in ("scenes", "labels", "model"):
        (folder / name).mkdir(parents=True)
    for number, (name, shape) in enumerate(SCENES.items(), 1):
        samples = scene(number, shape, seed)
        write_tiff(folder / "scenes" / f"{name}.tif", samples)
        write_tiff(folder / "labels" / f"{name}.tif", labels_of(samples, seed)[None])
    (folder / "chaosmodel.py").write_text(MODEL)
    (folder / "sitecustomize.py").write_text(TRAPDOOR)
    card = {
        "name": "chaos",
        "adapter": "callable",
        "architecture": {"function": "chaosmodel:predict"},
        "weights": None,
        "bands": ["value", "scene", "row", "col"],
        "dtype": "uint16",
        "scaling": {"offset": [0] * 4, "divisor": [1] * 4},
        "classes": [{"name": NAMES[i], "color": COLORS[i]} for i in range(len(THRESHOLDS) + 1)],
        "tile": TILE,
        "overlap": OVERLAP,
        "multiple_of": 1,
        "activation": "none",
    }
    (folder / "model" / "model.json").write_text(json.dumps(card))
    return Ground(folder)


def scene(number: int, shape: tuple[int, int], seed: int) -> NDArray[np.uint16]:
    """Bands (value, number of the scene, row, column); the top left corner of the values is no data."""
    rng = np.random.default_rng([seed, number])
    value = rng.integers(0, 256, shape, np.uint16)
    rows, cols = np.mgrid[: shape[0], : shape[1]].astype(np.uint16)
    return np.stack([value, np.full(shape, number, np.uint16), rows, cols])


def labels_of(samples: NDArray[np.uint16], seed: int) -> NDArray[np.uint8]:
    """What the model says of most pixels, and something else of some."""
    rng = np.random.default_rng([seed, 99])
    labels = np.digitize(samples[0], THRESHOLDS).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.1] = 1
    return labels


def write_tiff(path: Path, samples: NDArray[Any]) -> Path:
    """A tiled, deflated GeoTIFF of `samples` (bands, h, w)."""
    layout = {"count": len(samples), "height": samples.shape[1], "width": samples.shape[2], "dtype": samples.dtype}
    layout |= {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate", "interleave": "pixel"}
    place = {"crs": "EPSG:32633", "transform": Affine(0.5, 0, 500_000, 0, -0.5, 4_600_000)}
    with rasterio.open(path, "w", driver="GTiff", **layout, **place) as file:
        file.write(samples)
    return path
