"""Whether the masks of an output are what records and ledgers say: checksums and counts anew, from the stored pixels."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import mosaic
from pipeline.books import ledger_paths, open_ledgers, under_way
from pipeline.cluster import Workers, run_tasks
from pipeline.config import TruthConfig
from pipeline.errors import ConfigError, OutputError, StoreError, explain
from pipeline.finished import Finished, keep, publish, read_record, record_path, write_record
from pipeline.inspection import (
    RUN,
    Fault,
    Finding,
    Kind,
    Part,
    difference,
    inspect,
    parts_of,
    unchecked,
    with_pixels,
)
from pipeline.ledger import LEDGER, Ledger
from pipeline.lock import holding
from pipeline.night import LOCK
from pipeline.plan import Plan
from pipeline.records import PREDICT, SEGMENT, BlockRecord, BlockScore, ImageScore, ShardRecord, sum_scores
from pipeline.report.contract import ImageResult
from pipeline.scoring import score_mask
from pipeline.shop import Progress
from pipeline.survey import survey_truth, work_path
from pipeline.whole import summarise
from pipeline.work import ScoreJob

SUMMED = ("state", "height", "width", "tiles", "blocks", "failed_blocks", "class_px", "failed_px", "no_data_px")
"""Fields of an image's result that follow from its blocks' records and its plan."""
SCORE = "score-"
"""How `records.score_task` begins."""


@dataclass
class Audit:
    """What a verification has found."""

    masks: int = 0
    blocks: int = 0
    pixels: int = 0
    files: int = 0
    """Those with a checksum."""
    scores: int = 0
    """Confusion counts that were recomputed from labels."""
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What is no fault and worth knowing."""
    repairs: list[str] = field(default_factory=list)
    """What was mended, and what the next run makes again."""


@dataclass
class _Open:
    """A mask under examination."""

    path: Path
    finished: Finished
    left: int
    """Parts that were not heard of yet."""
    faults: list[Fault] = field(default_factory=list)
    counted: dict[int, BlockRecord] = field(default_factory=dict)

    @property
    def plan(self) -> Plan:
        return self.finished.plan

    def fault(self, kind: Kind, what: str, **facts: Any) -> None:
        """Note a fault of this mask."""
        self.faults.append(Fault(kind=kind, what=what, **facts))

    def kinds(self) -> set[Kind]:
        """Of its faults."""
        return {fault.kind for fault in self.faults}


def verify(
    output: Path, workers: Workers, progress: Progress, truth: TruthConfig | None = None, *, repair: bool = False
) -> Audit:
    """Hold every mask of `output` against its record and the ledgers, block by block. With `truth`, the configuration's section,
    confusion counts are recomputed from labels that are unchanged. Memory is that of one block a worker.

    `repair`, which nobody else may be at work for, keeps what is sound, and removes what is not, so that the next run makes it
    again. ConfigError where there is no such output.
    """
    if not (output / "masks").is_dir() and not ledger_paths(output):
        raise ConfigError(f"{output} is no output of gigamask: it has neither masks nor a ledger")
    audit, ledgers = Audit(), dict[str, Ledger]()
    with ExitStack() as stack:
        if repair:
            since = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
            stack.enter_context(holding(output / LOCK, since, "gigamask verify --repair"))
        elif holder := under_way(output / LOCK):
            audit.notes.append(f"a run is at work, and what it has just finished may look unfinished: {holder}")
        for name, ledger in open_ledgers(output):
            if isinstance(ledger, Ledger):
                ledgers[name] = stack.enter_context(ledger)
            else:
                audit.faults.append(Fault(kind="ledger", what=str(ledger), file=name))
        if not ledger_paths(output):
            audit.faults.append(Fault(kind="ledger", what="there is no ledger", file=LEDGER))
        _Verification(output, workers, progress, truth, ledgers, audit, repair).all()
    return audit


