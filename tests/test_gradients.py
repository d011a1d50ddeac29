"""Projected gradients: the papers' formulas, Avalanche's as oracles, memories and restarts."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_models
import tiny_runs
import torch
from avalanche.training.plugins import AGEMPlugin, GEMPlugin
from scipy.optimize import nnls
from tiny_runs import SETTINGS, learner, same, trained
from tiny_streams import Recorder
from torch import nn

from clmm import gradients
from clmm.gradients import Named, averaging, batch_gradient, dot, episodic, project, trainable
from clmm.learner import Learner
from clmm.loading import load
from clmm.strategies.a_gem import AGem
from clmm.strategies.combined import Combined
from clmm.strategies.ewc import Ewc
from clmm.strategies.gem import Gem
from clmm.strategies.sequential_full import SequentialFull
from clmm.strategies.sequential_lora import SequentialLora
from streams import settings
from streams.settings import SettingError

SHAPES = {"a": (7, 5), "b": (12,), "c": (3, 2, 4)}
LONGER = replace(SETTINGS, steps=6, learning_rate=3e-2)
"""So long that gradients of tasks do oppose each other."""


@pytest.fixture(scope="module")
def plain() -> list[Named]:
    return trained(SequentialLora(), LONGER)


def drawn(seed: int, scale: float = 1.0) -> Named:
    generator = torch.Generator().manual_seed(seed)
    return {n: scale * torch.randn(shape, generator=generator) for n, shape in SHAPES.items()}


def flat(named: Any) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in named.values()])


def opposing(count: int, scale: float = 1.0) -> tuple[nn.ParameterDict, list[Named]]:
    """Weights with a gradient, and references that oppose it, the last one excepted."""
    own = drawn(0, scale)
    references = []
    for seed in range(1, count + 1):
        one = drawn(seed, scale)
        sign = 1 if (dot(own, one) > 0) == (seed == count and count > 1) else -1
        references.append({name: sign * tensor for name, tensor in one.items()})
    weights = nn.ParameterDict({name: torch.zeros_like(tensor) for name, tensor in own.items()})
    for name, weight in weights.items():
        weight.grad = own[name].clone()
    return weights, references


def projected(weights: Any, references: list[Named], multipliers: Any) -> torch.Tensor:
    project(dict(weights), references, multipliers)
    return flat({name: weight.grad for name, weight in weights.items()})


def test_a_gem_is_avalanches_projection() -> None:
    weights, references = opposing(1)
    g, r = drawn(0), references[0]
    assert dot(g, r) < 0
    found = projected(weights, references, averaging)
    torch.testing.assert_close(
        found, flat(g) - (flat(g) @ flat(r)) / (flat(r) @ flat(r)) * flat(r), rtol=1e-5, atol=1e-5
    )
    stock = AGEMPlugin(patterns_per_experience=1, sample_size=1)
    stock.buffers, stock.reference_gradients = [None], flat(r)
    again, _ = opposing(1)
    stock.after_backward(SimpleNamespace(model=again))
    expected = flat({name: weight.grad for name, weight in again.items()})
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert abs(found @ flat(r)) < 1e-4


def test_gem_is_avalanches_projection() -> None:
    """At gradients so large that Avalanche's fixed ridge does not weigh."""
    for margin in (0.0, 0.5):
        weights, references = opposing(4, scale=30.0)
        found = projected(weights, references, partial(episodic, margin=margin))
        stock = GEMPlugin(patterns_per_experience=1, memory_strength=margin)
        stock.G = torch.stack([flat(r) for r in references])
        expected = stock.solve_quadprog(flat(drawn(0, 30.0)))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_gem_is_the_nearest_gradient_that_opposes_none(scale: float) -> None:
    """Against non-negative least squares; small gradients are no worse off than large ones."""
    weights, references = opposing(4, scale)
    stacked = torch.stack([flat(r) for r in references]).double().numpy() / scale
    g = flat(drawn(0, scale)).double().numpy() / scale
    multipliers, _ = nnls(stacked.T, -g)
    found = projected(weights, references, partial(episodic, margin=0.0)).double().numpy() / scale
    np.testing.assert_allclose(found, g + stacked.T @ multipliers, rtol=1e-5, atol=1e-5)
    assert (stacked @ found > -1e-4).all()
    assert (multipliers > 0).any()


