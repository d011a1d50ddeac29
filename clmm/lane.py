"""One strategy and seed on its way through all stages: what is trained, scored, kept, skipped.

Knows the order within a run and what to do when part of it is done already. What all runs share
is loaded by `clmm.experiment`, which also decides what runs side by side.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch

from clmm.assessment import Assessment, Assessor, keep
from clmm.batching import Batcher
from clmm.learner import STATE_FILE, Learner
from clmm.loading import Loaded
from clmm.process_memory import return_memory
from clmm.strategy import Stages
from clmm.study import Study
from clmm.workers import Report, Turn
from reports.run_folder import RunFolder, StageFolder
from streams.sample import Sample
from streams.settings import SettingError
from streams.stream import Stream

EVENTS_AT_A_TIME = 50


@dataclass(frozen=True, kw_only=True)
class Built:
    """What a study needs to know of a strategy on its model before it runs."""

    trainable: int
    first_stage: Hashable | None
    """As `clmm.learner.Learner.first_stage`, and the next too."""
    answers_as_trained: bool
    mixed_in: tuple[Sample, ...]


@dataclass(frozen=True, kw_only=True)
class Materials:
    """What all runs of a study share, loaded once."""

    study: Study
    stream: Stream
    loaded: Loaded
    batcher: Batcher
    """Shared by all runs, so that what the base stage encoded is encoded once."""
    alignment: tuple[Sample, ...]
    assessor: Assessor

    @cached_property
    def built(self) -> tuple[Built, ...]:
        """Every strategy, built once; raises what it cannot work with."""
        return tuple(self._built(number) for number in range(len(self.study.strategies)))

    @property
    def mixed_in(self) -> tuple[Sample, ...]:
        """Samples of no task that some strategy trains on, and the study's alignment samples."""
        found = [self.alignment, *(one.mixed_in for one in self.built)]
        return tuple({id(sample): sample for part in found for sample in part}.values())

    @property
    def trainable(self) -> tuple[int, ...]:
        """Parameters that each strategy trains in a stage."""
        return tuple(one.trainable for one in self.built)

    def _built(self, number: int) -> Built:
        try:
            with self.learner(number, self.study.seeds[0]) as learner:
                return Built(
                    trainable=learner.trainable_parameters,
                    first_stage=learner.first_stage,
                    answers_as_trained=learner.answers_as_trained,
                    mixed_in=learner.mixed_in,
                )
        except (SettingError, ValueError) as error:
            label = self.study.labels[number]
            raise SettingError(f"strategies[{number}] ({label}): {error}") from error

    def learner(self, number: int, seed: int) -> Learner:
        """Strategy `number` on the model; close it before the next one is made."""
        study = self.study
        return Learner(
            study.strategies[number],
            self.loaded,
            self.stream,
            study.train,
            seed,
            self.alignment,
            batcher=self.batcher,
            decoding=study.decoding,
        )


