"""The label mosaic of one image: a Zarr v3 group that xarray, rioxarray and the OME viewers open alike. See docs/store.md."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from math import ceil
from pathlib import Path
from secrets import token_hex
from typing import Any, cast

import google_crc32c
import numpy as np
import zarr
from numcodecs.zstd import Zstd
from numpy.typing import NDArray
from pydantic_core import to_json
from zarr.abc.buffer import Buffer
from zarr.codecs import ZstdCodec
from zarr.storage import MemoryStore

from pipeline import __version__
from pipeline.alignment import MaskFacts
from pipeline.codes import mask_codes
from pipeline.errors import OutputError, StoreError
from pipeline.grid import Window, blocks
from pipeline.image import WorkingGrid
from pipeline.plan import Plan
from pipeline.records import ShardRecord

Labels = NDArray[np.unsignedinteger]
SMALLEST_LEVEL_PX = 1024
"""The pyramid ends at the first level whose longer side is not above this."""
SMALLEST_SHARD, TOP_SHARD, TOP_CHUNK = 128, 4096, 512
"""Sides in px: the smallest shard that is worth a file, and shards and chunks of levels that mix blocks."""
DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO})
"""What the system says where a disk is full, over quota, read-only, not ours or broken."""
NO_DATA_NAME, FAILED_NAME = "no data", "failed"
DRAFT = ".draft"
"""Ending of files and folders that are being made, or removed."""
SHARED_DISK = (
    "The output folder must be the same disk for the driver and all workers, and no other program may change files in it"
)
"""What to look at if files of workers are missing."""
SETTLE_SECONDS = 5.0
"""How long a network file system may take to show what another host has written."""
_CONVENTIONS = {
    "proj:": "f17cb550-5864-4468-aeb7-f3180cfb622f",
    "spatial:": "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4",
    "multiscales": "d35379db-88df-4056-af3a-620245f8e347",
}
"""Registered ids of the Zarr conventions that georeferenced mosaics follow."""


def create(path: Path, plan: Plan) -> None:
    """Lay out an empty mosaic for `plan` at `path`, which must not exist."""
    if path.exists():
        raise StoreError(f"{path} exists: a mosaic is never written over. Remove it, or choose another output")
    draft = draft_of(path)
    with writing(path):
        _lay_out(draft, plan)
        draft.rename(path)


def draft_of(path: Path) -> Path:
    """A new name beside the mosaic at `path` that nobody else writes to; `sweep` removes what was left under such names."""
    return path.with_name(f".{path.name.lstrip('.')}.{token_hex(8)}{DRAFT}")


def sweep(final: Path) -> None:
    """Remove the drafts that interrupted or lost writers of the mosaic at `final` have left."""
    for draft in final.parent.glob(f".{final.name}.*{DRAFT}"):
        if draft.is_dir():
            shutil.rmtree(draft, ignore_errors=True)
        else:
            draft.unlink(missing_ok=True)


def laid_out(path: Path, plan: Plan) -> bool:
    """Whether the unfinished mosaic at `path` is one of `plan`, with every document and coordinate that `create` writes.

    Texts of coordinate systems are not compared: one system has several.
    """
    files = [f"{name}/c.0" for name in _centres(plan.grid)]
    try:
        _, digest = facts(path)
        found = {name: json.loads((path / name / "zarr.json").read_bytes()) for name in documents(plan)}
        arrays = {name: document for name, document in documents(plan).items() if document["node_type"] == "array"}
        same = all(list(found[name]["shape"]) == list(document["shape"]) for name, document in arrays.items())
        return digest == plan.digest and same and all((path / file).is_file() for file in files)
    except (OSError, StoreError, ValueError, KeyError, TypeError):
        return False


def _lay_out(path: Path, plan: Plan) -> None:
    """Write the documents of an empty mosaic: each once and whole, where zarr takes a round trip for every attribute."""
    root = str(path)
    for name, document in documents(plan).items():
        folder = f"{root}/{name}" if name else root
        os.mkdir(folder)  # noqa: PTH102
        _put(f"{folder}/zarr.json", to_json(document, indent=2))
    for name, centres in _centres(plan.grid).items():
        _put(f"{root}/{name}/c.0", centres.tobytes())


def _put(path: str, content: bytes) -> None:
    """Make a file. Without pathlib: of a small image this is a large part."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        while content:
            content = content[os.write(file, content) :]
    finally:
        os.close(file)


