"""Files that are torn: shards and ledgers of a run that did not end, masks and ledgers of one that did."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

from pipeline.records import BlockRecord
from tests.chaos.ground import Ground
from tests.chaos.rows import Row, Watched, finish
from tests.chaos.runs import REPO, BlockKey, Ended, Reference, Trial


def flip(path: Path, share: float = 0.5) -> None:
    """Turn the bits of one byte, at that share of the file's length."""
    content = bytearray(path.read_bytes())
    content[int(len(content) * share)] ^= 0xFF
    path.write_bytes(content)


def truncate(path: Path, share: float = 0.5) -> None:
    """Cut a file off."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def broken_off(trial: Trial, reference: Reference, records: int) -> dict[BlockKey, BlockRecord]:
    """Start a run that hangs in the block of scene a after so many, kill -9 it there; the records that there are."""
    blocks = dict(reference.tiles["a"].values())
    others = {place for index, tiles in blocks.items() if index != records for place in tiles}
    place = next(place for place in blocks[records] if place not in others)
    running = trial.start({"hang": {"at": [1, *place], "marker": trial.marker("hang")}})
    running.until(lambda: trial.count_records() >= records)
    running.kill()
    running.wait()
    return {key: BlockRecord.model_validate_json(text) for key, text in trial.records(reference).items()}


def shards(ground: Ground, reference: Reference) -> Row:
    """Shards of finished blocks of an unfinished mosaic."""
    how = "between kill -9 and the next run: one cut off, one with a flipped byte, one deleted; a leftover *.partial beside them"
    row = Row("torn shards", how)
    trial = Trial(ground, "shards")
    records = broken_off(trial, reference, 4)
    watched = Watched(trial, reference)
    unfinished = {key: work for key in records for work in _unfinished(trial, reference, key)}
    row.expect(len(unfinished) >= 4, f"only {len(unfinished)} finished blocks of an unfinished mosaic")
    damaged = sorted(unfinished)[:3]
    for key, damage in zip(damaged, (truncate, flip, Path.unlink), strict=False):
        damage(unfinished[key] / records[key].shards[0].path)
        row.times += 1
    for key in damaged[:1]:
        file = unfinished[key] / records[key].shards[0].path
        file.with_name("7.0badcafe.partial").write_bytes(b"half a shard")
    watched.fault(damaged=set(damaged))
    ended = trial.run()
    watched.check(row)
    again = trial.begun(reference, watched.log_bytes)
    row.expect(all(again[key] for key in damaged), f"not made again: {[key for key in damaged if not again[key]]}")
    row.ended(ended, 0)
    if ended.code == 0:
        finish(row, trial, reference, ended.report)
    return row


def _unfinished(trial: Trial, reference: Reference, key: BlockKey) -> list[Path]:
    """Where the unfinished mosaic of a block's scene grows; none where there is no such."""
    plan = reference.plans[key[0]]
    return [p for p in (trial.output / "masks" / plan.image.id).glob(f".*{plan.digest}.partial") if p.is_dir()]


def published(ground: Ground, reference: Reference) -> list[Row]:
    """Files of published masks: what the next run sees by their sizes, and what only `gigamask verify` does."""
    trial = Trial(ground, "published")
    first = trial.run(seconds=0)
    rows = []
    for fault, damage in (("a shard of a published mask, cut off or gone", truncate), ("the same, of its right size", flip)):
        row = Row(fault, "the next run sees its size" if damage is truncate else "`gigamask verify --repair`, then the next run")
        row.expect(first.code == 0, first.err[-1500:])
        damaged: set[BlockKey] = {("a", 3), ("b", 5)}
        watched = Watched(trial, reference)
        for number, key in enumerate(sorted(damaged)):
            file = _shard(trial, reference, key)
            (Path.unlink if damage is truncate and number else damage)(file)
            row.times += 1
        watched.fault(damaged=damaged)
        if damage is flip:
            found = tool("verify", str(trial.output), "--repair", trial=trial)
            row.expect(found.code == 1, f"verify ended with {found.code}: {found.out}{found.err}")
            row.said = "verify names each file, and the next run makes its block again"
        ended = trial.run(seconds=0)
        watched.check(row)
        row.ended(ended, 0)
        again = trial.begun(reference, watched.log_bytes)
        row.expect(all(again[key] for key in damaged), f"not made again: {[key for key in damaged if not again[key]]}")
        if ended.code == 0:
            finish(row, trial, reference, ended.report)
        row.recomputed = sum(again.values())
        rows.append(row)
    sound = tool("verify", str(trial.output), trial=trial)
    rows[-1].expect(sound.code == 0, f"verify is not content afterwards: {sound.out}{sound.err}")
    return rows


def _shard(trial: Trial, reference: Reference, key: BlockKey) -> Path:
    plan = reference.plans[key[0]]
    record = BlockRecord.model_validate_json(trial.records(reference)[key])
    return trial.output / "masks" / plan.image.id / f"{plan.digest}.zarr" / record.shards[0].path