def test_gem_bears_equal_references_and_equals_a_gem_with_one() -> None:
    one, references = opposing(1)
    alone = projected(one, references, averaging)
    for copies in (1, 3):
        weights, _ = opposing(1)
        found = projected(weights, references * copies, partial(episodic, margin=0.0))
        torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("multipliers", [averaging, partial(episodic, margin=0.5)])
def test_a_gradient_that_opposes_none_is_left_alone(multipliers: Any) -> None:
    weights, references = opposing(1)
    turned = [{name: -tensor for name, tensor in references[0].items()}]
    assert torch.equal(projected(weights, turned, multipliers), flat(drawn(0)))
    nothing, _ = opposing(1)
    still = projected(nothing, [gradients.zeros(references[0])], multipliers)
    assert torch.equal(still, flat(drawn(0)))


@pytest.mark.parametrize("multipliers", [averaging, partial(episodic, margin=0.0)])
def test_what_is_no_number_reaches_the_trainer(multipliers: Any) -> None:
    weights, references = opposing(1)
    references[0]["b"][0] = torch.nan
    assert projected(weights, references, multipliers).isnan().all()
    own, references = opposing(1)
    own["a"].grad[0, 0] = torch.inf
    assert not projected(own, references, multipliers).isfinite().all()


def test_a_weight_that_the_batch_did_not_use_is_moved_too() -> None:
    weights, references = opposing(1)
    weights["b"].grad = None
    g = {**drawn(0), "b": torch.zeros(12)}
    assert dot(g, references[0]) < 0
    expected = flat(g) - (
        flat(g) @ flat(references[0]) / flat(references[0]).square().sum()
    ) * flat(references[0])
    torch.testing.assert_close(projected(weights, references, averaging), expected)


# In a run


class Reference:
    """An Avalanche plugin that looks at a gradient taken beside the batch's own."""

    def after_backward(self, strategy: Any, **_: Any) -> None:
        own = {n: w.grad.clone() for n, w in trainable(strategy.model).items()}
        whole = strategy.experience.dataset
        examples = whole.collate_fn([whole[i] for i in range(6)])[0]
        one = batch_gradient(strategy, [examples])
        parts = batch_gradient(strategy, examples.split(4))
        loss = strategy._criterion(strategy.model(examples), examples)
        weights = trainable(strategy.model)
        expected = torch.autograd.grad(loss, list(weights.values()))
        for name, slope in zip(weights, expected, strict=True):
            torch.testing.assert_close(one[name], slope, rtol=1e-4, atol=1e-7)
            torch.testing.assert_close(parts[name], slope, rtol=1e-3, atol=1e-6)
            assert torch.equal(weights[name].grad, own[name])


def test_a_reference_is_a_whole_batchs_gradient_and_touches_no_other() -> None:
    for checkpointing in (False, True):
        train = replace(SETTINGS, steps=1, gradient_checkpointing=checkpointing)
        with learner(SequentialFull(plugins=(Reference(),)), train) as one:
            one.train_stage(1)


def test_a_gem_trains_as_avalanches_when_both_remember_all() -> None:
    train = replace(LONGER, steps=4)
    stock = AGEMPlugin(patterns_per_experience=16, sample_size=16)
    found = []
    for strategy in (AGem(budget=32, reference_batch=16), SequentialLora(plugins=(stock,))):
        with learner(strategy, train) as one:
            for stage in (1, 2):
                one.train_stage(stage)
            found.append(gradients.copies(one._model))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)
    assert not same(found[0], trained(SequentialLora(), train)[1])


STRATEGIES = (AGem(budget=9), Gem(budget=9), Gem(budget=9, margin=0.5))


