"""The bounds and the choice of layers: what each stage starts from, trains on and changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import tiny_streams
import torch
from tiny_streams import Recorder

from clmm.components import language_linears
from clmm.learner import Learner
from clmm.loading import Loaded, load
from clmm.strategies.component_selective import ComponentSelective, layers
from clmm.strategies.cumulative import Cumulative
from clmm.strategies.individual import Individual
from clmm.strategies.joint import Joint
from clmm.strategies.sequential_full import SequentialFull
from clmm.strategies.sequential_lora import SequentialLora
from clmm.training import TrainSettings
from streams import settings
from streams.settings import SettingError

STREAM = tiny_streams.stream("colour", "yes", "count", train=16)
SETTINGS = TrainSettings(steps=2, batch_size=8, learning_rate=1e-2)


def learner(
    strategy: Any, train: TrainSettings = SETTINGS, loaded: Loaded | None = None
) -> Learner:
    return Learner(strategy, loaded or tiny_streams.loaded(), STREAM, train, seed=0)


def trained(one: Learner) -> list[torch.Tensor]:
    return [w.detach().clone() for w in one._model.parameters() if w.requires_grad]


def after(strategy: Any, stages: int) -> list[torch.Tensor]:
    with learner(strategy) as one:
        for stage in range(1, stages + 1):
            one.train_stage(stage)
        return trained(one)


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# Individual


@pytest.mark.parametrize(
    ("strategy", "plain"),
    [(Individual(), SequentialLora()), (Individual(tuning="full"), SequentialFull())],
    ids=["lora", "full"],
)
def test_each_stage_knows_of_no_other(strategy: Any, plain: Any) -> None:
    assert same(after(strategy, 1), after(plain, 1))
    third = after(strategy, 3)
    assert not same(third, after(plain, 3))
    with learner(strategy) as one:
        one.done = 2  # as if two tasks had gone before
        one.train_stage(3)
        assert same(trained(one), third)


def test_an_individual_run_goes_on_and_answers_as_it_did(tmp_path: Path) -> None:
    samples = STREAM.tasks[0].test[:3]
    model = tiny_streams.loaded().model
    base = tiny_streams.weights(model)
    with learner(Individual()) as one:
        one.train_stage(1)
        one.train_stage(2)
        one.save(tmp_path)
        answers = [a.text for a in one.answering().answer(samples, max_new_tokens=4)]
        assert one.stored_bytes == 4 * one.trainable_parameters
        one.train_stage(3)
        third = trained(one)
    with learner(Individual()) as other:
        other.load(tmp_path)
        assert [a.text for a in other.answering().answer(samples, max_new_tokens=4)] == answers
        other.train_stage(3)
        assert same(trained(other), third)
    again = model.state_dict()
    assert again.keys() == base.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in base.items())


# Cumulative


def test_each_stage_trains_on_all_tasks_so_far() -> None:
    recorder = Recorder()
    with learner(Cumulative(plugins=(recorder,))) as one:
        assert one.stages == (("colour",), ("colour", "yes"), ("colour", "yes", "count"))
        assert [one.updates(stage) for stage in (1, 2, 3)] == [2, 4, 6]
        assert [one.train_stage(stage)["steps"] for stage in (1, 2, 3)] == [2, 4, 6]
        assert list(dict.fromkeys(one.learnt)) == ["colour", "yes", "count"]
    for stage, names in enumerate(one.stages, start=1):
        seen = [name for batch in recorder.batches[stage] for name in batch]
        samples = [s.id for task in STREAM.tasks if task.name in names for s in task.train]
        assert sorted(seen) == sorted(samples)
    epochs = TrainSettings(epochs=0.5, batch_size=8)
    with learner(Cumulative(), epochs) as one:
        assert [one.updates(stage) for stage in (1, 2, 3)] == [1, 2, 3]


def test_one_task_is_sequential_tuning_and_stages_build_on_each_other(tmp_path: Path) -> None:
    assert same(after(Cumulative(), 1), after(SequentialLora(), 1))
    third = after(Cumulative(), 3)
    with learner(Joint()) as one:
        one.train_stage(1)
        assert not same(trained(one), third)
    with learner(Cumulative()) as one:
        one.train_stage(1)
        one.train_stage(2)
        one.save(tmp_path)
    with learner(Cumulative()) as one:
        one.load(tmp_path)
        one.train_stage(3)
        assert same(trained(one), third)


# Component-selective


@pytest.fixture(scope="module", params=list(tiny_models.FAMILIES))
def family(request: Any, tmp_path_factory: Any) -> Loaded:
    folder = tmp_path_factory.mktemp(request.param)
    return load(tiny_models.FAMILIES[request.param](folder), device="cpu")


def test_layers_are_found_in_every_family(family: Loaded) -> None:
    every = language_linears(family.model)
    parts = {part: layers(every, part) for part in ("attention", "mlp", "gate_up")}
    last = {part: {name.rsplit(".", 1)[-1] for name in names} for part, names in parts.items()}
    assert last["attention"] == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert last["mlp"] == {"gate_proj", "up_proj", "down_proj"}
    assert last["gate_up"] == {"gate_proj", "up_proj"}
    assert sorted(parts["attention"] + parts["mlp"]) == sorted(every)


@pytest.mark.parametrize("part", ["attention", "mlp", "gate_up"])
def test_only_these_layers_change(part: Any) -> None:
    model = tiny_streams.loaded().model
    targets = layers(language_linears(model), part)
    with learner(ComponentSelective(part=part, rank=4)) as one:
        one.train_stage(1)
        weights = {n: w for n, w in model.named_parameters() if w.requires_grad}
        assert {name.split(".lora_")[0] for name in weights} == set(targets)
        assert all(w.any() for n, w in weights.items() if "lora_B" in n)
        assert one.trainable_parameters == sum(w.numel() for w in weights.values())
        total = sum(4 * sum(model.get_submodule(name).weight.shape) for name in targets)
        assert one.trainable_parameters == total


def test_a_selective_run_goes_on(tmp_path: Path) -> None:
    expected = after(ComponentSelective(), 2)
    with learner(ComponentSelective()) as one:
        one.train_stage(1)
        one.save(tmp_path)
    with learner(ComponentSelective()) as one:
        one.load(tmp_path)
        one.train_stage(2)
        assert same(trained(one), expected)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("transformer.h.0.self_attention.query_key_value", "attention"),
        ("encoder.block.0.layer.0.SelfAttention.q", "attention"),
        ("model.layers.0.attention.wqkv", "attention"),
        ("encoder.block.0.layer.1.DenseReluDense.wi_0", "gate_up"),
        ("model.layers.0.feed_forward.w3", "gate_up"),
        ("transformer.h.0.mlp.dense_h_to_4h", "gate_up"),
        ("model.decoder.layers.0.fc1", "gate_up"),
        ("model.layers.0.feed_forward.w2", "mlp"),
        ("model.decoder.layers.0.fc2", "mlp"),
    ],
)
def test_other_families_names_are_known(name: str, part: str) -> None:
    assert layers([name, "model.layers.0.other"], part) == [name]
    others = {"attention", "gate_up"} - {part}
    for other in others:
        with pytest.raises(SettingError):
            layers([name], other)


def test_what_is_not_there_is_said_with_what_is() -> None:
    names = ["model.layers.0.mixer.in_proj", "model.layers.1.mixer.out_proj"]
    with pytest.raises(SettingError, match=r"\*attn\*, \*attention\*; .* in_proj, out_proj; got"):
        layers(names, "attention")
    with pytest.raises(SettingError, match=r"\*mlp\*.* and named gate_proj, up_proj"):
        layers(names, "gate_up")
    with pytest.raises(SettingError, match=r"component_selective\.part: .*'attention'"):
        settings.from_spec(
            "clmm.strategies", {"name": "component_selective", "part": "head"}, where="s"
        )
