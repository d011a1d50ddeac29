"""`clmm train`: a model through stages of pre-training, instruction and preference tuning.

Knows the keys of the file; how stages are trained is `clmm/stage_training.py`'s affair.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from clmm.study import beside
from clmm.study_yaml import parse
from streams import settings
from streams.settings import SettingError


@dataclass(frozen=True, kw_only=True)
class Course:
    """What a file for `clmm train` says."""

    model: str
    """nano, a folder with a Hugging Face vision-language model, or a hub id."""
    stages: tuple[Any, ...]
    """Each a mapping: name, kind, train, freeze, lora, prefix, signal_rows, objective; `stream`, as
    in a study; and how it trains: learning_rate, steps or epochs, batch_size …"""
    seed: int = 0
    """Draws adapters, order and dropout."""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; left out, the best that is there."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the weights; those that train must be fp32, adapters always are."""


def run(options: argparse.Namespace) -> int:
    """Trains what the folder does not hold yet; returns the exit status."""
    told = read(options.file)

    from clmm.stage_training import Lesson, prepare, table_of, train_stages

    lessons = [Lesson.read(one, where=f"{options.file}: stages[{i}]")
               for i, one in enumerate(told.stages)]  # fmt: skip
    if options.dry_run:
        from clmm.loading import load

        model: Any = load(told.model, device=told.device, precision=told.precision).model
        for number, lesson in enumerate(lessons, 1):
            table_of(model, prepare(number, lesson, Path(), {})).print()
        return 0
    out = options.out or Path("runs") / options.file.stem
    rest = {key: getattr(told, key) for key in ("seed", "device", "precision")}
    print(train_stages(told.model, lessons, out, shown=True, **rest))
    return 0


def read(file: Path) -> Course:
    """The file's settings; SettingError naming it."""
    if not file.is_file():
        raise SettingError(f"{file}: there is no such file")
    values, _ = parse(file.read_text("utf-8"), str(file))
    return course(values, file)


def course(values: Any, file: Path) -> Course:
    """From plain values; relative paths in them lie beside the file."""
    if not isinstance(values, Mapping):
        raise SettingError(f"{file}: give model and stages; got {values!r}")
    values = {**values}
    if "model" in values:
        values["model"] = beside(values["model"], file.parent)
    if isinstance(values.get("stages"), list):
        values["stages"] = [
            {**one, "stream": beside(one["stream"], file.parent)}
            if isinstance(one, Mapping) and "stream" in one
            else one
            for one in values["stages"]
        ]
    made = settings.build(Course, values, where=str(file))
    if not made.stages:
        raise SettingError(f"{file}: stages: name at least one")
    return made