def documents(plan: Plan) -> dict[str, dict[str, Any]]:
    """`zarr.json` of each group and array of the mosaic for `plan`, by path inside the store, parents first."""
    grid, codes = plan.grid, mask_codes(plan.classes)
    labels = [c.name for c in plan.card.classes]
    found = {"": _group(_attributes(plan))}
    for level in range(levels(grid.height, grid.width)):
        found[str(level)] = _group({})
        shape = level_shape(grid, level)
        classes = {
            "grid_mapping": "spatial_ref",
            "coordinates": "spatial_ref",
            **({"_CRS": {"wkt": grid.crs_wkt}} if grid.crs_wkt else {}),
            "flag_values": [*range(len(labels)), codes.failed, codes.no_data],
            "flag_meanings": " ".join(name.replace(" ", "_") for name in [*labels, FAILED_NAME, NO_DATA_NAME]),
            "nodata": codes.no_data,
            "long_name": "class",
        }
        found[f"{level}/mask"] = _raster(tiling(plan, level), shape, codes.dtype, codes.no_data, classes)
        if level == 0 and plan.store_confidence:
            share = {"grid_mapping": "spatial_ref", "long_name": "probability of the winning class x 255"}
            found["0/confidence"] = _raster(tiling(plan, 0), shape, "uint8", 0, share)
        found |= {f"{level}/{name}": document for name, document in _georeference(grid, level).items()}
    return found


def write_block(
    path: Path, plan: Plan, core: Window, labels: Labels, confidence: NDArray[np.uint8] | None = None
) -> tuple[ShardRecord, ...]:
    """Write the labels of one block and commit them: `draft_block` and `commit_block` in one step, for the driver itself."""
    shards, token = draft_block(path, plan, core, labels, confidence)
    commit_block(path, plan, core, shards, token)
    return shards


def draft_block(
    path: Path, plan: Plan, core: Window, labels: Labels, confidence: NDArray[np.uint8] | None = None
) -> tuple[tuple[ShardRecord, ...], str]:
    """Write the shards of one block as drafts: its labels, and its part of every coarser level whose shards do not reach beyond
    the block.

    Returns (the shards, the token in their drafts' names). A shard of nothing but fill is no file. Nobody sees a draft until
    `commit_block` renames it, which only the driver does: a worker that was given up and still writes changes nothing.
    OutputError if the disk takes no more, StoreError if the mosaic is gone.
    """
    token = token_hex(8)
    written: list[ShardRecord | None] = []
    if confidence is not None:
        written.append(draft_shard(path, plan, 0, core, confidence, "confidence", token))
    written.append(draft_shard(path, plan, 0, core, labels, "mask", token))
    written += draft_levels(path, plan, core, labels, token)
    return tuple(shard for shard in written if shard is not None), token


def draft_levels(path: Path, plan: Plan, core: Window, labels: Labels, token: str) -> list[ShardRecord | None]:
    """Write the drafts of the block's part of each coarser level; None in place of a shard of nothing but fill."""
    written: list[ShardRecord | None] = []
    for level in range(1, own_levels(plan)):
        labels = halve(labels, plan.classes)
        part = Window(core.row >> level, core.col >> level, *labels.shape)
        written.append(draft_shard(path, plan, level, part, labels, "mask", token))
    return written


def commit_block(path: Path, plan: Plan, core: Window, shards: tuple[ShardRecord, ...], token: str) -> None:
    """Make the drafts of a block its shards, in place of those of an earlier attempt.

    StoreError if a draft is not in this very mosaic: its worker wrote to another one, or to a disk that is not shared.
    """
    written = {shard.path for shard in shards}
    with writing(path):
        for name in own_files(plan, core):
            target = path / name
            if name not in written:
                target.unlink(missing_ok=True)
                continue
            try:
                _draft_name(target, token).rename(target)
            except FileNotFoundError as e:
                raise StoreError(
                    f"{target} was written by a worker and is not there: publishing would leave a hole. {SHARED_DISK}"
                ) from e


