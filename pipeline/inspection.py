"""One part of a mask held against its record: files by checksum, pixels by count. What workers do of a verification."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipeline import mosaic
from pipeline.codes import mask_codes
from pipeline.errors import GigamaskError
from pipeline.finished import Finished
from pipeline.grid import Block, Window, blocks
from pipeline.image import Frozen
from pipeline.plan import Plan
from pipeline.records import BlockRecord, ShardRecord, block_state

Kind = Literal["record", "mask", "file", "stray", "layout", "level", "count", "score", "ledger", "unchecked"]
RUN = "run the same configuration again"
REPAIR = "`gigamask verify OUTPUT --repair`"
ADVICE: dict[Kind, str] = {
    "record": f"move the mask and its record away, then {RUN}: the mask is made anew",
    "mask": f"{RUN}: the mask is made anew, if its image is still in the archive",
    "file": f"{REPAIR}, then {RUN}: the block is made again, to the same bytes",
    "stray": f"{REPAIR} removes the file",
    "layout": f"{REPAIR} lays the mask out anew around the same pixels",
    "level": f"{REPAIR} builds the coarser levels anew from the same pixels",
    "count": f"{REPAIR} writes down what is counted in the pixels, where their checksums are right",
    "score": f"{REPAIR} drops these counts, then {RUN}: the mask is scored again",
    "ledger": f"{REPAIR} puts the record's word into the ledger; `gigamask ledger rebuild OUTPUT` makes the whole ledger anew",
    "unchecked": f"{REPAIR}, {RUN}, then verify again",
}
"""What to do about each kind of fault."""


class Fault(Frozen):
    """One thing that is not as it should be."""

    kind: Kind
    what: str
    """In words."""
    image: str = ""
    """Image id; empty where it is no image's."""
    digest: str = ""
    """Plan digest of the mask."""
    block: int | None = None
    file: str | None = None
    """Inside the mosaic, or the output."""
    expected: str | None = None
    found: str | None = None
    derived: bool = False
    """Whether decoded pixels say so: it may only follow from another fault."""

    @property
    def advice(self) -> str:
        """What to do about it."""
        return ADVICE[self.kind]


class Layout(Frozen):
    """A part of the work: the documents and coordinates of a mosaic, and that it holds no file but those that are `known`."""

    known: frozenset[str]


class BlockPart(Frozen):
    """A part of the work: a block's files, its pixels, and the levels that its writer wrote."""

    record: BlockRecord


class LevelPart(Frozen):
    """A part of the work: one shard of a level that mixes blocks."""

    level: int
    index: int
    """Of the shard, row by row."""
    record: ShardRecord | None
    """Its file; None where it holds nothing but fill."""


Part = Layout | BlockPart | LevelPart


class Finding(Frozen):
    """What was found in a part."""

    faults: tuple[Fault, ...] = ()
    counted: BlockRecord | None = None
    """The block's record with the pixels that were counted; None where they could not be."""


def parts_of(finished: Finished) -> list[Part]:
    """The parts in which a mask is examined."""
    plan = finished.plan
    shards = [shard.path for record in finished.blocks for shard in record.shards]
    coarse = {shard.path: shard for shard in finished.coarse}
    found: list[Part] = [Layout(known=frozenset([*shards, *coarse]))]
    found += [BlockPart(record=record) for record in finished.blocks]
    for level in range(mosaic.own_levels(plan), mosaic.levels(*plan.grid.shape)):
        for shard in _level_shards(plan, level):
            name = mosaic.shard_name(plan, level, shard.core)
            found.append(LevelPart(level=level, index=shard.index, record=coarse.get(name)))
    return found


def inspect(store: str, plan: Plan, part: Part) -> Finding:
    """Examine a part of the mosaic at `store`. What cannot be examined is a fault too, never an exception."""
    path = Path(store)
    try:
        if isinstance(part, Layout):
            return Finding(faults=tuple(_layout_faults(path, plan, part.known)))
        if isinstance(part, LevelPart):
            return Finding(faults=tuple(_level_faults(path, plan, part)))
        return _inspect_block(path, plan, part.record)
    except Exception as e:  # noqa: BLE001 - damage has many faces
        place = {"block": part.record.block} if isinstance(part, BlockPart) else {}
        where = {"file": f"{part.level}/mask"} if isinstance(part, LevelPart) else {}
        return Finding(faults=(unchecked(e).model_copy(update=place | where),))


