"""Penalties on important weights: their formulas, Avalanche's plugins as oracles, and restarts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_runs
import tiny_streams
import torch
from avalanche.training.plugins import (
    EWCPlugin,
    MASPlugin,
    RWalkPlugin,
    SynapticIntelligencePlugin,
)
from tiny_runs import SETTINGS, STREAM, learner, same, trained
from torch import nn

from clmm.gradients import Named
from clmm.importance import Consolidation, PathIntegral, Walk
from clmm.strategies.combined import Combined
from clmm.strategies.ewc import Ewc
from clmm.strategies.isolated_lora import IsolatedLora
from clmm.strategies.mas import Mas
from clmm.strategies.replay import Replay
from clmm.strategies.rwalk import Rwalk
from clmm.strategies.sequential_full import SequentialFull
from clmm.strategies.sequential_lora import SequentialLora
from clmm.strategies.si import Si
from streams import settings
from streams.settings import SettingError

SINGLY = replace(SETTINGS, steps=2, micro_batch_size=1)
"""Stock plugins measure importance on micro-batches."""
FREE = replace(SETTINGS, clip_norm=None)
"""Stock path integrals take the clipped gradient."""


@pytest.fixture(scope="module")
def plain() -> list[Named]:
    return trained(SequentialLora())


def plugin_after(strategy: Any, train: Any = SETTINGS) -> Any:
    """The strategy's own plugin, if it has one, after the first stage."""
    with learner(strategy, train) as one:
        one.train_stage(1)
        return next(iter(one._method.plugins), None)


# Formulas


def random(*shape: int) -> list[torch.Tensor]:
    return [torch.rand(shape, generator=torch.Generator().manual_seed(i)) for i in range(6)]


def pull(plugin: Consolidation, weight: torch.Tensor) -> torch.Tensor:
    """What the plugin adds to a gradient of ones."""
    model = nn.ParameterDict({"w": weight.clone()})
    model["w"].grad = torch.ones_like(weight)
    plugin.after_backward(SimpleNamespace(model=model))
    return model["w"].grad - 1


def test_one_quadratic_stands_for_a_sum_of_them() -> None:
    *fishers, weight = random(5, 3)
    ends = [torch.randn(5, 3, generator=torch.Generator().manual_seed(9 + i)) for i in range(5)]
    fishers[0][0] = fishers[1][0] = 0.0
    plugin = Consolidation(scale=1.5, centred=True)
    for fisher, end in zip(fishers, ends, strict=True):
        plugin.consolidate({"w": fisher}, {"w": end})
    weight.requires_grad_(True)
    terms = [(f * (weight - end) ** 2).sum() for f, end in zip(fishers, ends, strict=True)]
    (expected,) = torch.autograd.grad(1.5 * sum(terms), weight)
    torch.testing.assert_close(pull(plugin, weight.detach()), expected, rtol=1e-5, atol=1e-5)


def test_online_keeps_a_running_importance_and_the_latest_weights() -> None:
    first, second, a, b, weight, _ = random(4)
    plugin = Consolidation(scale=0.5, decay=0.7)
    plugin.consolidate({"w": first}, {"w": a})
    plugin.consolidate({"w": second}, {"w": b})
    expected = (0.7 * first + second) * (weight - b)
    torch.testing.assert_close(pull(plugin, weight), expected, rtol=1e-5, atol=1e-6)


def test_what_is_of_no_importance_stays_free_and_finite() -> None:
    plugin = Consolidation(scale=1e6, centred=True)
    for end in random(4)[:3]:
        plugin.consolidate({"w": torch.zeros(4)}, {"w": end})
    assert torch.equal(pull(plugin, torch.ones(4)), torch.zeros(4))
    # A parameter that no gradient reached is pulled all the same, and one never seen is not.
    plugin.consolidate({"w": torch.ones(4)}, {"w": torch.zeros(4)})
    model = nn.ParameterDict({"w": torch.ones(4), "new": torch.ones(2)})
    plugin.after_backward(SimpleNamespace(model=model))
    assert torch.equal(model["w"].grad, torch.full((4,), 2e6))
    assert model["new"].grad is None


