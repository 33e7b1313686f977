"""What an image, its labels and its mask are known by: every file that decides them, and nothing else."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely

from pipeline import slidefile
from pipeline.alignment import LayerInfo, MaskFacts, Polygons, TruthSpec
from pipeline.card import ModelCard
from pipeline.changes import Seen, same
from pipeline.config import TruthConfig
from pipeline.errors import ChangedError, TruthError
from pipeline.gdal import gdal
from pipeline.image import FileState, ImageSpec, SourceInfo, WorkingGrid
from pipeline.ledger import Ledger
from pipeline.plan import Plan, ReadSpec
from pipeline.sources import check_unchanged, describe, open_source
from pipeline.truth import open_truth, plan_labels
from tests.test_vector import write_layer

Raster = Callable[..., Path]
GRAY = np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)
PAM = "<PAMDataset><PAMRasterBand band='1'><NoDataValue>{}</NoDataValue></PAMRasterBand></PAMDataset>"
WORLD = "{}\n0\n0\n-1\n0\n0\n"


def source_of(**changes: Any) -> SourceInfo:
    """A single file, as it might have been described on any machine."""
    facts: dict[str, Any] = {
        "uri": "/archive/scene.tif",
        "driver": "GTiff",
        "size_bytes": 1234,
        "mtime_ns": 1_760_000_000_123_456_789,
        "height": 300,
        "width": 400,
        "band_names": ("gray",),
        "band_indexes": (1,),
        "dtype": "uint8",
        "nodata": (None,),
        "valid_from": "all",
        "block_shape": (256, 256),
    }
    return SourceInfo(**facts | changes)


def card_of(**changes: Any) -> ModelCard:
    """A threshold model's card."""
    facts: dict[str, Any] = {
        "name": "threshold",
        "adapter": "threshold",
        "architecture": {"band": 0, "thresholds": [100]},
        "weights": None,
        "bands": ("gray",),
        "dtype": "uint8",
        "scaling": {"offset": (0,), "divisor": (1,)},
        "classes": ({"name": "low", "color": "#000000"}, {"name": "high", "color": "#ffffff"}),
        "tile": 64,
        "overlap": 16,
        "multiple_of": 1,
        "activation": "none",
    }
    return ModelCard.model_validate(facts | changes)


def plan_of(source: SourceInfo, card: ModelCard | None = None) -> Plan:
    """A plan for an image that need not exist."""
    grid = WorkingGrid(height=source.height, width=source.width)
    return Plan(
        image=ImageSpec(uri=source.uri),
        read=ReadSpec(source=source, bands=(1,), valid_from="all", nodata=(None,), grid=grid),
        model_path="/model",
        card=card or card_of(),
        tile=64,
        overlap=16,
        blend="hann",
        block_shape=(192, 192),
        chunk_shape=(192, 192),
        batch=4,
        precision="float32",
        flips=1,
        store_confidence=True,
    )


def layer_of(**changes: Any) -> LayerInfo:
    """A layer of a single file."""
    facts = {"uri": "/labels/scene.geojson", "driver": "GeoJSON", "layer": "scene", "size_bytes": 99, "mtime_ns": 77}
    return LayerInfo.model_validate(facts | {"field": "class", "values": {"a": 3}} | changes)


def polygons_of(layer: LayerInfo) -> Polygons:
    return Polygons(layer=layer, codes={"a": 1}, rest=0, transform=(1, 0, 0, 0, 1, 0))


# --- digests of earlier versions -----------------------------------------------------------------------------------------


def test_the_digests_of_single_files_are_those_of_earlier_versions() -> None:
    """Literals of the commit before files beside an image were looked at: a change here segments every archive again."""
    area = TruthSpec(source=polygons_of(layer_of()))
    assert plan_of(source_of()).digest == "dbffa4a84a0294d6"
    assert plan_of(source_of()).model_copy(update={"area": area}).digest == "364a2de58d8043fe"
    assert TruthSpec(source=source_of(), codes={0: 0, 1: 1}, ignore=(255,)).digest.startswith("026ea214e824615d")
    assert area.digest.startswith("59cd4a5b45c11fd1")
    assert TruthSpec(source=source_of(), codes={0: 0}, area=area.source).digest.startswith("0cfc52fee65dddcc")
    assert card_of().digest.startswith("00a6267c007287d2")