def coarse(ground: Ground, reference: Reference) -> Row:
    """A shard of a level that mixes blocks, which no block's record knows, in an unfinished mosaic."""
    row = Row(
        "a torn shard of a coarse level",
        "between a kill -9 right before a mask's record is written and the next run: cut off; a flipped byte",
    )
    trial = Trial(ground, "coarse")
    watched = Watched(trial, reference)
    before_record = json.dumps({"event": "os.rename", "like": r"/c-\S+\.json$", "nth": 1})
    for damage in (truncate, flip):
        killed = trial.run(seconds=0, CHAOS_KILL=before_record)
        row.expect(killed.code == -9, f"not killed but ended with {killed.code}: {killed.err[-1500:]}")
        watched.check(row)
        for work in _unfinished(trial, reference, ("c", 0)):
            damage(work / "2" / "mask" / "c" / "0" / "0")
            row.times += 1
        watched.fault()
    ended = trial.run(seconds=0)
    watched.check(row)
    row.expect(row.times == 2, f"only {row.times} were torn")
    row.ended(ended, 0)
    if ended.code == 0:
        finish(row, trial, reference, ended.report)
    return row


def replaced(ground: Ground, reference: Reference) -> Row:
    """A published mask is made good, and the driver dies while the new one takes the old one's place."""
    row = Row(
        "kill -9 of the driver",
        "while a mask that was made good takes the place of the damaged one: before, between, after its renames",
    )
    trial = Trial(ground, "replaced")
    first = trial.run(seconds=0)
    row.expect(first.code == 0, first.err[-1500:])
    watched = Watched(trial, reference)
    _shard(trial, reference, ("a", 0)).unlink()
    doors = (
        ("os.rename", r"\.zarr \S+\.old$", 1),
        ("os.rename", r"\.partial \S+\.zarr$", 1),
        ("shutil.rmtree", r"\.zarr\.old", 3),
    )
    for event, like, nth in doors:
        if event == "shutil.rmtree":  # the one before has taken the old one's place: damage it again
            done = trial.run(seconds=0)
            row.expect(done.code == 0, done.err[-1500:])
            watched.check(row)
            _shard(trial, reference, ("a", 0)).unlink()
        watched.fault(damaged={("a", 0)})
        killed = trial.run(seconds=0, CHAOS_KILL=json.dumps({"event": event, "like": like, "nth": nth}))
        row.expect(killed.code == -9, f"not killed but ended with {killed.code}: {killed.err[-1500:]}")
        row.times += 1
        watched.check(row)
    watched.fault(damaged={("a", 0)})  # the ledger tells of the old one: it had not heard of the new one yet
    ended = trial.run(seconds=0)
    watched.check(row)
    again = trial.begun(reference, watched.log_bytes)[("a", 0)]
    row.expect(not again, "the block was predicted again, though the mask that holds it was there")
    row.ended(ended, 0)
    if ended.code == 0:
        finish(row, trial, reference, ended.report)
    return row


def tool(*words: str, trial: Trial) -> Ended:
    """Another command of gigamask."""
    command = [sys.executable, "-m", "flows.cli", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=trial.environment(), cwd=REPO, check=False)
    return Ended(done.returncode, done.stdout, done.stderr, 0.0)


def journal(ground: Ground, reference: Reference) -> Row:
    """The ledger's journal, cut off where a disk has lost its end."""
    row = Row("torn ledger", "its write-ahead log cut off between kill -9 and the next run: at 90 %, of another run at 40 %")
    for share in (0.9, 0.4):
        trial = Trial(ground, f"journal{share:.0%}".replace("%", ""))
        before = broken_off(trial, reference, 6)
        journal = trial.ledger.with_name(trial.ledger.name + "-wal")
        row.expect(journal.exists(), "there is no journal to tear")
        truncate(journal, share)
        row.times += 1
        watched = Watched(trial, reference)
        watched.fault()
        row.expect(len(watched.records) < len(before), f"no record was torn at {share:.0%}")
        ended = trial.run()
        watched.check(row)
        row.ended(ended, 0)
        if ended.code == 0:
            finish(row, trial, reference, ended.report)
    return row


def ledger(ground: Ground, reference: Reference) -> list[Row]:
    """The ledger itself: overwritten, damaged in its middle, gone."""
    trial = Trial(ground, "ledger")
    first = trial.run(seconds=0)
    rows = []
    noise = random.Random(3).randbytes
    for fault in ("garbage in place of the ledger", "garbage in the middle of the ledger", "the ledger is gone"):
        how = "the run refuses; `gigamask ledger rebuild`, then the same command" if "garbage" in fault else "the same command"
        row = Row(fault, how, times=1)
        rows.append(row)
        row.expect(first.code == 0, first.err[-1500:])
        watched = Watched(trial, reference)
        watched.fault()
        stamps = {path: path.stat().st_mtime_ns for path in (trial.output / "masks").rglob("*.zarr/**/c/*/*")}
        size = trial.ledger.stat().st_size
        if fault.startswith("garbage"):
            for path in trial.output.glob("ledger.sqlite-*"):
                path.unlink()
            with trial.ledger.open("r+b") as file:
                middle = "middle" in fault
                file.seek(4096 if middle else 0)
                file.write(noise(size - 4096 - 4096 if middle else size))
            refused = trial.run(seconds=0)
            row.ended(refused, 1, "gigamask ledger rebuild")
            told = row.said
            rebuilt = tool("ledger", "rebuild", str(trial.output), trial=trial)
            row.expect(rebuilt.code == 0, f"not rebuilt: {rebuilt.out}{rebuilt.err}")
        else:
            for path in trial.output.glob("ledger.sqlite*"):
                path.unlink()
            told = ""
        ended = trial.run(seconds=0)
        watched.check(row)
        row.ended(ended, 0)
        row.said = told
        row.expect({p: p.stat().st_mtime_ns for p in stamps} == stamps, "shards were written again")
        if ended.code == 0:
            row.expect(all(image.reused for image in ended.report.images), "not all was reused")
            finish(row, trial, reference, ended.report)
    return rows