@dataclass(frozen=True, kw_only=True)
class Lane:
    """One strategy and seed through all stages."""

    run: RunFolder
    materials: Materials
    number: int
    seed: int
    main: bool
    """Whether this process writes; under torchrun one does."""

    @property
    def label(self) -> str:
        return self.materials.study.labels[self.number]

    @property
    def title(self) -> str:
        several = len(self.materials.study.seeds) > 1
        return f"{self.label} seed {self.seed}" if several else self.label

    @property
    def stages(self) -> Stages:
        """The names of the tasks that each stage trains on."""
        names = [task.name for task in self.materials.stream.tasks]
        stages: Stages = self.materials.study.strategies[self.number].stages(names)
        return stages

    @property
    def done(self) -> int:
        """How many stages are done."""
        found = 0
        while found < len(self.stages) and self.run.stage(self.label, self.seed, found + 1).done:
            found += 1
        return found

    @property
    def leader(self) -> Lane | None:
        """The first lane of the study that trains the same first stage, unless it is this one."""
        built = self.materials.built
        wanted = built[self.number].first_stage
        first = next((n for n, one in enumerate(built) if one.first_stage == wanted), self.number)
        if wanted is None or first == self.number:
            return None
        return replace(self, number=first)

    def began(self) -> bool:
        """Whether the first stage is done."""
        return self.run.stage(self.label, self.seed, 1).done

    def saved(self) -> bool:
        """Whether the first stage's weights are still there."""
        folder = self.run.stage(self.label, self.seed, 1).checkpoint
        return (folder / STATE_FILE).is_file()

    @property
    def unfinished(self) -> bool:
        return self.done < len(self.stages)

    def go(self, report: Report, turn: Turn) -> None:
        """Trains and scores the stages that are not done yet, from the last one that is."""
        last, done = len(self.stages), self.done
        if done or not last:
            report({"kind": "done", "stage": done, "note": "was done already"})
        if done == last:
            return
        with self.materials.learner(self.number, self.seed) as learner:
            if done and learner.resumable:
                learner.load(self.run.stage(self.label, self.seed, done).checkpoint)
            else:
                # The state of stock plugins is not saved. Stages come out the same each time, so
                # they are trained once more, and their scores stand.
                for stage in range(1, done + 1):
                    report({"kind": "again", "stage": stage, "note": f"stage {stage} once more"})
                    with turn():
                        learner.train_stage(stage)
            for stage in range(done + 1, last + 1):
                self._stage(learner, stage, report, turn)

    def _stage(self, learner: Learner, stage: int, report: Report, turn: Turn) -> None:
        earlier = {name for names in self.stages[: stage - 1] for name in names}
        new = [name for name in self.stages[stage - 1] if name not in earlier]
        task = new[0] if len(new) == 1 else None
        folder = self.run.stage(self.label, self.seed, stage)
        if self.main:
            folder.begin()
        leader = self.leader if stage == 1 else None
        if leader is not None:
            with turn():
                pass  # comes when the leader's first stage is done, or never will be
            wait_for_all()  # the main process may still be writing what the leader found
        if leader is not None and leader.began() and leader.saved():
            self._follow(leader, learner, folder, report, turn)
            return
        # Short turns leave the last run little time alone.
        with turn(), _recorded(folder, report, note=task or "all tasks", main=self.main) as event:
            cost = dict(learner.train_stage(stage, event))
            learner.save(folder.checkpoint)
            return_memory()
        with turn():
            found = self._score(learner, stage, report, cost, task or "all tasks")
            if self.main:
                before = self.run.stage(self.label, self.seed, stage - 1) if stage > 1 else None
                keep(folder, found, task=task, cost=cost, base=self.run.base(), previous=before)
        report({"kind": "done", "stage": stage, "note": _summary(task, found.tasks, cost)})

    def _follow(
        self, leader: Lane, learner: Learner, folder: StageFolder, report: Report, turn: Turn
    ) -> None:
        """The first stage as the leader has trained it and, if both answer alike, scored it.

        Its cost is what it would be alone: the leader's updates, and what comes before and after
        them here.
        """
        theirs = leader.run.stage(leader.label, leader.seed, 1)
        scores: dict[str, Any] = dict(theirs.read_scores())
        task, before = scores["task"], scores["cost"]
        # The leader may have trained its other stages too.
        updates = [event for event in theirs.read_events() if event["stage"] == 1]
        shared = {**before, "seconds": updates[-1]["seconds"]} if updates else before
        with turn():
            own = learner.train_stage(1, like=theirs.checkpoint)
            learner.save(folder.checkpoint)
            if self.main:
                folder.append_events(*updates)
        cost = {
            **own,
            **{key: own[key] + shared[key] for key in ("seconds", "steps", "samples")},
            "peak_memory_bytes": max(own["peak_memory_bytes"], before["peak_memory_bytes"]),
            "scoring_seconds": before["scoring_seconds"],
            "shared_with": leader.label,
        }
        if learner.answers_as_trained and self.materials.built[leader.number].answers_as_trained:
            if self.main:
                folder.write_answers(theirs.read_answers())
                folder.write_outcomes(theirs.read_outcomes())
                folder.write_scores({**scores, "cost": cost})
            tasks = scores["tasks"]
        else:
            with turn():
                found = self._score(learner, 1, report, cost, task or "all tasks")
                if self.main:
                    keep(folder, found, task=task, cost=cost, base=self.run.base())
            tasks = found.tasks
        report({"kind": "done", "stage": 1, "note": _summary(task, tasks, cost)})

    def _score(
        self, learner: Learner, stage: int, report: Report, cost: dict[str, Any], what: str
    ) -> Assessment:
        scoring = {"kind": "scoring", "stage": stage, "note": f"{what}: scoring"}
        report(scoring)
        started, size = time.perf_counter(), self.materials.study.answer_batch_size
        found = self.materials.assessor.assess(
            learner.answering(batch_size=size),
            seen=[name for names in self.stages[:stage] for name in names],
            oracle=partial(learner.oracle_answering, batch_size=size),
            report=lambda share: report({**scoring, "share": share}),
            mixed=learner.mixes_routes,
        )
        learner.save_answers(self.run.stage(self.label, self.seed, stage).checkpoint)
        cost["scoring_seconds"] = time.perf_counter() - started
        if learner.decoding.decisions:
            cost["decisions"] = dict(learner.decoding.decisions)
            learner.decoding.decisions.clear()
        return_memory()
        return found


@contextmanager
def _recorded(folder: StageFolder, report: Report, *, note: str, main: bool) -> Iterator[Report]:
    """Passes training steps on to the display and, in batches, to the run folder's events."""
    kept: list[dict[str, Any]] = []

    def event(step: dict[str, Any]) -> None:
        kept.append({"kind": "step", **step})
        report({**kept[-1], "note": f"{note}: loss {step['loss']:.3f}"})
        if len(kept) >= EVENTS_AT_A_TIME:
            flush()

    def flush() -> None:
        if main and kept:
            folder.append_events(*kept)
        kept.clear()

    try:
        yield event
    finally:
        flush()


def wait_for_all() -> None:
    """Until all processes of torchrun are here; at once where there is one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def _summary(task: str | None, tasks: Mapping[str, Any], cost: dict[str, Any]) -> str:
    accuracies = [record["accuracy"] for record in tasks.values()]
    mean = sum(accuracies) / len(accuracies)
    seconds = cost.get("seconds", 0.0) + cost["scoring_seconds"]
    own = f"{task} {tasks[task]['accuracy']:.1%}, " if task else ""
    return f"{own}mean {mean:.1%} ({seconds:.0f} s)"
