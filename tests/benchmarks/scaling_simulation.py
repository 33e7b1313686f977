"""Scaling on paper: the real driver, Dask scheduler and ledger, and up to hundreds of workers whose blocks sleep.

    python -m tests.benchmarks.scaling_simulation [--workers 1 10 100 500] [--seconds 0 0.3 1 3 10 30] \
        [--durations LEDGER.sqlite|MASK.json] [--save FILE.json] [--picture docs/scaling.png]
    python -m tests.benchmarks.scaling_simulation --load FILE.json --picture docs/scaling.png

Real: `night.for_each`, `cluster.open_workers`, `cluster.run_tasks`, `distributed.Scheduler` in its own process, the arguments
(job, block) with their plan, `Ledger` on disk. Simulated: a block sleeps; hundreds of `distributed.Worker` objects of one thread
share a few processes, with Dask's statistical profiler off. Left out: making and publishing stores, pyramids, scoring, network.

The driver, the scheduler and all workers share this machine's cores, so that what is printed is a lower bound.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import pickle
import random
import signal
import socket
import sqlite3
import stat
import statistics
import struct
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import ceil
from pathlib import Path
from typing import Any

from tests.benchmarks.measure import REPO, machine

COLUMNS = (
    ("workers", "workers", "{:d}"),
    ("mean_seconds", "block s", "{:g}"),
    ("blocks", "blocks", "{:d}"),
    ("wall", "wall s", "{:.1f}"),
    ("efficiency", "whole", "{:.1%}"),
    ("steady", "steady", "{:.1%}"),
    ("gap_ms", "gap ms", "{:.1f}"),
    ("start_share", "start", "{:.1%}"),
    ("tail_share", "tail", "{:.1%}"),
    ("rate", "blocks/s", "{:.1f}"),
    ("driver_cpu", "driver s", "{:.1f}"),
    ("scheduler_cpu", "sched. s", "{:.1f}"),
    ("hosts_cpu", "hosts s", "{:.1f}"),
    ("in_flight", "in flight", "{:d}"),
    ("scheduler_mib", "sched. MiB", "{:.0f}"),
    ("traffic_mb_s", "MB/s", "{:.2f}"),
    ("ledger_ms", "ledger ms", "{:.2f}"),
)
"""(field of `Cell`, heading, format): the table that is printed."""
NAN = float("nan")
SPREAD = 0.1
"""Standard deviation of the logarithm of a block's seconds a tile, where no measured durations are given."""
SAMPLE_CRS = 32640
"""UTM zone 40 north: a CRS text of usual length travels with the plan."""


@dataclass(frozen=True)
class Cell:
    """What one run with so many workers and blocks of so many seconds gave."""

    workers: int
    mean_seconds: float
    """Mean of the blocks' sleep; 0: an empty call."""
    blocks: int
    wall: float
    """Seconds from the first submission to the last record."""
    efficiency: float
    """Sleep / (workers × wall)."""
    steady: float
    """The same between the moment when every worker had begun a block and the moment when the last block began."""
    gap_ms: float
    """Mean pause of a worker between two blocks in the steady part."""
    start_share: float
    """Idle share of workers × wall before the steady part."""
    tail_share: float
    """Idle share of workers × wall after it: the number of blocks is finite."""
    rate: float
    """Blocks a second through the driver."""
    driver_cpu: float
    scheduler_cpu: float
    hosts_cpu: float
    """CPU seconds of all worker processes."""
    in_flight: int
    """Most tasks that were submitted and not yet recorded."""
    scheduler_mib: float
    """Resident memory of the scheduler at its highest."""
    traffic_mb_s: float
    """Bytes into and out of the scheduler."""
    ledger_ms: float
    """Mean time that a driver thread spends in `put_block`, waiting for other threads included."""


_INTERVALS: dict[Any, list[tuple[float, float]]] = defaultdict(list)
"""Worker name -> (start, stop) of its blocks, on the machine's monotonic clock."""


