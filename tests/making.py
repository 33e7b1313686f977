"""Small things that tests are made of: a threshold model, a plan, a configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from pipeline.card import ModelCard, read_card
from pipeline.config import Config, load_config
from pipeline.errors import ModelError
from pipeline.grid import Block
from pipeline.image import ImageSpec
from pipeline.plan import Budget, Plan, plan_image
from pipeline.records import BlockRecord
from pipeline.sources import describe
from pipeline.work import Job, commit_block, predict_block

COLORS = ("#000000", "#E69F00", "#009E73", "#0072B2")
NAMES = ("background", "low", "middle", "high")


def threshold_model(folder: Path, thresholds: tuple[float, ...] = (100,), **changes: Any) -> Path:
    """A model folder: the class is how many thresholds the first band reaches."""
    bands = changes.pop("bands", ["gray"])
    card = {
        "name": "threshold",
        "adapter": "threshold",
        "architecture": {"band": 0, "thresholds": list(thresholds)},
        "weights": None,
        "bands": bands,
        "dtype": "uint8",
        "scaling": {"offset": [0] * len(bands), "divisor": [1] * len(bands)},
        "classes": [{"name": NAMES[i], "color": COLORS[i]} for i in range(len(thresholds) + 1)],
        "tile": 32,
        "overlap": 8,
        "multiple_of": 1,
        "activation": "none",
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.json").write_text(json.dumps(card | changes))
    return folder


def config_file(folder: Path, **sections: Any) -> Path:
    """A configuration file in `folder` over its `scenes/*.tif` with the model in `model/`; sections replace the defaults."""
    content = {
        "name": "test",
        "output": "out",
        "archive": {"images": "scenes/*.tif"},
        "truth": {"pattern": "labels/{stem}.tif"},
        "model": {"path": "model", "batch": 3},
        "cluster": {"type": "serial", "threads": 1},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(content | sections))
    return path


def config(folder: Path, **sections: Any) -> Config:
    """The configuration of `config_file`."""
    return load_config(config_file(folder, **sections))


def plan_of(image: Path, model: Path, folder: Path, *, memory: int = 4 << 30, **sections: Any) -> Plan:
    """The plan for one image with a model."""
    sections = {"model": {"path": str(model), "batch": 3}} | sections
    return plan_image(config(folder, **sections), ImageSpec(uri=str(image)), describe(str(image)), card_of(model), Budget(memory))


def segment_block(job: Job, block: Block) -> BlockRecord:
    """Predict a block into the mosaic of `job`, as a run does."""
    return commit_block(job, predict_block(job, block))


def card_of(model: Path) -> ModelCard:
    """The card of a model folder."""
    return read_card(model)


def probed(tiles: dict[int, tuple[float, int]], **changes: Any) -> dict[str, Any]:
    """What a probe found, as a card has it: seconds and MiB of tiles by their sides; seams of tiles of 512 px."""
    seams = changes.pop("seams", {0: 0.02, 64: 0.01, 128: 0.005, 192: 0.003})
    found = {
        "date": "2026-11-30",
        "software": "gigamask",
        "device": "cpu",
        "threads": 1,
        "content": "texture",
        "invariant": True,
        "finding": "what is far away is not felt",
        "reach": 200,
        "halo": 40,
        "seam_tile": 512,
        "seams": [{"overlap": overlap, "share": share} for overlap, share in seams.items()],
        "tiles": [{"tile": tile, "seconds": seconds, "bytes": mib << 20} for tile, (seconds, mib) in tiles.items()],
    }
    return {"translation_invariant": changes.get("invariant", True), "probe": found | changes}


def hungry(data: NDArray[Any], valid: NDArray[np.bool_], mib: int) -> NDArray[np.float32]:
    """A model that takes so much memory."""
    np.ones(mib << 20, np.uint8).sum()
    return np.stack([valid, ~valid], axis=1).astype(np.float32)


def picky(data: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
    """A model for tiles of 64 px."""
    if data.shape[-1] != 64:
        raise ModelError("tiles of 64 px only")
    bright = data[:, 0] >= 128
    return np.stack([~bright, bright], axis=1).astype(np.float32)
