"""Masks as literals: arithmetic that changes them is noticed, so that `plan.ENGINE` is raised with it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from numpy.typing import NDArray
from torch import nn

from tests.conftest import write_mask, write_raster
from tests.making import threshold_model
from tests.test_night import night, result

WHAT_TO_DO = (
    "the same plan gives another mask than before. Where that is not meant, it is a fault. Where it is, raise ENGINE in "
    "pipeline/plan.py, so that masks of the old arithmetic are computed again, and put the new digest here. Found: "
)


def scene(height: int, width: int, values: int) -> NDArray[np.uint8]:
    """`values` grey levels, 0 among them, in patches of several sizes; by integer arithmetic alone."""
    row, col = np.indices((height, width))
    return ((row * row // 37 + col * 5 // 11 + row * col // 101) % values * (256 // values)).astype(np.uint8)


def arrays(folder: Path, **sections: Any) -> dict[str, NDArray[Any]]:
    """Level and name -> array of the mask that a night makes of scenes/a.tif."""
    morning = night(folder, truth={}, **sections)
    found = result(morning, "a")
    assert found.state == "complete", found.error
    store = morning.folder.parent.parent / str(found.mask)
    names = sorted(path.parent.relative_to(store) for path in store.glob("*/*/zarr.json"))
    wanted = [str(name) for name in names if name.name in ("mask", "confidence")]
    return {name: zarr.open_array(store, path=name, mode="r")[:] for name in wanted}


def digest(found: dict[str, NDArray[Any]]) -> str:
    """Hash of names, shapes and decoded values: neither compression nor metadata is in it."""
    total = hashlib.sha256()
    for name, values in found.items():
        total.update(f"{name} {values.shape} {values.dtype}\n".encode())
        total.update(np.ascontiguousarray(values).tobytes())
    return total.hexdigest()[:16]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "scenes").mkdir()
    return tmp_path


def integers(side: int, step: int) -> nn.Module:
    """A convolution from one band to three classes: weights are small integers and biases quarters, so that float32 sums of
    integers are exact in any order, and no two classes have one score."""
    layer = nn.Conv2d(1, 3, side, dilation=step, padding=side // 2 * step)
    with torch.no_grad():
        count = torch.arange(layer.weight.numel())
        layer.weight.copy_(((count * count + count) % 7 - 3).reshape(layer.weight.shape))
        layer.bias.copy_(torch.tensor([3.25, 3.0, -2.5]))
    return layer.eval()


def network_model(folder: Path, network: nn.Module, activation: str, tile: int, overlap: int) -> None:
    """A model folder of a program for three classes that sees 0, 1, 2, 3 for the levels of `scene(..., 4)`."""
    folder.mkdir()
    torch.jit.save(torch.jit.trace(network, torch.zeros(1, 1, tile, tile)), folder / "model.pt")
    threshold_model(
        folder,
        (1, 2),
        adapter="exported",
        architecture={},
        weights="model.pt",
        weights_sha256=hashlib.sha256((folder / "model.pt").read_bytes()).hexdigest(),
        scaling={"offset": [0], "divisor": [64]},
        activation=activation,
        tile=tile,
        overlap=overlap,
    )


def test_thresholds_of_an_image_with_nodata_and_its_coarser_level(place: Path) -> None:
    write_raster(place / "scenes" / "a.tif", scene(700, 1100, 32), nodata=0)
    threshold_model(place / "model", (90, 180))
    found = arrays(place, tiling={"block": 300, "store_confidence": True})
    assert set(found) == {"0/mask", "0/confidence", "1/mask"}
    assert set(np.unique(found["0/mask"])) == {0, 1, 2, 255}
    assert digest(found) == "445258ba2ea8d5b6", WHAT_TO_DO + digest(found)


@pytest.mark.parametrize(("size", "wanted"), [(1.6, "a5ad5b1f2ed70c74"), (0.75, "7429cbe0c0a5d54d")])
def test_a_resampled_grid_of_an_image_with_a_mask(place: Path, size: float, wanted: str) -> None:
    image = write_raster(place / "scenes" / "a.tif", scene(240, 310, 64))
    row, col = np.indices((240, 310))
    write_mask(image, (row + 2 * col) % 97 > 20)
    threshold_model(place / "model", (90, 180))
    found = arrays(place, resolution={"size": size, "unit": "source-pixel"}, tiling={"blend": "crop", "block": 96})
    assert set(np.unique(found["0/mask"])) == {0, 1, 2, 255}
    assert digest(found) == wanted, WHAT_TO_DO + digest(found)


def test_a_network_whose_tiles_are_cropped(place: Path) -> None:
    """Softmax of whole numbers has few values, none of them near the middle between two steps of confidence."""
    write_raster(place / "scenes" / "a.tif", scene(200, 330, 4))
    network_model(place / "model", integers(3, 1), "softmax", tile=64, overlap=16)
    tiling = {"blend": "crop", "block": 96, "store_confidence": True}
    found = arrays(place, tiling=tiling, model={"path": "model", "batch": 3, "trust_code": True})
    assert set(np.unique(found["0/mask"])) == {0, 1, 2}
    assert len(np.unique(found["0/confidence"])) > 3
    assert digest(found) == "e2be39bf4a9016ed", WHAT_TO_DO + digest(found)


def test_a_network_whose_tiles_are_blended(place: Path) -> None:
    """Tiles disagree where they see their own border, and weights decide; averaged over mirrored tiles, which is exact."""
    write_raster(place / "scenes" / "a.tif", scene(200, 330, 4))
    network_model(place / "model", integers(5, 3), "none", tile=64, overlap=32)
    model = {"path": "model", "batch": 3, "trust_code": True, "test_time_flips": 4}
    found = arrays(place, tiling={"blend": "hann", "block": 96}, model=model)
    assert set(np.unique(found["0/mask"])) == {0, 1, 2}
    assert digest(found) == "0dcf8cb42c472e5c", WHAT_TO_DO + digest(found)


def test_the_confidence_of_blended_tiles(place: Path) -> None:
    write_raster(place / "scenes" / "a.tif", scene(200, 330, 4))
    network_model(place / "model", integers(1, 1), "softmax", tile=64, overlap=32)
    tiling = {"blend": "hann", "block": 96, "store_confidence": True}
    found = arrays(place, tiling=tiling, model={"path": "model", "batch": 3, "trust_code": True})
    assert set(np.unique(found["0/mask"])) == {0, 1, 2}
    assert digest(found) == "d5e52a373306dc7e", WHAT_TO_DO + digest(found)
