"""The loop: its arithmetic against a hand-written one, its order, and how it stops."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import tiny_streams
import torch
from tiny_streams import Gradient

from clmm.batching import Batcher
from clmm.benchmark import Examples, Mixture, dataset
from clmm.learner import Learner
from clmm.strategies.sequential_full import SequentialFull
from clmm.strategies.sequential_lora import SequentialLora
from clmm.training import TrainingDiverged, TrainSettings, derived_seed
from streams import settings
from streams.settings import SettingError

STREAM = tiny_streams.stream("colour", "yes", train=32)
MIXED = tiny_streams.stream("colour", train=32)
"""Answers of different lengths: red, green, deep blue."""
SETTINGS = TrainSettings(steps=3, batch_size=16, learning_rate=1e-3)


def train(
    strategy: Any = None, train: TrainSettings = SETTINGS, stream: Any = MIXED
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of stage 1 and its first gradient."""
    gradient, events = Gradient(), []
    strategy = strategy or SequentialFull(plugins=(gradient,))
    with Learner(strategy, tiny_streams.loaded(), stream, train, seed=0) as learner:
        learner.train_stage(1, events.append)
    assert [event["step"] for event in events] == list(range(1, len(events) + 1))
    return [event["loss"] for event in events], gradient.values


@pytest.fixture(scope="module")
def whole() -> tuple[list[float], dict[str, torch.Tensor]]:
    return train()


@pytest.mark.parametrize("micro", [4, 5])
def test_accumulation_equals_the_whole_batch(micro: int, whole: Any) -> None:
    losses, gradient = train(train=replace(SETTINGS, micro_batch_size=micro))
    assert losses == pytest.approx(whole[0], rel=1e-4)
    for name, expected in whole[1].items():
        torch.testing.assert_close(gradient[name], expected, rtol=1e-3, atol=1e-6)


def test_gradient_checkpointing_changes_no_number(whole: Any) -> None:
    losses, gradient = train(train=replace(SETTINGS, gradient_checkpointing=True))
    assert losses == pytest.approx(whole[0], rel=1e-6)
    for name, expected in whole[1].items():
        torch.testing.assert_close(gradient[name], expected)


def test_bf16_stays_near_fp32(whole: Any) -> None:
    losses, _ = train(train=replace(SETTINGS, precision="bf16"))
    assert losses != whole[0]
    assert losses == pytest.approx(whole[0], rel=0.02)


def test_first_step_equals_a_hand_written_one(whole: Any) -> None:
    loaded = tiny_streams.loaded()
    mixture = Mixture(
        own=dataset(MIXED.tasks[0].train, [0] * 32, Batcher(loaded.processor)),
        batch_size=16,
        steps=1,
        seed=derived_seed(0, 1, "order"),
    )
    ((examples, _, _),) = mixture
    batch = Batcher(loaded.processor).training(examples.samples)
    model = loaded.model
    with Learner(SequentialFull(), loaded, MIXED, SETTINGS, seed=0):
        loss = model(**batch).loss
        loss.backward()
        gradient = {f"model.{n}": w.grad for n, w in model.named_parameters() if w.requires_grad}
        model.zero_grad()
    assert whole[0][0] == pytest.approx(loss.item(), rel=1e-5)
    assert gradient.keys() == whole[1].keys()
    for name, expected in gradient.items():
        torch.testing.assert_close(whole[1][name], expected, rtol=1e-3, atol=1e-6)


def test_runs_repeat_exactly_and_seeds_differ() -> None:
    short = replace(SETTINGS, steps=2)
    first, again = (train(SequentialLora(), short)[0] for _ in range(2))
    assert first == again
    with Learner(SequentialLora(), tiny_streams.loaded(), MIXED, short, seed=1) as learner:
        other: list[float] = []
        learner.train_stage(1, lambda event: other.append(event["loss"]))
    assert other != first


class Poison:
    """An Avalanche plugin that makes the third loss not a number."""

    def before_backward(self, strategy: Any, **_: Any) -> None:
        if strategy.clock.train_exp_iterations == 2:
            strategy.loss = strategy.loss * math.nan


def test_nan_stops_at_its_step_before_the_update() -> None:
    loaded = tiny_streams.loaded()
    longer = replace(SETTINGS, steps=5)
    with Learner(SequentialFull(plugins=(Poison(),)), loaded, MIXED, longer, seed=0) as learner:
        with pytest.raises(TrainingDiverged, match=r"stage 1: .* step 3 of 5: .*learning_rate"):
            learner.train_stage(1)
        assert all(torch.isfinite(tensor).all() for tensor in loaded.model.state_dict().values())