def own_files(plan: Plan, core: Window) -> list[str]:
    """The files of the block at `core`, by path inside the mosaic; those that would hold nothing but fill included."""
    names = [shard_name(plan, 0, core, "confidence")] if plan.store_confidence else []
    for level in range(own_levels(plan)):
        names.append(shard_name(plan, level, Window(core.row >> level, core.col >> level, 1, 1)))
    return names


def shard_name(plan: Plan, level: int, part: Window, name: str = "mask") -> str:
    """The file of the shard that `part` of a level begins in, by path inside the mosaic."""
    shard, _ = tiling(plan, level)
    return f"{level}/{name}/c/{part.row // shard[0]}/{part.col // shard[1]}"


def _draft_name(target: Path, token: str) -> Path:
    return target.with_name(f"{target.name}.{token}.partial")


def draft_shard(path: Path, plan: Plan, level: int, part: Window, values: Labels, name: str, token: str) -> ShardRecord | None:
    """Write the draft of one shard; None if it would hold nothing but fill."""
    shard, chunk = tiling(plan, level)
    content = shard_bytes(values, shard, chunk, mask_codes(plan.classes).no_data if name == "mask" else 0)
    if content is None:
        return None
    place = shard_name(plan, level, part, name)
    target = path / place
    draft = _draft_name(target, token)
    with writing(path):
        try:
            # not the parents of these: a mosaic that was published or removed meanwhile must not reappear
            for folder in (target.parent.parent, target.parent):
                folder.mkdir(exist_ok=True)
            draft.write_bytes(content)
        except FileNotFoundError as e:
            raise StoreError(f"{path} has no array {level}/{name} to write to: the unfinished mosaic was moved or removed") from e
        except OSError:
            draft.unlink(missing_ok=True)
            raise
    return ShardRecord(path=place, size=len(content), crc32c=google_crc32c.value(content))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what says that the disk under `path` takes no more into OutputError: it concerns the run, not one block."""
    try:
        yield
    except OSError as e:
        if e.errno in DISK_ERRORS:
            raise OutputError(
                f"{path.parent} takes no more ({e.strerror}): what is finished is kept, and nothing half written is taken for "
                "finished. Make room, or the folder writable, then run the same command again to go on"
            ) from e
        raise


def intact(path: Path, shards: Iterable[ShardRecord], *, deep: bool = True) -> bool:
    """Whether the files are there as they were written: by size, and `deep` also by their checksums."""
    for shard in shards:
        file = path / shard.path
        try:
            if file.stat().st_size != shard.size or (deep and google_crc32c.value(file.read_bytes()) != shard.crc32c):
                return False
        except OSError:
            return False
    return True


def check_complete(path: Path, shards: Iterable[ShardRecord]) -> None:
    """StoreError unless the mosaic at `path` has every file of `shards` with its size.

    Network file systems remember for a while that a name was not there: a folder is listed again, for a few seconds, before a
    file counts as missing.
    """
    deadline = time.monotonic() + SETTLE_SECONDS
    for shard in shards:
        file = path / shard.path
        while (found := _size(file)) != shard.size:
            if time.monotonic() > deadline or not path.is_dir():
                what = "is missing" if found is None else f"has {found:,} bytes"
                raise StoreError(
                    f"{file} {what}, its record says {shard.size:,} bytes: the mask would have a hole and is not published. "
                    f"{SHARED_DISK}"
                )
            time.sleep(0.2)
            with suppress(OSError):
                next(file.parent.iterdir(), None)


def _size(file: Path) -> int | None:
    try:
        return file.stat().st_size
    except OSError:
        return None


def shard_bytes(values: Labels, shard: tuple[int, int], chunk: tuple[int, int], fill: int) -> bytes | None:
    """A shard (Zarr v3, `sharding_indexed`) of `values`, whose missing rows and columns are `fill`; None where all is `fill`.

        | chunk | chunk | ... | index: offset and length of each chunk, all ones where it is `fill` | CRC-32C of the index |

    zarr writes the same, after opening the array and chunk by chunk: five times as long for a small one, twice for a large one.
    """
    encode = Zstd(level=3).encode
    index = np.full((ceil(shard[0] / chunk[0]), ceil(shard[1] / chunk[1]), 2), 2**64 - 1, "<u8")
    chunks: list[bytes] = []
    size = 0
    for row, col in np.ndindex(*index.shape[:2]):
        part = values[row * chunk[0] : (row + 1) * chunk[0], col * chunk[1] : (col + 1) * chunk[1]]
        if not (part != fill).any():
            continue
        if part.shape != chunk:
            whole = np.full(chunk, fill, values.dtype)
            whole[: part.shape[0], : part.shape[1]] = part
            part = whole
        chunks.append(encode(np.ascontiguousarray(part, values.dtype.newbyteorder("<"))))
        index[row, col] = size, len(chunks[-1])
        size += len(chunks[-1])
    end = index.tobytes()
    return b"".join([*chunks, end, google_crc32c.value(end).to_bytes(4, "little")]) if chunks else None


def read(path: Path, window: Window, level: int = 0, name: str = "mask") -> Labels:
    """The labels in `window` of `level`."""
    return cast(Labels, _open(path, f"{level}/{name}")[window.slices])


def facts(path: Path) -> tuple[MaskFacts, str]:
    """What the mosaic at `path` says of itself, and its plan's digest; StoreError where it is none of ours."""
    try:
        own = cast(dict[str, Any], dict(zarr.open_group(path, mode="r").attrs)["gigamask"])
        return MaskFacts.model_validate(own["mask"]), str(own["plan_digest"])
    except (OSError, KeyError, ValueError, TypeError) as e:
        raise StoreError(
            f"{path} is no gigamask mosaic ({type(e).__name__}: {e}): give a folder that `gigamask segment` made"
        ) from e


