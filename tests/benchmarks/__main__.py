"""All benchmarks one after the other, and at the end what was reached and what was missed.

    python -m tests.benchmarks [NAME ...]          (make bench)

Twenty minutes on two cores that have nothing else to do; each can be run alone, as python -m tests.benchmarks.NAME --help tells.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

from tests.benchmarks.measure import REPO

ALL = ("around", "stages", "efficiency", "tiles", "memory", "slides", "scaling", "small", "start", "scoring", "encryption", "gpu")
"""dubai (what the masks are worth) and scaling_simulation (hundreds of workers) ask for data or time of their own."""


def main() -> int:
    """Run them, pass on what they print, and sum up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ALL)}; without any, all of them")
    names = parser.parse_args().names or ALL
    if unknown := set(names) - set(ALL):
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}: there are {', '.join(ALL)}")
    found: list[str] = []
    failed = 0
    for name in names:
        started = time.monotonic()
        print(f"== {name} " + "=" * (90 - len(name)), flush=True)
        command = [sys.executable, "-W", "ignore", "-m", f"tests.benchmarks.{name}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPO) as process:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", flush=True)
                if line.startswith(("reached", "MISSED", "not run")):
                    found.append(f"{name:12}{line.strip()}")
        if process.returncode:
            failed = 1
            found.append(f"{name:12}FAILED  exit code {process.returncode}")
        print(f"   ({time.monotonic() - started:.0f} s)\n", flush=True)
    print("== all " + "=" * 87)
    print("\n".join(found))
    return failed


if __name__ == "__main__":
    sys.exit(main())
