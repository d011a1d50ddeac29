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
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from clmm import provenance
from clmm.answering import Answerer
from clmm.assessment import Assessor, keep
from clmm.decoding_options import Decoding
from clmm.lane import Lane, Materials, wait_for_all
from clmm.learner import batcher_of
from clmm.loading import Loaded, load
from clmm.plan import Plan
from clmm.progress import Display
from clmm.result import Result
from clmm.study import Study
from clmm.workers import Job, can_fork, run_jobs, side_by_side
from reports.lock import locked
from reports.run_folder import RunFolder
from streams import leaks
from streams.loading import load_stream
from streams.settings import SettingError


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

    def check(self, *, reveal_unsafe: bool = False) -> Materials:
        """Loads everything, builds every strategy once and makes a batch of each task; raises what
        training would."""
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
        materials = Materials(
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
                gates=study.gates,
                reveal_unsafe=reveal_unsafe,
            ),
        )
        Decoding(study.decoding).check(loaded.model, batcher)
        _ = materials.built  # every strategy, so that what refuses refuses now
        return materials

    def plan(self) -> Plan:
        """What `run` would do, with sizes and steps; trains nothing."""
        materials = self.check()
        return Plan(
            study=self.study,
            stream=materials.stream,
            items=materials.assessor.items,
            trainable=dict(zip(self.study.labels, materials.trainable, strict=True)),
            total=sum(p.numel() for p in materials.loaded.model.parameters()),
            leaks=leaks.summary(materials.stream, materials.mixed_in),
        )

    def run(
        self, folder: str | Path, *, display: bool | None = None, reveal_unsafe: bool = False
    ) -> Result:
        """Runs what `folder` does not hold yet. What failed is in the result's `failures`.

        Raises ConfigChangedError when the folder holds another study. `display` shows progress;
        left out, it does when standard output is a terminal. `reveal_unsafe` stores the texts and
        pictures of withheld samples too, and marks the folder and its reports; it changes no
        number, so it is no part of the study.
        """
        run = RunFolder(folder)
        with (
            processes(self.study.device) as main,
            _threads(self._forks()),
            locked(run.path) if main else nullcontext(),
        ):
            materials = self.check(reveal_unsafe=reveal_unsafe)
            if main:
                self._open(run, materials, reveal_unsafe)
            wait_for_all()
            shown = main and (sys.stdout.isatty() if display is None else display)
            lanes = [
                Lane(run=run, materials=materials, number=number, seed=seed, main=main)
                for seed in self.study.seeds
                for number in range(len(self.study.strategies))
            ]
            with Display({lane.title: len(lane.stages) for lane in lanes}, shown=shown) as screen:
                if main:
                    screen.say(run.provenance()[-1]["leaks"])
                if matched := _matched(self.study.labels, materials.trainable):
                    screen.say(matched)
                workers = self._workers()
                if workers > 1 and any(lane.unfinished for lane in lanes):
                    _encode_ahead(materials, screen, workers)
                _score_base(run, materials, screen, workers, main=main)
                if any(lane.unfinished for lane in lanes):
                    import clmm.trainer  # noqa: F401  (slow: once here, not in every fork)
                jobs = [_job(lane) for lane in lanes]
                failures = run_jobs(jobs, workers=workers, on_event=screen.event)
        return Result(folder, failures)

    def _open(self, run: RunFolder, materials: Materials, reveal_unsafe: bool) -> None:
        """Refuses a folder that holds another configuration, model or data, or that keeps unsafe
        texts where this run would not, or the other way round."""
        tasks = materials.stream.tasks
        before = run.provenance()[-1:] if run.exists else []
        record = provenance.record(
            seeds=self.study.seeds,
            model={"name": materials.loaded.name, "revision": materials.loaded.revision},
            hashes={
                "train": provenance.hash_samples(s for task in tasks for s in task.train),
                "alignment": provenance.hash_samples(materials.mixed_in),
                "asked": provenance.hash_samples(materials.assessor.samples()),
            },
            reveal_unsafe=reveal_unsafe,
        )
        if before and run.reveals_unsafe != reveal_unsafe:
            raise SettingError(
                f"{run.path}: this run began {_choice(run.reveals_unsafe)} and cannot go on "
                f"{_choice(reveal_unsafe)}; begin again in another folder"
            )
        for earlier in before:
            for key in ("hashes", "model"):
                if earlier.get(key) != record[key]:
                    raise SettingError(
                        f"{run.path}: the {'data' if key == 'hashes' else 'model'} changed since "
                        f"this run began: {earlier.get(key)} before, {record[key]} now; give "
                        "another folder"
                    )
        known = [one["leaks"] for one in before if "leaks" in one]
        found = known[0] if known else leaks.summary(materials.stream, materials.mixed_in)
        record["leaks"] = found
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
        decoding=Decoding(study.decoding),
        autocast=torch.bfloat16 if study.train.precision == "bf16" else None,
    )
    found = materials.assessor.assess(
        model,
        seen=(),
        oracle=lambda name: None,
        report=lambda share: screen.share("base", share, note),
        workers=workers,
    )
    if main:
        cost = {"scoring_seconds": time.perf_counter() - started}
        keep(base, found, task=None, cost=cost)


def answerer(
    model: str | Path,
    *,
    device: str | None = None,
    precision: Any = "fp32",
    decoding: Sequence[Any] = (),
) -> Answerer:
    """Something that answers samples, from a model's name, folder or hub id.

    Raises SettingError for a decoding option that the model cannot serve.
    """
    loaded = load(model, device=device, precision=precision)
    return Answerer(loaded.model, batcher_of(loaded)).decoded(decoding)


def _job(lane: Lane) -> Job:
    """A lane waits for the one whose first stage it shares; should that fail, it trains its own."""
    leader = lane.leader
    if leader is None or lane.done:
        return Job(name=lane.title, work=lane.go)
    return Job(name=lane.title, work=lane.go, after=leader.title, ready=leader.began)


def _matched(labels: Sequence[str], trainable: Sequence[int]) -> str:
    """What each strategy trains, and whether that is the same; what trains nothing is left out."""
    counts = {label: n for label, n in zip(labels, trainable, strict=True) if n}
    if len(set(counts.values())) < 2:
        return "".join(f"trainable parameters: {n:,} in each" for n in set(counts.values()))
    shown = ", ".join(f"{label} {n:,}" for label, n in counts.items())
    return f"trainable parameters are not matched: {shown}"


def _choice(reveal_unsafe: bool) -> str:
    if reveal_unsafe:
        return "with --reveal-unsafe (texts of withheld items are stored)"
    return "without --reveal-unsafe (texts of withheld items are not stored)"


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
def processes(device: str | None) -> Iterator[bool]:
    """Joins the other processes of torchrun, if there are any; whether this one is the main."""
    if _world_size() == 1:
        yield True
        return
    from accelerate import PartialState

    on_cpu = device == "cpu" or not torch.cuda.is_available()
    yield bool(PartialState(cpu=on_cpu).is_main_process)


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
