"""Prompt strategies choose, weigh and pull as their formulas say, and freeze what is earlier."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import tiny_runs
import tiny_streams
import torch
from torch import Tensor

from clmm.answering import Answerer
from clmm.learner import Learner
from clmm.loading import Loaded, load
from clmm.prompt_weights import PLACE, query
from clmm.strategies.coda_prompt import CodaPrompt, overlap
from clmm.strategies.combined import Combined
from clmm.strategies.dual_prompt import DualPrompt
from clmm.strategies.l2p import L2p
from clmm.strategies.modal_prompt import ModalPrompt
from clmm.strategies.progressive_prompts import ProgressivePrompts
from clmm.strategies.replay import Replay
from clmm.strategy import BASE
from clmm.training import TrainSettings
from streams.settings import SettingError

STREAM, SETTINGS = tiny_runs.STREAM, tiny_runs.SETTINGS
MIXED = [
    *(task.test[0] for task in STREAM.tasks),
    tiny_streams.sample("yes", "test", 9, image=False),
]
STRATEGIES = [
    ProgressivePrompts(length=3),
    ProgressivePrompts(length=3, router="none"),
    L2p(length=2, pool=4, selected=2),
    CodaPrompt(length=2, components=3),
    ModalPrompt(length=2, fused=2),
    DualPrompt(
        length=3, general_length=2, general_layers=(1,), expert_layers=(2,), learning_rate=0.05
    ),
]
SOFT = STRATEGIES[:5]
DISTINCT = [STRATEGIES[0], *STRATEGIES[2:]]
QUICK = replace(SETTINGS, steps=1)
PER_SAMPLE = STRATEGIES[2:]


@cache
def loud() -> Loaded:
    """A tiny LLaVA whose weights are so large that prompts change what it says."""
    found = load(tiny_models.llava(Path(tempfile.mkdtemp()) / "llava"), device="cpu")
    with torch.no_grad():
        for name, weight in found.model.named_parameters():
            if "language_model.layers" in name and weight.ndim == 2:
                weight.mul_(6)
            if "lm_head" in name:
                weight.mul_(20)
    return found


def learner(strategy: Any, train: TrainSettings = SETTINGS) -> Learner:
    return Learner(strategy, loud(), STREAM, train, seed=0)


def named(strategy: Any) -> str:
    return f"{type(strategy).__name__}-{getattr(strategy, 'router', '')}"


def stages(one: Learner) -> list[dict[str, Tensor]]:
    return [{k: t.detach().clone() for k, t in part.items()} for part in weights(one).parts]


def weights(one: Learner) -> Any:
    return one._method.weights


def cos(one: Tensor, other: Tensor) -> float:
    norms = float(one.norm()) * float(other.norm())
    return float(one.double() @ other.double()) / norms if norms else 0.0


def test_progressive_prompts_stand_newest_first() -> None:
    with learner(STRATEGIES[0], QUICK) as one:
        for stage in (1, 2):
            one.train_stage(stage)
        first, second = (part["prompt"] for part in stages(one))
        both = weights(one)._prompts(2)
        assert torch.equal(both[0], torch.cat([second, first]))
        weights(one).select("yes")
        torch.testing.assert_close(weights(one)._prompts(1)[0], first)
        for name in ("count", "other"):
            with pytest.raises(ValueError, match=f"no prompts of '{name}' alone"):
                weights(one).select(name)
        weights(one).select(None)
    with pytest.raises(ValueError, match="task 'base': prompts cannot bear this name"):
        STRATEGIES[0].stages(["base"])


@pytest.mark.parametrize("strategy", STRATEGIES, ids=named)
def test_prompts_learn_the_base_stays_and_earlier_ones_do_not_move(strategy: Any) -> None:
    model = loud().model
    before, modules = tiny_streams.weights(model), [name for name, _ in model.named_modules()]
    losses: list[float] = []
    with learner(strategy, replace(SETTINGS, steps=8)) as one:
        count = one.trainable_parameters
        one.train_stage(1, lambda event: losses.append(event["loss"]))
        trained = [w for w in model.parameters() if w.requires_grad]
        assert sum(w.numel() for w in trained) == count
        assert one.stored_bytes >= 4 * count
        assert sum(losses[-3:]) < 0.98 * sum(losses[:3])
        early = stages(one)[0]
        one.train_stage(2)
        late = stages(one)
        assert sum(w.numel() for w in model.parameters() if w.requires_grad) == count
        assert len(late) == (1 if isinstance(strategy, L2p) else 2)
        assert tiny_runs.same(late[0], early) == (not isinstance(strategy, L2p))
        now = {k: t for k, t in model.state_dict().items() if not k.startswith(PLACE)}
        assert tiny_runs.same(now, before)
        with pytest.raises(RuntimeError, match="carries prompts; close its other Learner"):
            learner(strategy)
    assert tiny_runs.same(model.state_dict(), before)
    assert [name for name, _ in model.named_modules()] == modules


@pytest.mark.parametrize("strategy", DISTINCT, ids=named)
def test_resuming_changes_no_bit(strategy: Any, tmp_path: Path) -> None:
    tiny_runs.check_resuming(strategy, tmp_path)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=named)
def test_answers_do_not_depend_on_the_company_and_survive_a_restart(
    strategy: Any, tmp_path: Path
) -> None:
    candidates = [("red", "no way")] * len(MIXED)

    def found(one: Learner, samples: list[Any], **more: Any) -> list[str]:
        return [a.text for a in one.answering(**more).answer(samples, max_new_tokens=4)]

    with learner(strategy, replace(SETTINGS, steps=2)) as one:
        base = found(one, MIXED)
        one.train_stage(1)
        one.train_stage(2)
        together = found(one, MIXED)
        assert found(one, MIXED[::-1], batch_size=3)[::-1] == together
        assert [found(one, [sample])[0] for sample in MIXED] == together
        assert base != together
        sums = one.answering().log_likelihood(MIXED, candidates)
        alone = [one.answering().log_likelihood([s], candidates[:1])[0] for s in MIXED]
        torch.testing.assert_close(torch.tensor(sums), torch.tensor(alone), atol=1e-4, rtol=1e-4)
        one.save(tmp_path)
    with learner(strategy, replace(SETTINGS, steps=2)) as other:
        assert found(other, MIXED) == base
        other.load(tmp_path)
        assert found(other, MIXED) == together
        assert other.answering().log_likelihood(MIXED, candidates) == sums
        if isinstance(strategy, ProgressivePrompts):
            weights(other).select(BASE)
            plain = Answerer(other._model, other.batcher).answer(MIXED, max_new_tokens=4)
            assert [answer.text for answer in plain] == base


@pytest.mark.parametrize("strategy", DISTINCT, ids=named)
def test_micro_batches_and_checkpointing_change_nothing(strategy: Any) -> None:
    def trained(**change: Any) -> list[dict[str, Tensor]]:
        with learner(strategy, replace(SETTINGS, steps=2, **change)) as one:
            one.train_stage(1)
            return stages(one)

    changed = trained(micro_batch_size=3, gradient_checkpointing=True)
    for part, right in zip(changed, trained(), strict=True):
        for name, tensor in part.items():
            torch.testing.assert_close(tensor, right[name], atol=2e-3, rtol=1e-3)


def test_the_pull_moves_the_chosen_keys_alone_and_zero_pull_none() -> None:
    with learner(L2p(length=2, pool=6, selected=1, pull=0)) as one:
        start = weights(one)._fresh([])
        one.train_stage(1)
        assert torch.equal(stages(one)[0]["key"], start["key"])
    strategy = L2p(length=2, pool=6, selected=1, pull=0.5)
    with learner(strategy, QUICK) as one:
        rows = weights(one).features(STREAM.tasks[0].train)
        chosen = {max(range(6), key=lambda i: cos(q, start["key"][i])) for q in query(rows)}
        one.train_stage(1)
        part = stages(one)[0]
        for name in ("key", "prompt"):
            moved = (part[name] != start[name]).flatten(1).any(dim=1)
            assert set(moved.nonzero().flatten().tolist()) <= chosen
            assert moved.any()


def test_a_penalty_of_strength_zero_is_none() -> None:
    def run(strategy: Any) -> list[dict[str, Tensor]]:
        with learner(strategy) as one:
            one.train_stage(1)
            return stages(one)

    small, none, more = (
        run(CodaPrompt(length=2, components=3, orthogonality=s)) for s in (1e-30, 0.0, 10.0)
    )
    assert tiny_runs.same(small, none)
    assert float(overlap(more)) < float(overlap(none))


@pytest.mark.parametrize("strategy", DISTINCT, ids=named)
def test_replay_joins_them(strategy: Any) -> None:
    def run(budget: float) -> list[dict[str, Tensor]]:
        with learner(Combined(of=(strategy, Replay(budget=budget, share=0.5))), QUICK) as one:
            assert one.settings.learning_rate == strategy.learning_rate
            one.train_stage(1)
            one.train_stage(2)
            assert one.answering().answer(MIXED, max_new_tokens=2)
            return stages(one)

    assert not tiny_runs.same(run(6), run(0))


@pytest.mark.parametrize("strategy", PER_SAMPLE, ids=named)
def test_asking_past_the_choice_is_refused(strategy: Any) -> None:
    with learner(strategy, QUICK) as one:
        one.train_stage(1)
        plain = Answerer(one._model, one.batcher)
        with pytest.raises(RuntimeError, match="chosen for 0 samples, but 4 rows are asked"):
            plain.answer(MIXED)
        assert not loud().model.get_input_embeddings().weight.requires_grad


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return load(tiny_models.qwen2_vl(tmp_path_factory.mktemp("qwen")), device="cpu")


@pytest.mark.parametrize("strategy", SOFT, ids=named)
def test_a_model_that_cannot_be_served_is_refused_before_training(strategy: Any, qwen: Any) -> None:
    with pytest.raises(SettingError, match=r"Qwen2VL.* counts positions .*; take a strategy that"):
        Learner(strategy, qwen, STREAM, SETTINGS, seed=0)
    assert not hasattr(qwen.model, PLACE)


def test_prefixes_serve_it(qwen: Any) -> None:
    with Learner(STRATEGIES[5], qwen, STREAM, QUICK, seed=0) as one:
        one.train_stage(1)
        together = one.answering().answer(MIXED, max_new_tokens=3)
        assert [one.answering().answer([s], max_new_tokens=3)[0] for s in MIXED] == together
    with pytest.raises(SettingError, match=r"Qwen2VL\S+ has 2 layers that can .*; got \(1, 2, 3,"):
        Learner(DualPrompt(), qwen, STREAM, SETTINGS, seed=0)


def test_in_half_precision_the_choice_is_the_same() -> None:
    strategy = L2p(length=2, pool=4, selected=2)
    with learner(strategy) as one:
        expected = weights(one).features(MIXED)
    with learner(strategy, replace(SETTINGS, steps=1, precision="bf16")) as one:
        one.train_stage(1)
        assert one.answering().answer(MIXED, max_new_tokens=2)
        assert torch.equal(weights(one).features(MIXED), expected)


@pytest.mark.parametrize("family", ["idefics3", "mmllm"])
def test_other_families_train_and_answer(family: str, tmp_path: Path) -> None:
    loaded = load(tiny_models.FAMILIES[family](tmp_path), device="cpu")
    for strategy in (STRATEGIES[0], STRATEGIES[2]):
        with Learner(strategy, loaded, STREAM, QUICK, seed=0) as one:
            one.train_stage(1)
            assert len(one.answering().answer(MIXED, max_new_tokens=2)) == len(MIXED)


def test_prompts_of_another_shape_are_refused(tmp_path: Path) -> None:
    with learner(ProgressivePrompts(length=3), QUICK) as one:
        one.train_stage(1)
        one.save(tmp_path)
    with (
        learner(ProgressivePrompts(length=4)) as one,
        pytest.raises(ValueError, match=r"prompts.safetensors: prompt is \[3, 32\], not \[4, 32\]"),
    ):
        one.load(tmp_path)


def test_more_components_than_directions_are_refused() -> None:
    with pytest.raises(SettingError, match=r"3 tasks make 66 components, of which at most 64 can"):
        learner(CodaPrompt(length=2, components=22))
