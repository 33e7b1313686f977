"""What `verify` and `ledger` print: lines for people, JSON for programs."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from pipeline.audit import Audit
    from pipeline.books import Account, Rebuilt, Trouble
    from pipeline.inspection import Fault
    from pipeline.ledger import Run

MOST_LINES = 20
"""How many of the same are printed; --json has all."""
OUT = Console(highlight=False, soft_wrap=True)


def show_audit(audit: Audit, output: Path, *, as_json: bool) -> None:
    """Faults by mask, each kind with what to do about it, then one line of totals."""
    if as_json:
        facts = asdict(audit) | {"faults": [_fault_facts(fault, output) for fault in audit.faults]}
        _json({"equal": not audit.faults, **facts})
        return
    for (image, digest), faults in groupby(audit.faults, key=lambda fault: (fault.image, fault.digest)):
        _say(f"{image}/{digest}.zarr" if image else str(output), "bold")
        every = list(faults)
        for fault in every[:MOST_LINES]:
            _say(f"  {_fault_line(fault)}", "red")
        if len(every) > MOST_LINES:
            _say(f"  and {len(every) - MOST_LINES:,} more: --json has them all")
        for advice in dict.fromkeys(_advice(fault, output) for fault in every):
            _say(f"  to do: {advice}")
    for note in audit.notes[:MOST_LINES]:
        _say(note)
    if len(audit.notes) > MOST_LINES:
        _say(f"and {len(audit.notes) - MOST_LINES:,} more such notes: --json has them all")
    for repair in audit.repairs:
        _say(f"repaired: {repair}", "green")
    masks = {(fault.image, fault.digest) for fault in audit.faults if fault.image}
    again = f", {audit.scores:,} scored again" if audit.scores else ""
    seen = (
        f"{audit.masks:,} masks, {audit.blocks:,} blocks, {audit.pixels / 1e6:,.1f} Mpx, {audit.files:,} files by checksum{again}"
    )
    if audit.faults:
        _say(f"{seen}: {len(audit.faults):,} faults, of {len(masks):,} masks")
    else:
        _say(f"{seen}: all equal to record and ledger")


def show_accounts(accounts: list[Account], *, as_json: bool) -> None:
    """What each ledger of an output says."""
    if as_json:
        _json([_account_facts(account) for account in accounts])
        return
    for account in accounts:
        _say(account.name, "bold")
        if account.problem:
            _say(f"  {account.problem}", "red")
            continue
        for number, run in enumerate(account.runs):
            _say(f"  run {run.run}: {_end(run, account, last=number == len(account.runs) - 1)}")
        states = Counter(image.state for image in account.images)
        if account.failed:
            states["failed"] = len(account.failed)
        told = ", ".join(f"{number:,} {state}" for state, number in sorted(states.items())) or "none"
        _say(f"  images: {told}")
        troubled = [image for image in account.images if image.state == "partial"] + account.failed
        _lines([f"  {image.state}: {image.uri}: {_first_line(image.error)}" for image in troubled], "red")
        _lines([f"  unfinished: {image}: {done:,} blocks are done" for image, done in account.unfinished.items()])
        _lines([f"  {_trouble_line(trouble)}" for trouble in account.troubles])


def show_rebuilt(rebuilt: Rebuilt, *, as_json: bool) -> None:
    """What a rebuilt ledger was made of, and where the old one is."""
    if as_json:
        _json(asdict(rebuilt) | {"path": str(rebuilt.path), "aside": [str(path) for path in rebuilt.aside]})
        return
    for text in rebuilt.damaged:
        _say(f"record cannot be read, and its mask is not in the ledger: {text}", "red")
    if rebuilt.damaged:
        _say("move these masks and records away: the next run makes them anew")
    for text in rebuilt.without_mask:
        _say(f"record without its mask, not in the ledger: {text}")
    rows = ", ".join(f"{number:,} of {table}" for table, number in rebuilt.taken_over.items()) or "nothing"
    _say(f"{rebuilt.path}: {rebuilt.masks:,} masks of {rebuilt.blocks:,} blocks from their records; from the old ledger: {rows}")
    for path in rebuilt.aside:
        _say(f"the old ledger is kept as {path}")


def _fault_line(fault: Fault) -> str:
    place = [f"block {fault.block}"] if fault.block is not None else []
    place += [fault.file] if fault.file else []
    sides = [f"expected {fault.expected}"] if fault.expected else []
    sides += [f"found {fault.found}"] if fault.found else []
    return f"{', '.join(place)}{': ' * bool(place)}{fault.what}" + (f" ({'; '.join(sides)})" if sides else "")


def _fault_facts(fault: Fault, output: Path) -> dict[str, Any]:
    return fault.model_dump(exclude={"derived"}) | {"advice": _advice(fault, output)}


def _advice(fault: Fault, output: Path) -> str:
    return fault.advice.replace("OUTPUT", shlex.quote(str(output)))


def _end(run: Run, account: Account, *, last: bool) -> str:
    if run.finished is not None:
        return f"{run.started} to {run.finished}, exit code {run.exit_code}"
    if last and account.under_way:
        return f"{run.started}, under way: {account.under_way}"
    return f"{run.started}, broke off"


def _trouble_line(trouble: Trouble) -> str:
    record = trouble.record
    deaths = f", {record.deaths} of them killed their worker" if record.deaths else ""
    pixels = f", {record.failed_px:,} px failed" if record.failed_px else ""
    cause = f": {_first_line(record.error)}" if record.error else ""
    where = trouble.image or f"plan {trouble.digest}"
    return f"{where} block {record.block}: {record.state} at attempt {record.attempt}{deaths}{pixels}{cause}"


def _account_facts(account: Account) -> dict[str, Any]:
    states = Counter(image.state for image in account.images)
    named = [image for image in account.images if image.state == "partial"] + account.failed
    runs = []
    for number, run in enumerate(account.runs):
        at_work = run.finished is None and number == len(account.runs) - 1 and account.under_way is not None
        runs.append({**asdict(run), "under_way": at_work, "broke_off": run.finished is None and not at_work})
    return {
        "ledger": account.name,
        "problem": account.problem,
        "runs": runs,
        "states": dict(states) | ({"failed": len(account.failed)} if account.failed else {}),
        "troubled_images": [{"image": i.id, "uri": i.uri, "state": i.state, "error": i.error} for i in named],
        "unfinished": account.unfinished,
        "troubled_blocks": [
            {"image": t.image, "digest": t.digest, **t.record.model_dump(mode="json", exclude={"shards"})}
            for t in account.troubles
        ],
    }


def _lines(texts: list[str], style: str | None = None) -> None:
    for text in texts[:MOST_LINES]:
        _say(text, style)
    if len(texts) > MOST_LINES:
        _say(f"  and {len(texts) - MOST_LINES:,} more: --json has them all", style)


def _first_line(text: str | None) -> str:
    return (text or "").partition("\n")[0]


def _say(text: str, style: str | None = None) -> None:
    OUT.print(text, style=style, markup=False)


def _json(facts: Any) -> None:
    print(json.dumps(facts, indent=2))  # noqa: T201 - the result goes to stdout
