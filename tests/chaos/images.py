"""Images that are damaged, unreadable, or not the same at the end of a run as at its beginning."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray

from pipeline import mosaic
from pipeline.grid import Window
from pipeline.report.contract import ImageResult
from tests.chaos.ground import SCENES, THRESHOLDS, Ground, labels_of, scene, write_tiff
from tests.chaos.rows import Row, finish
from tests.chaos.runs import Ended, Reference, Trial
from tests.conftest import write_mask

FAILED = 254


def more_scenes(ground: Ground, folder: str, numbers: dict[str, int], *, like: str = "e") -> dict[str, Path]:
    """Further scenes with labels, beside those of the reference; name -> image."""
    (ground.folder / folder).mkdir()
    made = {}
    for name, number in numbers.items():
        samples = scene(number, SCENES[like], seed=11)
        made[name] = write_tiff(ground.folder / folder / f"{name}.tif", samples)
        write_tiff(ground.folder / "labels" / f"{name}.tif", labels_of(samples, 11)[None])
    return made


def classes(path: Path) -> NDArray[np.uint8]:
    """What an undisturbed mask of an image holds: its model looks at nothing but the pixel."""
    with rasterio.open(path) as file:
        return np.digitize(file.read(1), THRESHOLDS).astype(np.uint8)


def mask_of(trial: Trial, image: ImageResult) -> NDArray[Any] | None:
    """The published mask of an image; None where there is none."""
    if image.mask is None:
        return None
    return mosaic.read(trial.output / image.mask, Window(0, 0, image.height, image.width))


def image_of(ended: Ended, stem: str) -> ImageResult | None:
    """What a run says of an image."""
    return next((image for image in ended.report.images if Path(image.uri).stem == stem), None)


def tile_place(path: Path, block_row: int, block_col: int) -> tuple[int, int]:
    """(offset, length) of the bytes of one tile of a TIFF."""
    with rasterio.open(path) as file:
        tags = [file.get_tag_item(f"BLOCK_{what}_{block_col}_{block_row}", "TIFF", bidx=1) for what in ("OFFSET", "SIZE")]
    offset, size = (int(tag) for tag in tags)
    return offset, size


def damaged(ground: Ground, reference: Reference) -> list[Row]:
    """Files that are cut off, have a corrupt tile, or are none at all, all in one run beside good ones."""
    numbers = {"cut": 11, "tile": 12, "text": 13, "link": 14, "directory": 15}
    made = more_scenes(ground, "damaged", numbers, like="a")
    whole = {name: classes(path) for name, path in made.items()}
    content = made["cut"].read_bytes()
    made["cut"].write_bytes(content[: len(content) * 6 // 10])
    offset, size = tile_place(made["tile"], 4, 5)
    content = made["tile"].read_bytes()
    made["tile"].write_bytes(content[: offset + size // 4] + b"\xa5" * (size // 2) + content[offset + size // 4 + size // 2 :])
    made["text"].write_text("this is not an image\n")
    for name in ("link", "directory"):
        made[name].unlink()
    made["link"].symlink_to(made["link"].with_name("nowhere.tif"))
    made["directory"].mkdir()
    named = ground.folder / "damaged.csv"
    named.write_text("image\n" + "".join(f"{path}\n" for path in made.values()))
    trial = Trial(ground, "damaged-out", sections={"archive": {"images": ["scenes/*.tif", str(named)]}})
    ended = trial.run(seconds=0)
    how = {
        "cut": ("truncated image", "a TIFF of which the last 40 % are missing"),
        "tile": ("corrupt tile", "half of the bytes of one deflated tile of a TIFF overwritten"),
        "text": ("unreadable image", "a text that is named .tif"),
        "link": ("unreadable image", "a link to a file that does not exist"),
        "directory": ("unreadable image", "a folder that is named .tif"),
    }
    rows = []
    for name, (fault, caused) in how.items():
        row = Row(fault, caused, times=1)
        rows.append(row)
        row.ended(ended, 1)
        if ended.code != 1:
            continue
        image = image_of(ended, name)
        if image is None:
            row.problems.append("the report does not name it")
            continue
        row.said = (image.error or "").splitlines()[0] if image.error else ""
        row.expect(bool(image.error), "no cause is given")
        _held(row, trial, image, whole[name])
        if name == "tile":
            row.expect(image.state == "partial", f"state {image.state}")
            row.expect(0 < image.failed_px <= 3 * 96 * 96, f"one tile of 64 x 64 px costs {image.failed_px} px")
        finish(row, trial, reference, ended.report)
        if row.good:
            row.equal = "yes, of all others; " + (
                "254 where it could not be read, the rest right" if image.mask else "no mask of it"
            )
    return rows


def _held(row: Row, trial: Trial, image: ImageResult, whole: NDArray[np.uint8]) -> None:
    """The mask of a damaged image must be right or failed everywhere, and each labelled pixel that failed a miss."""
    mask = mask_of(trial, image)
    row.expect(image.state in ("partial", "failed"), f"state {image.state}")
    if mask is not None:
        wrong = int(((mask != whole) & (mask != FAILED)).sum())
        row.expect(not wrong, f"{wrong} px are neither right nor failed")
        row.expect(int((mask == FAILED).sum()) == image.failed_px, f"{image.failed_px} px failed, as the report says")
    matrix = image.matrix
    if matrix is None:
        row.problems.append(f"it is not scored: {image.truth_error}")
        return
    missed = int(matrix[:, len(THRESHOLDS) + 1].sum())
    expected = whole.size if mask is None else int((mask == FAILED).sum())
    row.expect(int(matrix.sum()) == whole.size, f"{matrix.sum()} of {whole.size} px are scored")
    row.expect(missed == expected, f"{missed} labelled px are misses, {expected} failed")


def changed(ground: Ground, reference: Reference) -> list[Row]:
    """Images that are replaced, or vanish, while their blocks run; two workers."""
    made = more_scenes(ground, "moving", {"replaced": 21, "vanished": 22}, like="b")
    other = write_tiff(ground.folder / "other.tif", scene(23, SCENES["b"], seed=12))
    trial = Trial(ground, "moving-out", 2, {"archive": {"images": ["scenes/*.tif", "moving/*.tif"]}})
    trouble = {
        "replace": {"at": (21, 264, 264), "marker": trial.marker("replace"), "times": 1, "by": str(other)},
        "vanish": {"at": (22, 264, 264), "marker": trial.marker("vanish"), "times": 1},
    }
    trouble["replace"]["image"], trouble["vanish"]["image"] = str(made["replaced"]), str(made["vanished"])
    ended = trial.run(trouble)
    rows = []
    for name, words in (("replaced", "is not the file that was planned"), ("vanished", "has vanished since it was planned")):
        row = Row(
            f"an image is {name}" if name == "replaced" else "an image vanishes", "while its blocks run, 2 workers", times=1
        )
        rows.append(row)
        row.ended(ended, 1)
        image = image_of(ended, name) if ended.code == 1 else None
        if image is None:
            row.problems.append("the report does not name it")
            continue
        row.expect(image.state == "failed" and words in (image.error or ""), f"{image.state}: {image.error}")
        row.expect(image.mask is None, "a mask of it is published")
        row.said = words
        finish(row, trial, reference, ended.report)
    again = trial.run()
    for row, name in zip(rows, ("replaced", "vanished"), strict=True):
        row.ended(again, 0)
        row.said = "… " + {"replaced": "is not the file that was planned", "vanished": "has vanished since it was planned"}[name]
        if again.code != 0:
            continue
        image = image_of(again, name)
        if name == "vanished":
            gone = again.report.changes.vanished if again.report.changes else []
            row.expect(image is None and any("vanished.tif" in uri for uri in gone), f"the next report does not tell: {gone}")
            continue
        mask = None if image is None else mask_of(trial, image)
        row.expect(mask is not None and bool((mask == classes(made["replaced"])).all()), "its new mask is wrong")
        if row.good:
            row.equal = "yes, and its own next mask is right"
    return rows


def sidecars(ground: Ground, reference: Reference) -> list[Row]:
    """Masks beside images (.msk) that are rewritten: one between two runs, one while the blocks of its image run."""
    made = more_scenes(ground, "masked", {"between": 31, "during": 32}, like="b")
    rows, cols = np.indices(SCENES["b"])
    before, after = (rows + cols) % 90 > 20, (rows + 2 * cols) % 90 > 20
    for path in made.values():
        write_mask(path, before)
    other = write_mask(ground.folder / "other.tif", after)
    trial = Trial(ground, "masked-out", 2, {"archive": {"images": ["scenes/*.tif", "masked/*.tif"]}})
    sidecar = {name: Path(f"{path}.msk") for name, path in made.items()}
    swap = {
        "at": (32, 264, 264),
        "marker": trial.marker("replace"),
        "times": 1,
        "by": str(other),
        "image": str(sidecar["during"]),
    }
    first = trial.run({"replace": swap})
    between = Row("a mask beside an image is rewritten", "between two runs: .msk, as long as before, an hour older", times=1)
    during = Row("a mask beside an image is rewritten", "while the image's blocks run, 2 workers: .msk", times=1)
    during.ended(first, 1)
    if first.code != 1:
        return [between, during]
    image = image_of(first, "during")
    during.said = "… which belongs to during.tif, is not the file that was planned"
    refused = image is not None and image.mask is None and "belongs to during.tif" in (image.error or "")
    during.expect(refused, f"{image}")
    finish(during, trial, reference, first.report)

    size, moment = sidecar["between"].stat().st_size, sidecar["between"].stat().st_mtime_ns - 3600 * 10**9
    write_mask(made["between"], after)
    content = sidecar["between"].read_bytes()
    sidecar["between"].write_bytes(content + b"\0" * max(0, size - len(content)))
    os.utime(sidecar["between"], ns=(moment, moment))
    between.expect(sidecar["between"].stat().st_size == size, "the mask has another size")
    start = trial.log.stat().st_size
    second = trial.run()
    for row, name in ((between, "between"), (during, "during")):
        row.expect(second.code == 0, f"exit code {second.code}: {second.err[-1500:]}")
        image = image_of(second, name) if second.code == 0 else None
        found = None if image is None else mask_of(trial, image)
        right = np.where(after, classes(made[name]), np.uint8(255))
        row.expect(found is not None and bool((found == right).all()), "its next mask is not that of its new sidecar")
    begun = trial.begun(reference, start)
    between.expect(not begun, f"blocks of other images were predicted again: {begun}")
    changes = second.report.changes if second.code == 0 else None
    told = [] if changes is None else sorted(Path(uri).stem for uri in changes.changed)
    between.expect("between" in told, f"reported as changed: {told}")
    between.said = "reported as changed, and only it was made again"
    if second.code == 0:
        finish(between, trial, reference, second.report)
    for row in (between, during):
        if row.good:
            row.equal = "yes, and its own next mask is right"
    return [between, during]
