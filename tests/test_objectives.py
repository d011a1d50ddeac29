"""Objectives at work: in a stream, with strategies, in micro-batches.

Over processes: tests/test_online.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_runs
import tiny_streams
import torch

import streams.scoring
from clmm import objective
from clmm.actor import TrainedActor
from clmm.benchmark import Examples
from clmm.learner import Learner
from clmm.objective import Drawn, log_likelihoods
from clmm.objectives.dpo import Dpo
from clmm.objectives.grpo import Grpo
from clmm.objectives.rloo import Rloo
from clmm.strategies.der_pp import DerPp
from clmm.strategies.ewc import Ewc
from clmm.strategies.isolated_lora import IsolatedLora
from clmm.strategies.joint import Joint
from clmm.strategies.lwf import Lwf
from clmm.strategies.replay import Replay
from clmm.strategies.sequential_full import SequentialFull
from clmm.strategies.sequential_lora import SequentialLora
from clmm.training import TrainSettings
from streams.sample import Sample, Text
from streams.scoring import Score
from streams.settings import SettingError
from streams.stream import Stream

SETTINGS = TrainSettings(steps=3, batch_size=8, learning_rate=1e-2)
RLOO = {"name": "rloo", "samples": 3, "max_new_tokens": 4}
DPO = {"name": "dpo", "beta": 0.5}


def tasks(train: int = 16, **objectives: Any) -> Stream:
    """A task for each objective; all samples have a rejected answer."""
    plain = tiny_streams.stream(*objectives, train=train)
    return replace(
        plain,
        tasks=tuple(
            replace(
                task,
                objective=objectives[task.name],
                train=[replace(s, rejected=(Text(text="no idea"),)) for s in task.train],
            )
            for task in plain.tasks
        ),
    )


STREAM = tasks(yes="sft", colour=DPO, count=RLOO)


class Spy:
    """An Avalanche plugin that may stand beside any objective: notes batches and a gradient."""

    supervised_only = False
    supports_distributed = True

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.rows: list[tuple[list[str], list[int]]] = []
        self.gradient: dict[str, torch.Tensor] = {}

    def before_training_iteration(self, strategy: Any, **_: Any) -> None:
        self.batches.append([sample.id for sample in strategy.mb_x.samples])

    def after_forward(self, strategy: Any, **_: Any) -> None:
        ids = [sample.id for sample in strategy.mb_x.samples]
        self.rows.append((ids, strategy.mb_task_id.tolist()))

    def after_backward(self, strategy: Any, **_: Any) -> None:
        if not self.gradient:
            named = strategy.model.named_parameters()
            self.gradient = {name: weight.grad.clone() for name, weight in named}


def learner(strategy: Any, stream: Stream = STREAM, settings: TrainSettings = SETTINGS) -> Learner:
    return Learner(strategy, tiny_streams.loaded(), stream, settings, seed=0)


def losses(one: Learner, stage: int) -> list[float]:
    found: list[float] = []
    one.train_stage(stage, lambda event: found.append(event["loss"]))
    assert all(map(math.isfinite, found))
    return found


# The equations


def test_preferences_written_out() -> None:
    now, then = torch.tensor([-3.0, -5.0, -2.0, -1.0]), torch.tensor([-4.0, -4.5, -1.0, -2.5])
    lengths = torch.tensor([2.0, 4.0, 1.0, 5.0])
    margins = [(-3 + 4) - (-5 + 4.5), (-2 + 1) - (-1 + 2.5)]

    def minus_log_sigmoid(x: float) -> float:
        return math.log(1 + math.exp(-x))

    for smooth in (0.0, 0.1):
        expected = [
            (1 - smooth) * minus_log_sigmoid(0.3 * h) + smooth * minus_log_sigmoid(-0.3 * h)
            for h in margins
        ]
        found = Dpo(beta=0.3, label_smoothing=smooth).of_pairs(now, then, lengths)
        assert found.item() == pytest.approx(sum(expected) / 2, rel=1e-5)
    each = [(-3 + 4) / 2 - (-5 + 4.5) / 4, (-2 + 1) / 1 - (-1 + 2.5) / 5]
    ipo = sum((h - 1 / (2 * 0.3)) ** 2 for h in each) / 2
    assert Dpo(beta=0.3, kind="ipo").of_pairs(now, then, lengths).item() == pytest.approx(ipo)


def test_advantages_written_out() -> None:
    rewards = torch.tensor([1.0, 0.0, 0.5, 1.0, 1.0, 1.0])
    expected = torch.tensor([1 - 0.25, 0 - 0.75, 0.5 - 0.5, 0, 0, 0])
    torch.testing.assert_close(Rloo(samples=3).advantages(rewards), expected)
    # std of (1, 0, ½) is ½; equal scores teach nothing, and divide by no zero.
    expected = torch.tensor([0.5, -0.5, 0, 0, 0, 0]) / (0.5 + 1e-4)
    torch.testing.assert_close(Grpo(samples=3).advantages(rewards), expected)


def test_dpo_adds_the_preferred_answers_own_loss() -> None:
    spy, stream = Spy(), tasks(colour={**DPO, "sft": 2.0})
    with learner(SequentialLora(plugins=(spy,)), stream) as one:
        whole = stream.tasks[0].train
        texts = [sample.reference_text for sample in whole]
        known = one.answering().log_likelihood(whole, [[text] for text in texts])
        lengths = [len(one.batcher.answer_ids(text)) for text in texts]
        loss = losses(one, 1)[0]
    each = {s.id: value / n for s, (value,), n in zip(whole, known, lengths, strict=True)}
    own = sum(each[name] for name in spy.batches[0]) / 8
    assert loss == pytest.approx(math.log(2) - 2 * own, rel=1e-4)


# In a stream


@pytest.mark.parametrize("name", ["sequential_lora", "replay", "ewc", "isolated_lora"])
def test_stages_of_three_objectives_follow_one_another(name: str) -> None:
    strategies = {
        "sequential_lora": SequentialLora(),
        "replay": Replay(budget=8, share=0.25),
        "ewc": Ewc(),
        "isolated_lora": IsolatedLora(),
    }
    with learner(strategies[name]) as one:
        found = [losses(one, stage) for stage in (1, 2, 3)]
        assert len(one.answering().answer(STREAM.tasks[2].test, max_new_tokens=3)) == 8
    assert found[0][-1] < found[0][0]
    if name != "replay":
        # Before an update p is p₀, whatever the stages before have done.
        assert found[1][0] == pytest.approx(math.log(2), abs=1e-5)
        assert found[1][-1] < found[1][0]


def test_the_reference_is_the_model_that_the_stage_began_with() -> None:
    sample = STREAM.tasks[1].train[0]
    then, now = [], []

    def note(strategy: Any, **_: Any) -> None:
        row: Examples = strategy.mb_x.like([sample])
        with torch.no_grad():
            now.append(log_likelihoods(strategy.model(row), row).item())
        then.append(log_likelihoods(strategy._actor.earlier(row), row).item())

    spy = SimpleNamespace(supervised_only=False, before_update=note)
    with learner(SequentialLora(plugins=(spy,))) as one:
        losses(one, 1)
        ((expected,),) = one.answering().log_likelihood([sample], [[sample.reference_text]])
        losses(one, 2)
    assert then[3:] == pytest.approx([expected] * 3, abs=1e-4)
    assert now[3] == pytest.approx(expected, abs=1e-4)
    assert abs(now[5] - expected) > 1e-2


def test_a_replayed_sample_is_learnt_by_its_own_objective() -> None:
    spy = Spy()
    with learner(Replay(budget=8, share=0.5, plugins=(spy,))) as one:
        losses(one, 1)
        spy.batches.clear()
        spy.rows.clear()
        earlier = {sample.id: sample for sample in STREAM.tasks[0].train}
        texts = [[sample.reference_text] for sample in earlier.values()]
        known = one.answering().log_likelihood(list(earlier.values()), texts)
        likelihoods = dict(zip(earlier, (values[0] for values in known), strict=True))
        loss = losses(one, 2)[0]
        length = {n: len(one.batcher.answer_ids(s.reference_text)) for n, s in earlier.items()}
    batch = spy.batches[0]
    replayed = [name for name in batch if name in earlier]
    assert len(replayed) == 4
    entropy = -sum(map(likelihoods.get, replayed)) / sum(map(length.get, replayed))  # type: ignore[arg-type]
    assert loss == pytest.approx((4 * entropy + 4 * math.log(2)) / 8, rel=1e-4)
    # Of a replayed sample one row; of a new one two, beside each other, with its task's label.
    (own, own_labels), (pairs, labels) = spy.rows[:2]
    assert (own, own_labels) == (replayed, [0] * 4)
    new = [name for name in batch if name not in earlier]
    assert pairs == [row for name in new for row in (name, f"{name}/rejected")]
    assert labels == [1] * 8


def test_joint_training_of_all_objectives() -> None:
    spy = Spy()
    with learner(Joint(plugins=(spy,)), settings=replace(SETTINGS, batch_size=12)) as one:
        assert len(losses(one, 1)) == 9
    assert len(spy.rows) == 27
    assert [set(labels) for _, labels in spy.rows[:3]] == [{0}, {1}, {2}]


def test_tasks_of_equal_objectives_share_a_pass() -> None:
    spy = Spy()
    with learner(Joint(plugins=(spy,)), tasks(yes=DPO, colour=dict(DPO))) as one:
        losses(one, 1)
    for ids, labels in spy.rows:
        assert len(ids) == 16
        # The row's own label, though a pair has two rows.
        assert labels == [0 if name.startswith("yes") else 1 for name in ids]


# Micro-batches


def fixed(actor: Any, examples: Examples, *, count: int, **_: Any) -> list[list[Drawn]]:
    """Answers that depend on the sample and the number alone."""
    encode = examples.batcher.answer_ids
    texts = [[f"{s.reference_text[:n]}" + "x" * n for n in range(count)] for s in examples.samples]
    return [[Drawn(ids=encode(text), text=text) for text in of] for of in texts]


@pytest.mark.parametrize(
    "objectives",
    [
        {"colour": DPO},
        {"colour": {**DPO, "kind": "ipo", "sft": 0.5}},
        {"yes": "sft", "colour": DPO},
        {"colour": {**RLOO, "beta": 0.3}},
        {"colour": {**RLOO, "name": "grpo", "beta": 0.3}},
        {"yes": "sft", "colour": RLOO, "count": DPO},
    ],
)
def test_micro_batches_change_no_gradient(
    objectives: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainedActor, "draw", fixed)
    monkeypatch.setattr(streams.scoring, "score", graded)
    found = []
    for micro in (None, 3):
        spy = Spy()
        settings = replace(SETTINGS, steps=1, micro_batch_size=micro)
        strategy = Joint(tuning="full", plugins=(spy,))
        with learner(strategy, tasks(**objectives), settings) as one:
            found.append((losses(one, 1)[0], spy.gradient, len(spy.rows)))
    (whole, gradient, _), (parts, same, passes) = found
    assert passes > len(objectives)
    assert parts == pytest.approx(whole, rel=1e-4, abs=1e-6)
    assert max(float(g.abs().max()) for g in gradient.values()) > 1e-3
    torch.testing.assert_close(same, gradient, rtol=1e-3, atol=1e-6)


def graded(sample: Sample, answer: Any) -> Score:
    """Differs from answer to answer."""
    return Score(value=len(answer.text) % 4 / 4, outcome="partial")


# Reinforcement


@pytest.mark.parametrize("name", ["rloo", "grpo"])
def test_reinforcement_raises_the_score(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rewards: list[float] = []

    def lower_case(sample: Sample, answer: Any) -> Score:
        letters = [one.isascii() and one.islower() for one in answer.text]
        rewards.append(sum(letters) / max(1, len(letters)))
        return Score(value=rewards[-1], outcome="partial")

    monkeypatch.setattr(streams.scoring, "score", lower_case)
    spec = {"name": name, "samples": 8, "max_new_tokens": 2, "beta": 0.01}
    settings = replace(SETTINGS, steps=10, learning_rate=5e-2)
    with learner(SequentialFull(), tasks(colour=spec), settings) as one:
        losses(one, 1)
    first, *_, last = (sum(rewards[i : i + 64]) / 64 for i in range(0, len(rewards), 64))
    assert first < 0.2
    assert last > 0.8


# Restarts, and what is refused


def test_a_run_resumes_to_the_last_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_runs, "STREAM", STREAM)
    tiny_runs.check_resuming(Replay(budget=6, share=0.5), tmp_path)


@pytest.fixture
def untouched() -> Iterator[None]:
    """A refusal leaves the model as it was, for the strategy that is taken instead."""
    yield
    model: Any = tiny_streams.loaded().model
    assert not hasattr(model, "peft_config")
    assert not any(weight.requires_grad for weight in model.parameters())
    with learner(SequentialLora()) as one:
        assert one.stages


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("strategy", "plugin"),
    [
        (Lwf(), "Distillation"),
        (DerPp(), "DarkExperience"),
        (SequentialLora(plugins=({"name": "GEMPlugin", "patterns_per_experience": 4,
                                  "memory_strength": 0.5},)), "GEMPlugin"),
    ],
)  # fmt: skip
def test_what_works_on_references_is_refused_beside_preferences(strategy: Any, plugin: str) -> None:
    message = f"{plugin} works on the predictions of references, .* learnt by dpo; take replay"
    with pytest.raises(ValueError, match=message):
        learner(strategy, tasks(yes="sft", colour=DPO))


@pytest.mark.usefixtures("untouched")
def test_samples_that_cannot_be_learnt_are_refused_before_training() -> None:
    task = tiny_streams.stream("colour").tasks[0]
    whole = tasks(colour=DPO).tasks[0].train
    for last in (task.train[-1], replace(task.train[-1], rejected=(Text(text=" "),))):
        samples = [*whole, last]
        broken = replace(task, train=samples, objective="dpo")
        with pytest.raises(ValueError, match="sample colour-train-23: dpo needs a rejected"):
            learner(SequentialLora(), Stream(name="broken", tasks=(broken,)))
    plain = [replace(task.train[0], plain=True)]
    asked = replace(task, train=plain, objective="grpo")
    with pytest.raises(ValueError, match="sample colour-train-0: plain text asks nothing"):
        learner(SequentialLora(), Stream(name="plain", tasks=(asked,)))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("dbo", "task a: objective: .*'dbo'.*did you mean dpo"),
        ({"name": "dpo", "bet": 1}, "objective.dpo.bet: no such setting; did you mean beta"),
        ({"name": "dpo", "beta": 0}, "dpo.beta: must be above 0"),
        ({"name": "dpo", "beta": math.nan}, "dpo.beta"),
        ({"name": "dpo", "kind": "hinge"}, "kind"),
        ({"name": "dpo", "label_smoothing": 0.5}, "dpo.label_smoothing: .* below 0.5; got 0.5"),
        ({"name": "dpo", "kind": "ipo", "label_smoothing": 0.1}, "is for kind sigmoid, not ipo"),
        ({"name": "dpo", "sft": -1}, "dpo.sft"),
        ({"name": "rloo", "samples": 1}, "rloo.samples: needs two answers to compare"),
        ({"name": "grpo", "samples": 1}, "grpo.samples: needs two"),
        ({"name": "rloo", "beta": math.inf}, "rloo.beta"),
        ({"name": "rloo", "temperature": 0}, "rloo.temperature: must be above 0"),
        ({"name": "rloo", "max_new_tokens": 0}, "rloo.max_new_tokens"),
        (None, "None is no objective"),
        (TrainSettings(), "is no objective"),
    ],
)
def test_objectives_say_what_is_wrong(spec: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        objective.of(spec, where="task a: objective")
