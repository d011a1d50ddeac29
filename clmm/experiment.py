"""The experiment: every strategy and seed through the stream, everything scored after each stage.

Knows the order of things: what is loaded once, what runs side by side, what is skipped on resume.
How a stage trains is the learner's affair, how it is scored is `clmm.assessment`'s, where it is
kept is the run folder's.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from clmm import provenance
from clmm.answering import Answerer
from clmm.assessment import Assessment, Assessor, keep
from clmm.batching import Batcher
from clmm.learner import Learner, batcher_of
from clmm.loading import Loaded, load
from clmm.plan import Plan
from clmm.progress import Display
from clmm.result import Result
from clmm.strategy import Stages
from clmm.study import Study
from clmm.workers import Job, Report, Turn, can_fork, return_memory, run_jobs, side_by_side
from reports.run_folder import RunFolder, StageFolder
from streams.loading import load_stream
from streams.sample import Sample
from streams.settings import SettingError
from streams.stream import Stream

EVENTS_AT_A_TIME = 50


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
        )


class Experiment:
    """A study that can be run: `Experiment(model=…, stream=…, strategies=[…]).run("runs/mine")`.

    Takes the settings of `clmm.study.Study`, as names, mappings or objects; raises SettingError
    for what it cannot use. `train` takes a mapping or a TrainSettings.
    """

    def __init__(
        self,
        *,
        strategies: Iterable[Any],
        model: str | Path = "nano",
        stream: Any = "default",
        probes: Iterable[Any] | None = None,
        seeds: Sequence[int] = (0,),
        train: Any = None,
        **settings: Any,
    ) -> None:
        values = {"model": model, "stream": stream, "strategies": strategies, "probes": probes}
        self.study = Study.resolve({**values, "seeds": seeds, "train": train, **settings})

    @classmethod
    def of(cls, study: Study) -> Experiment:
        """From a study that is resolved already, such as one read from a file."""
        made = cls.__new__(cls)
        made.study = study
        return made

    def check(self) -> Materials:
        """Loads everything and makes a batch of each task; raises what training would."""
        study = self.study
        stream = load_stream(study.stream)
        alignment = (
            () if study.alignment is None else load_stream(study.alignment, where="alignment").tasks
        )
        loaded = _load(study)
        batcher = batcher_of(loaded, max_length=study.train.max_length)
        for task in stream.tasks:
            batcher.training(task.train[:2])
            batcher.prompts(task.test[:2])
        return Materials(
            study=study,
            stream=stream,
            loaded=loaded,
            batcher=batcher,
            alignment=tuple(sample for task in alignment for sample in task.train),
            assessor=Assessor(
                stream=stream,
                probes=study.probes,
                probe_seed=study.probe_seed,
                max_new_tokens=study.max_new_tokens,
            ),
        )

    def plan(self) -> Plan:
        """What `run` would do, with sizes and steps; trains nothing."""
        materials = self.check()
        trainable = {
            label: _trainable(materials, number) for number, label in enumerate(self.study.labels)
        }
        return Plan(
            study=self.study,
            stream=materials.stream,
            items=materials.assessor.items,
            trainable=trainable,
            total=sum(p.numel() for p in materials.loaded.model.parameters()),
        )

    def run(self, folder: str | Path, *, display: bool | None = None) -> Result:
        """Runs what `folder` does not hold yet. What failed is in the result's `failures`.

        Raises ConfigChangedError when the folder holds another study. `display` shows progress;
        left out, it does when standard output is a terminal.
        """
        with _processes(self.study) as main, _threads(self._forks()):
            materials = self.check()
            run = RunFolder(folder)
            if main:
                self._open(run, materials)
            _wait_for_all()
            shown = main and (sys.stdout.isatty() if display is None else display)
            lanes = [
                _Lane(run=run, materials=materials, number=number, seed=seed, main=main)
                for seed in self.study.seeds
                for number in range(len(self.study.strategies))
            ]
            with Display({lane.title: len(lane.stages) for lane in lanes}, shown=shown) as screen:
                workers = self._workers()
                if workers > 1 and any(lane.unfinished for lane in lanes):
                    _encode_ahead(materials, screen, workers)
                _score_base(run, materials, screen, workers, main=main)
                if any(lane.unfinished for lane in lanes):
                    import clmm.trainer  # noqa: F401  (slow: once here, not in every fork)
                jobs = [Job(name=lane.title, work=lane.go) for lane in lanes]
                failures = run_jobs(jobs, workers=workers, on_event=screen.event)
        return Result(folder, failures)

    def _open(self, run: RunFolder, materials: Materials) -> None:
        """Refuses a folder that holds another configuration, model or data."""
        tasks = materials.stream.tasks
        record = provenance.record(
            seeds=self.study.seeds,
            model={"name": materials.loaded.name, "revision": materials.loaded.revision},
            hashes={
                "train": provenance.hash_samples(s for task in tasks for s in task.train),
                "alignment": provenance.hash_samples(materials.alignment),
                "asked": provenance.hash_samples(materials.assessor.samples()),
            },
        )
        for before in run.provenance()[-1:] if run.exists else []:
            for key in ("hashes", "model"):
                if before.get(key) != record[key]:
                    raise SettingError(
                        f"{run.path}: the {'data' if key == 'hashes' else 'model'} changed since "
                        f"this run began: {before.get(key)} before, {record[key]} now; give "
                        "another folder"
                    )
        run.open(self.study.plain(), record)

    def _forks(self) -> bool:
        on_cpu = self.study.device == "cpu" or (
            self.study.device is None and not torch.cuda.is_available()
        )
        return on_cpu and can_fork() and _world_size() == 1

    def _workers(self) -> int:
        """Processes side by side; 0 means in this one."""
        if not self._forks():
            if (self.study.workers or 1) > 1:
                raise SettingError(
                    f"workers: {self.study.workers} runs side by side need Linux and a CPU, and no "
                    "torchrun; leave it out"
                )
            return 0
        return self.study.workers or _cores()


@dataclass(frozen=True, kw_only=True)
class _Lane:
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
                with turn():
                    self._stage(learner, stage, report)

    def _stage(self, learner: Learner, stage: int, report: Report) -> None:
        trained = self.stages[stage - 1]
        task = trained[0] if len(trained) == 1 else None
        folder = self.run.stage(self.label, self.seed, stage)
        if self.main:
            folder.begin()
        with _recorded(folder, report, note=task or "all tasks", main=self.main) as event:
            cost = dict(learner.train_stage(stage, event))
        learner.save(folder.checkpoint)
        return_memory()
        scoring = {"kind": "scoring", "stage": stage, "note": f"{task or 'all tasks'}: scoring"}
        report(scoring)
        started, size = time.perf_counter(), self.materials.study.answer_batch_size
        found = self.materials.assessor.assess(
            learner.answering(batch_size=size),
            seen=[name for names in self.stages[:stage] for name in names],
            oracle=partial(learner.oracle_answering, batch_size=size),
            report=lambda share: report({**scoring, "share": share}),
        )
        cost["scoring_seconds"] = time.perf_counter() - started
        return_memory()
        if self.main:
            before = self.run.stage(self.label, self.seed, stage - 1) if stage > 1 else None
            keep(folder, found, task=task, cost=cost, base=self.run.base(), previous=before)
        report({"kind": "done", "stage": stage, "note": _summary(task, found, cost)})


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


def _summary(task: str | None, found: Assessment, cost: dict[str, Any]) -> str:
    accuracies = [record["accuracy"] for record in found.tasks.values()]
    mean = sum(accuracies) / len(accuracies)
    seconds = cost.get("seconds", 0.0) + cost["scoring_seconds"]
    own = f"{task} {found.tasks[task]['accuracy']:.1%}, " if task else ""
    return f"{own}mean {mean:.1%} ({seconds:.0f} s)"


def _encode_ahead(materials: Materials, screen: Display, workers: int) -> None:
    """What every run would encode for itself is encoded once, by all cores, before they fork."""
    train, samples = materials.study.train, materials.assessor.samples()
    for task in materials.stream.tasks:
        if train.updates(len(task.train)) * train.batch_size >= len(task.train):
            samples += task.train

    def spread(work: Any, chunks: Any) -> Any:
        return side_by_side(
            work,
            chunks,
            workers=workers,
            on_part=lambda done: screen.share("pictures", done / len(chunks), "encoding"),
        )

    materials.batcher.encode_ahead(samples, spread)


def _score_base(
    run: RunFolder, materials: Materials, screen: Display, workers: int, *, main: bool
) -> None:
    """Stage 0: the model as it comes, shared by all strategies and seeds."""
    base = run.base()
    if base.done:
        materials.assessor.recall_pictures(base)
        return
    note = f"scoring {sum(materials.assessor.items.values()):,} items"
    screen.share("base", 0.0, note)
    started = time.perf_counter()
    if main:
        base.begin()
        materials.assessor.keep_pictures(run)
    study = materials.study
    model = Answerer(
        materials.loaded.model,
        materials.batcher,
        batch_size=study.answer_batch_size,
        autocast=torch.bfloat16 if study.train.precision == "bf16" else None,
        spread=partial(side_by_side, workers=workers) if workers > 1 else None,
    )
    found = materials.assessor.assess(
        model,
        seen=(),
        oracle=lambda name: None,
        report=lambda share: screen.share("base", share, note),
    )
    if main:
        cost = {"scoring_seconds": time.perf_counter() - started}
        keep(base, found, task=None, cost=cost)


def answerer(model: str | Path, *, device: str | None = None, precision: Any = "fp32") -> Answerer:
    """Something that answers samples, from a model's name, folder or hub id."""
    loaded = load(model, device=device, precision=precision)
    return Answerer(loaded.model, batcher_of(loaded))


def _trainable(materials: Materials, number: int) -> int:
    with materials.learner(number, materials.study.seeds[0]) as learner:
        return learner.trainable_parameters


def _load(study: Study) -> Loaded:
    precision: Any = study.precision
    return load(study.model, device=study.device, precision=precision)


@contextmanager
def _threads(one: bool) -> Iterator[None]:
    """One thread where runs go side by side: faster together, and forking stays sound."""
    before = torch.get_num_threads()
    if one:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def _processes(study: Study) -> Iterator[bool]:
    """Joins the other processes of torchrun, if there are any; whether this one is the main."""
    if _world_size() == 1:
        yield True
        return
    from accelerate import PartialState

    on_cpu = study.device == "cpu" or not torch.cuda.is_available()
    yield bool(PartialState(cpu=on_cpu).is_main_process)


def _wait_for_all() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
