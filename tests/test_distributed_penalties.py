"""Penalties and distillation in two processes follow the trajectory of one.

Run as a script, this file forks two processes and writes what the first saw, as
`test_distributed.py` does. Most samples have no picture, so that the projector gets no gradient
from some batches but the penalties'.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_streams
from tiny_distributed import found_by_two, main

from clmm.learner import Learner
from clmm.strategies.a_gem import AGem
from clmm.strategies.combined import Combined
from clmm.strategies.ewc import Ewc
from clmm.strategies.lwf import Lwf
from clmm.strategies.mas import Mas
from clmm.strategies.rwalk import Rwalk
from clmm.strategies.si import Si
from clmm.training import TrainSettings
from streams.stream import Stream, Task

SETTINGS = TrainSettings(steps=3, batch_size=8, micro_batch_size=2, learning_rate=1e-3)
ALL = Combined(
    of=(
        Ewc(strength=1e5, fisher_samples=9, tuning="full"),
        Mas(strength=1e-2, importance_samples=9),
        Si(strength=1.0),
        Rwalk(strength=1.0, interval=2),
        Lwf(strength=3.0),
    )
)


def stream() -> Stream:
    samples = [tiny_streams.sample("yes", "train", i, image=i % 8 == 0) for i in range(16)]
    first = tiny_streams.stream("colour", train=16).tasks[0]
    return Stream(name="mixed", tasks=(first, Task(name="yes", train=samples, test=first.test)))


def trajectory(strategy: Any = ALL) -> dict[str, Any]:
    """Losses of two stages, and how important all weights are together after them."""
    losses: list[float] = []
    with Learner(strategy, tiny_streams.loaded(), stream(), SETTINGS, seed=0) as learner:
        for stage in (1, 2):
            learner.train_stage(stage, lambda event: losses.append(event["loss"]))
        assert learner._trainer is not None
        return {
            "processes": learner._trainer.world,
            "losses": losses,
            "importance": [
                sum(float(tensor.double().sum()) for tensor in plugin.importance.values())
                for plugin in learner._method.plugins[:4]
            ],
        }


def in_each() -> dict[str, Any]:
    found = trajectory()
    with pytest.raises(RuntimeError, match="AverageProjection does not support several processes"):
        trajectory(AGem())
    return found


def test_two_processes_follow_one(tmp_path: Path) -> None:
    one, two = trajectory(), found_by_two(__file__, tmp_path)
    assert (one["processes"], two["processes"]) == (1, 2)
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-3)
    assert two["importance"] == pytest.approx(one["importance"], rel=1e-2)


if __name__ == "__main__":
    main(in_each)
