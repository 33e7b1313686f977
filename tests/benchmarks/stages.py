"""Where the time goes around the model: processor time for each pixel of the image, stage by stage.

    python -m tests.benchmarks.stages [--size 4096] [--repeats 5]

Each stage runs alone, on one thread, on tiles of 512 px with overlap 128 (1.8 tile pixels for each pixel of the image) and 5
classes. Beside the compiled loops stands the same step by NumPy or torch, the way it is usually written.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch

from pipeline import kernels, mosaic
from pipeline.grid import Window
from pipeline.models import load_model
from pipeline.models.cpu import CpuPredictor
from pipeline.sources import open_source
from pipeline.strip import ReadAhead
from pipeline.work import predict_core
from tests.benchmarks.measure import machine, workshop
from tests.benchmarks.scenes import endless, null_model
from tests.making import plan_of

CLASSES, TILE = 5, 512
f32 = np.float32


def main() -> None:
    """Time all stages in turns and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    size = options.size
    rng = np.random.default_rng(0)
    with workshop() as folder:
        image, model = endless(folder / "image.tif", size, size), null_model(folder / "model")
        plan = plan_of(image, model, folder, memory=16 << 30, tiling={"block": 2 * size})
        card, core = plan.card, Window(0, 0, size, size)
        settings: dict[str, Any] = {"device": "cpu", "batch": 4, "precision": "float32", "flips": 1, "trust_code": True}
        predictor = load_model(model, card, **settings)
        assert isinstance(predictor, CpuPredictor)
        data = rng.integers(0, 255, (3, TILE, TILE), np.uint8)
        valid = np.ones((TILE, TILE), bool)
        offset, divisor = np.full(3, 127.5, f32), np.full(3, 127.5, f32)
        scaled, outputs = np.empty((3, TILE, TILE), f32), rng.normal(size=(CLASSES, TILE, TILE)).astype(f32)
        weight = np.linspace(0.1, 1, TILE, dtype=f32)
        sums, plain = np.zeros((TILE, CLASSES, size), f32), np.zeros((CLASSES, TILE, size), f32)
        labels = np.zeros((384, size), np.uint8)
        batch = torch.from_numpy(scaled)[None]
        smooth = np.kron(rng.integers(0, CLASSES, (size // 32, size // 32), np.uint8), np.ones((32, 32), np.uint8))
        place = np.full(256, -1, np.int32)
        place[[*range(CLASSES), 254, 255]] = range(CLASSES + 2)
        cells = np.zeros((CLASSES + 1) * (CLASSES + 2), np.int64)
        stores = iter(range(10_000))

        def read() -> None:
            with open_source(plan.read) as source:
                for row in range(0, size, TILE):
                    source.read(Window(row, 0, min(TILE, size - row), size))

        def cut() -> None:
            with ReadAhead(plan, predictor, partial(open_source, plan.read), core, lambda *_: None) as ahead:
                for group in ahead:
                    ahead.release(group)

        def torch_scale() -> None:
            samples = torch.from_numpy(data).to(torch.float32)
            samples.sub_(torch.from_numpy(offset)[:, None, None]).div_(torch.from_numpy(divisor)[:, None, None])

        def forward() -> None:
            with torch.inference_mode():
                predictor._forward(batch)

        def torch_blend() -> None:
            probabilities = torch.from_numpy(outputs).softmax(dim=0).numpy()
            plain[:, :, :TILE] += probabilities * np.outer(weight, weight)

        def torch_label() -> None:
            torch.from_numpy(plain[:, :384]).argmax(dim=0).to(torch.uint8)
            plain[:, :384] = 0

        def store(levels: bool) -> None:
            path = folder / f"{next(stores)}.zarr"
            mosaic.create(path, plan)
            started.append(time.process_time())
            mosaic.draft_levels(path, plan, core, smooth, "levels") if levels else mosaic.draft_shard(
                path, plan, 0, core, smooth, "mask", "0"
            )

        def whole() -> None:
            predict_core(plan, predictor, partial(open_source, plan.read), core)

        started: list[float] = []
        tile_px, strip_px, image_px = TILE * TILE, labels.size, size * size
        share = plan.lattice.tiles * tile_px / image_px
        stages: list[tuple[str, Callable[[], object], float, Callable[[], object] | None]] = [
            ("read and decode", read, image_px, None),
            ("  the same, and cut into tiles", cut, image_px, None),
            ("scale", lambda: kernels.scale(data, valid, offset, divisor, scaled), tile_px / share, torch_scale),
            ("forward pass (1 x 1 convolution)", forward, tile_px / share, None),
            (
                "softmax, weigh, add",
                lambda: kernels.add_probabilities(outputs, (0, TILE), (0, TILE), weight, weight, sums, 0, 0),
                tile_px / share,
                torch_blend,
            ),
            ("label", lambda: kernels.label(sums, 0, labels, 254), strip_px, torch_label),
            ("compress and write", partial(store, False), image_px, None),
            ("coarser levels", partial(store, True), image_px, None),
            (
                "(count, when scored)",
                lambda: kernels.count(smooth.reshape(-1), smooth.reshape(-1), place, CLASSES + 2, cells),
                image_px,
                lambda: np.bincount(smooth.reshape(-1).astype(np.int64) * 7 + smooth.reshape(-1), minlength=42),
            ),
            ("all but writing, together", whole, image_px, None),
        ]
        found: dict[str, list[float]] = {}
        for _ in range(options.repeats + 1):
            for name, ours, px, other in stages:
                for key, way in ((name, ours), (f"{name}*", other)):
                    if way is not None:
                        started.append(time.process_time())
                        way()
                        found.setdefault(key, []).append((time.process_time() - started[-1]) / px * 1e9)
    print(f"{machine()}\n\n{'ns for a pixel of the image':36}{'gigamask':>9}{'usual':>8}")
    for name, *_ in stages:
        usual = f"{median(found[f'{name}*'][1:]):8.1f}" if f"{name}*" in found else ""
        print(f"{name:36}{median(found[name][1:]):9.1f}{usual}")


if __name__ == "__main__":
    main()