class Modes:
    """An Avalanche plugin that looks at train and eval modes during training."""

    def before_forward(self, strategy: Any, **_: Any) -> None:
        model = strategy.model.model.model
        assert model.language_model.training
        assert not any(module.training for module in model.vision_tower.modules())


def test_frozen_encoder_is_in_eval_mode_while_training() -> None:
    train(SequentialLora(plugins=(Modes(),)), replace(SETTINGS, steps=1))


# Batches


def rows(count: int, name: str = "colour") -> Any:
    samples = [tiny_streams.sample(name, "train", i) for i in range(count)]
    return dataset(samples, [0] * count, Batcher(tiny_streams.loaded().processor))


def ids(mixture: Mixture) -> list[list[str]]:
    return [[sample.id for sample in batch[0].samples] for batch in mixture]


def test_every_batch_is_full_and_every_sample_comes_once_a_pass() -> None:
    batches = ids(Mixture(own=rows(10), batch_size=4, steps=5, seed=0))
    assert [len(batch) for batch in batches] == [4] * 5
    seen = [name for batch in batches for name in batch]
    assert set(Counter(seen[:10]).values()) == set(Counter(seen[10:]).values()) == {1}
    assert seen[:10] != seen[10:]


def test_an_extra_has_its_exact_share() -> None:
    own = Mixture(own=rows(30), batch_size=8, steps=10, seed=0)
    mixed = own.mixed_with(rows(5, "yes"), 0.3).mixed_with(rows(3, "count"), 0.1)
    counts = Counter(name.split("-")[0] for batch in ids(mixed) for name in batch)
    assert counts == {"yes": 24, "count": 8, "colour": 48}
    assert {len(batch) for batch in ids(mixed)} == {8}
    assert own.mixed_with(rows(5), 0.0) is own
    assert own.mixed_with(rows(5).subset([]), 0.5) is own


def test_processes_share_each_batch() -> None:
    whole = Mixture(own=rows(12), batch_size=4, steps=3, seed=0)
    halves = [ids(replace(whole, rank=rank, world=2)) for rank in range(2)]
    for batch, first, second in zip(ids(whole), *halves, strict=True):
        assert sorted(batch) == sorted(first + second)
        assert len(first) == len(second) == 2


def test_examples_are_cut_and_joined_by_samples() -> None:
    samples = [tiny_streams.sample("colour", "train", i) for i in range(6)]
    batcher = Batcher(tiny_streams.loaded().processor)
    examples = Examples(samples, batcher)
    joined = torch.cat((examples[:2], examples[2:]), dim=0)
    assert joined.samples == examples.samples
    assert torch.equal(joined.targets, examples.targets)
    assert examples.tokens == sum(part.tokens for part in examples.split(4))
    labels = batcher.training(samples)["labels"]
    assert torch.equal(examples.targets, labels[labels != -100])
    with pytest.raises(TypeError, match="stack"):
        torch.stack([examples, examples])


# Settings


def test_learning_rate_rises_then_follows_a_cosine() -> None:
    train = TrainSettings(learning_rate=1.0, warmup_share=0.1)
    rates = [train.learning_rate_at(update, 20) for update in range(20)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[2 + 9] == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(0.5 * (1 + math.cos(math.pi * 17 / 18)))
    assert TrainSettings(warmup_share=0).learning_rate_at(0, 1) == 2e-4


def test_updates_of_a_stage() -> None:
    assert TrainSettings(batch_size=16).updates(33) == 3
    assert TrainSettings(batch_size=16, epochs=0.5).updates(64) == 2
    assert TrainSettings(steps=7).updates(1000, tasks=3) == 21


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learningrate": 1}, "train.learningrate: no such setting; did you mean learning_rate"),
        ({"steps": 0}, "train.steps: must be above 0; got 0"),
        ({"steps": 3, "epochs": 1}, "train.steps: epochs is 1.0 already"),
        ({"warmup_share": 1.0}, "train.warmup_share"),
        ({"weight_decay": -1}, "train.weight_decay"),
        ({"precision": "fp8"}, "train.precision"),
        ({"learning_rate": math.nan}, "train.learning_rate"),
    ],
)
def test_settings_say_what_is_wrong(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        settings.build(TrainSettings, values, where="train")


def test_seeds_never_change() -> None:
    assert derived_seed(0, 1, "order") == 3664579316
    assert len({derived_seed(s, k, p) for s in range(5) for k in range(5) for p in "ab"}) == 50


def test_settings_and_strategies_cost_no_torch() -> None:
    code = (
        "import sys, clmm.training, clmm.strategies.replay, clmm.strategies.isolated_lora\n"
        "sys.exit('torch' in sys.modules or 'avalanche' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
