"""From a few words in the configuration to the list of images, each with its labels."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from pipeline.archive import discover
from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.image import ImageSpec


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with scenes, labels and what lies about in real folders."""
    for name in (
        "scenes/b.tif",
        "scenes/a.tif",
        "scenes/a_label.tif",
        "scenes/deep/er/c.TIFF",
        "scenes/d.jp2",
        "scenes/notes.txt",
        "scenes/a.tif.aux.xml",
        "scenes/a.tif.msk",
        "scenes/.hidden.tif",
        "scenes/.cache/e.tif",
        "scenes/f.partial.tif",
        "scenes/g.tif.part",
        "out/masks/h.tif",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def found(place: Path, images: str | list[str], pattern: str | None = None, **archive: Any) -> list[ImageSpec]:
    sections = {"archive": {"images": images, **archive}, "truth": {"pattern": pattern}, "model": {"path": "model"}}
    return discover(Config.model_validate({"name": "test", "output": "out", **sections}).located(place))


def names(images: list[ImageSpec], place: Path) -> list[str]:
    return [str(Path(image.uri).relative_to(place)) for image in images]


def test_a_folder_gives_its_finished_visible_rasters_in_order(place: Path) -> None:
    images = found(place, "scenes", pattern="{dir}/{stem}_label.tif")
    assert names(images, place) == ["scenes/a.tif", "scenes/b.tif", "scenes/d.jp2", "scenes/deep/er/c.TIFF"]


def test_the_output_folder_is_no_archive(place: Path) -> None:
    assert "out/masks/h.tif" not in names(found(place, "."), place)
    assert "out/masks/h.tif" not in names(found(place, "**/*.tif"), place)


@pytest.mark.parametrize("entry", ["link", "link/**/*.tif", "link/*/*.tif"])
def test_the_output_in_an_archive_that_is_reached_by_a_link_is_no_part_of_it(place: Path, entry: str) -> None:
    (place / "all" / "scenes").mkdir(parents=True)
    (place / "all" / "scenes" / "a.tif").touch()
    (place / "out").rename(place / "all" / "out")
    (place / "all" / "out" / "h.tif").touch()
    (place / "link").symlink_to("all")
    settings = {"name": "test", "output": "all/out", "archive": {"images": entry}, "model": {"path": "model"}}
    assert names(discover(Config.model_validate(settings).located(place)), place) == ["link/scenes/a.tif"]


@pytest.mark.parametrize("entry", ["scenes", "scenes/**/*.tif", "scenes/*"])
def test_an_output_that_an_archive_has_a_link_to_is_no_part_of_it(place: Path, entry: str) -> None:
    before = found(place, entry)
    (place / "scenes" / "masks").symlink_to(place / "out")
    (place / "scenes" / "made.tif").symlink_to(place / "out" / "masks" / "h.tif")
    (place / "scenes" / "elsewhere.tif").symlink_to(place / "scenes" / "a.tif")
    (place / "out" / "masks" / "deep").mkdir()
    (place / "out" / "masks" / "deep" / "i.tif").touch()
    after = found(place, entry)
    assert sorted([*names(before, place), "scenes/elsewhere.tif"]) == names(after, place)


def test_what_runs_write_is_left_out_where_the_output_holds_the_archive(place: Path) -> None:
    (place / "runs").mkdir()
    (place / "runs" / "picture.png").touch()
    for output in (".", "here"):
        (place / "here").unlink(missing_ok=True)
        (place / "here").symlink_to(".")
        settings = {"name": "test", "output": output, "archive": {"images": "."}, "model": {"path": "model"}}
        images = names(discover(Config.model_validate(settings).located(place)), place)
        assert "scenes/a.tif" in images
        assert "runs/picture.png" not in images


def test_a_file_that_a_run_has_written_cannot_be_named(place: Path) -> None:
    (place / "link").symlink_to("out")
    for name in ("out/masks/h.tif", "link/masks/h.tif"):
        with pytest.raises(ConfigError, match=r"h\.tif lies in .*out, where runs keep what they make"):
            found(place, name)
    (place / "out" / "x.tif").touch()
    assert names(found(place, "out/x.tif"), place) == ["out/x.tif"]


def test_labels_come_by_pattern_and_only_where_they_are(place: Path) -> None:
    truth = {image.stem: image.truth for image in found(place, "scenes", pattern="{dir}/{stem}_label.tif")}
    assert truth == {"a": str(place / "scenes/a_label.tif"), "b": None, "c": None, "d": None}


@pytest.mark.parametrize("pattern", ["labels/{stem}.tif", "{dir}/../labels/{stem}.tif"])
def test_labels_in_a_folder_of_their_own_are_no_images_even_when_it_is_searched(place: Path, pattern: str) -> None:
    (place / "labels").mkdir()
    (place / "labels/a.tif").touch()

    images = found(place, ["labels", "scenes"], pattern=pattern)

    assert images[0] == ImageSpec(uri=str(place / "scenes/a.tif"), truth=str(place / "labels/a.tif"))
    assert "labels/a.tif" not in names(images, place)


def test_what_is_named_is_an_image_even_where_labels_lie(place: Path) -> None:
    assert names(found(place, "scenes/a_label.tif", pattern="{dir}/{stem}_label.tif"), place) == ["scenes/a_label.tif"]


def test_labels_of_a_manifest_are_no_images_of_a_folder(place: Path) -> None:
    (place / "list.csv").write_text("image,truth\nscenes/a.tif,scenes/b.tif\n")
    assert "scenes/b.tif" not in names(found(place, ["list.csv", "scenes"]), place)


def test_the_label_of_an_absent_image_is_no_image(place: Path) -> None:
    (place / "scenes/a.tif").unlink()
    assert "a_label" not in [image.stem for image in found(place, "scenes", pattern="{dir}/{stem}_label.tif")]
    assert "a_label" in [image.stem for image in found(place, "scenes")]


def test_an_unknown_placeholder_is_an_error(place: Path) -> None:
    with pytest.raises(ConfigError, match=r"has \{name\}: known are \{stem\}"):
        found(place, "scenes", pattern="labels/{name}.tif")


def test_a_glob_recurses_and_takes_only_rasters_where_the_suffix_is_open(place: Path) -> None:
    assert names(found(place, "scenes/*.tif", pattern="{dir}/{stem}_label.tif"), place) == ["scenes/a.tif", "scenes/b.tif"]
    assert names(found(place, "scenes/**/c*"), place) == ["scenes/deep/er/c.TIFF"]
    assert names(found(place, "scenes/*.txt"), place) == ["scenes/notes.txt"]
    assert "scenes/notes.txt" not in names(found(place, "scenes/*"), place)


def test_a_link_to_nothing_is_an_image_that_cannot_be_read_and_no_hole_in_the_archive(place: Path) -> None:
    (place / "scenes" / "lost.tif").symlink_to(place / "nowhere.tif")
    assert "scenes/lost.tif" in names(found(place, "scenes/*.tif"), place)
    assert "scenes/lost.tif" in names(found(place, "scenes"), place)


def test_one_file_and_lists_of_anything(place: Path) -> None:
    assert names(found(place, "scenes/b.tif"), place) == ["scenes/b.tif"]
    listed = found(place, ["scenes/b.tif", "scenes/deep", "scenes/*.jp2", "scenes/b.tif"])
    assert names(listed, place) == ["scenes/b.tif", "scenes/d.jp2", "scenes/deep/er/c.TIFF"]


@pytest.mark.parametrize("glob", ["b.*", "scenes/b.tif", "*/b.tif", "**/b.tif"])
def test_excluded_images_stay_out(place: Path, glob: str) -> None:
    left = names(found(place, "scenes", exclude=[glob]), place)
    assert "scenes/b.tif" not in left
    assert "scenes/a.tif" in left


def test_excluding_a_folder_excludes_all_below(place: Path) -> None:
    assert "scenes/deep/er/c.TIFF" not in names(found(place, "scenes", exclude=["scenes/deep/*"]), place)


def test_nothing_found_says_what_was_searched(place: Path) -> None:
    (place / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"no image in .*empty: there is nothing to segment.*\.tif"):
        found(place, "empty")
    with pytest.raises(ConfigError, match=r"4 were found and left out by archive\.exclude"):
        found(place, "scenes", pattern="{dir}/{stem}_label.tif", exclude=["*"])
    with pytest.raises(ConfigError, match="does not exist"):
        found(place, "nowhere")


def test_a_manifest_names_images_labels_groups_and_strata(place: Path) -> None:
    lines = [
        "image,truth,group,season,sensor",
        "scenes/b.tif,scenes/a_label.tif,north,dry,",
        f"{place}/scenes/a.tif,,north,wet,X",
        "gone.tif,gone_label.tif,,,",
    ]
    (place / "list.csv").write_text("\ufeff" + "\n".join(lines), encoding="utf-8")

    gone, a, b = found(place, "list.csv", pattern="{dir}/{stem}_label.tif")

    assert (b.truth, b.group, b.strata) == (str(place / "scenes/a_label.tif"), "north", {"season": "dry"})
    assert (a.truth, a.strata) == (None, {"season": "wet", "sensor": "X"})
    assert (gone.uri, gone.truth, gone.group) == (str(place / "gone.tif"), str(place / "gone_label.tif"), None)


def test_without_a_column_of_labels_the_pattern_speaks(place: Path) -> None:
    (place / "list.csv").write_text("image\nscenes/a.tif\n")
    assert found(place, "list.csv", pattern="{dir}/{stem}_label.tif")[0].truth == str(place / "scenes/a_label.tif")


def test_a_parquet_manifest_reads_like_a_csv(place: Path) -> None:
    table = {"image": ["scenes/b.tif", "scenes/a.tif"], "group": ["p1", None], "year": [2024, 2025]}
    parquet.write_table(pa.table(table), place / "list.parquet")
    a, b = found(place, "list.parquet")
    assert (a.stem, a.group, a.strata) == ("a", None, {"year": "2025"})
    assert (b.stem, b.group, b.strata) == ("b", "p1", {"year": "2024"})


def test_addresses_in_a_manifest_stay_for_the_reader_to_refuse(place: Path) -> None:
    (place / "list.csv").write_text("image\nhttps://example.org/a.tif\n/vsicurl/x.tif\n")
    assert [image.uri for image in found(place, "list.csv")] == ["/vsicurl/x.tif", "https://example.org/a.tif"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("path,group\na.tif,x\n", r"no column `image`; it has path, group"),
        ("image\na.tif\nb.tif\n./a.tif\n", r"line 4: .*a\.tif stands on line 2 already"),
        ("image,group\na.tif,x\n,y\n", r"line 3: names no image"),
        ("image,group\na.tif,x,y\n", r"line 2: has more cells"),
        ("image,mpp\na.tif,0\n", r"line 2: mpp_x 0, mpp_y 0 are not two sizes"),
        ("image,mpp_x,mpp_y\na.tif,inf,1\n", r"line 2: mpp_x inf, mpp_y 1 are not two sizes"),
        ("image\n", r"has no line below its columns image"),
        ("", r"no column `image`; it has none"),
    ],
)
def test_a_manifest_that_cannot_be_meant_is_refused_with_its_line(place: Path, text: str, error: str) -> None:
    (place / "list.csv").write_text(text)
    with pytest.raises(ConfigError, match=error):
        found(place, "list.csv")


def test_a_name_that_is_no_text_is_refused_before_it_is_written_anywhere(place: Path) -> None:
    os.close(os.open(os.fsencode(place / "scenes") + b"/caf\xe9.tif", os.O_CREAT | os.O_WRONLY))
    with pytest.raises(ConfigError, match=r"caf\\xe9.tif' is not UTF-8"):
        found(place, "scenes")


def test_a_manifest_that_is_no_table_is_refused(place: Path) -> None:
    (place / "list.parquet").write_bytes(b"no parquet")
    with pytest.raises(ConfigError, match=r"list\.parquet cannot be read"):
        found(place, "list.parquet")
    with pytest.raises(ConfigError, match=r"list\.csv cannot be read"):
        found(place, "list.csv")


def test_what_a_manifest_says_of_an_image_wins_where_it_stands_first(place: Path) -> None:
    (place / "list.csv").write_text("image,group\nscenes/a.tif,north\n")
    assert found(place, ["list.csv", "scenes"])[0].group == "north"