def test_each_file_beside_an_image_is_in_its_digest_by_name_size_and_time() -> None:
    mask = FileState(name="scene.tif.msk", size_bytes=10, mtime_ns=5)
    others = [{}, {"name": "scene.tfw"}, {"size_bytes": 11}, {"mtime_ns": 4}]
    files = [(), *((mask.model_copy(update=change),) for change in others), (mask, mask.model_copy(update={"name": "z"}))]
    assert len({plan_of(source_of(beside=beside)).digest for beside in files}) == 6
    labels = {TruthSpec(source=source_of(beside=beside), codes={}).digest for beside in files}
    shapes = {TruthSpec(source=polygons_of(layer_of(beside=beside))).digest for beside in files}
    assert len(labels) == len(shapes) == 6


def test_notes_of_earlier_runs_without_files_beside_are_read(tmp_path: Path) -> None:
    old = Seen.model_validate_json('{"uri": "/a.tif", "run_id": "1", "size": 5, "mtime_ns": 6}')
    now = Seen(uri="/a.tif", run_id="2", size=5, mtime_ns=6)
    assert same(old, now)
    assert not same(old, now.model_copy(update={"beside": (FileState(name="a.tif.msk", size_bytes=1, mtime_ns=1),)}))
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.put_image("a", "n", "seen", old)
        assert ledger.images("n", "seen", Seen) == {"a": old}


# --- sidecars of rasters -------------------------------------------------------------------------------------------------


def tiff(value: int) -> bytes:
    """A mask or another small TIFF."""
    with rasterio.MemoryFile() as memory:
        with memory.open(driver="GTiff", height=64, width=64, count=1, dtype="uint8") as file:
            file.write(np.full((1, 64, 64), value, np.uint8))
            file.update_tags(INTERNAL_MASK_FLAGS_1=2)  # as GDAL marks a mask of the whole dataset
        return bytes(memory.getbuffer())


def aux(value: int) -> bytes:
    """An ERDAS .aux, which GDAL reads beside any raster and does not list among its files."""
    with rasterio.MemoryFile(ext=".aux") as memory:
        options = {"driver": "HFA", "AUX": "YES", "DEPENDENT_FILE": "scene.tif", "nodata": value}
        with memory.open(height=64, width=64, count=1, dtype="uint8", **options):
            pass
        return bytes(memory.getbuffer())


SIDECARS: list[tuple[str, Callable[[int], bytes]]] = [
    ("scene.tif.msk", tiff),
    ("scene.tif.MSK", tiff),
    ("scene.tif.aux.xml", lambda value: PAM.format(value).encode()),
    *((f"scene.{end}", lambda value: WORLD.format(value).encode()) for end in ("tfw", "TFW", "tifw", "wld", "WLD")),
    ("scene.aux", aux),
    ("scene.tif.aux", aux),
]


@pytest.mark.parametrize(("name", "content"), SIDECARS, ids=[name for name, _ in SIDECARS])
def test_a_sidecar_that_appears_changes_or_vanishes_is_noticed_by_its_name(
    raster: Raster, name: str, content: Callable[[int], bytes]
) -> None:
    """Of the same size and older than what it replaces: neither a sum of sizes nor the latest change would tell."""
    image = raster(GRAY, name="scene.tif")
    sidecar = image.parent / name
    bare = describe(str(image))
    sidecar.write_bytes(content(3))
    with pytest.raises(ChangedError, match=f"{name}, which belongs to scene.tif, .*: [0-9]+ bytes .* planned was no such file"):
        check_unchanged(bare)
    info = describe(str(image))
    assert [state.name for state in info.beside] == [name]
    assert info.model_dump(exclude={"beside"}) != bare.model_dump(exclude={"beside"}), "GDAL reads it"
    check_unchanged(info)
    sidecar.write_bytes(content(7))
    os.utime(sidecar, ns=(1, 1))
    replaced = describe(str(image))
    assert sidecar.stat().st_size == info.beside[0].size_bytes
    with pytest.raises(ChangedError, match=name):
        check_unchanged(info)
    sidecar.unlink()
    with pytest.raises(ChangedError, match=f"{name}, .*: no such file, planned was"):
        check_unchanged(info)
    assert len({plan_of(source).digest for source in (bare, info, replaced)}) == 3
    assert plan_of(describe(str(image))).digest == plan_of(bare).digest


