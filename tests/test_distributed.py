"""Two processes follow the trajectory of one.

Run as a script, this file forks two processes (before any gradient was computed, which forking
would not survive) and writes what the first saw.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_streams
from tiny_distributed import found_by_two, main

from clmm.learner import Learner
from clmm.strategies.replay import Replay
from clmm.training import TrainSettings

SETTINGS = TrainSettings(steps=3, batch_size=8, micro_batch_size=2, learning_rate=1e-3)


def trajectory() -> dict[str, Any]:
    """Losses of two stages, the memory after them, and one answer."""
    stream = tiny_streams.stream("colour", "yes", train=16)
    losses: list[float] = []
    with Learner(
        Replay(budget=6, tuning="full"), tiny_streams.loaded(), stream, SETTINGS, seed=0
    ) as learner:
        for stage in (1, 2):
            learner.train_stage(stage, lambda event: losses.append(event["loss"]))
        assert learner._trainer is not None
        answers = learner.answering().answer(stream.tasks[0].test[:3], max_new_tokens=2)
        return {
            "processes": learner._trainer.world,
            "losses": losses,
            "memory": learner._method.plugins[0].state()["ids"],
            "answers": [answer.text for answer in answers],
        }


def test_two_processes_follow_one(tmp_path: Path) -> None:
    one, two = trajectory(), found_by_two(__file__, tmp_path)
    assert (one["processes"], two["processes"]) == (1, 2)
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-3)
    assert two["memory"] == one["memory"]


if __name__ == "__main__":
    main(trajectory)