def sleep_block(job: Any, block: Any, seconds: float) -> Any:
    """In place of `predict_block`: the same arguments and record, and a sleep. Its third argument is 9 bytes more."""
    from distributed import get_worker

    from pipeline.records import BlockRecord

    start = time.monotonic()
    if seconds:
        time.sleep(seconds)
    _INTERVALS[get_worker().name].append((start, time.monotonic()))
    pixels = (block.core.pixels, *(0 for _ in range(job.plan.classes - 1)))
    return BlockRecord(block=block.index, state="done", tiles=1, class_px=pixels, seconds=seconds)


def take_intervals(dask_worker: Any) -> list[tuple[float, float]]:
    """The intervals of one worker since this was last asked."""
    return _INTERVALS.pop(dask_worker.name, [])


def socket_bytes() -> int:
    """Bytes received and acknowledged on all open TCP connections of this process, from the kernel."""
    total = 0
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - names of a virtual folder
        try:
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as one:
                info = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 136)
        except OSError:  # closed meanwhile, or not TCP
            continue
        total += sum(struct.unpack_from("QQ", info, 120)) if len(info) == 136 else 0
    return total


def serve_scheduler(contact: Path) -> None:
    """A scheduler with Dask's own settings, until the process is ended."""
    from distributed import Scheduler

    options: dict[str, Any] = {"host": "127.0.0.1", "port": 0, "dashboard": False, "dashboard_address": "127.0.0.1:0"}

    async def serve() -> None:
        async with Scheduler(scheduler_file=str(contact), **options) as scheduler:
            await scheduler.finished()

    asyncio.run(serve())


def serve_workers(contact: Path, count: int, name: str) -> None:
    """`count` workers of one thread in this process, until it is ended. What a worker's machine would do for itself alone
    (profiler, monitor of its resources) is off or rare: hundreds of them would take this machine's cores."""
    import dask
    from distributed import Worker

    quiet = {"worker.profile.enabled": False, "admin.system-monitor.interval": "30s", "admin.tick.interval": "5s"}
    quiet |= {"worker.memory.target": False, "worker.memory.spill": False, "worker.memory.pause": False}
    dask.config.set({f"distributed.{key}": value for key, value in quiet.items()})

    async def serve() -> None:
        options: dict[str, Any] = {"nthreads": 1, "memory_limit": 0, "host": "127.0.0.1", "dashboard": False}
        workers = [Worker(scheduler_file=str(contact), name=f"{name}-{i}", **options) for i in range(count)]
        for first in range(0, count, 25):
            await asyncio.gather(*workers[first : first + 25])
        await asyncio.gather(*(worker.finished() for worker in workers))

    asyncio.run(serve())


