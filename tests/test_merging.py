"""Merging rules are the papers' and peft's; a merged model leaves no trace."""

from __future__ import annotations

import copy
import itertools
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny_streams
import torch
from peft.utils import merge_utils
from torch import Tensor

from clmm import merging
from clmm.adapters_frozen import lora_layers
from clmm.adapters_merged import Merged, TaskVectors
from clmm.learner import Learner
from clmm.strategies.dare import Dare
from clmm.strategies.isolated_lora import IsolatedLora
from clmm.strategies.sequential_lora import SequentialLora
from clmm.strategies.task_arithmetic import TaskArithmetic
from clmm.strategies.ties import Ties
from clmm.strategy import BASE
from clmm.training import TrainSettings, derived_seed
from streams import settings
from streams.settings import SettingError

STREAM = tiny_streams.stream("colour", "yes", "count", train=16)
SETTINGS = TrainSettings(steps=2, batch_size=8, learning_rate=1e-2)
STRATEGIES = [
    TaskArithmetic(), TaskArithmetic(rule="max", scale=1.0), Ties(), Dare(), Dare(then="ties"),
]  # fmt: skip


def name(strategy: Any) -> str:
    return type(strategy).__name__


def vectors(tasks: int = 3, *shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tasks, *(shape or (6, 5)), generator=generator)


def only(result: Any) -> Tensor:
    ((_, tensor),) = list(result)
    return tensor


# The rules


def test_rules_on_numbers_done_by_hand() -> None:
    one = {"w": torch.tensor([[4.0, -1.0, 2.0, 0.5], [-6.0, -3.0, 1.0, 0.25]])}
    assert only(merging.summed(one, scale=0.5)).tolist() == [-1.0, -2.0, 1.5, 0.375]
    assert only(merging.max_merged(one, scale=2.0)).tolist() == [-12.0, -6.0, 4.0, 1.0]
    # Half stays: 4 and 2 of the first, −6 and −3 of the second; signs −, −, +, none.
    assert merging.thresholds(one, 0.5).tolist() == [2.0, 3.0]
    assert only(merging.ties(one, keep=0.5, scale=1.0)).tolist() == [-6.0, -3.0, 2.0, 0.0]
    # All stays: the mean of those with the elected sign; the third and fourth agree.
    assert only(merging.ties(one, keep=1.0, scale=2.0)).tolist() == [-12.0, -4.0, 3.0, 0.75]
    assert merging.elected_mean(torch.tensor([[1.0], [-1.0]])).tolist() == [1.0]


def reference_ties(stacked: Tensor, keep: float) -> Tensor:
    """Yadav et al. 2023, entry by entry."""
    trimmed = []
    for task in stacked:
        size = sorted(task.abs().flatten().tolist(), reverse=True)[int(keep * task.numel()) - 1]
        trimmed.append(torch.where(task.abs() >= size, task, torch.zeros(())))
    merged = torch.zeros_like(stacked[0])
    for place in itertools.product(*map(range, merged.shape)):
        values = [float(task[place]) for task in trimmed]
        sign = 1 if sum(values) >= 0 else -1
        agree = [value for value in values if value * sign > 0]
        merged[place] = sum(agree) / max(1, len(agree))
    return merged


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9])
def test_ties_is_the_papers_and_pefts(keep: float) -> None:
    stacked = vectors()
    found = only(merging.ties({"w": stacked}, keep=keep, scale=1.0))
    torch.testing.assert_close(found, reference_ties(stacked, keep), rtol=1e-5, atol=1e-6)
    theirs = merge_utils.ties(list(stacked), torch.ones(3), keep)
    torch.testing.assert_close(found, theirs, rtol=1e-5, atol=1e-6)


def test_task_arithmetic_is_pefts() -> None:
    stacked = vectors()
    theirs = merge_utils.task_arithmetic(list(stacked), torch.full((3,), 0.4))
    torch.testing.assert_close(only(merging.summed({"w": stacked}, scale=0.4)), theirs)


def test_trimming_is_pefts_magnitude_pruning() -> None:
    stacked = vectors()
    bound = merging.thresholds({"w": stacked}, 0.3).view(-1, 1, 1)
    trimmed = (stacked * (stacked.abs() >= bound)).sum(dim=0)
    theirs = merge_utils.magnitude_prune(list(stacked), torch.ones(3), 0.3)
    torch.testing.assert_close(trimmed, theirs)


