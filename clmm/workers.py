"""Runs several jobs side by side in processes of their own, and passes on what they report.

Knows processes and signals, no strategy and no model. A job is forked, so it starts at once with
all that its parent has loaded and leaves nothing behind; where forking is not sound (a GPU in
use, macOS, Windows) jobs run one after another in this process.

A job works in turns, and only so many turns are under way at a time. The next turn goes to the
job that had fewest, so three equal jobs on two cores take half as long again as one, where one
core for each of two jobs would leave the third to run alone.
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from typing import IO, Any, Literal, TypeVar

from clmm.process_memory import keep_blocks
from clmm.training import TrainingDiverged

Report = Callable[[dict[str, Any]], None]
Turn = Callable[[], AbstractContextManager[None]]
Part = TypeVar("Part")
Found = TypeVar("Found")
TICK_SECONDS = 0.2
DETAILS_CHARACTERS = 4000


@dataclass(frozen=True, kw_only=True)
class Job:
    """Work with a name. `work` gets two functions: one to report an event, a mapping of plain
    values; one for a turn, a context in which it may compute.

    With `after`, the name of a job before it in the list, its first turn waits until `ready`, or
    until that job has ended.
    """

    name: str
    work: Callable[[Report, Turn], None]
    after: str | None = None
    ready: Callable[[], bool] = lambda: True


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a job ended early, and the end of what its process printed."""

    name: str
    message: str
    details: str = ""


@dataclass
class _Running:
    job: Job
    process: ForkProcess
    events: Connection
    printed: IO[bytes]
    failure: Failure | None = None
    turns: int = 0
    state: Literal["idle", "waits", "works"] = "idle"


def can_fork() -> bool:
    """Whether a forked copy of this process can compute: Linux, and no GPU context in it yet."""
    if not sys.platform.startswith("linux"):
        return False
    torch = sys.modules.get("torch")
    return torch is None or not torch.cuda.is_initialized()


def run_jobs(
    jobs: Sequence[Job], *, workers: int, on_event: Callable[[str, dict[str, Any]], None]
) -> list[Failure]:
    """Runs all jobs, `workers` turns at a time; the others go on when one fails.

    `on_event(job name, event)` is called in this process; an empty event is a tick of the clock.
    With `workers` 0 jobs run here, one after another. KeyboardInterrupt ends all of them.
    """
    if workers == 0:
        return [f for job in jobs if (f := _run_here(job, on_event)) is not None]
    waiting, failures = list(jobs), list[Failure]()
    running: list[_Running] = []
    gc.collect()
    gc.freeze()  # a collection in a child would write to, and so copy, every page it shares
    try:
        while waiting or running:
            while waiting and len(running) < (workers if workers == 1 else 2 * workers):
                running.append(_start(waiting.pop(0)))
            wait([r.events for r in running], timeout=TICK_SECONDS)
            for one in list(running):
                if _drain(one, on_event):
                    continue
                running.remove(one)
                if one.failure is not None:
                    failures.append(one.failure)
            _grant(running, workers)
            on_event("", {})
    finally:
        _stop(running)
        gc.unfreeze()
    return failures


def side_by_side(
    work: Callable[[Part], Found],
    parts: Sequence[Part],
    *,
    workers: int,
    on_part: Callable[[int], None] = lambda done: None,
) -> list[Found]:
    """`[work(part) for part in parts]`, in forked copies of this process when `workers` > 1.

    What `work` finds comes back by pickle; `on_part` is told how many parts are done. Raises
    ValueError with the message of the first part that failed.
    """
    found: dict[int, Found] = {}

    def keep(_: str, event: dict[str, Any]) -> None:
        if event:
            found[event["part"]] = event["found"]
            on_part(len(found))

    taken = multiprocessing.get_context("fork").Value("i", 0) if workers > 1 else None

    def next_ones(report: Report, turn: Turn) -> None:
        assert taken is not None
        while True:
            with taken.get_lock():
                part, taken.value = taken.value, taken.value + 1
            if part >= len(parts):
                return
            report({"part": part, "found": work(parts[part])})

    if workers < 2 or len(parts) < 2:
        for number, part in enumerate(parts):
            keep("", {"part": number, "found": work(part)})
    else:
        jobs = [Job(name=str(k), work=next_ones) for k in range(min(workers, len(parts)))]
        for failure in run_jobs(jobs, workers=workers, on_event=keep):
            error = ValueError(failure.message)
            if failure.details:
                error.add_note(failure.details)
            raise error
    return [found[part] for part in range(len(parts))]


