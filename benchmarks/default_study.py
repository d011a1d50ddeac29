"""How long `clmm run default` takes after set-up, and how much memory all its processes hold.

    python benchmarks/default_study.py [STUDY] [key=value …]

Memory is the largest sum of proportional set sizes (shared pages counted once), looked at every two
seconds, since looking costs time. Bounds of the default study on two cores: 300 s and 3 GB.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time

import psutil


def held_bytes(root: psutil.Process) -> int:
    total = 0
    for process in (root, *root.children(recursive=True)):
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
            continue  # it ended while we looked
    return total


def main() -> None:
    arguments = sys.argv[1:] or ["default"]
    with tempfile.TemporaryDirectory() as folder:
        started, peak = time.perf_counter(), 0
        run = subprocess.Popen(
            [sys.executable, "-m", "clmm.cli", "run", *arguments, "--out", f"{folder}/run"]
        )
        while run.poll() is None:
            peak = max(peak, held_bytes(psutil.Process(run.pid)))
            time.sleep(2)
        seconds = time.perf_counter() - started
    print(f"{seconds:.0f} s, peak memory {peak / 1e9:.2f} GB, exit code {run.returncode}")


if __name__ == "__main__":
    main()
