"""Text-only samples in every batch, their share exact."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_runs
import tiny_streams

from clmm.strategies.reblend import Reblend
from clmm.strategies.sequential_lora import SequentialLora
from streams.settings import SettingError
from streams.stream import Stream, Task

WORDS = Stream(
    name="words",
    tasks=(
        Task(
            name="words",
            train=[tiny_streams.sample("yes", "train", i, image=i % 2 == 0) for i in range(8)],
            test=[tiny_streams.sample("yes", "test", 0, image=False)],
        ),
    ),
)


class Watch:
    """Counts samples without an image in each update."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def before_training_iteration(self, strategy: Any, **_: Any) -> None:
        self.counts.append(sum(not sample.images for sample in strategy.mb_x.samples))


def test_each_batch_has_its_share_and_images_are_left_out() -> None:
    watch = Watch()

    class Watched(Reblend):
        def parts(self, context: Any) -> list[Any]:
            return [*super().parts(context), watch]

    with tiny_runs.learner(Watched(source=WORDS, share=0.25)) as one:
        for stage in (1, 2, 3):
            one.train_stage(stage)
    assert watch.counts == [2] * 9  # of 8 samples each


def test_no_share_is_sequential_tuning() -> None:
    mixed, plain = (
        tiny_runs.trained(s) for s in (Reblend(source=WORDS, share=0), SequentialLora())
    )
    assert tiny_runs.same(mixed, plain)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": tiny_streams.stream("colour")}, "reblend.source: all samples of"),
        ({"source": "wrds"}, "reblend.source: there is neither"),
    ],
)
def test_what_it_cannot_use_is_refused_before_training(settings: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        tiny_runs.learner(Reblend(**settings))


def test_a_share_is_a_share() -> None:
    with pytest.raises(SettingError, match=r"reblend\.share"):
        Reblend(source=WORDS, share=1.5)


def test_what_is_mixed_in_is_known() -> None:
    with tiny_runs.learner(Reblend(source=WORDS)) as one:
        assert [sample.id for sample in one.mixed_in] == [f"yes-train-{i}" for i in (1, 3, 5, 7)]
