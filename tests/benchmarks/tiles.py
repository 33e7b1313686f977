"""Tiles of 512 px at stride 384 against `--tile auto`: wall time and seams, on one image by one process.

    python -m tests.benchmarks.tiles                                       trains a U-Net with ResNet-18 on made-up scenes first
    python -m tests.benchmarks.tiles --model DIR --image SCENE.tif         a model and an image of yours

A model without a probe in its card is probed on the image first, in a copy of its folder. Seams are the share of pixels whose
label is another than where the model sees the whole image in one pass. Seconds are those of the blocks without loading the
model, CPU s those of the whole command.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import warnings
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import yaml
from numpy.typing import NDArray

from pipeline.card import ModelCard, read_card
from pipeline.demo.scenes import make_scenes
from pipeline.grid import Window
from pipeline.mosaic import read
from tests.benchmarks.measure import verdict

USUAL = ("--tile", "512", "--overlap", "128")


def cut(scene: Path, path: Path, side: int) -> Path:
    """The first rows and columns of a scene, repeated where it is smaller, as a tiled TIFF of `side` x `side`."""
    with rasterio.open(scene) as file:
        samples = file.read()
        names = {"descriptions": file.descriptions, "colorinterp": file.colorinterp}
        place = {} if file.crs is None else {"crs": file.crs, "transform": file.transform}
    samples = samples[:, np.arange(side) % samples.shape[1]][:, :, np.arange(side) % samples.shape[2]]
    layout = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate"}
    shape = {"count": len(samples), "height": side, "width": side, "dtype": samples.dtype}
    with rasterio.open(path, "w", driver="GTiff", **shape, **layout, **place) as file:
        file.write(samples)
        file.descriptions, file.colorinterp = names["descriptions"], names["colorinterp"]
    return path


def gigamask(*words: object, as_json: bool = True) -> Any:
    """What a command prints, in a process of its own."""
    command = [sys.executable, "-m", "flows.cli", *map(str, words), *(["--json"] if as_json else [])]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}).stdout
    return json.loads(printed) if as_json else None


def trained(folder: Path, minutes: float) -> tuple[Path, Path]:
    """(model, image): a U-Net with ResNet-18 after a short training on made-up scenes, and a scene that it has not seen."""
    scenes = folder / "scenes"
    make_scenes(scenes)
    config = {
        "name": "tiles",
        "root": str(scenes),
        "output": str(folder / "out"),
        "archive": {"images": "night_*.tif"},
        "truth": {"pattern": "labels/{stem}.tif"},
        "model": {"path": str(folder / "model")},
        "train": {"images": "train_*.tif", "validation": 0.0, "tile": 128, "minutes": minutes, "ema": 0.9},
    }
    path = folder / "tiles.yaml"
    path.write_text(yaml.safe_dump(config))
    gigamask("train", path)
    return folder / "model", sorted(scenes.glob("night_*.tif"))[0]


def spent() -> float:
    """Processor seconds of all commands so far: they tell of work also where others keep the machine busy."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def labels_of(store: Path, side: int) -> NDArray[np.unsignedinteger]:
    """A mask's labels (side, side)."""
    return read(store, Window(0, 0, side, side))


def one_pass(card: ModelCard, side: int) -> tuple[str, ...]:
    """Options for one tile that covers the image."""
    return "--tile", str(ceil(side / card.multiple_of) * card.multiple_of), "--overlap", "0", "--batch", "1"


def main() -> None:
    """Segment the image both ways, several times in turn, and print medians."""
    warnings.filterwarnings("ignore", category=rasterio.errors.NotGeoreferencedWarning)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--image", type=Path)
    parser.add_argument("--side", type=int, default=2560, help="rows and columns: the image is cut or repeated to this")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=0.6, help="of training, without --model")
    options, rest = parser.parse_known_args()
    if (options.model is None) != (options.image is None):
        parser.error("give both --model and --image, or neither")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, scene = (options.model, options.image) if options.model else trained(folder, options.minutes)
        model = folder / "probed"
        shutil.copytree(source, model)
        image = cut(scene, folder / "image.tif", options.side)
        if read_card(model).probe is None:
            gigamask("model", "probe", model, "--image", image, "--threads", options.threads, "--write")
        card = read_card(model)

        def segment(store: str, *words: str) -> dict[str, Any]:
            shutil.rmtree(folder / store, ignore_errors=True)
            common = ("--model", model, "--out", folder / store, "--threads", options.threads, "--resolution", "native")
            before = spent()
            facts: dict[str, Any] = gigamask("segment", image, *common, "--batch", options.threads, *rest, *words)
            return facts | {"cpu": spent() - before}

        segment("whole.zarr", *one_pass(card, options.side))
        reference = labels_of(folder / "whole.zarr", options.side)
        ways = {"512/384": USUAL, "auto": ("--tile", "auto")}
        runs: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
        for _ in range(options.repeats):
            for way, words in ways.items():
                runs[way].append(segment(f"{way.replace('/', '-')}.zarr", *words))
        print(f"{card.name}, {options.side} x {options.side} px of {scene.name}, {options.threads} thread(s)")
        print(f"{'tiles':>10}{'number':>8}{'seconds':>9}{'(range)':>16}{'Mpx/s':>8}{'CPU s':>8}{'seams':>9}{'peak MiB':>10}")
        wall: dict[str, float] = {}
        seams: dict[str, float] = {}
        for way, facts in runs.items():
            seconds = [fact["seconds"] - fact["load_seconds"] for fact in facts]
            wall[way] = statistics.median(seconds)
            seams[way] = float((labels_of(folder / f"{way.replace('/', '-')}.zarr", options.side) != reference).mean())
            cpu, peak = statistics.median(f["cpu"] for f in facts), max(f["peak_memory_mib"]["driver"] for f in facts)
            print(
                f"{way:>10}{facts[0]['tiles']:>8}{wall[way]:>9.2f}{f'{min(seconds):.2f}-{max(seconds):.2f}':>16}"
                f"{options.side**2 / 1e6 / wall[way]:>8.3f}{cpu:>8.1f}{seams[way]:>9.3%}{peak:>10,}"
            )
        better = wall["512/384"] / wall["auto"]
        verdict(f"auto is {better:.2f} times as fast as 512/384 (above 1 meant)", better > 1)
        verdict(
            f"auto leaves {seams['auto']:.3%} of the pixels to seams, 512/384 {seams['512/384']:.3%}",
            seams["auto"] <= seams["512/384"],
        )


if __name__ == "__main__":
    main()
