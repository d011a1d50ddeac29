"""Samples whose gradients oppose the memory's take their places, as often as the paper has it."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_streams
import torch

from clmm import gradient_memory
from clmm.gradient_memory import GradientMemory, Sketch
from clmm.learner import Learner
from clmm.strategies.gss import Gss
from clmm.training import TrainSettings
from streams import settings
from streams.settings import SettingError

STREAM = tiny_streams.stream("colour", "yes", train=16)
SETTINGS = TrainSettings(steps=2, batch_size=8, learning_rate=1e-2)


def memory(size: int, **kwargs: Any) -> GradientMemory:
    given = {"compared": 10, "candidates": None, "dimensions": 2, **kwargs}
    return GradientMemory(size=size, share=0.5, seed=0, **given)


def test_sketches_keep_cosines_and_are_linear() -> None:
    torch.manual_seed(0)
    weights = {"a": torch.zeros(40, 30), "b": torch.zeros(7)}
    sketch = Sketch(weights, 4096)
    one, other = ({name: torch.randn_like(w) for name, w in weights.items()} for _ in range(2))
    mixed = {name: 0.6 * one[name] + 0.8 * other[name] for name in weights}

    def flat(gradient: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat([g.flatten() for g in gradient.values()])

    for pair in ((one, other), (one, mixed), (other, mixed)):
        true = torch.cosine_similarity(*map(flat, pair), dim=0)
        found = torch.cosine_similarity(*map(sketch, pair), dim=0)
        assert abs(true - found) < 4 / 4096**0.5
    expected = 0.6 * sketch(one) + 0.8 * sketch(other)
    torch.testing.assert_close(sketch(mixed), expected, rtol=1e-4, atol=1e-4)


def test_a_full_memory_takes_in_only_what_opposes_all_of_it() -> None:
    """c = 1 + highest cosine: of nothing 1, of e₂ against e₁ 1, of (.6, −.8) 1.6, of −e₁ 0."""
    gradients = torch.tensor([[1.0, 0], [0, 1], [0.6, -0.8], [-1, 0]])
    kept, slots = memory(2), []
    for place in range(3):
        kept._offer(place, slots, gradients)
    assert (slots, kept.scores) == ([0, 1], [1.0, 1.0])
    alone, slot = memory(1), [0]
    alone.scores = [1.0]
    alone._offer(3, slot, gradients)  # C / (C + 0) = 1: surely
    assert (slot, alone.scores) == ([3], [0.0])
    alone._offer(2, slot, gradients)  # cosine −0.6, c = 0.4: a score of 0 is never given up
    assert (slot, alone.scores) == ([3], [0.0])


def test_only_so_many_are_compared() -> None:
    """Compared with one of two, −e₁ is at times held against −e₁ itself and stays out."""
    gradients, repeats = torch.tensor([[1.0, 0], [-1, 0], [-1, 0]]), 400
    torch.manual_seed(0)
    taken = 0
    for _ in range(repeats):
        kept, slots = memory(2, compared=1), [0, 1]
        kept.scores = [1.0, 1.0]
        kept._offer(2, slots, gradients)
        taken += 2 in slots
    assert taken / repeats == pytest.approx(0.5, abs=0.1)


def test_replacements_are_as_frequent_as_the_paper_has_them() -> None:
    """C = (0.5, 2), c = 0.4: slot i is replaced with probability C_i / ΣC · C_i / (C_i + c)."""
    gradients = torch.tensor([[1.0, 0], [0, 1], [-0.6, -0.8]])
    torch.manual_seed(0)
    repeats, counts = 4000, [0, 0]
    for _ in range(repeats):
        kept, slots = memory(2), [0, 1]
        kept.scores = [0.5, 2.0]
        kept._offer(2, slots, gradients)
        if 2 in slots:
            counts[slots.index(2)] += 1
            assert kept.scores[slots.index(2)] == pytest.approx(0.4)
    for count, score in zip(counts, (0.5, 2.0), strict=True):
        expected = score / 2.5 * score / (score + 0.4)
        assert count / repeats == pytest.approx(expected, abs=4 * (0.25 / repeats) ** 0.5)


def test_gradients_are_those_of_each_sample_alone(monkeypatch: Any) -> None:
    """Of the memory's samples first, at the weights of now, then of the candidates."""
    seen = []
    true = gradient_memory._gradient

    def checked(strategy: Any, rows: Any, place: int) -> Any:
        found = true(strategy, rows, place)
        examples = one.batcher.training([rows[place][0]])
        loss = strategy.model.model(**examples, use_cache=False).loss
        weights = list(strategy.model.parameters())
        for value, expected in zip(found.values(), torch.autograd.grad(loss, weights), strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)
        seen.append(rows[place][0].id)
        return found

    monkeypatch.setattr(gradient_memory, "_gradient", checked)
    strategy = Gss(budget=4, candidates=6)
    with Learner(strategy, tiny_streams.loaded(), STREAM, SETTINGS, seed=0) as one:
        one.train_stage(1)
        first = [sample.id for sample in one._method.plugins[0].samples]
        one.train_stage(2)
    assert [name.split("-")[0] for name in seen] == ["colour"] * 10 + ["yes"] * 6
    assert seen[6:10] == first


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "gss", "compared": 0}, r"gss\.compared: must be at least 1; got 0"),
        ({"name": "gss", "budget": -1}, r"gss\.budget: -1.* is neither"),
        ({"name": "gss", "share": 1}, r"gss\.share: must be from 0 to below 1"),
    ],
)
def test_settings_say_what_is_wrong(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        settings.from_spec("clmm.strategies", spec, where="strategies[0]")