@pytest.mark.parametrize(("then", "theirs"), [("sum", "dare_linear"), ("ties", "dare_ties")])
def test_dare_is_pefts(then: Any, theirs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stacked = vectors(2, 40, 30)
    torch.manual_seed(5)
    expected = getattr(merge_utils, theirs)(list(stacked), torch.full((2,), 0.4), 0.25)
    torch.manual_seed(5)
    dropped = torch.stack([merging.drop(vector, 0.75) for vector in stacked])
    merge = merging.elected_mean if then == "ties" else partial(torch.sum, dim=0)
    torch.testing.assert_close(0.4 * merge(dropped), expected)
    before = torch.random.get_rng_state()
    rule = partial(merging.dare, share=0.75, scale=0.4, then=then, seed=9)
    ours = only(rule({"w": stacked}))
    assert torch.equal(torch.random.get_rng_state(), before)
    for number in (1, 2):  # its own seeds, whatever comes later
        torch.manual_seed(derived_seed(9, number, "drop w"))
        dropped[number - 1] = merging.drop(stacked[number - 1], 0.75)
    torch.testing.assert_close(ours, 0.4 * merge(dropped))
    assert not torch.equal(ours, only(rule({"v": stacked})))


def test_dare_keeps_the_expectation() -> None:
    torch.manual_seed(0)
    found = merging.drop(torch.full((10**6,), 2.0), 0.9)
    assert found.unique().tolist() == pytest.approx([0.0, 20.0])
    assert float(found.mean()) == pytest.approx(2.0, abs=0.03)  # five standard errors


@pytest.mark.parametrize("share", [1e-9, 0.001, 0.2, 0.5, 1.0])
def test_thresholds_are_those_of_all_layers_together(share: float) -> None:
    layers = {"a": vectors(2, 30, 20), "b": 1e-3 * vectors(2, 50, seed=1), "c": vectors(2, 7) * 0}
    joined = torch.cat([layer.flatten(1) for layer in layers.values()], dim=1).abs()
    count = max(1, int(share * joined.shape[1]))
    expected = joined.sort(dim=1, descending=True).values[:, count - 1]
    assert torch.equal(merging.thresholds(layers, share), expected)


def test_one_layer_may_lose_all_to_another() -> None:
    layers = {"large": vectors(2), "small": 1e-3 * vectors(2)}
    merged = dict(merging.ties(layers, keep=0.3, scale=1.0))
    assert merged["large"].any()
    assert not merged["small"].any()


# The strategies


def learner(strategy: Any, train: TrainSettings = SETTINGS) -> Learner:
    return Learner(strategy, tiny_streams.loaded(), STREAM, train, seed=0)


def logits(one: Learner) -> Tensor:
    batch = one.batcher.training(STREAM.tasks[0].test[:3])
    with torch.no_grad():
        found: Tensor = one._model.eval()(**batch).logits
    return found


def deltas(one: Learner) -> dict[str, Tensor]:
    """ΔW by the formula, of all adapters so far."""
    weights: Any = one._method.weights
    layers = lora_layers(one._model).items()
    return {
        key: torch.stack(
            [2.0 * layer.lora_B[n].weight @ layer.lora_A[n].weight for n in weights.adapters]
        ).detach()
        for key, layer in layers
    }


@pytest.mark.parametrize("strategy", STRATEGIES, ids=name)
def test_the_merged_model_answers_and_the_base_comes_back(strategy: Any) -> None:
    model = tiny_streams.loaded().model
    before = tiny_streams.weights(model)
    with learner(strategy) as one:
        base = logits(one)
        one.train_stage(1)
        one.train_stage(2)
        assert one.stored_bytes == 2 * 4 * one.trainable_parameters
        weights: Any = one._method.weights
        expected = dict(weights._rule(deltas(one)))
        assert len(expected) == len(weights._targets)
        for key, change in expected.items():
            now = model.get_submodule(key).base_layer.weight
            torch.testing.assert_close(now, before[f"{key}.weight"] + change)
        found = logits(one)
        assert not torch.allclose(found, base, atol=1e-3)
        weights.select(BASE)
        assert torch.equal(logits(one), base)
        weights.select(None)
        assert torch.equal(logits(one), found)
        one.train_stage(3)
        assert len(deltas(one)[key]) == 3
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_every_stage_trains_on_the_base_alone() -> None:
    found: list[list[float]] = []
    for strategy in (TaskArithmetic(), IsolatedLora()):
        with learner(strategy) as one:
            found.append([])
            for stage in (1, 2, 3):
                one.train_stage(stage, lambda event: found[-1].append(event["loss"]))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "strategy",
    [TaskArithmetic(scale=1.0), TaskArithmetic(scale=1.0, rule="max"), Ties(keep=1.0),
     Dare(drop=0.0, scale=1.0)],
    ids=name,
)  # fmt: skip
def test_the_merge_of_one_task_is_its_adapter(strategy: Any) -> None:
    found = []
    for other in (strategy, SequentialLora()):
        with learner(other) as one:
            one.train_stage(1)
            found.append(logits(one))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strategy", [TaskArithmetic(), Ties(), Dare()], ids=name)
