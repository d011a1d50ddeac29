"""Alignment samples in every batch, or alone at a stage's end; nothing of earlier tasks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tiny_streams
from tiny_streams import Recorder

from clmm.batching import Batcher
from clmm.benchmark import Mixture, dataset
from clmm.learner import Learner
from clmm.strategies.safety_replay import SafetyReplay
from clmm.strategies.sequential_lora import SequentialLora
from clmm.training import TrainSettings
from streams import settings
from streams.settings import SettingError

STREAM = tiny_streams.stream("colour", "yes", "count", train=16)
SETTINGS = TrainSettings(steps=6, batch_size=8, learning_rate=1e-2)
ALIGNMENT = [tiny_streams.sample("aligned", "train", i, image=False) for i in range(5)]


def batches(strategy: Any) -> dict[int, list[list[str]]]:
    recorder = Recorder()
    strategy = replace(strategy, plugins=(recorder,))
    with Learner(
        strategy, tiny_streams.loaded(), STREAM, SETTINGS, seed=0, alignment=ALIGNMENT
    ) as one:
        for stage in (1, 2):
            one.train_stage(stage)
        assert one.stored_bytes == 4 * one.trainable_parameters
    return recorder.batches


def kinds(batch: list[str]) -> list[str]:
    return sorted(name.split("-")[0] for name in batch)


def test_each_batch_has_its_share() -> None:
    found = batches(SafetyReplay(share=0.25))
    for stage, task in ((1, "colour"), (2, "yes")):
        assert [kinds(batch) for batch in found[stage]] == [["aligned"] * 2 + [task] * 6] * 6


def test_the_last_updates_are_alignment_alone() -> None:
    ending, plain = batches(SafetyReplay(share=0.3, mode="after")), batches(SequentialLora())
    for stage in (1, 2):
        assert ending[stage][:4] == plain[stage][:4]
        assert [kinds(batch) for batch in ending[stage][4:]] == [["aligned"] * 8] * 2


def test_the_end_of_a_stage_is_shared_by_processes_and_leaves_room() -> None:
    batcher = Batcher(tiny_streams.loaded().processor)
    own, extra, last = (
        dataset(task.train, [k] * 16, batcher) for k, task in enumerate(STREAM.tasks)
    )

    def ids(mixture: Mixture) -> list[list[str]]:
        return [[sample.id for sample in batch[0].samples] for batch in mixture]

    mixture = Mixture(own=own, batch_size=4, steps=5, seed=1).mixed_with(extra, 0.5)
    whole = ids(mixture.ending_with(last, 0.2))
    assert whole[:4] == ids(mixture)[:4]
    assert all(name.startswith("count") for name in whole[4])
    halves = [ids(replace(mixture.ending_with(last, 0.2), rank=r, world=2)) for r in (0, 1)]
    for first, second, both in zip(*halves, whole, strict=True):
        assert sorted(first + second) == sorted(both)
    assert mixture.ending_with(last, 0) == mixture
    with pytest.raises(ValueError, match=r"0\.95 of 5 updates, .* leave none for the task"):
        mixture.ending_with(last, 0.95)


def test_alignment_must_be_there() -> None:
    with pytest.raises(SettingError, match=r"safety_replay\.share: is 0\.1, but the study has no"):
        Learner(SafetyReplay(), tiny_streams.loaded(), STREAM, SETTINGS, seed=0)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "safety_replay", "share": 1}, r"safety_replay\.share: must be"),
        (
            {"name": "safety_replay", "mode": "before"},
            r"safety_replay\.mode: .*'during' or 'after'",
        ),
    ],
)
def test_settings_say_what_is_wrong(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        settings.from_spec("clmm.strategies", spec, where="strategies[0]")