def with_pixels(record: BlockRecord, counted: BlockRecord) -> BlockRecord:
    """`record` with the pixels of `counted`."""
    return record.model_copy(update={name: getattr(counted, name) for name in ("state", "class_px", "failed_px", "no_data_px")})


def _layout_faults(path: Path, plan: Plan, known: frozenset[str]) -> Iterator[Fault]:
    """Differences from an empty mosaic of the same plan, and files that neither that nor a record knows."""
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder) / "empty.zarr"
        mosaic.create(empty, plan)
        laid_out = {str(file.relative_to(empty)): file.read_bytes() for file in empty.rglob("*") if file.is_file()}
    for name, expected in sorted(laid_out.items()):
        file = path / name
        if not file.is_file():
            yield Fault(kind="layout", what="a file of the mask's layout is missing", file=name, found="no such file")
        elif file.name == "zarr.json":
            unlike = _document_difference(expected, file.read_bytes())
            if unlike:
                yield Fault(kind="layout", what="metadata", file=name, **unlike)
        elif file.read_bytes() != expected:
            yield Fault(kind="layout", what="the coordinates of the pixel centres are others", file=name)
    coarse = range(mosaic.own_levels(plan), mosaic.levels(*plan.grid.shape))
    of_levels = {mosaic.shard_name(plan, level, shard.core) for level in coarse for shard in _level_shards(plan, level)}
    for file in sorted(path.rglob("*")):
        name = str(file.relative_to(path))
        if not file.is_dir() and name not in laid_out and name not in known:
            kind: Kind = "level" if name in of_levels else "stray"
            yield Fault(kind=kind, what="a file that no record knows", file=name, found=f"{file.stat().st_size:,} bytes")


def _document_difference(expected: bytes, found: bytes) -> dict[str, str]:
    """How one `zarr.json` differs from another; the version of gigamask that wrote it may be an earlier one."""
    wanted = json.loads(expected)
    try:
        there = json.loads(found)
    except ValueError as e:
        return {"found": f"no JSON ({e})"}
    for document in (wanted, there):
        if isinstance(document, dict) and isinstance(document.get("attributes"), dict):
            own = document["attributes"].get("gigamask")
            if isinstance(own, dict):
                own.pop("version", None)
    return difference(wanted, there)


def _inspect_block(path: Path, plan: Plan, record: BlockRecord) -> Finding:
    """The block's files, then its pixels, then the levels that follow from them."""
    block = plan.blocks[record.block]
    faults = [fault for shard in record.shards for fault in _file_faults(path, shard, "file", record.block)]
    foreign = {shard.path for shard in record.shards} - set(mosaic.own_files(plan, block.core))
    if foreign:
        what = "the block's record names files of others"
        faults.append(Fault(kind="file", what=what, block=record.block, file=min(foreign)))
    if faults:
        return Finding(faults=tuple(faults))
    codes = mask_codes(plan.classes)
    labels = mosaic.read(path, block.core)
    if labels.dtype != codes.dtype or labels.shape != block.core.shape:
        found = f"{labels.dtype} {labels.shape}"
        what = "the mask is not what was planned"
        expected = f"{codes.dtype} {block.core.shape}"
        return Finding(faults=(Fault(kind="layout", what=what, file="0/mask/zarr.json", expected=expected, found=found),))
    counted, strange = count_block(plan, record, labels)
    if strange:
        what = f"{strange:,} pixels hold codes that mean nothing"
        faults.append(
            Fault(kind="file", what=what, block=record.block, file=mosaic.shard_name(plan, 0, block.core), derived=True)
        )
    elif counted != record:
        names = ("state", "class_px", "failed_px", "no_data_px")
        unlike = difference(record.model_dump(include=set(names)), counted.model_dump(include=set(names)))
        faults.append(Fault(kind="count", what="the record's pixels", block=record.block, derived=True, **unlike))
    for level in range(1, mosaic.own_levels(plan)):
        labels = mosaic.halve(labels, plan.classes)
        part = Window(block.core.row >> level, block.core.col >> level, *labels.shape)
        if not np.array_equal(mosaic.read(path, part, level), labels):
            what = f"level {level} is not level {level - 1} halved"
            faults.append(
                Fault(kind="file", what=what, block=record.block, file=mosaic.shard_name(plan, level, part), derived=True)
            )
    return Finding(faults=tuple(faults), counted=counted)