@contextmanager
def processes(folder: Path, workers: int, hosts: int) -> Iterator[tuple[Path, Any, list[Any]]]:
    """(contact file, scheduler, worker processes): started, and ended with the context."""
    import psutil

    contact = folder / f"scheduler-{workers}.json"
    hosts = min(hosts, workers)
    shares = [workers // hosts + (i < workers % hosts) for i in range(hosts)]
    roles = [["scheduler"], *(["workers", str(share), f"host{i}"] for i, share in enumerate(shares))]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DASK_LOGGING__DISTRIBUTED": "error"}
    running = []
    try:
        for role in roles:
            command = [sys.executable, "-m", "tests.benchmarks.scaling_simulation", "--role", *role, "--contact", str(contact)]
            running.append(psutil.Popen(command, env=environment, cwd=REPO))
        while not contact.exists():
            if running[0].poll() is not None:
                raise SystemExit("the scheduler did not start")
            time.sleep(0.1)
        yield contact, running[0], running[1:]
    finally:
        for process in running:
            process.kill()
        for process in running:
            process.wait()


def sample_plan(side: int, uri: str = "/archive/2026/scene-0001.tif", block: int | str = "auto") -> Any:
    """The plan of an image of `side` × `side` px for a U-Net, tile 512 / stride 384, as `plan_image` would make it."""
    from rasterio.crs import CRS

    from pipeline.card import ClassInfo, ModelCard, Scaling
    from pipeline.image import ImageSpec, SourceInfo, working_grid
    from pipeline.plan import Plan, ReadSpec, choose_block_shape, chunk_side, peak_memory

    none = (None, None, None)
    wkt = CRS.from_epsg(SAMPLE_CRS).to_wkt(version="WKT2_2019")
    facts: dict[str, Any] = {
        "driver": "GTiff",
        "size_bytes": 10**9,
        "mtime_ns": 1_760_000_000 * 10**9,
        "dtype": "uint8",
        "nodata": none,
    }
    source = SourceInfo(
        uri=uri,
        height=side,
        width=side,
        band_names=("red", "green", "blue"),
        band_indexes=(1, 2, 3),
        valid_from="all",
        block_shape=(512, 512),
        crs_wkt=wkt,
        transform=(0.3, 0.0, 327_000.0, 0.0, -0.3, 2_784_000.0),
        pixel_size_m=(0.3, 0.3),
        **facts,
    )
    card = ModelCard(
        name="land cover",
        adapter="smp",
        architecture={"name": "Unet", "encoder_name": "resnet34", "in_channels": 3, "classes": 5},
        weights_sha256="0" * 64,
        weights_bytes=98_000_000,
        bands=source.band_names,
        dtype="uint8",
        scaling=Scaling(offset=(123.7, 116.3, 103.5), divisor=(58.4, 57.1, 57.4)),
        classes=tuple(ClassInfo(name=f"class {i}", color=f"#{i:02x}0000") for i in range(5)),
        activation_bytes_per_pixel=900,
        training={"minutes": 30, "steps": 4000, "validation": {"miou": 0.7}},
    )
    grid = working_grid(source, None)
    assert grid is not None
    read = ReadSpec(source=source, bands=(1, 2, 3), valid_from="all", nodata=none, grid=grid)
    chunk = chunk_side(384)
    draft = Plan(
        image=ImageSpec(uri=uri),
        read=read,
        model_path="/models/land-cover",
        card=card,
        tile=512,
        overlap=128,
        blend="hann",
        block_shape=(chunk, chunk),
        chunk_shape=(chunk, chunk),
        batch=8,
        precision="float32",
        flips=1,
        store_confidence=False,
    )
    shape = choose_block_shape(draft.lattice, chunk, block, lambda b: peak_memory(draft, b).total, 16 << 30)  # type: ignore[arg-type]
    return draft.model_copy(update={"block_shape": shape})


def measured(path: Path) -> list[float]:
    """Seconds of the predicted blocks in a ledger, or in the JSON beside a published mask."""
    if path.suffix == ".json":
        records = json.loads(path.read_bytes())["blocks"]
    else:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db:
            records = [json.loads(text) for (text,) in db.execute("SELECT record FROM blocks WHERE task = 'predict'")]
    return [record["seconds"] for record in records if record["state"] != "failed"]


def draw_seconds(plan: Any, mean: float, shape: list[float] | None, seed: int) -> list[float]:
    """Seconds of each block of `plan`, of the mean asked for: drawn from measured ones, else in proportion to the tiles that
    the block predicts (those at the image's edge have fewer) with a log-normal spread."""
    draw = random.Random(f"{seed}-{plan.image.uri}")
    if mean == 0:
        return [0.0] * len(plan.blocks)
    if shape is not None:
        centre = statistics.fmean(shape)
        return [mean * draw.choice(shape) / centre for _ in plan.blocks]
    tiles = [len(rows) * len(cols) for rows, cols in (plan.lattice.touching(block.core) for block in plan.blocks)]
    centre = statistics.fmean(tiles)
    return [mean * count / centre * draw.lognormvariate(-(SPREAD**2) / 2, SPREAD) for count in tiles]


class _Counter:
    """How many tasks are taken and not yet recorded, and how long the records took to write."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.now = self.most = 0
        self.ledger_seconds = 0.0

    def take(self) -> None:
        """A task is handed out."""
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)

    def record(self, seconds: float) -> None:
        """Its record is written."""
        with self._lock:
            self.now -= 1
            self.ledger_seconds += seconds


def simulate(
    workers: Any, mean: float, images: int, side: int, shape: list[float] | None, folder: Path, pids: tuple[Any, list[Any]]
) -> Cell:
    """One run over an archive of `images` images, each through its blocks as `process.segment_image` does it."""
    import psutil

    from pipeline.cluster import run_tasks
    from pipeline.ledger import Ledger
    from pipeline.night import for_each
    from pipeline.survey import Planned
    from pipeline.work import Job

    scheduler, hosts = pids
    me = psutil.Process()
    run = f"{workers.count}-{mean}-{time.monotonic_ns()}"
    template = sample_plan(side)
    planned = []
    for index in range(images):
        spec = template.image.model_copy(update={"uri": f"/archive/{run}/scene-{index:05}.tif"})
        source = template.read.source.model_copy(update={"uri": spec.uri})
        read = template.read.model_copy(update={"source": source})
        planned.append(Planned(template.model_copy(update={"image": spec, "read": read}), None, None))
    counter = _Counter()
    slept: list[float] = []

    with Ledger(folder / f"ledger-{run}.sqlite") as ledger:

        def process(image: Planned) -> Any:
            plan = image.plan
            job = Job(plan=plan, store=f"/out/masks/{plan.image.id}/.{plan.digest}.zarr.partial")
            seconds = draw_seconds(plan, mean, shape, seed=1)
            slept.extend(seconds)

            def tasks() -> Iterator[tuple[str, tuple[Any, ...]]]:
                for block, duration in zip(plan.blocks, seconds, strict=True):
                    counter.take()
                    yield f"{plan.digest}-{block.index}", (job, block, duration)

            for _, outcome in run_tasks(sleep_block, tasks(), workers):
                assert outcome.result is not None, outcome.error
                record = outcome.result.model_copy(update={"attempt": outcome.attempts})
                before = time.monotonic()
                ledger.put_block(plan.digest, "predict", record.block, record)
                counter.record(time.monotonic() - before)

        traffic = workers.client.run_on_scheduler(socket_bytes)
        cpu = [_cpu(p) for p in (me, scheduler, *hosts)]
        peak = _Peak(scheduler)
        started = time.monotonic()
        for_each(workers, process, planned)
        stopped = time.monotonic()
        spent = [_cpu(p) - before for p, before in zip((me, scheduler, *hosts), cpu, strict=True)]
        traffic = workers.client.run_on_scheduler(socket_bytes) - traffic
        resident = peak.stop()
    intervals = list(workers.client.run(take_intervals).values())
    wall, blocks, count = stopped - started, len(slept), len(intervals)
    steady, gap, head, tail = _parts(intervals, started, stopped) if mean else (NAN, NAN, NAN, NAN)
    return Cell(
        workers=count,
        mean_seconds=mean,
        blocks=blocks,
        wall=wall,
        efficiency=sum(slept) / (count * wall) if mean else NAN,
        steady=steady,
        gap_ms=1e3 * gap,
        start_share=head,
        tail_share=tail,
        rate=blocks / wall,
        driver_cpu=spent[0],
        scheduler_cpu=spent[1],
        hosts_cpu=sum(spent[2:]),
        in_flight=counter.most,
        scheduler_mib=resident / 2**20,
        traffic_mb_s=traffic / wall / 1e6,
        ledger_ms=1e3 * counter.ledger_seconds / blocks,
    )


def _cpu(process: Any) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


class _Peak:
    """Highest resident memory of a process, looked at twice a second."""

    def __init__(self, process: Any) -> None:
        self._process, self._most, self._end = process, 0, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while True:
            self._most = max(self._most, self._process.memory_info().rss)
            if self._end.wait(0.5):
                return

    def stop(self) -> int:
        """Bytes at the highest."""
        self._end.set()
        self._thread.join()
        return self._most


def _parts(intervals: list[list[tuple[float, float]]], started: float, stopped: float) -> tuple[float, float, float, float]:
    """(steady efficiency, mean pause between blocks in seconds, idle share at the start, idle share at the end).

    started |....|bbbbbb.bbbbbb.bbb|bbb.....| stopped        b a worker's block, '.' it waits
                 ^ every worker has begun  ^ the last block begins: from there on waiting is the tail
    """
    rows = [sorted(row) for row in intervals if row]
    whole = len(intervals) * (stopped - started)
    if len(rows) < len(intervals):
        return NAN, NAN, NAN, NAN
    begin, end = max(row[0][0] for row in rows), max(row[-1][0] for row in rows)
    if end <= begin:
        begin = end = max(begin, end)

    def busy(low: float, high: float) -> float:
        return sum(max(0.0, min(stop, high) - max(start, low)) for row in rows for start, stop in row)

    head = (len(rows) * (begin - started) - busy(started, begin)) / whole
    tail = (len(rows) * (stopped - end) - busy(end, stopped)) / whole
    pauses = [
        later[0] - earlier[1] for row in rows for earlier, later in pairwise(row) if begin <= earlier[1] and later[0] <= end
    ]
    steady = busy(begin, end) / (len(rows) * (end - begin)) if end > begin else NAN
    return steady, statistics.fmean(pauses) if pauses else NAN, head, tail


def ledger_rates(folder: Path) -> dict[str, float]:
    """Records a second that one ledger takes, from one thread and from sixteen; `fsync` is its own call on the same disk."""
    from pipeline.ledger import Ledger
    from pipeline.records import BlockRecord

    record = BlockRecord(block=0, state="done", tiles=100, class_px=(10**8, 1, 2, 3, 4), seconds=30.0)
    rates = {}
    for threads, count in ((1, 500), (16, 500)):
        seconds = []
        for turn in range(3):
            with Ledger(folder / f"rate-{threads}-{turn}.sqlite") as ledger, ThreadPoolExecutor(threads) as pool:
                started = time.monotonic()
                list(pool.map(lambda i, ledger=ledger: ledger.put_block("0" * 16, "predict", i, record), range(count)))
                seconds.append(time.monotonic() - started)
        rates[f"{threads} threads"] = count / statistics.median(seconds)
    with (folder / "fsync").open("wb") as file:
        started = time.monotonic()
        for _ in range(200):
            file.write(b"0" * 4096)
            file.flush()
            os.fsync(file.fileno())
        rates["fsync"] = 200 / (time.monotonic() - started)
    return rates


def wire_sizes() -> list[tuple[int, str, int, int, float]]:
    """(side, block, blocks, bytes of (job, block) as it is sent, ms to write and read it once) for square images."""
    from pipeline.work import Job

    rows = []
    for side, block in ((16384, "auto"), (65536, "auto"), (65536, 4096), (100_000, 2048), (200_000, 2048)):
        plan = sample_plan(side, block=block)
        job = Job(plan=plan, store="/out/masks/scene/.0123456789abcdef.zarr.partial")
        first = plan.blocks[0]
        assert plan.digest
        seconds = []
        for _ in range(5):
            started = time.perf_counter()
            sent = pickle.dumps((job, first), 5)
            pickle.loads(sent)
            seconds.append(time.perf_counter() - started)
        rows.append((side, str(block), len(plan.blocks), len(sent), 1e3 * statistics.median(seconds)))
    return rows


def print_parts(folder: Path) -> None:
    """What one task and one record cost by themselves."""
    print(f"{'image':>16}{'block':>7}{'blocks':>8}{'task KB':>10}{'pickle ms':>11}")
    for side, block, blocks, sent, ms in wire_sizes():
        print(f"{side:>7} x {side:<6}{block:>7}{blocks:>8}{sent / 1e3:>10.1f}{ms:>11.2f}")
    print("ledger, records a second:", ", ".join(f"{name} {rate:.0f}" for name, rate in ledger_rates(folder).items()), flush=True)


def row_of(cell: Cell) -> str:
    """A line of the table; "–" where too few blocks leave nothing to say, or where blocks are empty calls."""
    texts = [form.format(getattr(cell, name)).replace("nan%", "–").replace("nan", "–") for name, _, form in COLUMNS]
    return "".join(f"{text:>11}" for text in texts)


def run_cells(options: argparse.Namespace, folder: Path) -> list[Cell]:
    """Every number of workers with every mean duration; printed as they come."""
    from pipeline.cluster import open_workers
    from pipeline.config import RemoteCluster

    shape = measured(options.durations) if options.durations else None
    per_image = len(sample_plan(options.side).blocks)
    print("".join(f"{heading:>11}" for _, heading, _ in COLUMNS), flush=True)
    cells = []
    for workers in options.workers:
        with ExitStack() as stack:
            contact, scheduler, hosts = stack.enter_context(processes(folder, workers, options.hosts))
            config = RemoteCluster(type="address", scheduler_file=contact)
            stack.enter_context(_all_there(contact, workers))
            found = stack.enter_context(open_workers(config))
            simulate(found, 0, 1 + 4 * workers // per_image, options.side, None, folder, (scheduler, hosts))  # they import
            for mean in options.seconds:
                wanted = 40 * workers + 200 if mean == 0 else workers * max(3.0, options.wall / mean)
                blocks = max(min(wanted, options.most), 3 * workers)
                side, each = (options.side, per_image) if blocks >= per_image else (16384, len(sample_plan(16384).blocks))
                images = ceil(blocks / each)
                repeats = [
                    simulate(found, mean, images, side, shape, folder, (scheduler, hosts))
                    for _ in range(1 if mean else options.repeats)
                ]
                cell = sorted(repeats, key=lambda c: c.wall)[len(repeats) // 2]
                cells.append(cell)
                print(row_of(cell), flush=True)
    return cells


@contextmanager
def _all_there(contact: Path, workers: int) -> Iterator[None]:
    """Until all workers have joined."""
    from distributed import Client

    with Client(scheduler_file=str(contact), set_as_default=False) as client:
        client.wait_for_workers(workers, timeout=180)
    yield


def sustained(cell: Cell, cells: list[Cell]) -> float:
    """Efficiency that goes on: that of the steady part, or less where empty calls show that the driver cannot keep up; at
    least that of the whole run, start and tail included.

    A short run hands out all its tasks at the start, and what follows is then cheaper than in a long night.
    """
    empty = [other.rate for other in cells if other.workers == cell.workers and not other.mean_seconds]
    limits = [rate * cell.mean_seconds / cell.workers for rate in empty]
    steady = [cell.steady] if cell.steady == cell.steady else []
    return max(cell.efficiency, min([*steady, *limits], default=0.0))


def print_sustained(cells: list[Cell]) -> None:
    """Sustained efficiency: workers down, mean seconds of a block across."""
    means = sorted({cell.mean_seconds for cell in cells if cell.mean_seconds})
    print("\nsustained" + "".join(f"{f'{mean:g} s':>9}" for mean in means))
    for workers in sorted({cell.workers for cell in cells}):
        found = {cell.mean_seconds: f"{sustained(cell, cells):.1%}" for cell in cells if cell.workers == workers}
        print(f"{workers:>9}" + "".join(f"{found.get(mean, '–'):>9}" for mean in means))


def draw(cells: list[Cell], path: Path) -> None:
    """Left: efficiency over workers; right: blocks a second that the workers could do, and that are done."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.4), width_ratios=(1.15, 1), layout="constrained")
    means = sorted({c.mean_seconds for c in cells if c.mean_seconds}, reverse=True)
    counts = sorted({c.workers for c in cells})
    colours = [plt.get_cmap("viridis")(0.05 + 0.75 * i / max(1, len(means) - 1)) for i in range(len(means))]
    ceiling = 106.0
    for mean, colour in zip(means, colours, strict=True):
        line = sorted((c for c in cells if c.mean_seconds == mean), key=lambda c: c.workers)
        share = [sustained(c, cells) for c in line]
        left.plot([c.workers for c in line], [100 * s for s in share], "o-", color=colour, lw=1.8, ms=5)
        ceiling = min(ceiling - 6, 100 * share[-1])
        left.text(1.2 * line[-1].workers, ceiling, f"{mean:g} s", color=colour, va="center", fontweight="bold")
        asked = [c.workers / mean for c in line]
        right.plot(asked, [s * a for s, a in zip(share, asked, strict=True)], "o", color=colour, ms=6, label=f"{mean:g} s")
    left.set(xscale="log", xlim=(0.85, 2.3 * counts[-1]), ylim=(0, 104))
    left.set(xlabel="workers", ylabel="share of the workers' time spent in blocks, %")
    left.set_xticks(counts, [str(n) for n in counts])
    left.minorticks_off()
    left.set_title("Efficiency, by mean seconds of a block", loc="left", fontsize=11)
    left.grid(axis="y", color="0.92")

    top = 2.5 * counts[-1] / means[-1]
    low = 0.5 / means[0]
    right.plot((low, top), (low, top), "-", color="0.75", lw=1, zorder=0)
    right.annotate("no loss", (12 * low, 12 * low), (-8, 8), textcoords="offset points", color="0.45", ha="right")
    for limit in (c.rate for c in cells if not c.mean_seconds and c.workers == counts[-1]):
        right.axhline(limit, color="#b2182b", lw=1, ls="--", zorder=0)
        words = f"{limit:.0f} a second: empty calls, {counts[-1]} workers"
        right.annotate(words, (low, limit), (3, 4), textcoords="offset points", color="#b2182b")
    right.set(xscale="log", yscale="log", xlim=(low, top), ylim=(low, top))
    for axis in (right.xaxis, right.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
    right.minorticks_off()
    right.set(xlabel="blocks a second that the workers could do", ylabel="blocks a second done")
    right.set_title("Where one driver and one scheduler end it", loc="left", fontsize=11)
    right.legend(title="block", frameon=False, loc="lower right", fontsize=9)
    figure.savefig(path, dpi=150)


def load(paths: list[Path]) -> list[Cell]:
    """What earlier runs saved."""
    return [Cell(**cell) for path in paths for cell in json.loads(path.read_text())]


def main() -> None:
    """Run, print, keep and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 10, 100, 500])
    parser.add_argument("--seconds", type=float, nargs="+", default=[0, 0.3, 1, 3, 10, 30], help="mean block; 0: empty calls")
    parser.add_argument("--durations", type=Path, help="ledger or a mask's JSON: its blocks' seconds give the spread")
    parser.add_argument("--wall", type=float, default=30, help="seconds that a run should take, with at least 3 blocks a worker")
    parser.add_argument("--most", type=int, default=6000, help="most blocks of a run")
    parser.add_argument("--side", type=int, default=65536, help="side of each image in px")
    parser.add_argument("--hosts", type=int, default=4, help="processes that the workers share")
    parser.add_argument("--repeats", type=int, default=3, help="runs of empty calls: the median counts")
    parser.add_argument("--folder", type=Path, help="where the ledger lies; default: a temporary folder")
    parser.add_argument("--save", type=Path)
    parser.add_argument("--load", type=Path, nargs="+", help="draw what earlier runs saved")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--parts", action="store_true", help="only what one task and one record cost")
    parser.add_argument("--role", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--contact", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        if options.role[0] == "scheduler":
            serve_scheduler(options.contact)
        else:
            serve_workers(options.contact, int(options.role[1]), options.role[2])
        return
    print(f"{machine()}\n", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # a run that is ended takes its processes with it
    if options.load:
        cells = load(options.load)
    else:
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            print_parts(Path(name))
            cells = [] if options.parts else run_cells(options, Path(name))
    if options.save:
        options.save.write_text(json.dumps([asdict(cell) for cell in cells], indent=1))
    if cells:
        print_sustained(cells)
    if options.picture:
        draw(cells, options.picture)


if __name__ == "__main__":
    # under its own name, so that workers import what they are sent instead of getting it by value
    from tests.benchmarks.scaling_simulation import main as run

    run()
