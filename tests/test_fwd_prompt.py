"""Fwd-Prompt moves prompts where the base is at home and earlier tasks' inputs are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_runs
import tiny_streams
import torch
from test_prompt_strategies import loud
from torch import Tensor

from clmm.learner import Learner
from clmm.routing_features import embedded_inputs
from clmm.strategies.fwd_prompt import FreeSpace, FwdPrompt, _Pools
from clmm.strategies.l2p import L2p
from clmm.strategy import BASE
from clmm.training import TrainSettings
from streams import settings
from streams.settings import SettingError

SMALL = {"length": 2, "pool": 6, "selected": 1}
STREAM = tiny_runs.STREAM
TASKS = STREAM.tasks


def free_space(one: Learner) -> FreeSpace:
    return next(plugin for plugin in one._method.plugins if isinstance(plugin, FreeSpace))


def prompts(one: Learner) -> list[Tensor]:
    return [part["prompt"].detach().clone() for part in one._method.weights.parts]


def inputs(one: Learner, samples: Any) -> Tensor:
    """X [tokens, D] of the base, one sample at a time."""
    one._method.weights.select(BASE)
    with torch.no_grad():
        batches = [one.batcher.prompts([sample]) for sample in samples]
        rows = torch.cat([embedded_inputs(one._model, b)[0] for b in batches]).double()
    one._method.weights.select(None)
    return rows


def test_the_gradient_is_projected_as_the_formula_says() -> None:
    with tiny_runs.learner(FwdPrompt(**SMALL, pretrained=0.8, threshold=0.7)) as one:
        table = one._model.get_input_embeddings().weight.detach().double()
        x = inputs(one, TASKS[0].train)
        one.train_stage(1)
        plugin, [before] = free_space(one), prompts(one)

        # U: right singular vectors of E; M: those of XUUᵀ, until U's complement and M hold enough.
        _, sizes, vectors = torch.linalg.svd(table, full_matrices=False)
        shares = sizes.square().cumsum(0) / sizes.square().sum()
        u = vectors[: int((shares < 0.8).sum()) + 1].T
        known = x @ u @ u.T
        _, sizes, vectors = torch.linalg.svd(known, full_matrices=False)
        held = (x - known).square().sum() + sizes.square().cumsum(0)
        m = vectors[: int((held < 0.7 * x.square().sum()).sum()) + 1].T
        assert 0 < m.shape[1] < u.shape[1] < len(u)
        formula = u @ u.T - m @ m.T

        prompt = one._method.weights.parts[0]["prompt"]
        torch.manual_seed(0)
        prompt.grad = gradient = torch.randn_like(prompt)
        plugin.before_training_exp(None)
        plugin.after_backward(None)
        torch.testing.assert_close(
            prompt.grad.double(), gradient.double() @ formula, rtol=0, atol=1e-5
        )
        # An update that Adam turned away is turned back.
        plugin.before_update(None)
        prompt.data += gradient
        plugin.after_update(None)
        torch.testing.assert_close(
            (prompt.data - before).double(), gradient.double() @ formula, rtol=0, atol=1e-5
        )
        prompt.grad = None


def test_no_gradient_and_no_step_enters_what_earlier_tasks_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Tensor] = []
    update = FreeSpace.before_update

    def noted(self: FreeSpace, strategy: Any, **kwargs: Any) -> None:
        seen.append(self._prompt.grad.clone())
        update(self, strategy, **kwargs)

    monkeypatch.setattr(FreeSpace, "before_update", noted)
    decay = TrainSettings(steps=3, batch_size=8, learning_rate=1e-2, weight_decay=0.1)
    with tiny_runs.learner(FwdPrompt(**SMALL, pretrained=0.9, threshold=0.8), decay) as one:
        one.train_stage(1)
        outside, [first] = free_space(one).outside.clone(), prompts(one)
        one.train_stage(2)
        grown, [second] = free_space(one).outside, prompts(one)
        for gradient in seen[3:]:
            assert gradient.norm() > 0
            assert (gradient @ outside).norm() < 1e-5 * gradient.norm()
        moved = second - first
        assert moved.norm() > 1e-3
        assert (moved @ outside).norm() < 1e-5
        assert grown.shape[1] > outside.shape[1]
        for count, task in zip((outside.shape[1], grown.shape[1]), TASKS, strict=False):
            x, basis = inputs(one, task.train), grown[:, :count].double()
            assert (x @ basis).square().sum() >= 0.8 * x.square().sum()
        torch.testing.assert_close(grown.T @ grown, torch.eye(grown.shape[1]), rtol=0, atol=1e-5)


def test_without_bounds_it_is_l2p() -> None:
    def trained(strategy: Any) -> Any:
        return tiny_runs.trained(strategy)[:2]

    free = trained(FwdPrompt(**SMALL, pretrained=1, threshold=0))
    assert tiny_runs.same(free, trained(L2p(**SMALL)))


def test_prompts_stay_when_nothing_is_free() -> None:
    with tiny_runs.learner(FwdPrompt(**SMALL)) as one:
        one.train_stage(1)
        earlier = prompts(one)
        free_space(one).outside = torch.eye(earlier[0].shape[-1])
        one.train_stage(2)
        assert torch.equal(prompts(one)[0], earlier[0])


def test_earlier_pools_do_not_move() -> None:
    strategy = FwdPrompt(**SMALL, grows=True)
    with tiny_runs.learner(strategy) as one:
        one.train_stage(1)
        before = [{k: t.clone() for k, t in p.items()} for p in one._method.weights.parts]
        one.train_stage(2)
        assert tiny_runs.same(one._method.weights.parts[:1], before)
        assert len(prompts(one)) == 2
        assert one.answering().answer([TASKS[0].test[0]], max_new_tokens=1)


def test_training_asks_the_newest_pool_and_answering_all() -> None:
    recipe, axes = _Pools(length=1, pool=2, selected=1), torch.eye(4)
    # Image and text lie along an axis each, and each key along one sample's.
    rows = torch.stack([axes[[0, 1]], axes[[2, 3]]])
    keys = rows.flatten(1)
    old = {
        "prompt": torch.tensor([[[1.0] * 4], [[2.0] * 4]]),
        "key": torch.stack([keys[0], -keys[0]]),
    }
    new = {
        "prompt": torch.tensor([[[3.0] * 4], [[4.0] * 4]]),
        "key": torch.stack([keys[1], -keys[1]]),
    }
    answered = recipe.prompts([old, new], rows, training=False)
    assert answered[:, 0, 0].tolist() == [1, 3]
    assert set(recipe.prompts([old, new], rows, training=True)[:, 0, 0].tolist()) <= {3, 4}
    torch.testing.assert_close(recipe.distance([old, new], rows), torch.tensor([1.0, 0.0]))


def test_it_learns_and_leaves_the_base() -> None:
    model, losses = loud().model, []
    before = tiny_streams.weights(model)
    train = TrainSettings(steps=8, batch_size=8)
    with Learner(FwdPrompt(length=2, pool=4, selected=2), loud(), STREAM, train, seed=0) as one:
        one.train_stage(1, lambda event: losses.append(event["loss"]))
        assert sum(losses[-3:]) < 0.95 * sum(losses[:3])
        stored = free_space(one).stored_bytes
        assert stored > 0
        assert one.stored_bytes == 4 * one.trainable_parameters + stored
    assert tiny_runs.same(model.state_dict(), before)


@pytest.mark.parametrize("grows", [False, True])
def test_resuming_changes_no_bit(grows: bool, tmp_path: Path) -> None:
    tiny_runs.check_resuming(FwdPrompt(length=2, pool=4, selected=2, grows=grows), tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"pool": 0}, "fwd_prompt.pool: must be 1 or more; got 0"),
        ({"selected": 11}, "fwd_prompt.selected: the pool has 10 prompts; got 11"),
        ({"pull": -1.0}, "fwd_prompt.pull: must be 0 or above"),
        ({"pretrained": 0.0}, "fwd_prompt.pretrained: must be above 0, at most 1; got 0.0"),
        ({"pretrained": 1.5}, "fwd_prompt.pretrained: must be above 0, at most 1; got 1.5"),
        ({"threshold": 1.0}, "fwd_prompt.threshold: must be from 0 to below 1; got 1.0"),
        ({"threshold": float("nan")}, "fwd_prompt.threshold: must be from 0 to below 1; got nan"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change: dict[str, Any], reason: str) -> None:
    spec = {"name": "fwd_prompt"} | change
    with pytest.raises(SettingError, match=reason):
        settings.from_spec("clmm.strategies", spec, where="strategies[0]")
