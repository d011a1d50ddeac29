"""One exact pass: every new sample once, what is mixed in on top, closing batches behind."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_streams
from tiny_distributed import found_by_two, main
from tiny_streams import Recorder

from clmm.batching import Batcher
from clmm.benchmark import Mixture, dataset
from clmm.learner import Learner
from clmm.strategies.joint import Joint
from clmm.strategies.replay import Replay
from clmm.strategies.safety_replay import SafetyReplay
from clmm.strategies.sequential_lora import SequentialLora
from clmm.training import TrainSettings
from streams.sample import Text
from streams.settings import SettingError
from streams.stream import Stream

SETTINGS = TrainSettings(online=True, batch_size=8, learning_rate=1e-3)
STREAM = tiny_streams.stream("colour", "yes", train=19)
"""Stages of 8, 8 and 3 new samples."""
ALIGNMENT = [tiny_streams.sample("count", "train", i) for i in range(4)]


def rows(count: int, name: str = "colour") -> Any:
    samples = [tiny_streams.sample(name, "train", i) for i in range(count)]
    return dataset(samples, [0] * count, Batcher(tiny_streams.loaded().processor))


def online(count: int) -> Mixture:
    steps = SETTINGS.updates(count)
    return Mixture(own=rows(count), batch_size=8, steps=steps, seed=0, online=True)


def ids(mixture: Mixture) -> list[list[str]]:
    return [[sample.id for sample in batch[0].samples] for batch in mixture]


def kinds(batches: list[list[str]]) -> list[Counter[str]]:
    return [Counter(name.split("-")[0] for name in batch) for batch in batches]


def test_every_new_sample_comes_once_and_the_last_batch_is_short() -> None:
    batches = ids(online(19))
    assert [len(batch) for batch in batches] == [8, 8, 3]
    seen = [name for batch in batches for name in batch]
    assert sorted(seen) == sorted(f"colour-train-{i}" for i in range(19))
    assert seen != [f"colour-train-{i}" for i in range(19)]
    assert ids(online(19)) == batches
    assert [len(batch) for batch in ids(online(16))] == [8, 8]
    assert [len(batch) for batch in ids(online(5))] == [5]


def test_extras_come_on_top_with_their_exact_shares() -> None:
    mixed = online(50).mixed_with(rows(5, "yes"), 0.25).mixed_with(rows(3, "count"), 0.25)
    counts = kinds(ids(mixed))
    # Half of what results is new, so to 8 new samples come 4 and 4, to the last two 1 and 1.
    assert counts[:-1] == [{"colour": 8, "yes": 4, "count": 4}] * 6
    assert counts[-1] == {"colour": 2, "yes": 1, "count": 1}
    uneven = kinds(ids(online(53).mixed_with(rows(5, "yes"), 0.3)))
    total = sum(uneven, Counter[str]())
    assert total == {"colour": 53, "yes": int(53 * 0.3 / 0.7)}
    assert {batch["yes"] for batch in uneven[:-1]} == {3, 4}


def test_extras_without_room_are_refused() -> None:
    full = online(8).mixed_with(rows(3, "yes"), 0.5).mixed_with(rows(3, "count"), 0.5)
    with pytest.raises(ValueError, match="no room for new samples"):
        next(iter(full))


def test_closing_batches_come_after() -> None:
    closed = online(76).ending_with(rows(4, "yes"), 0.1).mixed_with(rows(3, "count"), 0.2)
    counts = kinds(ids(closed))
    # Ten batches of the task, so that one in eleven is nearest to a tenth.
    assert len(closed) == len(counts) == 11
    assert counts[-1] == {"yes": 8}
    assert sum(counts, Counter[str]()) == {"colour": 76, "count": 19, "yes": 8}
    assert len(online(72).ending_with(rows(4, "yes"), 0.25)) == 12
    # The latest closing takes the place of an earlier one, as it does otherwise.
    again = closed.ending_with(rows(4, "count"), 0.1)
    assert kinds(ids(again))[-1] == {"count": 8}
    assert len(again) == 11


def test_processes_share_each_batch() -> None:
    whole = online(19).mixed_with(rows(5, "yes"), 0.2).ending_with(rows(4, "count"), 0.1)
    halves = [ids(replace(whole, rank=rank, world=2)) for rank in range(2)]
    for batch, first, second in zip(ids(whole), *halves, strict=True):
        assert sorted(batch) == sorted(first + second)
        assert len(first) - len(second) in (0, 1)


# Through a learner


def run(strategy: Any, **kwargs: Any) -> tuple[list[dict[str, Any]], Recorder]:
    """Costs of all stages, and the batches."""
    recorder = Recorder()
    strategy = replace(strategy, plugins=(recorder,))
    with Learner(strategy, tiny_streams.loaded(), STREAM, SETTINGS, seed=0, **kwargs) as learner:
        stages = range(1, len(learner.stages) + 1)
        events: list[dict[str, Any]] = []
        costs = [learner.train_stage(stage, events.append) for stage in stages]
        assert [cost["steps"] for cost in costs] == [
            max(event["step"] for event in events if event["stage"] == stage) for stage in stages
        ]
    assert all(event["step"] <= event["steps"] for event in events)
    return costs, recorder


def test_a_stage_costs_its_samples() -> None:
    costs, recorder = run(SequentialLora())
    assert [(cost["steps"], cost["samples"]) for cost in costs] == [(3, 19), (3, 19)]
    assert [len(batch) for batch in recorder.batches[1]] == [8, 8, 3]
    costs, _ = run(Joint())
    assert [(cost["steps"], cost["samples"]) for cost in costs] == [(5, 38)]


def test_replay_comes_on_top() -> None:
    costs, recorder = run(Replay(budget=6, share=0.5))
    assert [(cost["steps"], cost["samples"]) for cost in costs] == [(3, 19), (3, 38)]
    assert kinds(recorder.batches[2])[0] == {"yes": 8, "colour": 8}
    new = [name for batch in recorder.batches[2] for name in batch if name.startswith("yes")]
    assert len(new) == len(set(new)) == 19


def test_safety_samples_close_a_stage() -> None:
    costs, recorder = run(SafetyReplay(share=0.25, mode="after"), alignment=ALIGNMENT)
    assert [(cost["steps"], cost["samples"]) for cost in costs] == [(4, 27), (4, 27)]
    assert kinds(recorder.batches[1])[-1] == {"count": 8}


def test_online_is_one_pass_by_itself() -> None:
    for more in ({"epochs": 1.0}, {"steps": 3}):
        with pytest.raises(SettingError, match=r"train\.online: is one pass by itself"):
            TrainSettings(online=True, **more)


# Two processes. Run as a script, this file forks them, as tests/test_distributed.py does.


def trajectory(train: int) -> dict[str, Any]:
    """A supervised stage, then one of preferences that replays the first's samples."""
    first, second = tiny_streams.stream("colour", "yes", train=train).tasks
    pairs = [replace(sample, rejected=(Text(text="no idea"),)) for sample in second.train]
    second = replace(second, train=pairs, objective={"name": "dpo", "beta": 0.5})
    stream = Stream(name="tiny", tasks=(first, second))
    losses: list[float] = []
    strategy = Replay(budget=6, share=0.25, tuning="full")
    settings = replace(SETTINGS, micro_batch_size=3)
    with Learner(strategy, tiny_streams.loaded(), stream, settings, seed=0) as learner:
        costs = [learner.train_stage(s, lambda e: losses.append(e["loss"])) for s in (1, 2)]
    return {"losses": losses, "samples": [cost["samples"] for cost in costs]}


def in_each() -> dict[str, Any]:
    found = trajectory(19)
    try:
        trajectory(17)
    except RuntimeError as error:
        found["refused"] = str(error)
    return found


def test_two_processes_follow_one(tmp_path: Path) -> None:
    one, two = trajectory(19), found_by_two(__file__, tmp_path)
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-3)
    # Their shares of the last batch, 2 and 1, are counted as they are.
    assert two["samples"] == one["samples"] == [19, 25]
    message = "last batch of stage 1 has 1 samples, fewer than the 2 processes"
    assert message in two["refused"]


if __name__ == "__main__":
    main(in_each)
