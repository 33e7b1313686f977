"""Causes faults for real, one kind after the other, and writes docs/reliability.md: what each has cost.

    python -m tests.chaos [NAME ...] [--write FILE]          (make chaos)

Minutes on two cores; full and read-only disks take a Linux and its administrator, and are told as not run elsewhere. Exit code
1 where a fault has cost what it must not, or could not be caused.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import platform
import re
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline import __version__
from tests.chaos import deaths, disks, files, images, people
from tests.chaos.ground import SCENES, Ground, make_ground
from tests.chaos.rows import Row
from tests.chaos.runs import REPO, Reference, reference_of

TEMPLATE = Path(__file__).with_name("reliability.md")
DOCUMENT = REPO / "docs" / "reliability.md"
KILLS = {0: 18, 2: 12}
"""Workers -> kills of the driver at random moments."""

Scenario = Callable[[Ground, Reference], Row | list[Row]]
SCENARIOS: dict[str, Scenario] = {
    "driver": lambda g, r: deaths.driver(g, r, KILLS[0], workers=0, seed=1),
    "driver-with-workers": lambda g, r: deaths.driver(g, r, KILLS[2], workers=2, seed=2),
    "doors": deaths.doors,
    "worker": lambda g, r: deaths.worker(g, r, kills=6, seed=3),
    "deadly": deaths.deadly,
    "scheduler": deaths.scheduler,
    "hung": deaths.hung,
    "abandoned": deaths.abandoned,
    "side-by-side": deaths.side_by_side,
    "shards": files.shards,
    "published": files.published,
    "coarse": files.coarse,
    "replaced": files.replaced,
    "journal": files.journal,
    "ledger": files.ledger,
    "damaged": images.damaged,
    "changed": images.changed,
    "sidecars": images.sidecars,
    "full": disks.full,
    "read-only": disks.read_only,
    "signals": people.signals,
    "second": people.second,
    "clock": people.clock,
}
ALONE = {"clock"}
"""Change what the others read."""


def main() -> int:
    """Cause them, print and write what came of it."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some only, of: {' '.join(SCENARIOS)}")
    parser.add_argument("--write", type=Path, help="write the document there; default: docs/reliability.md where all are run")
    parser.add_argument("--lanes", type=int, default=3, help="so many kinds of faults at a time; default: 3")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in SCENARIOS]:
        parser.error(f"unknown: {' '.join(unknown)}; known are {' '.join(SCENARIOS)}")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gigamask-chaos-", ignore_cleanup_errors=True) as folder:
        ground = make_ground(Path(folder) / "ground")
        reference = reference_of(ground)
        blocks = sum(len(plan.blocks) for plan in reference.plans.values())
        print(f"{len(SCENES)} scenes of {blocks} blocks; {machine()}", flush=True)
        names = options.names or list(SCENARIOS)

        def caused(name: str) -> list[Row]:
            found = cause(SCENARIOS[name], ground, reference)
            for row in found:
                row.said = plain(row.said, folder)
            show(name, found)
            return found

        with ThreadPoolExecutor(options.lanes) as pool:
            together = pool.map(caused, [name for name in names if name not in ALONE])
            rows = [row for found in together for row in found]
        rows += [row for name in names if name in ALONE for row in caused(name)]
    seconds = time.monotonic() - started
    bad = [row for row in rows if not row.good or row.skipped]
    print(f"{len(rows) - len(bad)} of {len(rows)} rows as they must be, in {seconds:.0f} s")
    write = options.write or (None if options.names else DOCUMENT)
    if write is not None:
        write.write_text(document(rows, blocks, seconds), encoding="utf-8")
    return int(any(not row.good for row in rows))


def cause(scenario: Scenario, ground: Ground, reference: Reference) -> list[Row]:
    """The rows of one scenario; one that breaks off is a row that failed."""
    started = time.monotonic()
    try:
        found = scenario(ground, reference)
    except Exception:
        found = Row("(broke off)", "", equal="NO", problems=[traceback.format_exc()])
    rows = found if isinstance(found, list) else [found]
    rows[0].seconds = time.monotonic() - started
    return rows


def show(name: str, rows: list[Row]) -> None:
    """The rows of a scenario, for whoever waits."""
    lines = [f"{name}: {rows[0].seconds:.0f} s"]
    for row in rows:
        verdict = f"not run: {row.skipped}" if row.skipped else "good" if row.good else "NOT GOOD"
        lines.append(f"  {verdict:9} {row.fault}: {row.times} x, {row.lost} lost, {row.recomputed} recomputed, {row.equal}")
        lines += [f"    {problem}" for problem in row.problems]
    print("\n".join(lines), flush=True)


def machine() -> str:
    """The class of machine, in a line."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3
    system = f"{platform.system()}, Python {platform.python_version()}"
    return f"{os.cpu_count()} cores, {memory:.0f} GiB of memory, {system}"


def version() -> str:
    """What was tested."""
    commands = ["git", "rev-parse", "--short", "HEAD"], ["git", "status", "--porcelain", "--", "pipeline", "flows"]
    try:
        commit, changed = (subprocess.run(c, cwd=REPO, capture_output=True, text=True, check=True).stdout for c in commands)
    except (OSError, subprocess.CalledProcessError):
        return f"gigamask {__version__}"
    return f"gigamask {__version__}, commit {commit.strip()}" + " with changes that are not committed" * bool(changed)


def plain(text: str, folder: str) -> str:
    """A message without this machine's paths and names, and not too long for a table."""
    text = re.sub(re.escape(folder) + r"\S*?/(out\b|[^\s/]+(?=[\s,;:)]|$))", r"…/\1", text).replace(folder, "…")
    text = re.sub(r"pid \d+", "pid N", text).replace(f"on {socket.gethostname()}", "on HOST").replace("|", "\\|")
    return text if len(text) <= 240 else text[:239].rsplit(" ", 1)[0] + " …"


def document(rows: list[Row], blocks: int, seconds: float) -> str:
    """docs/reliability.md."""
    columns = "fault", "how it was caused", "times", "lost blocks", "recomputed blocks", "final bytes equal", "as it must be"
    lines = [f"| {' | '.join(columns)} |", "|---|---|---:|---:|---:|---|---|"]
    for row in rows:
        if row.skipped:
            lines.append(f"| {row.fault} | {row.how} | – | – | – | – | not run: {row.skipped} |")
            continue
        good = "yes" if row.good else "**NO**"
        lines.append(f"| {row.fault} | {row.how} | {row.times} | {row.lost} | {row.recomputed} | {row.equal} | {good} |")
    said = [f"| {row.fault} | {row.said} |" for row in rows if row.said]
    failed = [row for row in rows if not row.good]
    facts = {
        "date": f"{dt.datetime.now(dt.UTC):%Y-%m-%d}",
        "version": version(),
        "machine": machine(),
        "minutes": f"{seconds / 60:.0f}",
        "load": f"{os.getloadavg()[2]:.0f}",
        "scenes": str(len(SCENES)),
        "blocks": str(blocks),
        "sum": f"{sum(row.times for row in rows)} faults, {sum(row.lost for row in rows)} lost blocks"
        + (f", **{len(failed)} rows not as they must be**" if failed else ", every row as it must be"),
        "table": "\n".join(lines),
        "said": "\n".join(["| fault | what the run says |", "|---|---|", *said]),
    }
    text = TEMPLATE.read_text(encoding="utf-8")
    for name, value in facts.items():
        text = text.replace("{{ " + name + " }}", value)
    return text


if __name__ == "__main__":
    sys.exit(main())
