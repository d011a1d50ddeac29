"""Trains a model stage by stage: what is frozen is printed and saved, and each stage's model kept.

Knows the order of things and a folder:

    DIR/stage-01-NAME/       the model after the stage, with its processor, as any saved model
    DIR/stage-01-NAME.json   frozen and trainable parameters, settings, cost; written last

What trains in a stage is `clmm/stages.py`'s affair, how an update is made `clmm/trainer.py`'s. No
continual strategy and no probe: that is a study (`clmm run`), which may begin from such a folder.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed

from clmm import components, decoder_rows, objective, provenance, stages
from clmm.batching import Batcher
from clmm.experiment import processes
from clmm.lane import wait_for_all
from clmm.loading import Loaded, Precision, load, located, quiet
from clmm.objectives.q_former import QFormer
from clmm.objectives.sft import Sft
from clmm.process_memory import peak_memory_bytes
from clmm.progress import Display
from clmm.recipe import Recipe
from clmm.stages import Stage, StageTable
from clmm.study import to_spec
from clmm.training import TrainSettings, derived_seed
from reports.differences import differences
from reports.lock import locked
from streams import settings
from streams.catalog import nearest
from streams.loading import load_stream
from streams.settings import SettingError
from streams.stream import Stream

Report = Callable[[dict[str, Any]], None]
_TRAIN = [field.name for field in dataclasses.fields(TrainSettings)]
_STAGE = [field.name for field in dataclasses.fields(Stage)]


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """A stage with what it is trained on and how."""

    stage: Stage
    stream: Any
    """The tasks, mixed: what a study takes for its stream."""
    train: TrainSettings

    @classmethod
    def read(cls, values: Any, *, where: str) -> Lesson:
        """From the settings of all three in one mapping; with `recipe`, what its stage of that
        name says where the mapping says nothing. Raises SettingError."""
        if not isinstance(values, Mapping):
            raise SettingError(f"{where}: give name, kind, train and stream; got {values!r}")
        known = [*_STAGE, *_TRAIN, "stream", "recipe"]
        for key in values:
            if key not in known:
                raise SettingError(f"{where}.{key}: no such setting{nearest(str(key), known)}")
        given = {key: value for key, value in values.items() if key in _STAGE}
        if values.get("recipe") is not None:
            given = _of_recipe(values["recipe"], given.get("name"), where) | given
        if values.get("stream") is None:
            raise SettingError(f"{where}.stream: this setting is required")
        train = {key: value for key, value in values.items() if key in _TRAIN}
        try:
            made = settings.build(TrainSettings, train, where="train")
        except SettingError as error:
            raise SettingError(f"{where}.{str(error).removeprefix('train.')}") from None
        return cls(stage=Stage.read(given, where=where), stream=values["stream"], train=made)


def _of_recipe(name: Any, stage: Any, where: str) -> dict[str, Any]:
    found = {one.name: one for one in Recipe.read(str(name)).stages}
    if stage not in found:
        near = nearest(str(stage), [*found])
        raise SettingError(f"{where}.name: the recipe {name} has no stage {stage!r}{near}")
    return dataclasses.asdict(found[stage])


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A lesson with its data and its place in the folder."""

    number: int
    lesson: Lesson
    stream: Stream
    objectives: tuple[Any, ...]
    """One a task."""
    record: dict[str, Any]
    """What it is trained with: equal records are the same training."""
    path: Path
    """The model's folder; its record is the same with `.json`."""

    @property
    def record_file(self) -> Path:
        return self.path.with_name(self.path.name + ".json")