def build_pyramid(path: Path, plan: Plan) -> tuple[tuple[ShardRecord, ...], Path] | None:
    """Compute the levels that no block could write, each from the one below, shard by shard, in a folder beside the mosaic.

    Returns (the shards, the folder) for `commit_pyramid`; None if every level consists of whole blocks' shards.
    """
    own, count = own_levels(plan), levels(*plan.grid.shape)
    if own == count:
        return None
    draft = draft_of(path)
    shards: list[ShardRecord] = []
    with writing(path):
        draft.mkdir()
    documented = documents(plan)
    for level in range(own, count):
        name = f"{level}/mask"
        with writing(path):
            (draft / name).mkdir(parents=True)
            _put(str(draft / name / "zarr.json"), to_json(documented[name], indent=2))
        below = _open(path if level == own else draft, f"{level - 1}/mask")
        shard, chunk = tiling(plan, level)
        for block in blocks(*level_shape(plan.grid, level), *shard):
            core = block.core
            labels = np.empty(core.shape, mask_codes(plan.classes).dtype)
            for top in range(0, core.height, chunk[0]):
                rows = min(chunk[0], core.height - top)
                window = Window(2 * (core.row + top), 2 * core.col, 2 * rows, 2 * core.width).clip(*below.shape)
                labels[top : top + rows] = halve(cast(Labels, below[window.slices]), plan.classes)
            content = shard_bytes(labels, shard, chunk, mask_codes(plan.classes).no_data)
            if content is not None:
                place = shard_name(plan, level, core)
                with writing(path):
                    (draft / place).parent.mkdir(parents=True, exist_ok=True)
                    _put(str(draft / place), content)
                shards.append(ShardRecord(path=place, size=len(content), crc32c=google_crc32c.value(content)))
    return tuple(shards), draft


def finish_pyramid(path: Path, plan: Plan) -> tuple[ShardRecord, ...]:
    """Build the pyramid and commit it in one step, for the only writer of a mosaic; returns the files of its coarser levels."""
    built = build_pyramid(path, plan)
    if built is None:
        return ()
    commit_pyramid(path, plan, built[1])
    return built[0]


def commit_pyramid(path: Path, plan: Plan, draft: Path) -> None:
    """Make the levels in `draft` those of the mosaic, in place of what an earlier attempt has left."""
    with writing(path):
        for level in range(own_levels(plan), levels(*plan.grid.shape)):
            target, made = path / str(level) / "mask" / "c", draft / str(level) / "mask" / "c"
            if target.exists():
                target.rename(draft / f"replaced-{level}")
            if made.is_dir():
                made.rename(target)
    remove(draft)


