"""How the archive differs from what earlier runs saw: new, changed and vanished images, told apart by identity, not by clock."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from pipeline.image import FileState, Frozen
from pipeline.ledger import Ledger
from pipeline.report.contract import Changes
from pipeline.survey import Survey

SEEN = "seen"
"""What the ledger calls the note of an image that a run was about."""


class Seen(Frozen):
    """An image as the last run found it."""

    uri: str
    run_id: str
    """That run."""
    size: int | None = None
    """In bytes; None where the file could not be reached."""
    mtime_ns: int | None = None
    """Time of its last change."""
    beside: tuple[FileState, ...] = ()
    """The files that belong to it; of an image that could not be planned, none."""


def look(survey: Survey, run_id: str) -> dict[str, Seen]:
    """Image id -> how each image is found now: as its plan has it, as slides may be many files; else as its file is."""
    found = {}
    for planned in survey.planned:
        source = planned.plan.read.source
        seen = Seen(uri=source.uri, run_id=run_id, size=source.size_bytes, mtime_ns=source.mtime_ns, beside=source.beside)
        found[planned.plan.image.id] = seen
    for refused in survey.refused:
        seen = Seen(uri=refused.image.uri, run_id=run_id)
        with suppress(OSError):
            status = Path(seen.uri).stat()
            seen = seen.model_copy(update={"size": status.st_size, "mtime_ns": status.st_mtime_ns})
        found[refused.image.id] = seen
    return found


def earlier(ledger: Ledger, name: str) -> dict[str, Seen]:
    """Image id -> how runs of the configuration `name` saw it last."""
    return ledger.images(name, SEEN, Seen)


def keep_seen(ledger: Ledger, name: str, before: dict[str, Seen], now: dict[str, Seen]) -> None:
    """Note how the images were found, and forget those that have vanished: they are told once."""
    with ledger.together():
        for image_id, seen in now.items():
            ledger.put_image(image_id, name, SEEN, seen)
        for image_id in before.keys() - now.keys():
            ledger.forget(image_id, name)


def same(before: Seen | None, now: Seen) -> bool:
    """Whether an image is the one that was seen before."""
    return before is not None and before.model_copy(update={"run_id": now.run_id}) == now


def compare(before: dict[str, Seen], now: dict[str, Seen]) -> Changes:
    """What is new, changed and vanished; by path, in order."""
    both = before.keys() & now.keys()
    changed = [i for i in both if not same(before[i], now[i])]
    return Changes(
        new=sorted(now[i].uri for i in now.keys() - before.keys()),
        changed=sorted(now[i].uri for i in changed),
        vanished=sorted(before[i].uri for i in before.keys() - now.keys()),
        unchanged=len(both) - len(changed),
    )
