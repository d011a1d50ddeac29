"""Adapters add up exactly, only the newest is trained, and its overlap with the others is paid."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_runs
import tiny_streams
import torch
from peft import PeftModel

from clmm.adapters_frozen import lora_layers
from clmm.learner import Learner
from clmm.loading import load
from clmm.strategies.o_lora import OLora
from clmm.strategies.sequential_lora import SequentialLora
from clmm.strategy import BASE
from clmm.training import TrainSettings
from streams import settings
from streams.settings import SettingError

STREAM = tiny_streams.stream("colour", "yes", "count", train=16)
SETTINGS = TrainSettings(steps=2, batch_size=8, learning_rate=1e-2, clip_norm=None)


def learner(strategy: Any, train: TrainSettings = SETTINGS) -> Learner:
    return Learner(strategy, tiny_streams.loaded(), STREAM, train, seed=0)


def logits(one: Learner) -> torch.Tensor:
    batch = one.batcher.training(STREAM.tasks[0].test[:3])
    with torch.no_grad():
        found: torch.Tensor = one._model.eval()(**batch).logits
    return found


def tensors(model: Any, name: str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    return {
        key: (
            layer.lora_A[name].weight.detach().clone(),
            layer.lora_B[name].weight.detach().clone(),
        )
        for key, layer in lora_layers(model).items()
    }


def test_the_model_is_the_base_and_the_sum_of_all_adapters() -> None:
    model = tiny_streams.loaded().model
    before = tiny_streams.weights(model)
    with learner(OLora(rank=4, alpha=6)) as one:
        base = logits(one)
        for stage in (1, 2, 3):
            one.train_stage(stage)
        assert one.stored_bytes == 3 * 4 * one.trainable_parameters
        trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
        assert sum(model.get_parameter(n).numel() for n in trained) == one.trainable_parameters
        assert all("stage-0003" in name for name in trained)
        found = logits(one)
        names = [f"stage-000{stage}" for stage in (1, 2, 3)]
        deltas = [tensors(model, name) for name in names]
        assert all(b.any() for delta in deltas for _, b in delta.values())
        one._method.weights.select(BASE)
        torch.testing.assert_close(logits(one), base, rtol=0, atol=0)
        one._method.weights.select(None)
        torch.testing.assert_close(logits(one), found, rtol=0, atol=0)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    with torch.no_grad():
        for key in deltas[0]:
            model.get_submodule(key).weight += 1.5 * sum(d[key][1] @ d[key][0] for d in deltas)
        expected = logits(one)
        model.load_state_dict(before)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, base, atol=1e-2)


class Watch:
    """Notes the penalty's value and what it adds to the gradient; frames the other plugins."""

    def __init__(self, one: Learner) -> None:
        self.penalty = one._method.plugins[0]
        one._method.plugins.insert(0, SimpleNamespace(after_backward=self.keep_own))
        one._method.plugins.append(self)

    def keep_own(self, strategy: Any, **_: Any) -> None:
        self.own = {n: w.grad.clone() for n, w in strategy.model.named_parameters()}

    def after_backward(self, strategy: Any, **_: Any) -> None:
        named = dict(strategy.model.named_parameters())
        self.added = {n: w.grad - self.own[n] for n, w in named.items()}
        names = [f"stage-{stage:04d}" for stage in range(1, strategy.stage + 1)]
        *self.old, self.new = [tensors(strategy.model.model, name) for name in names]
        self.value = float(self.penalty.value().detach()) if strategy.stage > 1 else 0.0


def test_the_penalty_is_the_papers() -> None:
    with learner(OLora(overlap=0.5, norm=0.25, rank=2)) as one:
        watch = Watch(one)
        for stage in (1, 2, 3):
            one.train_stage(stage)
            total = 0.0
            for key, (a, b) in watch.new.items():
                pull_a, pull_b = 0.25 * a / a.norm(), 0.25 * b / b.norm()
                for row in (row for earlier in watch.old for row in earlier[key][0]):
                    for number, other in enumerate(a):
                        total += 0.5 * abs(float(row @ other))
                        pull_a[number] += 0.5 * torch.sign(row @ other) * row
                total += 0.25 * float(a.square().sum().sqrt() + b.square().sum().sqrt())
                for part, pull in (("lora_A", pull_a), ("lora_B", pull_b)):
                    found = watch.added[f"model.{key}.{part}.stage-{stage:04d}.weight"]
                    torch.testing.assert_close(found, pull, rtol=1e-4, atol=1e-5)
            if stage > 1:
                assert watch.value == pytest.approx(total, rel=1e-5)


def losses(strategy: Any, stages: int = 2) -> list[float]:
    found: list[float] = []
    with learner(strategy) as one:
        for stage in range(1, stages + 1):
            one.train_stage(stage, lambda event: found.append(event["loss"]))
    return found


def test_the_first_stage_is_plain_lora_and_the_penalty_acts_from_the_second() -> None:
    with_penalty, without, plain = (
        losses(strategy) for strategy in (OLora(), OLora(overlap=0.0), SequentialLora())
    )
    assert with_penalty[:2] == without[:2] == plain[:2]
    # A fresh adapter changes nothing yet, and a penalty reaches the loss through an update only.
    assert with_penalty[2] == without[2] == plain[2]
    assert len({with_penalty[3], without[3], plain[3]}) == 3


def test_the_penalty_keeps_subspaces_apart() -> None:
    overlaps = []
    for strength in (0.0, 0.5):
        with learner(OLora(overlap=strength), TrainSettings(steps=8, learning_rate=1e-2)) as one:
            one.train_stage(1)
            one.train_stage(2)
            first, second = (tensors(one._model, f"stage-000{n}") for n in (1, 2))
            overlaps.append(sum((first[k][0] @ second[k][0].T).abs().sum() for k in first))
    assert overlaps[1] < 0.7 * overlaps[0]


def test_a_loaded_run_goes_on_to_the_same_sum(tmp_path: Path) -> None:
    tiny_runs.check_resuming(OLora(), tmp_path)
    found = []
    for stage in (1, 2, 3):
        with learner(OLora()) as one:
            one.load(tmp_path / f"{stage}")
            found.append(logits(one))
    with tiny_runs.learner(OLora()) as other:
        for stage in (1, 2, 3):
            other.train_stage(stage)
            assert torch.equal(logits(other), found[stage - 1])


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's own
def test_the_sum_loads_with_peft_alone(tmp_path: Path) -> None:
    with learner(OLora()) as one:
        for stage in (1, 2):
            one.train_stage(stage)
        one.save(tmp_path)
        expected = logits(one)
        batch = one.batcher.training(STREAM.tasks[0].test[:3])
    model: Any = load(tiny_streams.loaded().path, device="cpu").model
    first, second = sorted((tmp_path / "adapters").iterdir())
    model = PeftModel.from_pretrained(model, first, adapter_name="a")
    model.load_adapter(second, adapter_name="b")
    model.base_model.set_adapter(["a", "b"])
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(**batch).logits, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"overlap": -1}, "o_lora.overlap: must be 0 or above; got -1"),
        ({"overlap": float("nan")}, "o_lora.overlap: must be 0 or above; got nan"),
        ({"norm": float("inf")}, "o_lora.norm: must be 0 or above; got inf"),
    ],
)
def test_settings_say_what_is_wrong(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        settings.from_spec("clmm.strategies", {"name": "o_lora", **values}, where="strategies[0]")