def halve(labels: Labels, classes: int) -> Labels:
    """Labels (h, w) at half the resolution, (ceil(h / 2), ceil(w / 2)): the commonest class of each 2 x 2 pixels.

    Only classes vote, ties go to the lowest code; without any class the answer is failed before no data. An odd last row
    or column votes alone.
    """
    from pipeline import kernels

    out = np.empty((ceil(labels.shape[0] / 2), ceil(labels.shape[1] / 2)), labels.dtype)
    kernels.halve(labels, mask_codes(classes).failed, out)
    return out


def tiling(plan: Plan, level: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """(shard shape, chunk shape) of a level, (height, width) each, in its own px.

    As long as the block's sides can be halved, a shard holds what one block becomes: the block's writer writes it, and nobody
    reads level 0 again.
    """
    if level < own_levels(plan):
        sides = [_own_side(*axis, level) for axis in zip(plan.grid.shape, plan.block_shape, plan.chunk_shape, strict=True)]
    else:
        sides = [(TOP_SHARD, TOP_CHUNK)] * 2
    (height, chunk_height), (width, chunk_width) = (side or (TOP_SHARD, TOP_CHUNK) for side in sides)
    return (height, width), (chunk_height, chunk_width)


def own_levels(plan: Plan) -> int:
    """How many levels, the full resolution included, consist of whole shards that each have one block for a source."""
    count, axes = levels(*plan.grid.shape), list(zip(plan.grid.shape, plan.block_shape, plan.chunk_shape, strict=True))
    return next((level for level in range(1, count) if any(_own_side(*axis, level) is None for axis in axes)), count)


def _own_side(length: int, block: int, chunk: int, level: int) -> tuple[int, int] | None:
    """(shard, chunk) side of a level along an axis of `length` px in blocks of `block`; None where a shard would mix blocks."""
    if level == 0 or length <= block:
        return min(block, ceil(ceil(length / 2**level) / chunk) * chunk), chunk
    side = block >> level
    if side << level != block or side < SMALLEST_SHARD:
        return None
    fitting = [part for part in range(SMALLEST_SHARD, min(side, SMALLEST_LEVEL_PX) + 1) if side % part == 0]
    return side, min(fitting, key=lambda part: abs(part - TOP_CHUNK), default=side)


def publish(work: Path, final: Path, *, private: bool = False) -> None:
    """Make the finished mosaic at `work` appear at `final` by one rename; readers see all of it or nothing.

    A published mosaic stays, unless it was set aside for this one. `private`: one writer alone has made `work`, so that there
    are no drafts of others to remove from it.
    """
    if final.exists():
        raise StoreError(f"{final} exists already: a published mosaic is never replaced. Remove it first")
    for torn in () if private else work.rglob("*.partial"):
        torn.unlink()
    with writing(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        work.rename(final)
    remove(replaced(final))


def set_aside(final: Path) -> None:
    """Make way for a mosaic that knows better than the one at `final`, which is removed when that is published."""
    old = replaced(final)
    remove(old)
    with writing(final):
        final.rename(old)


def replaced(final: Path) -> Path:
    """Where the mosaic at `final` waits for its end while another one takes its place; a kill just then leaves it there."""
    return final.with_name(f".{final.name}.old")


def take_over(old: Path, new: Path, shards: Iterable[ShardRecord]) -> None:
    """Copy files of the mosaic at `old` into the one at `new`."""
    with writing(new):
        for shard in shards:
            target = new / shard.path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(old / shard.path, target)


def remove(path: Path) -> None:
    """Delete a mosaic, or a folder of one; nothing happens where there is none.

    It is renamed first: whoever still writes to it fails at once, and a kill halfway leaves nothing that looks like a mosaic.
    """
    trash = draft_of(path)
    try:
        path.rename(trash)
    except OSError:
        trash = path
    shutil.rmtree(trash, ignore_errors=True)


def levels(height: int, width: int) -> int:
    """Number of pyramid levels, the full resolution included."""
    count = 1
    while ceil(max(height, width) / 2 ** (count - 1)) > SMALLEST_LEVEL_PX:
        count += 1
    return count


def level_shape(grid: WorkingGrid, level: int) -> tuple[int, int]:
    """(height, width) of a level: halved and rounded up, level by level."""
    return ceil(grid.height / 2**level), ceil(grid.width / 2**level)


def _open(path: Path, name: str) -> zarr.Array[Any]:
    try:
        return zarr.open_array(path, path=name, mode="r+", zarr_format=3)
    except (OSError, KeyError, ValueError) as e:
        raise StoreError(f"{path} has no readable array {name!r} ({type(e).__name__}: {e})") from e


def _group(attributes: dict[str, Any]) -> dict[str, Any]:
    return {"attributes": attributes, "zarr_format": 3, "node_type": "group"}


def _raster(
    tiling: tuple[tuple[int, int], tuple[int, int]], shape: tuple[int, int], dtype: str, fill: int, attributes: dict[str, Any]
) -> dict[str, Any]:
    """The document of a sharded array of pixels."""
    shard, chunk = tiling
    document = _array(dtype, ("y", "x"), shape, attributes, sharded=True)
    document["chunk_grid"]["configuration"]["chunk_shape"] = shard
    document["codecs"][0]["configuration"]["chunk_shape"] = chunk
    document["fill_value"] = fill
    return document


def _array(
    dtype: str, names: tuple[str, ...], shape: tuple[int, ...], attributes: dict[str, Any], *, sharded: bool = False
) -> dict[str, Any]:
    """The document of an array: as zarr writes it, with this shape, in one chunk."""
    document: dict[str, Any] = json.loads(_template(dtype, names, sharded=sharded))
    document["chunk_grid"]["configuration"]["chunk_shape"] = shape
    return document | {"shape": shape, "attributes": attributes}


@lru_cache
def _template(dtype: str, names: tuple[str, ...], *, sharded: bool) -> bytes:
    """zarr's own document of a small array of such a kind."""
    side = (2,) * len(names)
    store: dict[str, Buffer] = {}
    zarr.create_array(
        MemoryStore(store),
        shape=side,
        dtype=dtype,
        chunks=side,
        shards=side if sharded else None,
        fill_value=0,
        chunk_key_encoding={"name": "default", "separator": "/" if sharded else "."},  # coordinates lie in one file each
        compressors=ZstdCodec(level=3) if sharded else None,
        dimension_names=names,
    )
    return store["zarr.json"].to_bytes()


def _georeference(grid: WorkingGrid, level: int) -> dict[str, dict[str, Any]]:
    """The documents of `spatial_ref`, and of `y` and `x` where rows and columns follow the axes of the CRS."""
    attributes: dict[str, Any] = {}
    if grid.crs_wkt:
        attributes |= {"crs_wkt": grid.crs_wkt, "spatial_ref": grid.crs_wkt}
    if grid.transform is not None:
        a, b, c, d, e, f = _level_transform(grid.transform, level)
        attributes["GeoTransform"] = f"{c!r} {a!r} {b!r} {f!r} {d!r} {e!r}"
    found = {"spatial_ref": _array("int64", (), (), attributes)}
    if _north_up(grid):
        for name, count in zip(("y", "x"), level_shape(grid, level), strict=True):
            axis = {"axis": name.upper(), "standard_name": f"projection_{name}_coordinate"}
            found[name] = _array("float64", (name,), (count,), axis)
    return found


def _centres(grid: WorkingGrid) -> dict[str, NDArray[np.float64]]:
    """The coordinates of the pixel centres of each `y` and `x`, by their path inside the store."""
    found: dict[str, NDArray[np.float64]] = {}
    if grid.transform is None or not _north_up(grid):
        return found
    for level in range(levels(grid.height, grid.width)):
        a, _, c, _, e, f = _level_transform(grid.transform, level)
        height, width = level_shape(grid, level)
        for name, first, step, count in (("y", f, e, height), ("x", c, a, width)):
            found[f"{level}/{name}"] = (first + step * (np.arange(count) + 0.5)).astype("<f8")
    return found


def _north_up(grid: WorkingGrid) -> bool:
    """Whether rows and columns follow the axes of the CRS."""
    return grid.transform is not None and grid.transform[1] == grid.transform[3] == 0


def _level_transform(
    transform: tuple[float, float, float, float, float, float], level: int
) -> tuple[float, float, float, float, float, float]:
    a, b, c, d, e, f = transform
    return a * 2**level, b * 2**level, c, d * 2**level, e * 2**level, f


def _attributes(plan: Plan) -> dict[str, Any]:
    grid, card = plan.grid, plan.card
    count = levels(grid.height, grid.width)
    return {
        "ome": _ome(plan, count),
        **_geo_conventions(grid, count),
        "gigamask": {
            "version": __version__,
            "plan_digest": plan.digest,
            "model": {"name": card.name, "digest": card.digest},
            "mask": plan.mask.model_dump(mode="json"),
            "resolution": _resolution(plan),
            "codes": {"failed": mask_codes(plan.classes).failed, "no_data": mask_codes(plan.classes).no_data},
            "levels": count,
        },
    }


def _resolution(plan: Plan) -> dict[str, Any]:
    """Size of a working pixel, and where it comes from."""
    grid, source = plan.grid, plan.read.source
    size = grid.pixel_size_m
    return {
        "pixel_size_um": None if size is None else [size[1] * 1e6, size[0] * 1e6],
        "from": source.pixel_size_from or ("georeference" if size else None),
        "native_pixels": [grid.scale_col, grid.scale_row],
        "level": grid.level,
        "resampled": not grid.as_stored,
        "icc": "srgb" if plan.read.srgb else "none",
    }


def _ome(plan: Plan, count: int) -> dict[str, Any]:
    """OME-NGFF 0.5 multiscales and image-label; scale is positive, pixel centres shift by (2^n - 1) / 2 pixels."""
    grid = plan.grid
    unit, pixel = None, (1.0, 1.0)
    if grid.pixel_size_m is not None:
        unit, per_metre = ("micrometer", 1e6) if grid.transform is None else ("meter", 1.0)
        pixel = (grid.pixel_size_m[0] * per_metre, grid.pixel_size_m[1] * per_metre)
    datasets = [
        {
            "path": f"{level}/mask",
            "coordinateTransformations": [
                {"type": "scale", "scale": [p * 2**level for p in pixel]},
                {"type": "translation", "translation": [p * (2**level - 1) / 2 for p in pixel]},
            ],
        }
        for level in range(count)
    ]
    axes = [{"name": name, "type": "space", **({"unit": unit} if unit else {})} for name in ("y", "x")]
    return {
        "version": "0.5",
        "multiscales": [{"name": plan.image.stem, "type": "mode", "axes": axes, "datasets": datasets}],
        "image-label": {
            "colors": [
                {"label-value": code, "rgba": [*bytes.fromhex(c.color[1:]), 255]} for code, c in enumerate(plan.card.classes)
            ],
            "properties": [{"label-value": code, "class": c.name} for code, c in enumerate(plan.card.classes)],
        },
    }


def _geo_conventions(grid: WorkingGrid, count: int) -> dict[str, Any]:
    """The zarr conventions `proj`, `spatial` and `multiscales`, where there is a georeference."""
    if grid.transform is None:
        return {}
    layout = [
        {
            "asset": str(level),
            **({"derived_from": str(level - 1)} if level else {}),
            "transform": {"scale": [2.0**level] * 2, "translation": [(2.0**level - 1) / 2] * 2},
            "spatial:shape": list(level_shape(grid, level)),
            "spatial:transform": list(_level_transform(grid.transform, level)),
        }
        for level in range(count)
    ]
    return {
        "zarr_conventions": [{"name": name, "uuid": uuid} for name, uuid in _CONVENTIONS.items()],
        **({"proj:wkt2": grid.crs_wkt} if grid.crs_wkt else {}),
        "spatial:dimensions": ["y", "x"],
        "spatial:transform": list(grid.transform),
        "spatial:shape": list(grid.shape),
        "multiscales": {"layout": layout, "resampling_method": "mode"},
    }