def test_loading_and_going_on_changes_no_bit(strategy: Any, tmp_path: Path) -> None:
    found = []
    with learner(strategy) as one:
        one.save(tmp_path / "0")
        for stage in (1, 2):
            one.train_stage(stage)
            found.append(logits(one))
            one.save(tmp_path / f"{stage}")
    with learner(strategy) as other:
        other.load(tmp_path / "1")
        assert torch.equal(logits(other), found[0])
        other.train_stage(2)
        assert torch.equal(logits(other), found[1])
        other.load(tmp_path / "0")
        other.load(tmp_path / "2")
        assert torch.equal(logits(other), found[1])


def test_half_precision_is_rounded_once_and_comes_back() -> None:
    model = copy.deepcopy(tiny_streams.loaded().model).to(torch.bfloat16)
    before = tiny_streams.weights(model)
    rule = partial(merging.summed, scale=1.0)
    weights = Merged(model, rank=4, alpha=8, seed=0, rule=rule)
    weights.begin("a")
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.lora_B["stage-0001"].weight.normal_(std=0.1)
    changes = dict(TaskVectors(lora_layers(model), weights.adapters))
    weights.finish()
    for key, change in changes.items():
        expected = (before[f"{key}.weight"].float() + change[0]).to(torch.bfloat16)
        assert torch.equal(model.get_submodule(key).base_layer.weight, expected)
    weights.restore()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_weights_that_cannot_take_a_task_vector_are_refused() -> None:
    model = copy.deepcopy(tiny_streams.loaded().model)
    first, second = (layer.self_attn for layer in model.model.language_model.layers)
    second.q_proj.weight = first.q_proj.weight
    rule = partial(merging.summed, scale=1.0)
    with pytest.raises(ValueError, match=r"q_proj and .*q_proj share one weight"):
        Merged(model, rank=4, alpha=8, seed=0, rule=rule)
    weight = torch.zeros(2, 2, dtype=torch.uint8)
    second.q_proj.weight = torch.nn.Parameter(weight, requires_grad=False)
    with pytest.raises(ValueError, match=r"q_proj: its weights are torch.uint8"):
        Merged(model, rank=4, alpha=8, seed=0, rule=rule)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "task_arithmetic", "scale": 0}, "task_arithmetic.scale: must be above 0; got 0"),
        ({"name": "task_arithmetic", "rule": "mean"}, r"task_arithmetic.rule: .*'sum' or 'max'"),
        ({"name": "ties", "keep": 0}, "ties.keep: must be above 0 and at most 1; got 0"),
        ({"name": "ties", "keep": float("nan")}, "ties.keep: must be above 0 and at most 1"),
        ({"name": "ties", "scale": -1}, "ties.scale: must be above 0; got -1"),
        ({"name": "dare", "drop": 1}, "dare.drop: must be from 0 to below 1; got 1"),
        ({"name": "dare", "scale": float("inf")}, "dare.scale: must be above 0; got inf"),
    ],
)
def test_settings_say_what_is_wrong(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        settings.from_spec("clmm.strategies", spec, where="strategies[0]")