@pytest.mark.parametrize(
    ("driver", "name", "options", "files"),
    [
        ("ENVI", "scene.dat", {}, ["scene.hdr"]),
        ("EHdr", "scene.bil", {"crs": "EPSG:32633", "transform": (1, 0, 5e5, 0, -1, 5e6)}, ["scene.hdr", "scene.prj"]),
        ("HFA", "scene.img", {"USE_SPILL": "YES"}, ["scene.ige"]),
        ("PNG", "scene.png", {"transform": (1, 0, 0, 0, -1, 0), "WORLDFILE": "YES"}, ["scene.wld"]),
        ("JPEG", "scene.jpg", {"transform": (1, 0, 0, 0, -1, 0), "WORLDFILE": "YES"}, ["scene.wld"]),
    ],
)
def test_headers_and_parts_of_other_formats_belong_to_the_image(
    raster: Raster, driver: str, name: str, options: dict[str, Any], files: list[str]
) -> None:
    image = raster(GRAY, name=name, driver=driver, **options)
    info = describe(str(image))
    assert [state.name for state in info.beside] == files
    check_unchanged(info)
    for file in files:
        before = (image.parent / file).stat()
        os.utime(image.parent / file, ns=(1, 1))
        with pytest.raises(ChangedError, match=f"{file}, which belongs to {name},"):
            check_unchanged(info)
        os.utime(image.parent / file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_overviews_beside_an_image_decide_no_pixel_and_are_no_part_of_it(raster: Raster) -> None:
    image = raster(GRAY, name="scene.tif")
    bare = describe(str(image))
    Path(f"{image}.ovr").write_bytes(tiff(9))
    with gdal(), rasterio.open(image) as file:
        assert [Path(name).suffix for name in file.files] == [".tif", ".ovr"], "GDAL takes it for overviews"
    assert describe(str(image)) == bare
    check_unchanged(bare)


def test_other_files_of_the_folder_are_no_part_of_an_image(raster: Raster) -> None:
    image = raster(GRAY, name="scene.tif")
    bare = describe(str(image))
    for name in ("scene.tif.bak", "scene.txt", "scene.hdr", "scene2.tfw", "other.tif.msk"):
        (image.parent / name).write_text("x")
    (image.parent / "scene.wld").mkdir()
    assert describe(str(image)) == bare
    check_unchanged(bare)


def test_an_open_file_whose_mask_was_replaced_is_not_read_on(raster: Raster) -> None:
    image = raster(GRAY, name="scene.tif")
    Path(f"{image}.msk").write_bytes(tiff(255))
    spec = ReadSpec(**plan_of(describe(str(image))).read.model_dump() | {"valid_from": "mask"})
    Path(f"{image}.msk").write_bytes(tiff(0))
    with pytest.raises(ChangedError, match=r"scene\.tif\.msk"):
        open_source(spec)


# --- labels --------------------------------------------------------------------------------------------------------------


def mask_facts() -> MaskFacts:
    classes = card_of().classes
    return MaskFacts(image="/a.tif", model="m", classes=classes, grid=WorkingGrid(height=64, width=64), native_shape=(64, 64))


def test_the_mask_of_a_label_raster_is_part_of_the_labels(raster: Raster) -> None:
    labels = raster((GRAY > 99).astype(np.uint8), name="labels.tif")
    digests = []
    for value in (255, 0):
        Path(f"{labels}.msk").write_bytes(tiff(value))
        spec = plan_labels(TruthConfig(), str(labels), mask_facts())
        digests.append(spec.digest)
    Path(f"{labels}.msk").unlink()
    digests.append(plan_labels(TruthConfig(), str(labels), mask_facts()).digest)
    assert len(set(digests)) == 3
    with pytest.raises(TruthError, match=r"labels: .*labels\.tif\.msk.*no such file"):
        open_truth(spec, 2, 64, 64)


@pytest.mark.parametrize("suffix", [".shx", ".dbf", ".prj", ".cpg"])
def test_each_part_of_a_shapefile_is_part_of_the_labels(tmp_path: Path, suffix: str) -> None:
    path = write_layer(tmp_path / "l.shp", [shapely.box(1, 1, 30, 30)], ["high"])
    config = TruthConfig(field="kind", crs="pixel")
    spec = plan_labels(config, str(path), mask_facts())
    assert isinstance(spec.source, Polygons)
    assert [state.name for state in spec.source.layer.beside] == ["l.cpg", "l.dbf", "l.prj", "l.shx"]
    os.utime(path.with_suffix(suffix), ns=(1, 1))
    assert plan_labels(config, str(path), mask_facts()).digest != spec.digest
    with pytest.raises(TruthError, match=rf"l\{suffix}, which belongs to l\.shp"):
        open_truth(spec, 2, 64, 64)


def test_a_table_of_the_same_size_and_an_older_time_is_read_again(tmp_path: Path) -> None:
    """What a process keeps of a shapefile is not taken for that of another table beside the same shapes."""
    config = TruthConfig(field="kind", crs="pixel", classes={"high": "high", "lows": "low"})
    found = []
    for kind in ("high", "lows"):
        path = write_layer(tmp_path / "l.shp", [shapely.box(1, 1, 30, 30)], [kind])
        for file in tmp_path.iterdir():
            os.utime(file, ns=(5, 5))
        if kind == "lows":
            os.utime(path.with_suffix(".dbf"), ns=(1, 1))
        spec = plan_labels(config, str(path), mask_facts())
        assert isinstance(spec.source, Polygons)
        found.append(spec.source.layer.values)
    assert found == [{"high": 1}, {"lows": 1}]


# --- slides of many files ------------------------------------------------------------------------------------------------


def dicom(path: Path, series: bytes, rest: bytes = b"") -> Path:
    """A file that says which series it is of."""
    tag = slidefile.SERIES_TAG + len(series).to_bytes(2, "little") + series
    path.write_bytes(bytes(128) + b"DICM" + bytes(64) + tag + rest)
    return path


def names_of(path: Path, driver: str) -> list[str]:
    return [state.name for state in slidefile.files_of(path, driver).beside]


def test_a_dicom_slide_is_the_files_of_its_series(tmp_path: Path) -> None:
    first = dicom(tmp_path / "a.dcm", b"1.2.3")
    dicom(tmp_path / "b.dcm", b"1.2.3")
    dicom(tmp_path / "c.dcm", b"9.9.9")
    (tmp_path / "notes.txt").write_text("x")
    assert names_of(first, "dicom") == ["b.dcm"]
    assert names_of(tmp_path / "c.dcm", "dicom") == []
    dicom(tmp_path / "c.dcm", b"1.2.3")
    assert names_of(first, "dicom") == ["b.dcm", "c.dcm"], "what is remembered of a file is of that file only"


def test_an_mrxs_slide_is_the_files_that_its_index_names(tmp_path: Path) -> None:
    index, folder = tmp_path / "s.mrxs", tmp_path / "s"
    folder.mkdir()
    index.write_bytes(b"x")
    lines = ["\ufeff[HIERARCHICAL]", "INDEXFILE = Index.dat", "[DATAFILE]", "FILE_COUNT = 1", "FILE_0 = Data0000.dat"]
    (folder / "Slidedat.ini").write_text("\r\n".join(lines), encoding="utf-8")
    for name in ("Index.dat", "Data0000.dat", "Thumbs.db"):
        (folder / name).write_bytes(b"y")
    assert names_of(index, "mirax") == ["s/Data0000.dat", "s/Index.dat", "s/Slidedat.ini"]


def test_a_vms_slide_is_the_files_that_its_index_names(tmp_path: Path) -> None:
    index = tmp_path / "s.vms"
    lines = ["[Virtual Microscope Specimen]", "NoLayers=1", "ImageFile=a.jpg", "ImageFile(1,0)=b.jpg", "MapFile=map.jpg"]
    index.write_text("\n".join([*lines, "OptimisationFile=s.opt", "MacroImage=macro.jpg", "PhysicalWidth=1"]))
    for name in ("a.jpg", "b.jpg", "map.jpg", "s.opt", "macro.jpg", "other.jpg", "t.vms"):
        (tmp_path / name).write_bytes(b"x")
    assert names_of(index, "hamamatsu") == ["a.jpg", "b.jpg", "macro.jpg", "map.jpg", "s.opt"]


def test_a_new_file_beside_a_dicom_slide_changes_nothing_and_a_changed_part_is_named(tmp_path: Path, data: Path) -> None:
    slide = tmp_path / "bone.dcm"
    shutil.copy(data / "wsi" / "bone_jpeg" / "bone_jpeg.dcm", slide)
    info = describe(str(slide))
    dicom(tmp_path / "another.dcm", b"1.2.3")
    (tmp_path / "notes.txt").write_text("x")
    assert describe(str(slide)) == info
    check_unchanged(info)
    part = tmp_path / "part.dcm"
    shutil.copy(slide, part)
    assert [state.name for state in slidefile.files_of(slide, "dicom").beside] == ["part.dcm"]
    whole = info.model_copy(update={"beside": slidefile.files_of(slide, "dicom").beside})
    os.utime(part, ns=(1, 1))
    with pytest.raises(ChangedError, match=r"part\.dcm, which belongs to bone\.dcm"):
        check_unchanged(whole)


def test_checking_a_slide_opens_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = dicom(tmp_path / "a.dcm", b"1.2.3")
    dicom(tmp_path / "b.dcm", b"1.2.3")
    info = source_of(reader="slide", driver="dicom", **dict(slidefile.files_of(first, "dicom")))

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a file was opened")

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "iterdir", refuse)
    check_unchanged(info)