@dataclass
class _Verification:
    """One verification under way."""

    output: Path
    workers: Workers
    progress: Progress
    truth: TruthConfig | None
    ledgers: dict[str, Ledger]
    """By path inside the output."""
    audit: Audit
    repair: bool
    open: dict[str, _Open] = field(default_factory=dict)
    """By the beginning of its tasks' keys."""

    def all(self) -> None:
        """Every mask, and everything that should be one."""
        for name, ledger in list(self.ledgers.items()):
            damage: list[str] | None = self._ask(name, ledger.damage)
            for text in damage or []:
                self.audit.faults.append(Fault(kind="ledger", what="the ledger is damaged", file=name, found=text))
        for key, outcome in run_tasks(inspect, self._tasks(), self.workers):
            digest, _, number = key.partition("/")
            mask = self.open[digest]
            if 0 < int(number) <= len(mask.plan.blocks):
                self.progress.advance(mask.plan.blocks[int(number) - 1].core.pixels)
            found = outcome.result or Finding(faults=(unchecked(outcome.error),))
            mask.faults += found.faults
            if found.counted is not None:
                mask.counted[found.counted.block] = found.counted
            mask.left -= 1
            if not mask.left:
                del self.open[digest]
                self._conclude(mask)
        self._masks_that_ledgers_know()
        self.audit.faults.sort(key=lambda fault: (fault.image, fault.digest))

    def _tasks(self) -> Iterator[tuple[str, tuple[str, Plan, Part]]]:
        folders = sorted(path for path in (self.output / "masks").glob("[!.]*") if path.is_dir())
        for folder in folders:
            for left in sorted(folder.glob(".*")):
                self.audit.notes.append(f"left by a run that was broken off: {left.relative_to(self.output)}")
            names = {path.with_suffix(".zarr") for path in folder.glob("[!.]*") if path.suffix in (".zarr", ".json")}
            for path in sorted(names):
                finished = self._finished(path)
                if finished is None:
                    continue
                plan, work = finished.plan, parts_of(finished)
                self.open[plan.digest] = _Open(path, finished, len(work))
                self.progress.expect(plan.grid.height * plan.grid.width)
                for number, part in enumerate(work):
                    yield f"{plan.digest}/{number}", (str(path), plan, part)

    def _finished(self, path: Path) -> Finished | None:
        """The record of the mask at `path`; None where one of the two is missing, or the record is another's."""
        image, digest, inside = path.parent.name, path.stem, str(record_path(path).relative_to(self.output))

        def fault(kind: Kind, what: str, **facts: Any) -> None:
            self.audit.faults.append(Fault(kind=kind, what=what, image=image, digest=digest, file=inside, **facts))

        if not path.is_dir():
            fault("mask", "a record, and no mask that it is about")
            return None
        if not record_path(path).is_file():
            fault("record", "a mask without the record beside it: nobody can say what it is")
            return None
        try:
            finished = read_record(path)
        except StoreError as e:
            fault("record", "the record cannot be read", found=str(e.__cause__).partition("\n")[0])
            return None
        plan = finished.plan
        if (plan.image.id, plan.digest) != (image, digest):
            what = (
                "the record's plan is not the one that names the mask: one of them was changed, or another major version made it"
            )
            fault("record", what, expected=f"{image}/{digest}", found=f"{plan.image.id}/{plan.digest}")
            return None
        if [record.block for record in finished.blocks] != [block.index for block in plan.blocks]:
            what = "the record does not hold every block of its plan once"
            fault("record", what, expected=f"{len(plan.blocks)} blocks", found=f"{len(finished.blocks)} records")
            return None
        return finished

    def _conclude(self, mask: _Open) -> None:
        """What needs all parts of a mask: sums, scores and ledgers; then its faults are told, and mended where that is wanted."""
        plan, audit = mask.plan, self.audit
        audit.masks += 1
        audit.blocks += len(plan.blocks)
        audit.pixels += plan.grid.height * plan.grid.width
        audit.files += len(mask.finished.coarse) + sum(len(record.shards) for record in mask.finished.blocks)
        _drop_what_follows(mask)
        _check_sums(mask)
        if self.truth is not None:
            self._score_again(mask)
        for name, ledger in list(self.ledgers.items()):
            self._ask(name, _check_ledger, mask, name, ledger)
        if self.ledgers and not any(self._knows(name, mask) for name in list(self.ledgers)):
            mask.fault("ledger", "no ledger knows of this finished mask; the next run would find it by its record")
        if mask.faults and self.repair:
            self._mend(mask)
        told = {"image": plan.image.id, "digest": plan.digest}
        audit.faults += [fault.model_copy(update=told) for fault in mask.faults]

    def _score_again(self, mask: _Open) -> None:
        plan, truth = mask.plan, self.truth
        assert truth is not None
        if not mask.finished.scores or mask.kinds() & {"file", "layout", "unchecked"}:
            return
        spec, problem = survey_truth(truth, plan.image.truth, plan.mask)
        begin = None if spec is None else f"{SCORE}{spec.digest[:16]}"
        known = {task: score for task, score in mask.finished.scores.items() if begin and task.startswith(begin)}
        if spec is None or not known:
            why = problem or "they, or how they are read, are not as they were when the mask was scored"
            self.audit.notes.append(f"{plan.image.id}: not scored again with its labels: {why}")
            return
        job = ScoreJob(store=str(mask.path), mask=plan.mask, truth=spec)
        scores, error = score_mask(job, plan.blocks, self.workers, f"{plan.digest}-verify")
        if error is not None:
            mask.fault("unchecked", "scoring the mask again failed", found=explain(error))
            return
        again = _confusion(sum_scores(scores))
        for task, score in known.items():
            if _confusion(score) != again:
                what = f"{task}: the labels give other confusion counts"
                mask.fault("score", what, **difference(_confusion(score), again))
        self.audit.scores += 1

    def _ask[Answer](self, name: str, question: Any, *arguments: Any) -> Answer | None:
        """What the ledger says. One that cannot be read is told once, and left out from then on."""
        try:
            answer: Answer = question(*arguments)
        except (OutputError, StoreError) as e:
            self.audit.faults.append(Fault(kind="ledger", what=str(e), file=name))
            self.ledgers.pop(name)
            return None
        return answer

    def _knows(self, name: str, mask: _Open) -> bool:
        tasks: set[str] | None = self._ask(name, self.ledgers[name].tasks, mask.plan.image.id, mask.plan.digest)
        return tasks is None or SEGMENT in tasks

    def _masks_that_ledgers_know(self) -> None:
        """Masks that a ledger has as done, and of which there is nothing."""
        missing: dict[tuple[str, str], str] = {}
        for name, ledger in list(self.ledgers.items()):
            every: list[tuple[str, str, ImageResult]] = self._ask(name, ledger.every_image, SEGMENT, ImageResult) or []
            for image, digest, _ in every:
                mask = self.output / "masks" / image / f"{digest}.zarr"
                if not mask.exists() and not record_path(mask).exists():
                    missing.setdefault((image, digest), name)
        for (image, digest), name in missing.items():
            what = "the ledger has it as done, and there is neither mask nor record"
            self.audit.faults.append(Fault(kind="mask", what=what, image=image, digest=digest, file=name))

    def _mend(self, mask: _Open) -> None:
        """Keep what is sound, remove what is not, and let record and ledgers say so."""
        plan, path, finished, kinds = mask.plan, mask.path, mask.finished, mask.kinds()
        sound = self._sound_records(mask)
        again = [block for block in plan.blocks if block.index not in sound]
        records = tuple(sound.get(record.block) or _unsound(plan, record) for record in finished.blocks)
        summed = summarise(plan, records)
        result = finished.result.model_copy(update={name: getattr(summed, name) for name in SUMMED})
        scores = {} if "score" in kinds else finished.scores
        mended = finished.model_copy(update={"blocks": records, "result": result, "scores": scores})
        known = {shard.path for record in records for shard in record.shards}
        strays = [fault.file for fault in mask.faults if fault.kind == "stray" and fault.file and fault.file not in known]
        for name in [*strays, *(name for block in again for name in mosaic.own_files(plan, block.core))]:
            (path / name).unlink(missing_ok=True)
        if strays:
            self._mended(mask, f"removed {', '.join(strays)}, which no record knows")
        if again:
            numbers = ", ".join(str(block.index) for block in again)
            self._mended(mask, f"removed the files of block{'s' * (len(again) > 1)} {numbers}: {RUN}, which makes them again")
        if not again and kinds & {"layout", "level"}:
            _lay_out_anew(path, mended)
            self._mended(mask, "laid the mask out anew around the same pixels")
        elif mended != finished:
            write_record(path, mended)
            self._mended(mask, "wrote its record anew")
        if mended != finished or kinds & {"ledger", "score"}:
            for name in self._ledgers_of(mask):
                with Ledger(self.output / name) as ledger:
                    ledger.forget(plan.image.id, plan.digest)
                    with ledger.together():
                        keep(ledger, mended)
                self._mended(mask, f"put what its record says into {name}")

    def _mended(self, mask: _Open, text: str) -> None:
        self.audit.repairs.append(f"{mask.plan.image.id}: {text}")

    def _sound_records(self, mask: _Open) -> dict[int, BlockRecord]:
        """Of each block the record that its files agree with, and what was counted in them; none where that cannot be told."""
        spoiled = {fault.block for fault in mask.faults if fault.kind == "file" and fault.block in mask.counted}
        counts = {} if "layout" in mask.kinds() else mask.counted
        sound: dict[int, BlockRecord] = {}
        for records in (mask.finished.blocks, *self._block_records(mask.plan)):
            for record in records:
                block = mask.plan.blocks[record.block]
                names, files = {shard.path for shard in record.shards}, mosaic.own_files(mask.plan, block.core)
                holds = mosaic.shard_name(mask.plan, 0, block.core) in names
                if (record.block in spoiled and holds) or record.block in sound or not names <= set(files):
                    continue
                if mosaic.intact(mask.path, record.shards) and (holds or record.no_data_px == block.core.pixels):
                    counted = counts.get(record.block)
                    sound[record.block] = record if counted is None or not holds else with_pixels(record, counted)
        return sound

    def _block_records(self, plan: Plan) -> list[Iterable[BlockRecord]]:
        """What each ledger knows of the blocks."""
        found: list[dict[int, BlockRecord] | None]
        found = [self._ask(name, ledger.blocks, plan.digest, PREDICT, BlockRecord) for name, ledger in list(self.ledgers.items())]
        return [[r for r in records.values() if r.block < len(plan.blocks)] for records in found if records]

    def _ledgers_of(self, mask: _Open) -> list[str]:
        """The ledgers that know of the mask; the first one where none does."""
        return [name for name in list(self.ledgers) if self._knows(name, mask)] or list(self.ledgers)[:1]