def count_block(plan: Plan, record: BlockRecord, labels: mosaic.Labels) -> tuple[BlockRecord, int]:
    """(`record` with the pixels of `labels`, pixels whose code means nothing)."""
    from pipeline import kernels

    codes = mask_codes(plan.classes)
    pixels = np.zeros(codes.no_data + 1, np.int64)
    kernels.tally(labels.reshape(-1), pixels)
    failed, no_data = int(pixels[codes.failed]), int(pixels[codes.no_data])
    facts = {
        "state": block_state(labels.size, failed, no_data),
        "class_px": tuple(int(n) for n in pixels[: plan.classes]),
        "failed_px": failed,
        "no_data_px": no_data,
    }
    return record.model_copy(update=facts), int(pixels[plan.classes : codes.failed].sum())


def _level_faults(path: Path, plan: Plan, part: LevelPart) -> Iterator[Fault]:
    """The shard's file, and whether its pixels are those of the level below, halved: a row of chunks at a time."""
    shard = next(shard for shard in _level_shards(plan, part.level) if shard.index == part.index)
    name = mosaic.shard_name(plan, part.level, shard.core)
    if part.record is not None:
        damage = list(_file_faults(path, part.record, "level"))
        if damage:
            yield from damage
            return
    below, rows = mosaic.level_shape(plan.grid, part.level - 1), mosaic.tiling(plan, part.level)[1][0]
    for top in range(shard.core.row, shard.core.row_stop, rows):
        strip = Window(top, shard.core.col, min(rows, shard.core.row_stop - top), shard.core.width)
        source = Window(2 * strip.row, 2 * strip.col, 2 * strip.height, 2 * strip.width).clip(*below)
        labels = mosaic.halve(mosaic.read(path, source, part.level - 1), plan.classes)
        if not np.array_equal(mosaic.read(path, strip, part.level), labels):
            what = f"level {part.level} is not level {part.level - 1} halved"
            found = f"differs in rows {strip.row} to {strip.row_stop - 1}"
            yield Fault(kind="level", what=what, file=name, found=found, derived=True)
            return


def _file_faults(path: Path, shard: ShardRecord, kind: Kind, block: int | None = None) -> Iterator[Fault]:
    """Whether a file is there as it was written."""
    file, size = path / shard.path, f"{shard.size:,} bytes"
    if not file.is_file():
        what, expected, found = "the file is missing", size, "no such file"
    elif file.stat().st_size != shard.size:
        what, expected, found = "the file has another size", size, f"{file.stat().st_size:,} bytes"
    elif not mosaic.intact(path, [shard]):
        what, expected, found = "the file has another checksum", f"CRC-32C {shard.crc32c:08x}", "another, of the same size"
    else:
        return
    yield Fault(kind=kind, what=what, block=block, file=shard.path, expected=expected, found=found)


def _level_shards(plan: Plan, level: int) -> Iterator[Block]:
    return blocks(*mosaic.level_shape(plan.grid, level), *mosaic.tiling(plan, level)[0])


def unchecked(error: BaseException | None) -> Fault:
    text = str(error) if isinstance(error, GigamaskError) else f"{type(error).__name__}: {error}"
    return Fault(kind="unchecked", what="this could not be examined", found=text.partition("\n")[0], derived=True)


def difference(expected: Any, found: Any, where: str = "") -> dict[str, str]:
    """The first place where two JSON values differ, as `expected` and `found` of a fault; nothing where they are equal."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in [*expected, *(key for key in found if key not in expected)]:
            missing = "nothing"
            inner = difference(expected.get(key, missing), found.get(key, missing), f"{where}.{key}" if where else str(key))
            if inner:
                return inner
        return {}
    if isinstance(expected, list | tuple) and isinstance(found, list | tuple) and len(expected) == len(found):
        pairs = enumerate(zip(expected, found, strict=True))
        return next((inner for i, (one, other) in pairs if (inner := difference(one, other, f"{where}[{i}]"))), {})
    if expected == found:
        return {}
    begin = f"{where} " if where else ""
    return {"expected": f"{begin}{_short(expected)}", "found": f"{begin}{_short(found)}"}


def _short(value: Any) -> str:
    text = "no record" if value is None else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
