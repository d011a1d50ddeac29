"""One process at a time in a run folder. Knows a folder and a lock, nothing of what is in it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from reports.records import RunFolderError

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

PATIENCE_SECONDS = 3.0
"""A killed run's forked children hold its lock for the moment in which they end."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes `folder` and keeps other processes out of it; the lock ends with its process.

    Raises RunFolderError when another process has it. Where directories cannot be locked
    (Windows) it keeps nobody out. A folder that is still empty at the end goes again.
    """
    made = not folder.exists()
    if made:
        folder.mkdir(parents=True)
    if fcntl is None or not folder.is_dir():
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        _wait(handle, folder)
        yield
    finally:
        os.close(handle)
        if made:
            with suppress(OSError):  # it is in use; an empty one came of a refused study
                folder.rmdir()


def _wait(handle: int, folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise RunFolderError(
                    f"{folder}: another process is running in this folder; wait for it, or give "
                    "another folder"
                ) from None
            time.sleep(0.05)