def _unsound(plan: Plan, record: BlockRecord) -> BlockRecord:
    """The record of a block whose files are to be missed: one that names none would pass for whole."""
    missing = ShardRecord(path=mosaic.shard_name(plan, 0, plan.blocks[record.block].core), size=0, crc32c=0)
    return record.model_copy(update={"shards": record.shards or (missing,)})


def _drop_what_follows(mask: _Open) -> None:
    """Leave out what only follows from another fault: pixels are read by the metadata, coarser levels are made of finer ones."""
    kinds = mask.kinds()
    if "layout" in kinds:
        kept = [fault for fault in mask.faults if not fault.derived]
        if len(kept) < len(mask.faults):
            mask.faults = kept
            mask.fault("unchecked", "the pixels cannot be held against the record until the metadata is right")
    elif "file" in kinds:
        of_levels = ("level", "unchecked")
        mask.faults = [f for f in mask.faults if not (f.derived and f.kind in of_levels and f.block is None and f.file)]


def _check_sums(mask: _Open) -> None:
    """The image's result against its blocks, and its confusion counts against its pixels."""
    finished, plan = mask.finished, mask.plan
    summed = summarise(plan, finished.blocks).model_dump(mode="json", include=set(SUMMED))
    told = finished.result.model_dump(mode="json", include=set(SUMMED))
    if summed != told:
        mask.fault("count", "the image's result is not the sum of its blocks", **difference(summed, told))
    counted = summed
    if len(mask.counted) == len(plan.blocks) and not mask.kinds() & {"layout"}:
        counted = summarise(plan, tuple(mask.counted[block.index] for block in plan.blocks)).model_dump(mode="json")
    columns = [*counted["class_px"], counted["failed_px"], counted["no_data_px"]]
    for task, score in finished.scores.items():
        _check_score(mask, task, score, columns)


