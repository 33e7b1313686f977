"""What people and machines around a run do to it: signals, a second run, a clock that is wrong."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from tests.chaos.ground import Ground
from tests.chaos.rows import Row, Watched, finish
from tests.chaos.runs import Reference, Trial, mask_files

END_SECONDS = 30.0
"""Within how long a run ends that was asked to."""


def signals(ground: Ground, reference: Reference) -> list[Row]:
    """SIGTERM to the driver and Ctrl-C to all its processes: the first alone in one process, then with two workers."""
    rows = {
        signal.SIGTERM: Row("SIGTERM", "to the driver, in one process and with 2 workers"),
        signal.SIGINT: Row("Ctrl-C", "SIGINT to the whole process group, in one process and with 2 workers"),
    }
    slowest = dict.fromkeys(rows, 0.0)
    dropped = 0
    for workers in (0, 2):
        trial = Trial(ground, f"signals{workers}", workers)
        watched = Watched(trial, reference)
        for signum, row in rows.items():
            before, start = trial.count_records(), trial.log.stat().st_size
            running = trial.start()
            running.until(lambda: trial.count_records() >= before + 3)  # noqa: B023 - called in this turn
            time.sleep(0.1)  # into the midst of a block
            asked = time.monotonic()
            if signum == signal.SIGINT:
                running.kill_group(signum)
            else:
                running.kill(signum)
            ended = running.wait()
            took = time.monotonic() - asked
            slowest[signum] = max(slowest[signum], took)
            row.ended(ended, 128 + signum, "run the same command again")
            row.expect(took <= END_SECONDS, f"it took {took:.0f} s to end")
            watched.check(row)
            kept = watched.fault()
            row.times += 1
            row.recomputed += len(trial.begun(reference, start).keys() - kept.keys())  # dropped: the next run begins them again
        ended = trial.run()
        for row in rows.values():
            said = row.said
            row.ended(ended, 0)
            row.said = said
        watched.check(rows[signal.SIGINT])
        if ended.code != 0:
            continue
        both = Row("both", "")
        finish(both, trial, reference, ended.report)
        for row in rows.values():
            row.equal = "NO" if "NO" in (row.equal, both.equal) else both.equal
            row.problems += both.problems
        dropped += both.recomputed
    for signum, row in rows.items():
        row.said += f" (at most {slowest[signum]:.1f} s after the signal)"
    last = rows[signal.SIGINT]
    last.expect(dropped == sum(row.recomputed for row in rows.values()), f"{dropped} blocks were begun again")
    return list(rows.values())


def second(ground: Ground, reference: Reference) -> list[Row]:
    """A second run of the same output, while the first is at work, and after it was killed."""
    trial = Trial(ground, "second")
    refused = Row("a second run of the same output", "while the first is at work", times=1)
    running = trial.start(seconds=0.1)
    running.until(lambda: trial.count_records() >= 1)
    other = trial.run(talk=True)
    words = (f"pid {running.process.pid} on {socket.gethostname()} since 2", "two runs there would do the same work twice")
    refused.ended(other, 1, *words)
    refused.expect(running.alive, "the first one is gone")
    taken = Row("the first of two runs dies", "kill -9, then the same command", times=1)
    running.until(lambda: trial.count_records() >= 6)
    running.kill()
    pid = running.process.pid
    running.wait()
    watched = Watched(trial, reference)
    watched.fault()
    over = trial.run(talk=True)
    watched.check(taken)
    taken.ended(over, 0, f"an earlier run, pid {pid}", "did not end well; this one goes on from where it was")
    taken.said = next((line for line in over.err.splitlines() if line.startswith("an earlier run")), "")
    undisturbed = Trial(ground, "first")
    running = undisturbed.start(seconds=0.03)
    running.until(lambda: undisturbed.count_records() >= 1)
    refused.ended(undisturbed.run(talk=True), 1, "two runs there would do the same work twice")
    refused.times += 1
    ended = running.wait()
    refused.expect(ended.code == 0, f"the first ended with {ended.code}: {ended.err[-1500:]}")
    if ended.code == 0:
        finish(refused, undisturbed, reference, ended.report)
    last = trial.run()
    taken.expect(last.code == 0, last.err[-1500:])
    if last.code == 0:
        finish(taken, trial, reference, last.report)
    return [refused, taken]


SHIM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static long skew(void) { const char *text = getenv("CHAOS_CLOCK"); return text ? atol(text) : 0; }

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, now);
    if (!result && clock == CLOCK_REALTIME) now->tv_sec += skew();
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *where) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    if (where) *where = precise.tv_sec;
    return precise.tv_sec;
}
"""
DAY = 86400


