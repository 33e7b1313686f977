"""What several test files share: the real imagery, and rasters made of a few numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import settings

REPO = Path(__file__).resolve().parent.parent


settings.register_profile("gigamask", deadline=None, derandomize=True)
settings.load_profile("gigamask")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", "ignore::rasterio.errors.NotGeoreferencedWarning")


@pytest.fixture(scope="session")
def data() -> Path:
    """Folder of real imagery with real labels, beside the repository."""
    folder = REPO.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no real imagery here")
    return folder


def write_raster(path: Path, samples: Any, **profile: Any) -> Path:
    """A GeoTIFF (or `driver`) of `samples` (bands, h, w) or (h, w)."""
    samples = np.asarray(samples)
    samples = samples if samples.ndim == 3 else samples[None]
    shape = {"count": samples.shape[0], "height": samples.shape[1], "width": samples.shape[2], "dtype": samples.dtype}
    with rasterio.open(path, "w", **{"driver": "GTiff", **shape, **profile}) as file:
        file.write(samples)
    return path


def write_mask(image: Path, valid: Any) -> Path:
    """The mask file `image`.msk of `valid` (h, w): True is real data."""
    path = write_raster(Path(f"{image}.msk"), np.where(valid, 255, 0).astype(np.uint8))
    with rasterio.open(path, "r+") as file:
        file.update_tags(INTERNAL_MASK_FLAGS_1=2)  # as GDAL marks a mask of the whole dataset
    return path


@pytest.fixture
def raster(tmp_path: Path) -> Callable[..., Path]:
    """Writes samples to a file in the test's own folder: raster(samples, name="a.tif", **profile)."""
    return lambda samples, name="a.tif", **profile: write_raster(tmp_path / name, samples, **profile)
