"""Only what is looked at is read, predicted and paid for; all else is no data, whatever the blocks."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline import areas, mosaic
from pipeline.areas import look_for_tissue, open_area, with_area
from pipeline.errors import PlanError, SourceError, TruthError
from pipeline.grid import Window, blocks
from pipeline.image import ImageSpec
from pipeline.models.predictor import Predictor
from pipeline.plan import Plan
from pipeline.sources import Pixels, Source, open_source
from pipeline.survey import survey
from pipeline.tissue import TissueMap
from pipeline.work import no_labels, predict_core
from tests import slides
from tests.conftest import write_raster
from tests.making import config, plan_of, threshold_model
from tests.test_work import Surroundings, predictor_of

RGB = {"bands": ["red", "green", "blue"]}
NO_DATA = 255


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """The plan for 200 x 260 px of noise with tiles of 32 px that overlap by 8, in blocks of 64."""
    folder = tmp_path_factory.mktemp("noise")
    image = write_raster(folder / "a.tif", np.random.default_rng(3).integers(0, 256, (200, 260), np.uint8))
    return plan_of(image, threshold_model(folder / "model"), folder, tiling={"block": 64})


def disc(height: int, width: int) -> NDArray[np.bool_]:
    rows, cols = np.mgrid[:height, :width]
    found: NDArray[np.bool_] = (rows - height * 0.4) ** 2 + (cols - width * 0.6) ** 2 < (min(height, width) * 0.3) ** 2
    return found


def with_tissue(plan: Plan, found: NDArray[np.bool_]) -> Plan:
    return plan.model_copy(update={"tissue": TissueMap.of(found, "drawn by hand")})


def labels_in(plan: Plan, predictor: Predictor, shape: tuple[int, int], opened: Callable[[], Source]) -> NDArray[Any]:
    labels = np.full(plan.grid.shape, 77, np.uint8)
    for block in blocks(*plan.grid.shape, *shape):
        labels[block.core.slices] = predict_core(plan, predictor, opened, block.core).labels
    return labels


class Watched:
    """A source that notes what is read of it, and cannot read some of it."""

    def __init__(self, plan: Plan, bad: Window | None = None) -> None:
        self.read_px = np.zeros(plan.grid.shape, int)
        self._spec, self._bad = plan.read, bad

    @contextmanager
    def __call__(self) -> Iterator[Watched]:
        yield self

    def open(self) -> Any:
        return self

    def read(self, window: Window) -> Pixels:
        if self._bad is not None and window.touches(self._bad):
            raise SourceError("damaged")
        self.read_px[window.slices] += 1
        with open_source(self._spec) as source:
            return source.read(window)

    def close(self) -> None:
        pass


def test_outside_of_tissue_is_no_data_and_inside_is_the_models_answer(noise: Plan) -> None:
    found = disc(50, 65)
    plan = with_tissue(noise, found)
    inside = plan.tissue.read(Window(0, 0, 200, 260), (200, 260)) if plan.tissue else None
    assert inside is not None
    labels = labels_in(plan, predictor_of(plan), (64, 64), partial(open_source, plan.read))
    with open_source(plan.read) as source:
        answer = source.read(Window(0, 0, 200, 260)).data[0] >= 100
    assert (labels[~inside] == NO_DATA).all()
    assert (labels[inside] == answer[inside]).all()


@settings(max_examples=12)
@given(height=st.integers(20, 210), width=st.integers(20, 270), seed=st.integers(0, 99))
def test_any_block_shape_gives_the_same_labels(noise: Plan, height: int, width: int, seed: int) -> None:
    """With a model that looks around, so that what is read near the tissue matters."""
    plan = with_tissue(noise, np.random.default_rng(seed).random((6, 8)) < 0.3)
    predictor = Surroundings(plan.card.model_copy(update={"classes": plan.card.classes * 2}))
    wide = plan.model_copy(update={"card": predictor.card})
    opened = partial(open_source, plan.read)
    whole = labels_in(wide, predictor, (200, 260), opened)
    assert (labels_in(wide, predictor, (height, width), opened) == whole).all()


def test_what_no_tile_with_tissue_needs_is_not_read(noise: Plan) -> None:
    found = np.zeros((20, 26), bool)
    found[2, 2] = True  # rows and columns 20-29
    plan, watched = with_tissue(noise, found), Watched(noise)
    labels = labels_in(plan, predictor_of(plan), (200, 260), watched.open)
    assert (labels != NO_DATA).sum() == 100
    seen = np.argwhere(watched.read_px)
    assert watched.read_px.max() == 1
    assert seen.min() == 0
    assert seen.max() <= 29 + 3 * 32
    assert plan.tiles_with_tissue == 4  # those at 0 and 24, both ways
    tiles = sum(predict_core(plan, predictor_of(plan), watched.open, block.core).tiles for block in plan.blocks[:1])
    assert tiles == 4


def test_what_cannot_be_read_outside_of_tissue_is_no_failure(noise: Plan) -> None:
    plan = with_tissue(noise, disc(200, 260))
    bad = Window(60, 60, 10, 60)
    with open_area(plan) as area:  # type: ignore[union-attr]
        inside = area.read(Window(0, 0, 200, 260))
    labels = labels_in(plan, predictor_of(plan), (200, 260), Watched(noise, bad).open)
    assert (labels[~inside] == NO_DATA).all()
    assert (labels[bad.slices][inside[bad.slices]] == 254).all()
    assert inside[bad.slices].any()
    assert not inside[bad.slices].all()


def test_a_block_that_could_not_be_predicted_is_failed_only_where_it_was_to_be(noise: Plan) -> None:
    plan = with_tissue(noise, disc(200, 260))
    core = Window(0, 0, 200, 260)
    lost = no_labels(plan, core, "why not")
    assert plan.tissue is not None
    inside = plan.tissue.read(core, (200, 260))
    assert (lost.labels == np.where(inside, 254, 255)).all()
    assert 0 < inside.sum() < inside.size


def test_tissue_is_part_of_the_digest(noise: Plan) -> None:
    one, other = with_tissue(noise, disc(20, 26)), with_tissue(noise, ~disc(20, 26))
    assert len({noise.digest, one.digest, other.digest}) == 3


def test_a_drawn_area_is_kept_to_the_pixel(noise: Plan, tmp_path: Path) -> None:
    ring = [[10, 20], [90, 20], [90, 120], [10, 120], [10, 20]]
    feature = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    drawn = tmp_path / "area.geojson"
    drawn.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    image = noise.image.model_copy(update={"area": str(drawn)})
    plan = with_area(noise.model_copy(update={"image": image}), "none", tmp_path, keep=False)
    labels = labels_in(plan, predictor_of(plan), (64, 64), partial(open_source, plan.read))
    wanted = np.zeros((200, 260), bool)
    wanted[20:120, 10:90] = True
    assert ((labels != NO_DATA) == wanted).all()
    assert plan.digest != noise.digest


def test_a_drawn_area_may_be_a_mask_at_another_level(noise: Plan, tmp_path: Path) -> None:
    mask = np.zeros((50, 65), np.uint8)
    mask[5:20, 10:30] = 1
    image = noise.image.model_copy(update={"area": str(write_raster(tmp_path / "mask.tif", mask))})
    plan = with_area(noise.model_copy(update={"image": image}), "none", tmp_path, keep=False)
    labels = labels_in(plan, predictor_of(plan), (64, 64), partial(open_source, plan.read))
    assert ((labels != NO_DATA) == np.kron(mask, np.ones((4, 4))).astype(bool)).all()


def test_an_area_that_is_not_there_is_an_error_not_the_whole_image(noise: Plan, tmp_path: Path) -> None:
    image = noise.image.model_copy(update={"area": str(tmp_path / "none.geojson")})
    with pytest.raises((TruthError, SourceError), match=r"none\.geojson"):
        with_area(noise.model_copy(update={"image": image}), "none", tmp_path, keep=False)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two slides of 2048 x 2048 px at 4 µm with tissue in one corner, one blank slide, and a model."""
    folder = tmp_path_factory.mktemp("archive")
    (folder / "scenes").mkdir()
    pixels = np.full((2048, 2048, 3), 244, np.uint8)
    pixels[100:700, 100:700] = slides.tissue(600, 600)
    pixels[120:680, 120:680] = np.where(pixels[120:680, 120:680] > 240, (225, 150, 190), pixels[120:680, 120:680])
    for name in "ab":
        slides.write_aperio(folder / "scenes" / f"{name}.svs", pixels, mpp=4.0, compression="zlib")
    slides.write_aperio(folder / "scenes" / "blank.svs", np.full_like(pixels, 244), mpp=4.0, compression="zlib")
    threshold_model(folder / "model", (150,), tile=128, overlap=32, resolution={"mpp": 4.0}, **RGB)
    return folder