def _confusion(score: ImageScore) -> dict[str, Any]:
    """What is recomputed of a score."""
    return score.model_dump(mode="json", include={"counts", "unknown"})


def _check_score(mask: _Open, task: str, score: ImageScore, columns: list[int], file: str | None = None) -> None:
    """Whether confusion counts hold every pixel of the mask once: `columns` are those of each class, failed and without data."""
    shape = len(columns) - 1, len(columns)
    matrix = np.array(score.counts, np.int64) if {len(row) for row in score.counts} == {shape[1]} else np.zeros(0, np.int64)
    if matrix.shape != shape:
        what, expected, found = "confusion counts have another shape", str(shape), str(matrix.shape)
    elif matrix.sum(axis=0).tolist() != columns:
        what = "confusion counts do not sum to the mask's pixels"
        expected, found = str(columns), str(matrix.sum(axis=0).tolist())
    else:
        return
    mask.fault("score", f"{task}: {what}", file=file, expected=expected, found=found)


def _check_ledger(mask: _Open, name: str, ledger: Ledger) -> None:
    """The rows of a ledger that knows of the mask, against its record."""
    finished, image, digest = mask.finished, mask.plan.image.id, mask.plan.digest
    result = ledger.image(image, digest, SEGMENT, ImageResult)
    if result is None:
        return
    if result != finished.result:
        unlike = difference(finished.result.model_dump(mode="json"), result.model_dump(mode="json"))
        mask.fault("ledger", "the ledger's result is not the record's", file=name, **unlike)
    rows = ledger.blocks(digest, PREDICT, BlockRecord)
    for record in finished.blocks:
        row = rows.pop(record.block, None)
        if row != record:
            there = None if row is None else row.model_dump(mode="json")
            unlike = difference(record.model_dump(mode="json"), there)
            mask.fault("ledger", "the ledger's block is not the record's", block=record.block, file=name, **unlike)
    if rows:
        mask.fault("ledger", "the ledger has blocks that the plan has not", file=name, found=str(sorted(rows)))
    _check_ledger_scores(mask, name, ledger)


