"""Each strategy trains what it says, on what it says, and leaves the base as it was."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tiny_streams
import torch
from tiny_streams import Recorder

from clmm import avalanche_plugins
from clmm.learner import Learner
from clmm.strategies.isolated_lora import IsolatedLora
from clmm.strategies.joint import Joint
from clmm.strategies.replay import Replay
from clmm.strategies.sequential_full import SequentialFull
from clmm.strategies.sequential_lora import SequentialLora
from clmm.strategies.zero_shot import ZeroShot
from clmm.training import TrainSettings
from streams import catalog, settings
from streams.settings import SettingError

STREAM = tiny_streams.stream("colour", "yes", train=16)
SETTINGS = TrainSettings(steps=2, batch_size=8, learning_rate=1e-2)
PARTS = replace(SETTINGS, steps=3, micro_batch_size=4)
ALIGNMENT = [tiny_streams.sample("aligned", "train", i, image=False) for i in range(5)]


def learner(strategy: Any, train: TrainSettings = SETTINGS, **kwargs: Any) -> Learner:
    return Learner(strategy, tiny_streams.loaded(), STREAM, train, seed=0, **kwargs)


def losses(strategy: Any) -> list[float]:
    found: list[float] = []
    with learner(strategy) as one:
        for stage in range(1, len(one.stages) + 1):
            one.train_stage(stage, lambda event: found.append(event["loss"]))
    return found


def test_names() -> None:
    known = catalog.names("clmm.strategies")
    asked_for = {
        "zero_shot", "sequential_lora", "sequential_full", "joint", "replay", "isolated_lora",
    }  # fmt: skip
    assert asked_for <= set(known)
    for name in known:
        needed = {
            "combined": {"of": ["isolated_lora", "replay"]},
            "reblend": {"source": "requests"},
        }
        spec = {"name": name, **needed.get(name, {})}
        strategy = settings.from_spec("clmm.strategies", spec, where="strategies[0]")
        assert all(isinstance(stage, tuple) for stage in strategy.stages(["a", "b"]))


@pytest.mark.parametrize(
    "strategy", [SequentialLora(), SequentialFull(), IsolatedLora(), Joint(), Replay(tuning="full")]
)
def test_only_what_is_trained_changes_and_the_base_comes_back(strategy: Any) -> None:
    model = tiny_streams.loaded().model
    before = tiny_streams.weights(model)
    with learner(strategy) as one:
        one.train_stage(1)
        trainable = [weight for weight in model.parameters() if weight.requires_grad]
        assert one.trainable_parameters == sum(weight.numel() for weight in trainable)
        after = {n.replace(".base_layer", ""): t for n, t in model.state_dict().items()}
        changed = {name for name, tensor in before.items() if not torch.equal(after[name], tensor)}
        adapters = {name for name in after if "lora_B" in name}
        assert all(after[name].any() for name in adapters)
        if adapters:
            assert not changed
        else:
            assert changed >= {name for name in before if "layers.1.self_attn.q_proj" in name
                               and "vision" not in name}  # fmt: skip
            assert not any("vision_tower" in name for name in changed)
    again = model.state_dict()
    assert again.keys() == before.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in before.items())


def test_lora_strategies_train_equally_much() -> None:
    counts = set()
    for strategy in (SequentialLora(), IsolatedLora(), Replay(), Joint()):
        with learner(strategy) as one:
            counts.add(one.trainable_parameters)
    assert len(counts) == 1


def test_zero_shot_trains_nothing() -> None:
    model = tiny_streams.loaded().model
    with learner(ZeroShot()) as one:
        assert one.stages == ()
        assert one.trainable_parameters == one.stored_bytes == 0
        assert not any(weight.requires_grad for weight in model.parameters())
        with pytest.raises(ValueError, match="stage 1"):
            one.train_stage(1)


def test_joint_sees_all_tasks_in_one_stage() -> None:
    recorder, strategy = Recorder(), Joint()
    with learner(strategy) as one:
        assert one.stages == (("colour", "yes"),)
        one._stock.append(recorder)
        assert one.train_stage(1)["steps"] == 4
        assert one.learnt == ["colour", "yes"]
    seen = [name for batch in recorder.batches[1] for name in batch]
    assert sorted(seen) == sorted(s.id for task in STREAM.tasks for s in task.train)


def test_replay_of_nothing_is_sequential_tuning() -> None:
    assert losses(Replay(budget=0)) == losses(Replay(budget=6, share=0)) == losses(SequentialLora())


def test_replay_has_its_share_from_the_second_stage_and_alignment_from_the_first() -> None:
    recorder = Recorder()
    strategy = Replay(budget=6, share=0.5, alignment_share=0.25, plugins=(recorder,))
    with learner(strategy, alignment=ALIGNMENT) as one:
        one.train_stage(1)
        assert one.stored_bytes > 6 * 32 * 32 * 3
        one.train_stage(2)
        memory = {sample.id for sample in one._method.plugins[0].samples}
    assert len(memory) == 6
    kinds = {k: [n.split("-")[0] for b in v for n in b] for k, v in recorder.batches.items()}
    assert [kinds[1].count(kind) for kind in ("colour", "yes", "aligned")] == [12, 0, 4]
    assert [kinds[2].count(kind) for kind in ("colour", "yes", "aligned")] == [8, 4, 4]
    assert len({n for batch in recorder.batches[2] for n in batch if n.startswith("colour")}) <= 6


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "replay", "budget": 2.5}, "replay.budget: 2.5 is neither"),
        ({"name": "replay", "budget": float("nan")}, "replay.budget: nan is neither"),
        ({"name": "replay", "policy": "first"}, r"replay.policy: .*'reservoir', 'random'"),
        ({"name": "replay", "share": 1.0}, "replay.share: must be"),
        ({"name": "replay", "share": 0.6, "alignment_share": 0.4}, "no room is left"),
        ({"name": "replay", "bugdet": 1}, "did you mean budget"),
        ({"name": "isolated_lora", "router": "oracle"}, r"isolated_lora.router: .*'prototype'"),
    ],
)
def test_settings_say_what_is_wrong(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        settings.from_spec("clmm.strategies", spec, where="strategies[0]")


def test_alignment_must_be_there_to_be_shared() -> None:
    with pytest.raises(SettingError, match=r"replay.alignment_share: is 0.1, but the study has no"):
        learner(Replay(alignment_share=0.1))


# Stock Avalanche plugins


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "EWCPlugin", "ewc_lambda": 10.0},
        {"name": "EWCPlugin", "ewc_lambda": 10.0, "mode": "online", "decay_factor": 0.9},
        {"name": "MASPlugin", "lambda_reg": 1.0},
        {"name": "AGEMPlugin", "patterns_per_experience": 8, "sample_size": 4},
        {"name": "GEMPlugin", "patterns_per_experience": 8, "memory_strength": 0.5},
        {"name": "ReplayPlugin", "mem_size": 8},
    ],
    ids=lambda spec: spec["name"],
)
def test_tested_plugins_act_from_the_second_stage(spec: dict[str, Any], plain: Any) -> None:
    with learner(SequentialLora(plugins=(spec,)), PARTS) as one:
        assert not one.resumable
        found = []
        for stage in (1, 2):
            one.train_stage(stage)
            found.append(_adapter(one))
    first, second = (
        max((a - b).abs().max() for a, b in zip(x, y, strict=True)).item()
        for x, y in zip(found, plain, strict=True)
    )
    assert first == 0 < second


@pytest.fixture(scope="module")
def plain() -> list[Any]:
    """The adapter after each stage with no plugin."""
    with learner(SequentialLora(), PARTS) as one:
        found = []
        for stage in (1, 2):
            one.train_stage(stage)
            found.append(_adapter(one))
    return found


def _adapter(one: Learner) -> list[torch.Tensor]:
    return [w.detach().clone() for w in one._model.parameters() if w.requires_grad]


def test_ewc_holds_weights_near_the_last_task() -> None:
    moved = []
    longer = replace(SETTINGS, steps=5, clip_norm=None)
    for strength in (0.0, 1e6):
        spec = {"name": "EWCPlugin", "ewc_lambda": strength}
        with learner(SequentialFull(plugins=(spec,)), longer) as one:
            one.train_stage(1)
            before = _adapter(one)
            one.train_stage(2)
            moved.append(sum(float((a - b).square().sum())
                             for a, b in zip(before, _adapter(one), strict=True)))  # fmt: skip
    assert moved[1] < moved[0]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("LwFPlugin", r"plugins\[0\]: LwFPlugin is refused: .*silently wrong"),
        ({"name": "EWCPlugn"}, "did you mean EWCPlugin"),
        (
            {"name": "EWCPlugin", "lambda": 1},
            "EWCPlugin.lambda: no such setting; did you mean ewc_l",
        ),
        ({"name": "EWCPlugin"}, "ewc_lambda"),
        (3, "3 is no Avalanche plugin"),
    ],
)
def test_other_plugins_are_refused_with_the_reason(spec: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        avalanche_plugins.build(spec, SETTINGS, where="plugins[0]")