def train_stages(
    model: str | Path,
    lessons: Sequence[Lesson],
    folder: str | Path,
    *,
    seed: int = 0,
    device: str | None = None,
    precision: Precision = "fp32",
    shown: bool = False,
) -> Path:
    """Trains the stages that `folder` does not hold yet, from the model as the last one left it.

    All randomness of a stage derives from the seed and its number, so a run that was cut short
    comes out the same. `shown` prints each stage's table and progress. Returns the folder of the
    last stage's model. Raises SettingError, before anything is trained, for what cannot be:
    patterns, data, objectives that are none of the stage's kind, a folder of other settings.
    """
    _, revision = located(model)
    start = {"model": str(model), "revision": revision, "seed": seed, "precision": precision}
    prepared = [prepare(n, one, Path(folder), start) for n, one in enumerate(lessons, 1)]
    with processes(device) as main, locked(Path(folder)) if main else nullcontext():
        done = _done(prepared)
        source = prepared[done - 1].path if done else model
        left = prepared[done:]
        for one in prepared[:done] if shown and main else ():
            print(f"{one.path.name}: was done already")
        if left:
            loaded = load(source, device=device, precision=precision)
            for one in left:
                _check(one, loaded)
            for one in left:
                _train_and_keep(one, loaded, seed, main=main, shown=shown and main)
    return prepared[-1].path


def _train_and_keep(one: Prepared, loaded: Loaded, seed: int, *, main: bool, shown: bool) -> None:
    model: Any = loaded.model
    table = begin(model, one, seed)
    if shown:
        table.print()
    with Display({}, shown=shown) as screen:
        name, note = one.path.name, f"{one.lesson.stage.kind}: training"

        def report(event: dict[str, Any]) -> None:
            share = event["step"] / event["steps"]
            screen.share(name, share, f"{note}, loss {event['loss']:.3f}")

        screen.share(name, 0.0, note)
        cost = train_stage(model, loaded.processor, one, seed, report)
        stages.finish(model)
        if main:
            _save(loaded, one.path)
            table.save(one.record_file, kind=one.lesson.stage.kind, trained=one.record, cost=cost)
        wait_for_all()
        screen.say(f"{name}: loss {cost['loss']:.3f}, {cost['seconds']:.0f} s")


def begin(model: Any, one: Prepared, seed: int) -> StageTable:
    """Applies the stage; adapters and whatever else is added is drawn from the stage's seed."""
    set_seed(derived_seed(seed, one.number, "adapter"))
    table = stages.apply(model, one.lesson.stage)
    for name, weight in model.named_parameters():
        if weight.requires_grad and weight.dtype in (torch.bfloat16, torch.float16):
            raise SettingError(
                f"stage {table.stage}: {name} trains in {weight.dtype}, which loses small updates; "
                "load the model in fp32 and compute in bf16 (precision: bf16 in the stage)"
            )
    return table


def train_stage(
    model: Any, processor: Any, one: Prepared, seed: int, report: Report
) -> dict[str, Any]:
    """One stage's updates on a model to which it was applied; returns what they cost."""
    from clmm.benchmark import benchmark
    from clmm.trainer import Trainer

    train = one.lesson.train
    staged = [made for made in one.objectives if hasattr(made, "network")]
    autocast = torch.bfloat16 if train.precision == "bf16" else None
    trainer = Trainer(
        model=model,
        settings=train,
        seed=seed,
        objectives=one.objectives,
        network=staged[0].network(model, processor, autocast=autocast) if staged else None,
        find_unused_parameters=not all(s.images for t in one.stream.tasks for s in t.train),
    )
    trainer.clock.train_exp_counter = one.number - 1
    last: dict[str, Any] = {}

    def told(event: dict[str, Any]) -> None:
        last.update(event)
        report(event)

    trainer.report = told
    set_seed(derived_seed(seed, one.number, "training"))
    begun = time.perf_counter()
    names = [task.name for task in one.stream.tasks]
    data = benchmark(one.stream, [names], _batcher(model, processor, train)).train_stream[0]
    trainer.train(data, eval_streams=[])
    model.eval().zero_grad(set_to_none=True)
    return {
        "seconds": time.perf_counter() - begun,
        "steps": trainer.steps,
        "samples": trainer.samples,
        "loss": last["loss"],
        "peak_memory_bytes": peak_memory_bytes(),
    }