def _check_ledger_scores(mask: _Open, name: str, ledger: Ledger) -> None:
    """A ledger's scores of the mask. It may know more of them than a record that was made anew: of labels that have changed."""
    finished, image, digest = mask.finished, mask.plan.image.id, mask.plan.digest
    result = finished.result
    scored = {task for task in ledger.tasks(image, digest) if task.startswith(SCORE)}
    for task in sorted(scored | finished.scores.keys()):
        known, row = finished.scores.get(task), ledger.image(image, digest, task, ImageScore)
        if row is None:
            mask.fault("ledger", f"{task}: the ledger does not know these confusion counts of the record", file=name)
        elif known is None:
            _check_score(mask, task, row, [*result.class_px, result.failed_px, result.no_data_px], name)
        elif known != row:
            unlike = difference(known.model_dump(mode="json"), row.model_dump(mode="json"))
            mask.fault("score", f"{task}: the ledger's confusion counts are not the record's", file=name, **unlike)
        parts = ledger.blocks(digest, task, BlockScore)
        if row is not None and len(parts) == len(finished.blocks) and sum_scores(parts.values()) != row:
            mask.fault("score", f"{task}: the blocks' confusion counts do not sum to the image's", file=name)


def _lay_out_anew(path: Path, finished: Finished) -> None:
    """The mask at `path` anew, from the files of its blocks."""
    plan = finished.plan
    work = work_path(path, plan)
    mosaic.remove(work)
    mosaic.create(work, plan)
    mosaic.take_over(path, work, [shard for record in finished.blocks for shard in record.shards])
    publish(work, path, finished.model_copy(update={"coarse": mosaic.finish_pyramid(work, plan)}), replace=True)
