"""What a running study shows: a bar with time left for each run, or plain lines in a pipe.

Knows events (mappings with `stage`, `step`, `steps`, …) and a console; knows no model and no file.
It draws from the caller's thread only, so the process may fork while a display is open.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as TimeLeft

TRAINING_SHARE = 0.7
"""How much of a stage's bar is training; the rest is answering tasks and probes."""
UNTRAINED = "trains nothing; its scores are the base's"
"""Of a run without stages."""


class Display:
    """Shows events of runs (name → number of stages) while used as a context manager."""

    def __init__(
        self,
        runs: Mapping[str, int],
        *,
        shown: bool = True,
        console: Console | None = None,
    ) -> None:
        self._console = console or Console(quiet=not shown)
        self._runs = dict(runs)
        self._bars: dict[str, TaskID] = {}
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeLeft(),
            TextColumn("{task.fields[note]}", style="dim"),
            console=self._console,
            auto_refresh=False,
            speed_estimate_period=3600,
        )

    @property
    def drawn(self) -> bool:
        """Whether bars are drawn; otherwise lines are printed."""
        return self._console.is_terminal and not self._console.quiet

    def __enter__(self) -> Display:
        if self.drawn:
            width = max((len(run) for run in self._runs), default=0)
            for run, stages in self._runs.items():
                self._bars[run] = self._progress.add_task(
                    run.ljust(width), total=float(stages or 1), start=False, note="waits"
                )
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.drawn:
            self._progress.stop()

    def share(self, name: str, share: float, note: str = "") -> None:
        """How much is done of what comes before the runs; in a pipe, a line when it begins."""
        if name not in self._bars:
            if not self.drawn:
                self.say(f"{name}: {note}")
            self._bars[name] = self._progress.add_task(name, total=1.0, note=note)
        if self.drawn:
            self._progress.update(
                self._bars[name], completed=share, note="" if share == 1 else note
            )
            self._progress.refresh()

    def say(self, text: str) -> None:
        """A line that stays."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def event(self, run: str, event: dict[str, Any]) -> None:
        """Shows one event. The kinds: `step` while training, `scoring`, `done`; `again` for a stage
        that must be trained twice; an empty event is a tick of the clock."""
        kind = event.get("kind")
        if not self.drawn:
            if kind in ("done", "again"):
                stages = self._runs[run]
                place = f"stage {event['stage']} of {stages}, {event['note']}"
                self.say(f"{run}: {place if stages else UNTRAINED}")
            return
        if kind:
            bar, stages = self._bars[run], self._runs[run]
            self._progress.start_task(bar)
            self._progress.update(
                bar,
                completed=_completed(event) if stages else 1.0,
                note=event.get("note", "") if stages else UNTRAINED,
            )
        self._progress.refresh()


def _completed(event: dict[str, Any]) -> float:
    """Stages done, with the fraction of the current one."""
    stage = int(event["stage"])
    if event["kind"] in ("done", "again"):
        return float(stage)
    if event["kind"] == "scoring":
        return stage - 1 + TRAINING_SHARE + (1 - TRAINING_SHARE) * float(event.get("share", 0.0))
    return stage - 1 + TRAINING_SHARE * event["step"] / max(1, event["steps"])