def gradients_of(samples: Any, loss: Callable[[Any], Any]) -> list[Named]:
    """Each sample's gradient, by the Hugging Face model itself, with what is trained now."""
    loaded = tiny_streams.loaded()
    with learner(Ewc()) as one:
        one.train_stage(1)
        weights = {n: w for n, w in loaded.model.named_parameters() if w.requires_grad}
        loaded.model.eval()
        found = []
        for sample in samples:
            batch = one.batcher.training([sample])
            output = loaded.model(**batch)
            supervised = batch["labels"][:, 1:] != -100
            output["supervised"] = output.logits[:, :-1][supervised]
            grads = torch.autograd.grad(loss(output), list(weights.values()))
            found.append({f"model.{n}": g for n, g in zip(weights, grads, strict=True)})
    return found


@pytest.mark.parametrize(
    ("strategy", "loss", "each"),
    [
        (Ewc(), lambda output: output.loss, torch.square),
        (Mas(), lambda output: (output["supervised"] ** 2).sum(dim=1).mean(), torch.abs),
    ],
    ids=["fisher", "sensitivity"],
)
def test_importance_is_a_mean_over_single_samples(strategy: Any, loss: Any, each: Any) -> None:
    alone = gradients_of(STREAM.tasks[0].train, loss)
    found = plugin_after(strategy).importance
    for name, importance in found.items():
        expected = torch.stack([each(one[name]) for one in alone]).mean(dim=0)
        torch.testing.assert_close(importance, expected, rtol=1e-4, atol=1e-9)
        assert (importance >= 0).all()


def test_importance_of_a_part_of_the_samples_is_a_draw() -> None:
    whole, part, again = (
        plugin_after(Ewc(fisher_samples=count)).importance for count in (16, 5, 5)
    )
    assert same(part, again)
    assert not same(part, whole)


# Oracles: the same, by Avalanche


@pytest.mark.parametrize(
    ("ours", "stock"),
    [
        (Ewc(strength=2e4), EWCPlugin(1e4)),
        (
            Ewc(strength=2e4, online=True, decay=0.5),
            EWCPlugin(1e4, mode="online", decay_factor=0.5),
        ),
    ],
    ids=["separate", "online"],
)
def test_ewc_is_avalanches_with_half_of_lambda(ours: Ewc, stock: Any, plain: Any) -> None:
    expected = trained(SequentialLora(plugins=(stock,)), SINGLY)
    found = trained(ours, SINGLY)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert max((found[2][n] - plain[2][n]).abs().max() for n in plain[2]) > 1e-3


def test_fisher_of_full_tuning_is_avalanches_too() -> None:
    stock = EWCPlugin(1.0)
    plugin_after(SequentialFull(plugins=(stock,)), SINGLY)
    found = plugin_after(Ewc(tuning="full"), SINGLY).importance
    for name, importance in found.items():
        expected = stock.importances[0][name].data
        torch.testing.assert_close(importance, expected, rtol=1e-4, atol=1e-9)


