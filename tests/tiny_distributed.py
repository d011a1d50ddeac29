"""Two processes that train side by side, for tests: each test file is also the script they run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny_streams
import torch


def found_by_two(script: str, folder: Path) -> Any:
    """What `main` has written when the test file `script` is run as a program."""
    path = folder / "two.json"
    done = subprocess.run(
        [sys.executable, script, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(path.read_text())


def main(find: Callable[[], Any]) -> None:
    """Runs `find` in two processes; what the first one finds goes to the path on the command line.

    Forked after the slow imports, which then come once; under torchrun they are there already.
    """
    if "RANK" in os.environ:
        _work(find, sys.argv[1])
        return
    from accelerate import debug_launcher

    import clmm.trainer  # noqa: F401

    tiny_streams.loaded()
    debug_launcher(_work, (find, sys.argv[1]), num_processes=2)


def _work(find: Callable[[], Any], path: str) -> None:
    torch.set_num_threads(1)
    found = find()
    if os.environ.get("RANK", "0") == "0":
        Path(path).write_text(json.dumps(found))