def prepare(number: int, lesson: Lesson, folder: Path, start: Mapping[str, Any]) -> Prepared:
    where, stage = f"stages[{number - 1}]", lesson.stage
    stream = load_stream(lesson.stream, where=f"{where}.stream")
    given = stage.objective
    objectives = tuple(
        objective.of(
            task.objective if given is None else given,
            where=f"{where}.objective" if given is not None else f"{where}: task {task.name}",
            staged=given is not None,
        )
        for task in stream.tasks
    )
    for task, made in zip(stream.tasks, objectives, strict=True):
        supervised = isinstance(made, (Sft, QFormer))
        if (stage.kind == "preference") == supervised:
            raise SettingError(
                f"{where}.kind: {stage.kind}, but task {task.name} is learnt by "
                f"{type(made).__name__.lower()}; give another kind, or an objective such as "
                f"{'dpo' if supervised else 'sft'}"
            )
        made.check(task.train)
    slug = re.sub(r"[^\w.-]+", "-", stage.name, flags=re.ASCII).strip("-.") or "stage"
    return Prepared(
        number=number,
        lesson=lesson,
        stream=stream,
        objectives=objectives,
        record={
            **start,
            "stage": dataclasses.asdict(stage),
            "train": dataclasses.asdict(lesson.train),
            "objectives": [to_spec("clmm.objectives", made) for made in objectives],
            "data": provenance.hash_samples(s for task in stream.tasks for s in task.train),
        },
        path=folder / f"stage-{number:02d}-{slug}",
    )


def _check(one: Prepared, loaded: Loaded) -> None:
    """That the stage fits the model and its first samples become tensors."""
    table_of(loaded.model, one)
    batcher = _batcher(loaded.model, loaded.processor, one.lesson.train)
    for task in one.stream.tasks:
        batcher.check([*islice(task.train, one.lesson.train.batch_size)])


def table_of(model: Any, one: Prepared) -> StageTable:
    """What the stage would train; SettingError where that is nothing."""
    table = stages.table(model, one.lesson.stage)
    if not table.trainable:
        raise SettingError(
            f"stages[{one.number - 1}] ({table.stage}): it trains nothing; name components in "
            "train, or give lora, prefix or signal_rows"
        )
    return table


def _batcher(model: Any, processor: Any, train: TrainSettings) -> Batcher:
    """Pictures are encoded once where the encoder is frozen."""
    return Batcher(
        processor,
        max_length=train.max_length,
        encode_images=components.frozen_encoder(model),
        decoder_start=decoder_rows.start_of(model),
    )


def _done(prepared: Sequence[Prepared]) -> int:
    """How many stages are there already; SettingError where one was trained with other settings."""
    for done, one in enumerate(prepared):
        if not one.record_file.is_file():
            return done
        before = json.loads(one.record_file.read_text("utf-8")).get("trained", {})
        now = json.loads(json.dumps(one.record))
        if differs := differences(before, now):
            raise SettingError(
                f"{one.record_file}: the stage was trained with another {'; '.join(differs)}; give "
                "another folder"
            )
    return len(prepared)


def _save(loaded: Loaded, folder: Path) -> None:
    """Model, processor and the generators that lie beside them; whole or not at all."""
    partial = folder.with_name(f".{folder.name}.partial")
    for old in (partial, folder):  # of a run that was killed before it wrote the record
        shutil.rmtree(old, ignore_errors=True)
    model: Any = loaded.model
    with quiet():
        model.save_pretrained(partial)
    loaded.processor.save_pretrained(partial)
    for spec in getattr(model.config, "generators", {}).values():
        own = Path(spec.get("folder") or "/")
        if not own.is_absolute() and ".." not in own.parts and (loaded.path / own).is_dir():
            shutil.copytree(loaded.path / own, partial / own, dirs_exist_ok=True)
    partial.rename(folder)