@pytest.mark.parametrize("strategy", STRATEGIES, ids=["a_gem", "gem", "gem with a margin"])
def test_it_acts_from_the_second_stage_and_never_without_memory(
    strategy: Any, plain: list[Named]
) -> None:
    assert same(trained(replace(strategy, budget=0), LONGER), plain)
    found = trained(strategy, LONGER)
    assert same(found[0], plain[0])
    assert not same(found[2], plain[2])


@pytest.mark.parametrize("strategy", [AGem(budget=9), Gem(budget=9)])
def test_no_update_opposes_the_memory(strategy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """After projection no reference's product with the gradient is negative."""
    products: list[list[float]] = []
    opposed: list[bool] = []

    def spy(weights: Any, references: Any, multipliers: Any) -> None:
        own = {name: weight.grad.clone() for name, weight in weights.items()}
        opposed.append(any(dot(own, r) < 0 for r in references))
        project(weights, references, multipliers)
        now = {name: weight.grad for name, weight in weights.items()}
        lengths = [(dot(r, r) * dot(now, now)) ** 0.5 for r in references]
        products.append([dot(now, r) / n for r, n in zip(references, lengths, strict=True)])

    monkeypatch.setattr(gradients, "project", spy)
    trained(strategy, LONGER)
    assert [len(one) for one in products] == [1] * 6 + [2 if type(strategy) is Gem else 1] * 6
    assert any(opposed)
    assert min(min(one) for one in products) > -1e-5


@pytest.mark.parametrize("strategy", [AGem(budget=9), Gem(budget=9, tuning="full")])
def test_loading_and_going_on_changes_no_bit(strategy: Any, tmp_path: Path) -> None:
    tiny_runs.check_resuming(strategy, tmp_path)


def test_memories_are_never_trained_on() -> None:
    recorder = Recorder()
    for strategy in (AGem(budget=9, plugins=(recorder,)), Gem(budget=9, plugins=(recorder,))):
        with learner(strategy) as one:
            for stage in (1, 2, 3):
                one.train_stage(stage)
            memory = one._method.plugins[0].samples
        assert len(memory) == 9
        if isinstance(strategy, Gem):
            tasks = [sample.id.split("-")[0] for sample in memory]
            assert [tasks.count(name) for name in ("yes", "colour", "count")] == [3, 3, 3]
    for stage, task in enumerate(("yes", "colour", "count"), start=1):
        seen = [name for batch in recorder.batches[stage] for name in batch]
        assert all(name.startswith(task) for name in seen)


@pytest.mark.parametrize("family", ["qwen2_vl", "idefics3", "mmllm"])
def test_it_combines_with_a_penalty_on_any_model_in_bf16(family: str, tmp_path: Path) -> None:
    loaded = load(tiny_models.FAMILIES[family](tmp_path / family), device="cpu")
    together = Combined(of=(Ewc(fisher_samples=2, strength=1e4), AGem(budget=9), Gem(budget=6)))
    train = replace(SETTINGS, micro_batch_size=3, precision="bf16", gradient_checkpointing=True)
    with Learner(together, loaded, tiny_runs.STREAM, train, seed=0) as one:
        for stage in (1, 2):
            one.train_stage(stage)
        weights = gradients.copies(one._model)
    assert all(torch.isfinite(weight).all() for weight in weights.values())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "a_gem", "budget": 2.5}, "a_gem.budget: 2.5 is neither"),
        ({"name": "a_gem", "budget": float("nan")}, "a_gem.budget"),
        ({"name": "a_gem", "reference_batch": 0}, "a_gem.reference_batch: must be above 0; got 0"),
        ({"name": "gem", "budget": -1}, "gem.budget"),
        ({"name": "gem", "margin": -0.5}, "gem.margin: must be 0 or more, finite; got -0.5"),
        ({"name": "gem", "margin": float("inf")}, "gem.margin"),
        ({"name": "gem", "memory": 3}, "gem.memory: no such setting"),
    ],
)
def test_settings_say_what_is_wrong(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        settings.from_spec("clmm.strategies", spec, where="strategies[0]")
