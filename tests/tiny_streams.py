"""Small streams of coloured squares, whose answers differ in length, for tests of training."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tiny_models
import torch

from clmm.loading import Loaded, load
from streams.sample import Image, Provenance, Sample, ask
from streams.stream import Stream, Task

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 40), "deep blue": (40, 40, 220)}


def sample(task: str, split: str, number: int, *, image: bool = True) -> Sample:
    generator = np.random.default_rng([len(task), number, split == "test"])
    name = list(COLOURS)[number % 3]
    pixels = np.full((32, 32, 3), 255, dtype=np.uint8)
    x, y = generator.integers(0, 20, size=2)
    pixels[y : y + 10, x : x + 10] = COLOURS[name]
    questions = {"colour": "Which colour is this?", "count": "How many squares?"}
    answers = {"colour": name, "count": "one", "yes": "yes" if number % 2 else "no"}
    return ask(
        id=f"{task}-{split}-{number}",
        question=questions.get(task, f"Is it {name if number % 2 else 'grey'}?"),
        answer=answers.get(task, name),
        image=Image(source=pixels) if image else None,
        provenance=Provenance(source="tiny", split=split, item=str(number)),
    )


def stream(*names: str, train: int = 24, test: int = 8) -> Stream:
    return Stream(
        name="tiny",
        tasks=tuple(
            Task(
                name=name,
                train=[sample(name, "train", i) for i in range(train)],
                test=[sample(name, "test", i) for i in range(test)],
            )
            for name in names or ("colour", "count", "yes")
        ),
    )


@cache
def loaded() -> Loaded:
    """A tiny LLaVA with random weights, shared by all tests: leave it as it was found."""
    return load(tiny_models.llava(Path(tempfile.mkdtemp()) / "llava"), device="cpu")


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


class Recorder:
    """An Avalanche plugin that notes which samples each update of each stage saw."""

    supports_distributed = True

    def __init__(self) -> None:
        self.batches: dict[int, list[list[str]]] = {}

    def before_training_iteration(self, strategy: Any, **_: Any) -> None:
        ids = [sample.id for sample in strategy.mb_x.samples]
        self.batches.setdefault(strategy.stage, []).append(ids)


class Gradient:
    """An Avalanche plugin that keeps the first update's gradient."""

    supports_distributed = True

    def __init__(self) -> None:
        self.values: dict[str, torch.Tensor] = {}

    def after_backward(self, strategy: Any, **_: Any) -> None:
        if not self.values:
            named = strategy.model.named_parameters()
            self.values = {name: weight.grad.clone() for name, weight in named}