def _run_here(job: Job, on_event: Callable[[str, dict[str, Any]], None]) -> Failure | None:
    try:
        job.work(lambda event: on_event(job.name, event), nullcontext)
    except Exception as error:
        return Failure(name=job.name, message=_message(error), details=_details(error))
    return None


def _start(job: Job) -> _Running:
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe()
    printed = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the process)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()  # else the child would print what is still buffered a second time
    with warnings.catch_warnings():
        # Python warns that threads do not survive a fork. The child uses none of them: numerical
        # libraries run single-threaded there, and the display is drawn by this thread.
        warnings.simplefilter("ignore", DeprecationWarning)
        process = context.Process(
            target=_child, args=(job, theirs, printed.fileno(), os.getpid()), daemon=True
        )
        process.start()
    theirs.close()
    return _Running(job=job, process=process, events=mine, printed=printed)


def _drain(one: _Running, on_event: Callable[[str, dict[str, Any]], None]) -> bool:
    """Passes on what has arrived. False when the job has ended, its failure noted."""
    try:
        while one.events.poll():
            event = one.events.recv()
            if "turn" in event:
                one.state = event["turn"]
            elif "failure" in event:
                one.failure = Failure(name=one.job.name, message=event["failure"])
            else:
                on_event(one.job.name, event)
        return True
    except (EOFError, ConnectionResetError):
        one.process.join()
        one.events.close()
    code = one.process.exitcode or 0
    if code and one.failure is None:
        reason = f"was ended by signal {-code}" if code < 0 else f"ended with status {code}"
        hint = "; was there enough memory?" if code == -signal.SIGKILL else ""
        one.failure = Failure(name=one.job.name, message=f"its process {reason}{hint}")
    if one.failure is not None:
        one.printed.seek(0)
        text = one.printed.read().decode(errors="replace")[-DETAILS_CHARACTERS:]
        one.failure = dataclasses.replace(one.failure, details=text)
    one.printed.close()
    return False


def _grant(running: Sequence[_Running], workers: int) -> None:
    """Gives free turns to the jobs that had fewest."""
    free = workers - sum(one.state == "works" for one in running)
    names = {one.job.name for one in running}
    for one in sorted(running, key=lambda one: one.turns):
        held = not one.turns and one.job.after in names and not one.job.ready()
        if free > 0 and one.state == "waits" and not held:
            with suppress(BrokenPipeError):  # it has just died, as will be seen next
                one.events.send("go")
            one.state, one.turns, free = "works", one.turns + 1, free - 1


def _stop(running: Sequence[_Running]) -> None:
    for one in running:
        one.process.terminate()
    deadline = time.monotonic() + 3
    for one in running:
        one.process.join(max(0.0, deadline - time.monotonic()))
        if one.process.is_alive():
            one.process.kill()
            one.process.join()
        one.events.close()
        one.printed.close()


def _child(job: Job, channel: Connection, printed: int, parent: int) -> None:
    _die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C and ends its children
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for stream in (1, 2):  # what libraries print would tear the progress bars
        os.dup2(printed, stream)
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)
    keep_blocks()

    @contextmanager
    def turn() -> Iterator[None]:
        channel.send({"turn": "waits"})
        channel.recv()
        try:
            yield
        finally:
            channel.send({"turn": "idle"})

    try:
        job.work(channel.send, turn)
    except Exception as error:
        os.write(2, _details(error).encode())
        channel.send({"failure": _message(error)})
        sys.exit(1)


def _die_with(parent: int) -> None:
    """Asks the kernel to end this process with its parent, so that kill -9 leaves no orphan."""
    if sys.platform.startswith("linux"):
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


_EXPECTED = (ValueError, OSError, TrainingDiverged)
"""Errors whose message is all that a user needs."""


def _details(error: BaseException) -> str:
    """The traceback, of what was not expected or when asked for."""
    asked = os.environ.get("CLMM_DEBUG", "0") not in ("", "0")
    return "" if isinstance(error, _EXPECTED) and not asked else traceback.format_exc()


def _message(error: BaseException) -> str:
    text = str(error).strip() or "no message"
    return (
        text
        if isinstance(error, (ValueError, TrainingDiverged))
        else f"{type(error).__name__}: {text}"
    )
