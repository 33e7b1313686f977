"""The JSON beside a published mask: what made it, what became of it, how it scored. Enough to do without the ledger."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import Field, ValidationError

from pipeline import mosaic
from pipeline.errors import StoreError
from pipeline.image import Frozen
from pipeline.ledger import Ledger
from pipeline.plan import Plan
from pipeline.records import PREDICT, SEGMENT, BlockRecord, ImageScore, ShardRecord
from pipeline.report.contract import ImageResult


class Finished(Frozen):
    """A published mask's record."""

    plan: Plan
    result: ImageResult
    """Without scores."""
    blocks: tuple[BlockRecord, ...]
    coarse: tuple[ShardRecord, ...] = ()
    """Files of the levels that mix blocks."""
    scores: dict[str, ImageScore] = Field(default_factory=dict)
    """By what the ledger calls the scoring (`records.score_task`)."""


def record_path(mask: Path) -> Path:
    """Where the record of the mask at `mask` lies."""
    return mask.with_suffix(".json")


def write_record(mask: Path, finished: Finished) -> None:
    """Write the record of `mask`, whole or not at all."""
    path = record_path(mask)
    draft = mosaic.draft_of(mask)
    with mosaic.writing(path):
        try:
            draft.write_text(finished.model_dump_json(indent=1), encoding="utf-8")
            draft.replace(path)
        except OSError:
            draft.unlink(missing_ok=True)
            raise


def read_record(mask: Path) -> Finished:
    """The record of `mask`; StoreError where there is none, or it is damaged."""
    path = record_path(mask)
    try:
        return Finished.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as e:
        raise StoreError(
            f"{mask} exists, and neither the ledger nor {path.name} knows what it is ({e}): "
            "it may be another program's. Move it away, or choose another output"
        ) from e


def publish(work: Path, mask: Path, finished: Finished, *, replace: bool = False, private: bool = False) -> None:
    """Make the mosaic at `work` appear at `mask`, its record first: a mask that is there is the one that its record is about.

    `replace`: in place of the one that is there, which is set aside before. `private`: see `mosaic.publish`. StoreError unless
    every file of every record lies in `work` with its size: whatever a scheduler, a cache or another program did, a mask with a
    hole is never published.
    """
    mosaic.check_complete(work, shards_of(finished))
    if replace:
        mosaic.set_aside(mask)
    write_record(mask, finished)
    mosaic.publish(work, mask, private=private)


def shards_of(finished: Finished) -> list[ShardRecord]:
    """Every file that the record of a mask names."""
    return [*(shard for block in finished.blocks for shard in block.shards), *finished.coarse]


def intact(mask: Path, finished: Finished, *, deep: bool = False) -> bool:
    """Whether the files of `mask` are as they were written: by size, `deep` also by checksum."""
    return mosaic.intact(mask, shards_of(finished), deep=deep)


def masks(output: Path) -> Iterator[Path]:
    """The published masks below an output folder, in order; those that only their record is left of included."""
    for path in sorted((output / "masks").glob("[!.]*/[!.]*.json")):
        yield path.with_suffix(".zarr")


def keep(ledger: Ledger, finished: Finished) -> None:
    """Put into the ledger what the record says, in place of what it knew."""
    image, digest = finished.plan.image.id, finished.plan.digest
    for block in finished.blocks:
        ledger.put_block(digest, PREDICT, block.block, block)
    ledger.put_image(image, digest, SEGMENT, finished.result)
    for task, score in finished.scores.items():
        ledger.put_image(image, digest, task, score)
