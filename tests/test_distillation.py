"""Learning without forgetting: its loss, who the teacher is, and restarts."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import tiny_runs
import torch
from tiny_runs import SETTINGS, STREAM, learner, same, trained
from tiny_streams import Recorder
from torch import nn

from clmm.distillation import divergence
from clmm.gradients import Named, copies, logits_with
from clmm.learner import Learner
from clmm.loading import load
from clmm.strategies.combined import Combined
from clmm.strategies.isolated_lora import IsolatedLora
from clmm.strategies.lwf import Lwf
from clmm.strategies.sequential_full import SequentialFull
from clmm.strategies.sequential_lora import SequentialLora
from clmm.training import TrainSettings
from streams import settings
from streams.settings import SettingError


@pytest.fixture(scope="module")
def plain() -> list[Named]:
    return trained(SequentialLora())


def logits() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    teacher, student = (4 * torch.randn(6, 11, generator=generator) for _ in range(2))
    return teacher, student.requires_grad_(True)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_divergence_is_torchs_and_slopes_like_cross_entropy(temperature: float) -> None:
    teacher, student = logits()
    found = divergence(student, teacher, temperature=temperature)
    expected = nn.functional.kl_div(
        (student / temperature).log_softmax(dim=1),
        (teacher / temperature).softmax(dim=1),
        reduction="batchmean",
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    soft = (teacher / temperature).softmax(dim=1)
    entropy = -(soft * (student / temperature).log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(
        *(torch.autograd.grad(loss, student)[0] for loss in (found, entropy)), rtol=1e-5, atol=1e-6
    )
    assert divergence(teacher, teacher, temperature=temperature) == pytest.approx(0, abs=1e-6)


def test_divergence_bears_tokens_that_are_ruled_out() -> None:
    teacher, student = logits()
    ruled_out = torch.zeros_like(teacher).index_fill(1, torch.tensor([3]), -torch.inf)
    student_out = student + ruled_out
    found = divergence(student_out, teacher + ruled_out, temperature=2.0)
    (slope,) = torch.autograd.grad(found, student)
    assert torch.isfinite(found)
    assert torch.isfinite(slope).all()
    kept = [i for i in range(11) if i != 3]
    expected = divergence(student[:, kept], teacher[:, kept], temperature=2.0)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


class Witness:
    """An Avalanche plugin that compares the teacher with a copy of the model before the stage."""

    def __init__(self) -> None:
        self.apart: list[float] = []
        self.distillation: Any = None

    def before_training_exp(self, strategy: Any, **_: Any) -> None:
        self._before = copy.deepcopy(strategy.model).eval()

    def after_forward(self, strategy: Any, **_: Any) -> None:
        weights = dict(strategy.model.named_parameters())
        taught = logits_with(self.distillation._old, strategy.model, strategy.mb_x)
        assert not taught.requires_grad
        assert torch.equal(taught, self._before(strategy.mb_x))
        assert dict(strategy.model.named_parameters()) == weights  # the same objects
        assert strategy.model.training
        self.apart.append((strategy.mb_output - taught).abs().max().item())


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_the_teacher_is_the_model_before_the_stage(tuning: Any) -> None:
    witness = Witness()
    train = replace(SETTINGS, micro_batch_size=4)
    with learner(Lwf(tuning=tuning, from_base=True, plugins=(witness,)), train) as one:
        witness.distillation = one._method.plugins[0]
        for stage in (1, 2):
            one.train_stage(stage)
    first, second = witness.apart[:6], witness.apart[6:]
    for apart in (first, second):
        assert max(apart[:2]) < 1e-4 < min(apart[2:])


@pytest.mark.parametrize("family", ["qwen2_vl", "idefics3", "mmllm"])
def test_other_families_have_their_own_teacher(family: str, tmp_path: Path) -> None:
    loaded = load(tiny_models.FAMILIES[family](tmp_path / family), device="cpu")
    witness = Witness()
    train = TrainSettings(steps=2, batch_size=4, learning_rate=1e-2)
    strategy = Lwf(from_base=True, plugins=(witness,))
    with Learner(strategy, loaded, STREAM, train, seed=0) as one:
        witness.distillation = one._method.plugins[0]
        one.train_stage(1)
    assert witness.apart[0] < 1e-4 < witness.apart[1]


def test_a_step_is_that_of_a_hand_written_loss() -> None:
    """The second update of the second stage, by plain autograd."""
    found: dict[str, Any] = {}

    class Second:
        def before_training_exp(self, strategy: Any, **_: Any) -> None:
            found["old"] = copy.deepcopy(strategy.model).eval()

        def before_training_iteration(self, strategy: Any, **_: Any) -> None:
            found["new"] = copy.deepcopy(strategy.model)
            found["whole"] = strategy.mb_x

        def after_backward(self, strategy: Any, **_: Any) -> None:
            named = strategy.model.named_parameters()
            found["gradient"] = {name: weight.grad.clone() for name, weight in named}

    train = replace(SETTINGS, steps=2, micro_batch_size=3)
    with learner(Lwf(strength=5.0, temperature=3.0, plugins=(Second(),)), train) as one:
        for stage in (1, 2):
            one.train_stage(stage)
    examples, model = found["whole"], found["new"]
    student = model(examples)
    with torch.no_grad():
        teacher = (found["old"](examples) / 3).softmax(dim=1)
    loss = nn.functional.cross_entropy(student, examples.targets)
    loss = loss - 5 * (teacher * (student / 3).log_softmax(dim=1)).sum(dim=1).mean()
    expected = torch.autograd.grad(loss, [w for _, w in model.named_parameters()])
    for (name, _), slope in zip(model.named_parameters(), expected, strict=True):
        torch.testing.assert_close(found["gradient"][name], slope, rtol=1e-3, atol=1e-5)


def test_it_acts_from_the_second_stage_and_never_at_strength_0(plain: list[Named]) -> None:
    assert same(trained(Lwf(strength=0.0, from_base=True)), plain)
    first, second, _ = trained(Lwf())
    assert same(first, plain[0])
    assert not same(second, plain[1])
    assert not same(trained(Lwf(from_base=True))[0], plain[0])


@pytest.mark.parametrize(
    ("tuning", "baseline"), [("lora", SequentialLora), ("full", SequentialFull)]
)
def test_the_new_model_stays_near_the_old(tuning: Any, baseline: Any) -> None:
    near, train = [], replace(SETTINGS, steps=10, learning_rate=3e-3)
    for strategy in (Lwf(strength=100.0, temperature=1.0, tuning=tuning), baseline()):
        with learner(strategy, train) as one:
            batch = one.batcher.training(STREAM.tasks[1].train)
            seen = []
            for stage in (1, 2):
                one.train_stage(stage)
                with torch.no_grad():
                    z = one._model.eval()(**batch).logits
                seen.append(z[:, :-1][batch["labels"][:, 1:] != -100])
        near.append(float(divergence(seen[1], seen[0], temperature=1.0)))
    assert near[0] < near[1] / 2


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_loading_and_going_on_changes_no_bit(tuning: Any, tmp_path: Path) -> None:
    tiny_runs.check_resuming(Lwf(tuning=tuning), tmp_path)


def test_it_combines_and_keeps_nothing_between_stages() -> None:
    recorder = Recorder()
    with learner(Combined(of=(IsolatedLora(plugins=(recorder,)), Lwf()))) as one:
        for stage in (1, 2):
            one.train_stage(stage)
        assert one._method.plugins[-1]._old == {}
        assert all(torch.isfinite(w).all() for w in copies(one._model).values())
    assert len(recorder.batches[2]) == 3


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"strength": -1}, "lwf.strength: must be 0 or more, finite; got -1"),
        ({"strength": float("nan")}, "lwf.strength"),
        ({"temperature": 0}, "lwf.temperature: must be above 0, finite; got 0"),
        ({"temperature": float("inf")}, "lwf.temperature"),
        ({"temprature": 1.0}, "did you mean temperature"),
    ],
)
def test_settings_say_what_is_wrong(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        settings.from_spec("clmm.strategies", {"name": "lwf", **spec}, where="strategies[0]")
