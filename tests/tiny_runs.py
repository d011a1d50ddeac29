"""Short runs of a strategy through three tiny tasks, for tests of what strategies add."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny_streams
import torch

from clmm.gradients import Named, copies
from clmm.learner import Learner
from clmm.training import TrainSettings

STREAM = tiny_streams.stream("yes", "colour", "count", train=16)
"""Tasks whose gradients oppose each other now and then."""
SETTINGS = TrainSettings(steps=3, batch_size=8, learning_rate=1e-2)


def learner(strategy: Any, train: TrainSettings = SETTINGS, **kwargs: Any) -> Learner:
    return Learner(strategy, tiny_streams.loaded(), STREAM, train, seed=0, **kwargs)


def trained(strategy: Any, train: TrainSettings = SETTINGS) -> list[Named]:
    """What is trained, after each stage."""
    with learner(strategy, train) as one:
        found = []
        for stage in (1, 2, 3):
            one.train_stage(stage)
            found.append(copies(one._model))
    return found


def same(one: Any, other: Any) -> bool:
    """Bit for bit."""
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def check_resuming(strategy: Any, folder: Path) -> None:
    """A run that was loaded goes on as one that never stopped, to the last bit."""
    with learner(strategy) as one:
        for stage in (1, 2, 3):
            one.train_stage(stage)
            one.save(folder / f"{stage}")
        stored = one.stored_bytes
    with learner(strategy) as other:
        other.load(folder / "1")
        for stage in (2, 3):
            other.train_stage(stage)
        other.save(folder / "again")
        assert other.stored_bytes == stored
    expected, again = (
        {str(p.relative_to(f)): p.read_bytes() for p in sorted(f.rglob("*")) if p.is_file()}
        for f in (folder / "3", folder / "again")
    )
    assert again == expected
