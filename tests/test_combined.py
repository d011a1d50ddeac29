"""Strategies at once: the weights of the first, the parts of all, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_streams
import torch

from clmm.learner import Learner
from clmm.strategies.combined import Combined
from clmm.study import Study, to_spec
from clmm.training import TrainSettings
from streams.settings import SettingError, from_spec

TRAIN = TrainSettings(learning_rate=1e-2, batch_size=4, steps=3)


def _weights(spec: dict[str, Any]) -> dict[str, torch.Tensor]:
    strategy = from_spec("clmm.strategies", spec, where="strategies[0]")
    loaded, stream = tiny_streams.loaded(), tiny_streams.stream("colour", "count")
    with Learner(strategy, loaded, stream, TRAIN, 0) as learner:
        for stage in range(1, len(learner.stages) + 1):
            learner.train_stage(stage)
        named = loaded.model.named_parameters()
        return {name: weight.detach().clone() for name, weight in named if "lora_" in name}


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one | other)


def test_replay_of_nothing_into_isolated_adapters_is_isolation() -> None:
    isolated = {"name": "isolated_lora", "rank": 2}
    nothing = {"name": "combined", "of": [isolated, {"name": "replay", "budget": 0}]}
    assert _same(_weights(isolated), _weights(nothing))


def test_replay_into_isolated_adapters_is_neither() -> None:
    isolated = {"name": "isolated_lora", "rank": 2}
    both = {"name": "combined", "of": [isolated, {"name": "replay", "budget": 6}]}
    alone, found = _weights(isolated), _weights(both)
    assert alone.keys() == found.keys()
    assert not _same(alone, found)


def test_its_settings_come_back() -> None:
    given = Combined(of=("isolated_lora", {"name": "replay", "budget": 0.1}))
    spec = to_spec("clmm.strategies", given)
    assert [part["name"] for part in spec["of"]] == ["isolated_lora", "replay"]
    assert from_spec("clmm.strategies", spec, where="strategies[0]") == given
    study = Study.resolve({"strategies": [spec]})
    assert study.labels == ("isolated_lora-replay",)
    other = {**spec, "of": [spec["of"][0], {"name": "replay", "budget": 0.2}], "label": "more"}
    assert Study.resolve({"strategies": [spec, other]}).labels[1] == "more"


@pytest.mark.parametrize(
    ("of", "message"),
    [
        (["replay"], "combined.of: name two strategies or more; got 1"),
        (["replay", "replai"], r"combined.of\[1\]: there is no 'replai'; did you mean replay"),
        (["replay", "isolated_lora"], r"combined.of\[1\]: IsolatedLora brings weights of its own"),
        (["replay", "zero_shot"], r"combined.of\[1\]: ZeroShot has no parts to combine"),
    ],
)
def test_what_cannot_be_combined(of: list[str], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        from_spec("clmm.strategies", {"name": "combined", "of": of}, where="strategies[0]")
