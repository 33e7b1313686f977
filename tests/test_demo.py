"""The demo's scenes: the same every time, georeferenced, and not to be told by colour."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openslide
import pytest
import rasterio

from pipeline.alignment import MaskFacts
from pipeline.card import ClassInfo
from pipeline.config import TruthConfig
from pipeline.demo.scenes import BANDS, CLASSES, Scene, colour_only_miou, make_scenes, paint
from pipeline.demo.slides import Slide, make_slides
from pipeline.demo.slides import paint as paint_slide
from pipeline.grid import Window
from pipeline.image import working_grid
from pipeline.sources import describe
from pipeline.truth import open_truth, plan_labels


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


def test_a_slide_states_its_size_and_an_annotator_has_drawn_its_tumours(tmp_path: Path) -> None:
    made = (Slide("train_x", 512, 600, 1, 4), Slide("night_x", 512, 600, 1, 5))
    train, night = make_slides(tmp_path, made)
    info = describe(str(night))
    assert (info.reader, info.levels) == ("slide", ((512, 600), (128, 150), (32, 37)))
    assert info.pixel_size_m == pytest.approx((0.5e-6, 0.5e-6))
    pixels, outlines = paint_slide(made[1])
    assert (paint_slide(made[1])[0] == pixels).all()
    with openslide.OpenSlide(night) as slide:
        assert (np.asarray(slide.read_region((0, 0), 0, slide.dimensions))[..., :3] == pixels).all()
    grid = working_grid(info, None)
    assert grid is not None
    classes = tuple(ClassInfo(name=name, color="#000000") for name in ("background", "tumor"))
    mask = MaskFacts(image=str(night), model="x", classes=classes, grid=grid, native_shape=(512, 600))
    spec = plan_labels(TruthConfig(), str(tmp_path / "annotations" / "night_x.geojson"), mask)
    with open_truth(spec, 2, 512, 600) as truth:
        drawn = truth.read(Window(0, 0, 512, 600)).codes
    assert drawn.sum() > 2000
    purple = (pixels[..., 1] < 110) & (pixels[..., 2] > pixels[..., 1])
    assert purple[drawn == 1].mean() > 2 * purple[drawn == 0].mean()
    assert len(outlines) == 1
    with rasterio.open(tmp_path / "labels" / "train_x.tif") as labels:
        assert set(np.unique(labels.read(1))) == {0, 1}
    assert train.exists()
