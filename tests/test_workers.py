"""Jobs side by side: all of them run, one that fails fails alone, none outlives its parent."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from clmm.workers import Job, Report, Turn, _grant, can_fork, run_jobs

pytestmark = pytest.mark.skipif(not can_fork(), reason="jobs run in this process here")


def _count(report: Report, turn: Turn) -> None:
    for step in range(3):
        report({"kind": "step", "step": step})


def _fail(report: Report, turn: Turn) -> None:
    print("about to divide")
    raise ZeroDivisionError("by zero")


def _die(report: Report, turn: Turn) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_all_jobs_report_and_only_the_bad_one_fails(workers: int) -> None:
    events: dict[str, list[dict[str, Any]]] = {"a": [], "b": [], "c": [], "": []}
    jobs = [Job(name="a", work=_count), Job(name="b", work=_fail), Job(name="c", work=_count)]
    failures = run_jobs(jobs, workers=workers, on_event=lambda n, e: events[n].append(e))
    assert [event["step"] for event in events["a"]] == [0, 1, 2]
    assert events["c"] == events["a"]
    assert [(f.name, f.message) for f in failures] == [("b", "ZeroDivisionError: by zero")]
    assert "_fail" in failures[0].details


def test_only_so_many_turns_at_a_time() -> None:
    def work(report: Report, turn: Turn) -> None:
        for _ in range(4):
            with turn():
                report({"change": 1})
                time.sleep(0.02)
                report({"change": -1})

    changes: list[int] = []
    jobs = [Job(name=name, work=work) for name in "abc"]
    assert not run_jobs(jobs, workers=2, on_event=lambda n, e: changes.append(e.get("change", 0)))
    assert changes.count(1) == 12
    assert max(itertools.accumulate(changes)) <= 2


def test_the_next_turn_goes_to_the_job_that_had_fewest() -> None:
    states = {"works": 3, "waits": 2, "waits too": 1, "idle": 0}
    running: list[Any] = [
        SimpleNamespace(
            state=name.split()[0],
            turns=turns,
            events=SimpleNamespace(send=str),
            job=Job(name=name, work=_count),
        )
        for name, turns in states.items()
    ]
    _grant(running, 2)
    assert [one.state for one in running] == ["works", "waits", "works", "idle"]
    assert [one.turns for one in running] == [3, 2, 2, 0]


@pytest.mark.parametrize("fails", [False, True])
def test_a_job_waits_for_what_it_builds_on_or_for_its_end(fails: bool, tmp_path: Path) -> None:
    made, seen = tmp_path / "made", tmp_path / "seen"

    def first(report: Report, turn: Turn) -> None:
        with turn():
            time.sleep(0.3)
            if fails:
                raise ValueError("no")
            made.touch()
        time.sleep(60 if not fails else 0)  # it goes on for long

    def second(report: Report, turn: Turn) -> None:
        with turn():
            seen.write_text(str(made.exists()))
        report({"seen": True})

    jobs = [
        Job(name="first", work=first),
        Job(name="second", work=second, after="first", ready=made.exists),
    ]

    def stop(name: str, event: dict[str, Any]) -> None:
        if event.get("seen") and not fails:
            raise KeyboardInterrupt

    if fails:
        assert [f.name for f in run_jobs(jobs, workers=2, on_event=stop)] == ["first"]
    else:
        with pytest.raises(KeyboardInterrupt):
            run_jobs(jobs, workers=2, on_event=stop)
    assert seen.read_text() == str(not fails)


def test_a_killed_job_is_a_failure_that_says_how() -> None:
    jobs = [Job(name="a", work=_die), Job(name="b", work=_count)]
    failures = run_jobs(jobs, workers=2, on_event=lambda name, event: None)
    assert [f.name for f in failures] == ["a"]
    assert "signal 9" in failures[0].message
    assert "memory" in failures[0].message


def test_an_interrupt_ends_the_jobs() -> None:
    pids: list[int] = []

    def sleep(report: Report, turn: Turn) -> None:
        report({"pid": os.getpid()})
        time.sleep(60)

    def interrupt(name: str, event: dict[str, Any]) -> None:
        if "pid" in event:
            pids.append(event["pid"])
            raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_jobs([Job(name="a", work=sleep)], workers=1, on_event=interrupt)
    assert time.monotonic() - started < 10
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


def test_no_job_outlives_a_killed_parent() -> None:
    code = (
        "import os, time\n"
        "from clmm.workers import Job, run_jobs\n"
        "def work(report, turn):\n"
        "    report({'pid': os.getpid()})\n"
        "    time.sleep(60)\n"
        "def show(name, event):\n"
        "    if event: print(event['pid'], flush=True)\n"
        "run_jobs([Job(name='a', work=work)], workers=1, on_event=show)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(50):
        try:
            with open(f"/proc/{child}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return
        except FileNotFoundError:
            return
        time.sleep(0.1)
    pytest.fail(f"process {child} outlived its parent")