def clock(ground: Ground, reference: Reference) -> list[Row]:
    """Runs whose clock is days or years off, and files that were changed in the future or the past."""
    skewed = Row("the clock is wrong", "3 days late after a kill -9, then 10 years ahead (a library before libc's clock)")
    touched = Row("a file from the future, one from the past", "times of change of two images set to 2040 and to 1985")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        skewed.skipped = touched.skipped = "no C compiler here"
        return [skewed, touched]
    source, library = ground.folder / "clock.c", ground.folder / "clock.so"
    source.write_text(SHIM)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)

    def off(seconds: int) -> dict[str, str]:
        return {"LD_PRELOAD": str(library), "CHAOS_CLOCK": str(seconds)}

    trial = Trial(ground, "clock")
    running = trial.start()
    running.until(lambda: trial.count_records() >= 6)
    running.kill()
    running.wait()
    watched = Watched(trial, reference)
    watched.fault()
    late = trial.run(**off(-3 * DAY))
    watched.check(skewed)
    skewed.ended(late, 0)
    watched.fault()
    early = trial.run(**off(3650 * DAY))
    watched.check(skewed)
    skewed.ended(early, 0)
    skewed.times = 2
    if late.code == early.code == 0:
        years = {late.report.started[:4], early.report.started[:4]}
        skewed.expect(len(years) == 2, f"the clock was not off: {years}")
        skewed.expect(all(image.reused for image in early.report.images), "not all was reused")
        changes = early.report.changes
        seen = changes is not None and not changes.changed and not changes.new and changes.unchanged == len(reference.plans)
        skewed.expect(seen, f"taken for changed: {changes}")
        skewed.said = "everything reused, nothing taken for new or changed"
        finish(skewed, trial, reference, early.report)
    _touched(ground, trial, reference, touched)
    return [skewed, touched]


def _touched(ground: Ground, trial: Trial, reference: Reference, row: Row) -> None:
    """Two images with other times of change are told as changed, whichever way; then nothing is."""
    scenes = {name: path for name, path in ground.scenes.items() if name in ("d", "e")}
    before = {path: path.stat().st_mtime_ns for path in scenes.values()}
    try:
        for path, year in zip(scenes.values(), (2040, 1985), strict=True):
            moment = int((year - 1970) * 365.25 * DAY)
            os.utime(path, (moment, moment))
            row.times += 1
        start = trial.log.stat().st_size
        ended = trial.run()
        row.ended(ended, 0)
        begun = trial.begun(reference, start)
        row.expect({name for (name, _), times in begun.items() if times} == set(scenes), f"predicted again: {begun}")
        row.recomputed = begun.total()
        changes = ended.report.changes if ended.code == 0 else None
        told = [] if changes is None else [Path(uri).stem for uri in changes.changed]
        row.expect(told == list(scenes), f"told as changed: {told}")
        row.said = "both told as changed, and only they were made anew: a file's identity is its size and time of change"
        start = trial.log.stat().st_size
        again = trial.run()
        row.expect(again.code == 0 and all(image.reused for image in again.report.images), "not all was reused")
        row.expect(trial.log.stat().st_size == start, "something was predicted again")
    finally:
        for path, moment in before.items():
            os.utime(path, ns=(moment, moment))
    back = trial.run()
    row.expect(back.code == 0 and trial.log.stat().st_size == start, "the old files' masks were not taken up again")
    if back.code == 0:
        report = back.report
        row.expect(all(image.reused for image in report.images), "the old files' masks were not taken up again")
        files = mask_files(trial.output)
        row.equal = "yes" if all(files.get(name) == content for name, content in reference.files.items()) else "NO"