def settings_of(**archive_settings: Any) -> dict[str, Any]:
    return {"archive": {"images": "scenes", "tissue": "auto"} | archive_settings, "truth": {}, "tiling": {"block": 512}}


def test_tissue_is_found_on_a_coarse_level_and_only_once(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = survey(config(archive, **settings_of()), keep=True)
    assert [Path(p.plan.image.uri).name for p in found.planned] == ["a.svs", "b.svs"]
    (blank,) = found.refused
    assert "no tissue was found" in blank.error
    plan = found.planned[0].plan
    assert plan.tissue is not None
    assert plan.tissue.share == pytest.approx(600**2 / 2048**2, rel=0.15)
    assert plan.tissue.area_mm2 == pytest.approx(600**2 * 16e-6, rel=0.15)
    assert len(list((archive / "out" / "tissue").glob("*.json"))) == 3

    def never(plan: Plan) -> TissueMap:
        raise AssertionError(f"{plan.image.uri} is looked at again")

    monkeypatch.setattr(areas, "look_for_tissue", never)
    again = survey(config(archive, **settings_of()))
    assert [p.plan.digest for p in again.planned] == [p.plan.digest for p in found.planned]


def test_two_runs_keep_the_tissue_of_one_image_at_once_and_no_reader_finds_half_of_it(
    noise: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second run has just opened its draft, still empty, when the first one renames its own."""
    found = TissueMap.of(disc(20, 26), "drawn by hand")
    monkeypatch.setattr(areas, "look_for_tissue", lambda plan: found)
    opened, go_on = threading.Event(), threading.Event()
    true_open, true_replace = Path.open, Path.replace
    second = threading.Thread(target=lambda: areas.tissue_of(noise, tmp_path, keep=True))

    def open_and_wait(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        file = true_open(path, mode, *args, **kwargs)
        if "w" in mode and threading.current_thread() is second:
            opened.set()
            assert go_on.wait(30)
        return file

    def replace_after_the_other_opened(path: Path, target: Path) -> Path:
        if threading.current_thread() is not second:
            second.start()
            assert opened.wait(30)
        return true_replace(path, target)

    monkeypatch.setattr(Path, "open", open_and_wait)
    monkeypatch.setattr(Path, "replace", replace_after_the_other_opened)
    try:
        areas.tissue_of(noise, tmp_path, keep=True)
        (kept,) = (path for path in tmp_path.iterdir() if not path.name.startswith("."))
        between = kept.read_bytes()
    finally:
        go_on.set()
        second.join()
    assert TissueMap.model_validate_json(between) == found
    assert TissueMap.model_validate_json(kept.read_bytes()) == found
    assert list(tmp_path.iterdir()) == [kept]


def test_a_dry_run_keeps_nothing(archive: Path, tmp_path: Path) -> None:
    survey(config(archive, **settings_of()).model_copy(update={"output": tmp_path / "dry"}))
    assert not (tmp_path / "dry").exists()


def test_a_night_over_slides_pays_for_tissue_alone(archive: Path) -> None:
    from pipeline.night import run_night
    from tests.test_gates import Quiet

    morning = run_night(config(archive, **settings_of()), Quiet(), "test")
    by_name = {Path(image.uri).name: image for image in morning.report.images}
    assert [by_name[name].state for name in ("a.svs", "b.svs", "blank.svs")] == ["complete", "complete", "failed"]
    assert morning.exit_code == 1
    one = by_name["a.svs"]
    assert one.blocks == 16
    assert one.tiles <= 100  # of 441 and those on block borders
    assert one.read_as is not None
    assert "aperio slide; pixels of 4 µm (openslide.mpp-x)" in one.read_as
    assert one.pixel_area_m2 == pytest.approx(16e-12)
    store = archive / "out" / (one.mask or "")
    whole = mosaic.read(store, Window(0, 0, 2048, 2048))
    assert (whole[:60] == NO_DATA).all()
    assert (whole[900:] == NO_DATA).all()
    assert set(np.unique(whole[300:500, 300:500])) <= {0, 1}
    facts = json.loads((store / "zarr.json").read_text())["attributes"]
    assert facts["ome"]["multiscales"][0]["axes"] == [
        {"name": "y", "type": "space", "unit": "micrometer"},
        {"name": "x", "type": "space", "unit": "micrometer"},
    ]
    assert facts["ome"]["multiscales"][0]["datasets"][1]["coordinateTransformations"][0]["scale"] == pytest.approx([8.0, 8.0])
    assert facts["gigamask"]["resolution"]["from"] == "openslide.mpp-x"
    page = (morning.folder / "report.html").read_text()
    assert "openslide.mpp-x" in page
    assert "mm²" in page


def test_georeferenced_images_have_no_tissue(tmp_path: Path) -> None:
    image = write_raster(tmp_path / "a.tif", np.zeros((90, 90), np.uint8), crs="EPSG:32633", transform=(1, 0, 5e5, 0, -1, 5e6))
    with pytest.raises(PlanError, match="tissue is found on slides"):
        look_for_tissue(plan_of(image, threshold_model(tmp_path / "model"), tmp_path))


def test_a_manifest_states_size_and_area(tmp_path: Path) -> None:
    from pipeline.archive import discover

    lines = "image,mpp,mpp_x,mpp_y,tissue,site", "a.svs,0.25,,,,x", "b.svs,,0.4,0.5,b.geojson,y", "c.svs,,,,,z"
    (tmp_path / "list.csv").write_text("\n".join(lines))
    settings = {"images": "list.csv", "mpp": {"c*": [0.2, 0.3]}, "tissue": "area/{stem}.geojson"}
    first, second, third = discover(config(tmp_path, archive=settings))
    assert (first.mpp, second.mpp, third.mpp) == ((0.25, 0.25), (0.5, 0.4), (0.3, 0.2))
    assert [image.area for image in (first, second, third)] == [
        str(tmp_path / "area" / "a.geojson"), str(tmp_path / "b.geojson"), str(tmp_path / "area" / "c.geojson"),
    ]  # fmt: skip
    assert first.strata == {"site": "x"}


def test_a_dicom_series_is_one_image_and_so_is_a_vms_slide(tmp_path: Path) -> None:
    from pipeline.archive import discover

    def dicom(name: str, series: bytes) -> None:
        path = tmp_path / "scenes" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\0" * 128 + b"DICM" + b"\x20\x00\x0e\x00UI" + len(series).to_bytes(2, "little") + series)

    for name, series in (("one/b", b"1.2.3\0"), ("one/a", b"1.2.3\0"), ("one/c", b"1.2.4\0"), ("two/a", b"1.2.3\0")):
        dicom(f"{name}.dcm", series)
    (tmp_path / "scenes" / "vms").mkdir()
    for name in ("s.vms", "s_0.jpg", "s_1.jpg"):
        (tmp_path / "scenes" / "vms" / name).write_bytes(b"x")
    found = discover(config(tmp_path, archive={"images": "scenes"}))
    assert [str(Path(image.uri).relative_to(tmp_path / "scenes")) for image in found] == [
        "one/a.dcm", "one/c.dcm", "two/a.dcm", "vms/s.vms",
    ]  # fmt: skip
    assert len({image.id for image in found}) == 4  # stems collide, ids do not
    (tmp_path / "list.csv").write_text(f"image\n{tmp_path / 'scenes' / 'two'}\n")
    assert discover(config(tmp_path, archive={"images": "list.csv"}))[0].uri.endswith("two/a.dcm")


def test_an_image_without_area_is_looked_at_whole(noise: Plan) -> None:
    assert open_area(noise) is None
    assert with_area(noise, "none", Path("/nowhere"), keep=True) is noise
    assert ImageSpec(uri="/a.svs").area is None
