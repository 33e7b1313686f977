"""The demo's scenes: the same every time, georeferenced, and not to be told by colour."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rasterio

from pipeline.demo.scenes import BANDS, CLASSES, Scene, colour_only_miou, make_scenes, paint


def test_a_scene_is_the_same_every_time_and_shows_every_class() -> None:
    one, other = paint(Scene("x", 512, 7)), paint(Scene("y", 512, 7))
    assert (one[0] == other[0]).all()
    assert (one[1] == other[1]).all()
    assert (paint(Scene("x", 512, 8))[0] != one[0]).any()
    assert np.bincount(one[1].ravel(), minlength=len(CLASSES)).min() > 1000
    assert one[0].min() > 0


def test_scenes_are_georeferenced_and_made_once(tmp_path: Path) -> None:
    scenes = (Scene("a", 256, 1), Scene("b", 300, 2))
    paths = make_scenes(tmp_path, scenes)
    with rasterio.open(paths[1]) as image, rasterio.open(tmp_path / "labels" / "b.tif") as labels:
        assert image.descriptions == BANDS
        assert image.crs.to_epsg() == 32633
        assert (image.shape, image.transform) == (labels.shape, labels.transform)
        assert (image.read() == paint(scenes[1])[0]).all()
    stamps = [p.stat().st_mtime_ns for p in paths]
    make_scenes(tmp_path, scenes)
    assert [p.stat().st_mtime_ns for p in paths] == stamps


def test_colour_tells_water_and_little_else(tmp_path: Path) -> None:
    paths = make_scenes(tmp_path, (Scene("a", 1024, 1), Scene("b", 1024, 2)))
    assert 0.25 < colour_only_miou(paths[:1], paths[1:]) < 0.65