def test_mas_is_avalanches_until_it_averages_stages(plain: Any) -> None:
    stock = MASPlugin(lambda_reg=1e-2)
    expected = trained(SequentialLora(plugins=(stock,)), SINGLY)
    found = trained(Mas(strength=1e-2), SINGLY)
    for one, other in zip(found[:2], expected[:2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert max((found[1][n] - plain[1][n]).abs().max() for n in plain[1]) > 1e-4


def _copied(model: Any, target: Any, excluded: Any) -> None:
    for name, weight in SynapticIntelligencePlugin.allowed_parameters(model, excluded):
        target[name].data = weight.detach().flatten().clone()


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # Avalanche's own
def test_si_gives_avalanches_importance(monkeypatch: pytest.MonkeyPatch) -> None:
    # On a CPU Avalanche keeps views of the weights, so that none of them ever seems to move.
    monkeypatch.setattr(SynapticIntelligencePlugin, "extract_weights", staticmethod(_copied))
    stock = SynapticIntelligencePlugin(si_lambda=0.0, eps=1e-3)
    plugin_after(SequentialLora(plugins=(stock,)), FREE)
    found = plugin_after(Si(damping=1e-3), FREE).importance
    kept = stock.syn_data["cum_trajectory"]
    assert found.keys() == kept.keys()
    for name, importance in found.items():
        expected = -kept[name].data.view_as(importance)
        torch.testing.assert_close(importance, expected.clamp_min(0), rtol=1e-4, atol=1e-5)


def test_rwalk_is_avalanches(plain: Any) -> None:
    train = replace(SETTINGS, steps=4)
    stock = RWalkPlugin(ewc_lambda=1.0, ewc_alpha=0.9, delta_t=2)
    expected = trained(SequentialLora(plugins=(stock,)), train)
    epsilon = torch.finfo(torch.float32).eps
    ours = Rwalk(strength=1.0, mix=0.9, interval=2, damping=epsilon)
    found = trained(ours, train)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


# Paths, on a loss whose gradient is known: ½ (w − target)², by plain steps down it


def descend(plugin: Any, targets: list[torch.Tensor], rate: float = 0.1) -> list[torch.Tensor]:
    """Where each stage of five steps ends."""
    model = nn.ParameterDict({"w": torch.zeros_like(targets[0])})
    strategy = SimpleNamespace(model=model, stage=1, device="cpu")
    ends = []
    for target in targets:
        plugin.before_training_exp(strategy)
        for _ in range(5):
            model["w"].grad = (model["w"] - target).detach()
            plugin.after_backward(strategy)
            with torch.no_grad():
                model["w"] -= rate * model["w"].grad
            plugin.after_update(strategy)
        plugin.after_training_exp(strategy)
        ends.append(model["w"].detach().clone())
    return ends


def test_si_integrates_the_gradient_without_its_penalty() -> None:
    targets = [torch.tensor([1.0, -2.0, 0.0]), torch.tensor([-1.0, 3.0, 0.5])]
    plugin = PathIntegral(scale=0.3, damping=0.1)
    ends = descend(plugin, targets)
    weight, anchor, importance = torch.zeros(3), torch.zeros(3), torch.zeros(3)
    for target, end in zip(targets, ends, strict=True):
        start, gained = weight, torch.zeros(3)
        for _ in range(5):
            slope = weight - target
            step = -0.1 * (slope + 2 * 0.3 * importance * (weight - anchor))
            gained -= slope * step
            weight = weight + step
        importance = importance + gained.clamp_min(0) / ((weight - start) ** 2 + 0.1)
        anchor = weight
        torch.testing.assert_close(end, weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(plugin.importance["w"], importance, rtol=1e-5, atol=1e-6)
    assert importance[:2].min() > importance[2] > 0


def test_rwalk_scores_what_is_left_of_a_stage_and_bears_having_no_score() -> None:
    plugin = Walk(scale=0.1, mix=0.5, interval=100, damping=1e-3)
    descend(plugin, [torch.tensor([1.0, 0.0])])
    importance = plugin.importance["w"]
    assert importance[0] == 2.0  # the greatest in both parts
    assert importance[1] == 0.0
    still = Walk(scale=0.1, mix=0.5, interval=2, damping=1e-3)
    descend(still, [torch.zeros(2), torch.ones(2)])
    assert torch.isfinite(still.importance["w"]).all()


# In a run

STRATEGIES = (
    Ewc(fisher_samples=4),
    Ewc(fisher_samples=4, online=True, decay=0.9),
    Mas(strength=1e-2, importance_samples=4),
    Si(strength=10.0),
    Rwalk(interval=2),
)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: type(s).__name__)
def test_it_acts_from_the_second_stage_and_never_at_strength_0(strategy: Any, plain: Any) -> None:
    assert same(trained(replace(strategy, strength=0.0)), plain)
    found = trained(strategy)
    assert same(found[0], plain[0])
    assert not same(found[1], plain[1])


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: type(s).__name__)
def test_loading_and_going_on_changes_no_bit(strategy: Any, tmp_path: Path) -> None:
    tiny_runs.check_resuming(strategy, tmp_path)


def test_a_strong_penalty_holds_weights_and_comes_once_an_update() -> None:
    moved = []
    for strength, micro in ((0.0, None), (1e7, None), (1e7, 2)):
        train = replace(SETTINGS, learning_rate=1e-3, micro_batch_size=micro)
        first, second, _ = trained(Ewc(strength=strength, fisher_samples=4), train)
        moved.append(sum(float((second[n] - first[n]).square().sum()) for n in first))
    assert moved[1] < moved[0]
    assert moved[2] == pytest.approx(moved[1], rel=1e-2)


def test_what_is_stored() -> None:
    for strategy, factor in ((Ewc(fisher_samples=1), 3), (Rwalk(), 5)):
        with learner(strategy) as one:
            for stage in (1, 2):
                one.train_stage(stage)
                assert one.stored_bytes == factor * 4 * one.trainable_parameters


def test_it_combines_with_shared_weights_and_refuses_those_of_each_task() -> None:
    together = Combined(of=(Replay(budget=4), Ewc(strength=1e4), Si(strength=10.0)))
    assert all(torch.isfinite(w).all() for w in trained(together)[2].values())
    with learner(Combined(of=(IsolatedLora(), Ewc()))) as one:
        one.train_stage(1)
        with pytest.raises(RuntimeError, match="stage 2 trains none of the weights whose"):
            one.train_stage(2)


class Watch:
    """An Avalanche plugin that is there when importance was measured."""

    def after_training_exp(self, strategy: Any, **_: Any) -> None:
        assert strategy.model.training
        self.generator = torch.random.get_rng_state()


def test_measuring_leaves_modes_gradients_and_random_numbers_alone() -> None:
    states = []
    for strategy in (SequentialLora, Ewc):
        watch = Watch()
        with learner(strategy(plugins=(watch,))) as one:
            one.train_stage(1)
        states.append(watch.generator)
    assert torch.equal(*states)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "ewc", "strength": -1}, "ewc.strength: must be 0 or more, finite; got -1"),
        ({"name": "ewc", "strength": float("nan")}, "ewc.strength"),
        ({"name": "ewc", "strength": float("inf")}, "ewc.strength"),
        ({"name": "ewc", "fisher_samples": 0}, "ewc.fisher_samples: must be above 0; got 0"),
        ({"name": "ewc", "online": True, "decay": 1.5}, "ewc.decay: must be from 0 to 1"),
        ({"name": "ewc", "decay": 0.5}, "ewc.decay: without online nothing decays"),
        ({"name": "ewc", "lambda": 1.0}, "ewc.lambda: no such setting"),
        ({"name": "mas", "strength": -1.0}, "mas.strength"),
        ({"name": "mas", "importance_samples": -3}, "mas.importance_samples"),
        ({"name": "si", "strength": float("nan")}, "si.strength"),
        ({"name": "si", "damping": 0.0}, "si.damping: must be above 0, finite; got 0.0"),
        ({"name": "rwalk", "mix": 0.0}, "rwalk.mix"),
        ({"name": "rwalk", "interval": 0}, "rwalk.interval"),
        ({"name": "rwalk", "damping": 0.0}, "rwalk.damping"),
        ({"name": "rwalk", "strength": -0.1}, "rwalk.strength"),
    ],
)
def test_settings_say_what_is_wrong(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        settings.from_spec("clmm.strategies", spec, where="strategies[0]")
