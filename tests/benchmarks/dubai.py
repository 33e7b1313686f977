"""A trained network against per-pixel gradient boosting on real scenes: train on Dubai scenes 1, 2, 4, 5, score scene 7.

    python -m tests.benchmarks.dubai DATA/dubai              trains the model of configs/dubai.yaml first, if it is not there
    python -m tests.benchmarks.dubai DATA/dubai --model DIR  uses a model trained before

Both are scored on the same pixels: labels of scene 7 at half resolution, value 0 ignored, five classes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import rasterio
import yaml
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from sklearn.ensemble import HistGradientBoostingClassifier

from pipeline.confusion import Scores, count, scores
from pipeline.grid import Window
from pipeline.mosaic import facts, read

REPO = Path(__file__).resolve().parents[2]
TRAINING = ("dubai_scene1_crop", "dubai_scene2", "dubai_scene4", "dubai_scene5")
TEST = "dubai_scene7"
CLASSES = ("building", "land", "road", "vegetation", "water")
BLURS = (1, 3, 8)
"""Standard deviations in half-resolution px."""
PIXELS_A_SCENE = 60_000


def labels_of(data: Path, scene: str) -> NDArray[np.uint8]:
    """Labels (h, w) at half resolution: the value under each pixel's centre."""
    with rasterio.open(data / f"{scene}_label.tif") as file:
        whole = file.read(1)
    height, width = whole.shape
    return whole[1 : height // 2 * 2 : 2, 1 : width // 2 * 2 : 2]


def features(data: Path, scene: str) -> NDArray[np.float32]:
    """Colours and blurred colours of every pixel (h, w, 3 + 3 * blurs)."""
    with rasterio.open(data / f"{scene}.tif") as file:
        whole = file.read().astype(np.float32)
    bands, height, width = whole.shape
    colour = whole[:, : height // 2 * 2, : width // 2 * 2].reshape(bands, height // 2, 2, width // 2, 2).mean((2, 4))
    blurred = [gaussian_filter(band, blur) for blur in BLURS for band in colour]
    return np.stack([*colour, *blurred], axis=-1)


def boosting(data: Path) -> tuple[NDArray[np.uint8], float]:
    """(labels of the test scene by gradient boosting, seconds)."""
    started = time.perf_counter()
    rng = np.random.default_rng(0)
    samples, targets = [], []
    for scene in TRAINING:
        x, y = features(data, scene), labels_of(data, scene)
        rows, cols = np.nonzero(y)
        pick = rng.choice(len(rows), min(PIXELS_A_SCENE, len(rows)), replace=False)
        samples.append(x[rows[pick], cols[pick]])
        targets.append(y[rows[pick], cols[pick]])
    model = HistGradientBoostingClassifier(max_iter=200, class_weight="balanced", random_state=0)
    model.fit(np.concatenate(samples), np.concatenate(targets))
    x = features(data, TEST)
    answer = np.concatenate([model.predict(row) for row in np.array_split(x.reshape(-1, x.shape[-1]), 50)])
    return answer.reshape(x.shape[:2]).astype(np.uint8), time.perf_counter() - started


def network(data: Path, model: Path | None, folder: Path) -> tuple[NDArray[np.uint8], float, dict[str, object]]:
    """(labels of the test scene by gigamask at half resolution, seconds of the night, what the model card says of training)."""
    config = yaml.safe_load((REPO / "configs" / "dubai.yaml").read_text())
    config |= {"root": str(data.resolve()), "output": str(folder)}
    config["model"]["path"] = str((model or REPO / "output" / "dubai" / "model").resolve())
    path = folder / "dubai.yaml"
    path.write_text(yaml.safe_dump(config))
    if not (Path(config["model"]["path"]) / "model.json").exists():
        subprocess.run([sys.executable, "-m", "flows.cli", "train", str(path)], check=True)
    started = time.perf_counter()
    command = [sys.executable, "-m", "flows.cli", "run", str(path), "--no-prefect", "--json"]
    left = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    seconds = time.perf_counter() - started
    report = json.loads((Path(left["folder"]) / "report.json").read_text())
    print(f"gigamask at its own resolution: mIoU {left['miou']:.4f}")
    store = folder / report["images"][0]["mask"]
    mask, _ = facts(store)
    labels = read(store, Window(0, 0, *mask.grid.shape))
    with rasterio.open(data / f"{TEST}.tif") as file:
        rows, cols = np.arange(file.height // 2), np.arange(file.width // 2)
    at = [
        np.minimum(((index + 0.5) * 2 / scale).astype(int), side - 1)
        for index, scale, side in zip((rows, cols), (mask.grid.scale_row, mask.grid.scale_col), mask.grid.shape, strict=True)
    ]
    return labels[np.ix_(*at)] + 1, seconds, report["model"]["training"]


def scored(data: Path, answer: NDArray[np.uint8]) -> Scores:
    """Scores of an answer in label values, on the test scene at half resolution."""
    truth = labels_of(data, TEST)
    reference = np.where(truth == 0, len(CLASSES), truth.astype(int) - 1).astype(np.uint8)
    found = scores(count(reference, (answer - 1).astype(np.uint8), len(CLASSES)))
    assert found is not None
    return found


def main() -> None:
    """Print both side by side."""
    warnings.filterwarnings("ignore", category=rasterio.errors.NotGeoreferencedWarning)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        answer, seconds, training = network(options.data, options.model, Path(folder))
        ours = scored(options.data, answer)
    print(f"trained {training['minutes']} min, {training['steps']} steps; the night over scene 7 took {seconds:.0f} s")
    answer, seconds = boosting(options.data)
    theirs = scored(options.data, answer)
    print(f"gradient boosting took {seconds:.0f} s in all")
    print(f"\n{'scene 7, half resolution':26}{'gigamask':>10}{'boosting':>10}")
    for name, one, other in zip(CLASSES, ours.classes, theirs.classes, strict=True):
        print(f"{'IoU ' + name:26}{one.iou:10.3f}{other.iou:10.3f}")
    print(f"{'mIoU':26}{ours.miou:10.3f}{theirs.miou:10.3f}")
    print(f"{'pixel accuracy':26}{ours.pixel_accuracy:10.3f}{theirs.pixel_accuracy:10.3f}")


if __name__ == "__main__":
    main()
