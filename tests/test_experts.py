"""Experts are mixed token by token as the formula says, and leave the base as it was."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_streams
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from clmm.experts import EXPERTS_FILE, ExpertLinear, ExpertLora
from clmm.learner import Learner
from clmm.strategies.moelora import MoeLora
from clmm.strategies.sequential_lora import SequentialLora
from clmm.strategy import BASE
from clmm.training import TrainSettings
from streams import settings
from streams.settings import SettingError

STREAM = tiny_streams.stream("colour", "yes", train=16)
SETTINGS = TrainSettings(steps=2, batch_size=8, learning_rate=1e-2)


def learner(strategy: Any, train: TrainSettings = SETTINGS, **kwargs: Any) -> Learner:
    return Learner(strategy, tiny_streams.loaded(), STREAM, train, seed=0, **kwargs)


def logits(one: Learner) -> Tensor:
    batch = one.batcher.training(STREAM.tasks[0].test[:3])
    with torch.no_grad():
        found: Tensor = one._model.eval()(**batch).logits
    return found


def expert_linear(*, experts: int, rank: int = 6, bias: bool = True) -> ExpertLinear:
    torch.manual_seed(0)
    layer = ExpertLinear(nn.Linear(5, 7, bias=bias), rank=rank, alpha=9, experts=experts)
    nn.init.normal_(layer.lora_B)
    return layer


@pytest.mark.parametrize("experts", [1, 2, 3, 6])
def test_the_mixture_is_the_formula(experts: int) -> None:
    layer = expert_linear(experts=experts)
    x = torch.randn(2, 4, 5)
    with torch.no_grad():
        found = layer(x)
        each = 6 // experts
        for row, column in [(r, c) for r in range(2) for c in range(4)]:
            token = x[row, column]
            scores = [float(layer.gate[e] @ token) for e in range(experts)]
            shares = torch.tensor(scores).softmax(dim=0)
            expected = layer.base_layer(token)
            for e in range(experts):
                own = slice(e * each, (e + 1) * each)
                change = layer.lora_B[:, own] @ (layer.lora_A[own] @ token)
                expected = expected + 9 / 6 * shares[e] * change
            torch.testing.assert_close(found[row, column], expected, rtol=1e-5, atol=1e-5)


def test_a_token_does_not_depend_on_the_others() -> None:
    layer, x = expert_linear(experts=3), torch.randn(3, 4, 5)
    with torch.no_grad():
        torch.testing.assert_close(layer(x)[1, 2], layer(x[1, 2]))
        torch.testing.assert_close(layer(x.flip(0)).flip(0), layer(x))


def test_one_expert_is_plain_lora() -> None:
    """The same weights in peft's layers and in ours give the same model."""
    with learner(SequentialLora()) as plain:
        plain.train_stage(1)
        expected = logits(plain)
        state = {name: weight.clone() for name, weight in plain._model.named_parameters()}
    with learner(MoeLora(experts=1)) as one:
        one._method.weights.begin("colour")
        with torch.no_grad():
            for name, weight in one._model.named_parameters():
                if name.endswith(("lora_A", "lora_B")):
                    weight.copy_(state[f"{name}.default.weight"])
        assert torch.equal(logits(one), expected)


def test_it_trains_lora_and_the_gates_and_the_base_comes_back() -> None:
    model = tiny_streams.loaded().model
    before = tiny_streams.weights(model)
    modules = [(name, type(module)) for name, module in model.named_modules()]
    with learner(SequentialLora()) as plain:
        lora = plain.trainable_parameters
    with learner(MoeLora(experts=2)) as one:
        base = logits(one)
        one.train_stage(1)
        layers = [m for m in model.modules() if isinstance(m, ExpertLinear)]
        gates = sum(2 * layer.in_features for layer in layers)
        trained = {n: w for n, w in model.named_parameters() if w.requires_grad}
        assert one.trainable_parameters == lora + gates == sum(w.numel() for w in trained.values())
        assert one.stored_bytes == 4 * one.trainable_parameters
        assert {name.rpartition(".")[2] for name in trained} == {"lora_A", "lora_B", "gate"}
        assert all(weight.any() for name, weight in trained.items() if name.endswith("lora_B"))
        now = {n.replace(".base_layer", ""): t for n, t in model.state_dict().items()}
        assert all(torch.equal(now[name], tensor) for name, tensor in before.items())
        found = logits(one)
        assert not torch.allclose(found, base, atol=1e-3)
        one._method.weights.select(BASE)
        assert torch.equal(logits(one), base)
        one._method.weights.select(None)
        assert torch.equal(logits(one), found)
        with pytest.raises(ValueError, match="one route"):
            one._method.weights.select("colour")
        with pytest.raises(RuntimeError, match="carries experts; close its other Learner"):
            learner(MoeLora())
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert [(name, type(module)) for name, module in model.named_modules()] == modules


def losses(strategy: Any, train: TrainSettings) -> list[float]:
    found: list[float] = []
    with learner(strategy, train) as one:
        for stage in (1, 2):
            one.train_stage(stage, lambda event: found.append(event["loss"]))
    return found


def test_checkpointing_and_micro_batches_change_nothing_and_autocast_little() -> None:
    plain = losses(MoeLora(), SETTINGS)
    for change in ({"gradient_checkpointing": True}, {"micro_batch_size": 2}):
        assert losses(MoeLora(), replace(SETTINGS, **change)) == pytest.approx(plain, rel=1e-4)
    narrow = replace(SETTINGS, precision="bf16")
    assert losses(MoeLora(), narrow) == pytest.approx(plain, rel=2e-2)
    again = losses(MoeLora(), replace(narrow, gradient_checkpointing=True))
    assert again == pytest.approx(losses(MoeLora(), narrow), rel=1e-2)


def test_a_model_in_half_precision_keeps_its_precision() -> None:
    layer = expert_linear(experts=2)
    layer.base_layer.to(torch.bfloat16)
    x = torch.randn(3, 5).to(torch.bfloat16)
    found = layer(x)
    assert found.dtype == torch.bfloat16
    assert layer.lora_A.dtype == layer.gate.dtype == torch.float32
    wide = copy.deepcopy(layer).float()(x.float())
    torch.testing.assert_close(found.float(), wide, rtol=2e-2, atol=2e-2)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer(x).float(), wide, rtol=5e-2, atol=5e-2)
    found.float().sum().backward()
    assert all(weight.grad is not None for weight in (layer.lora_A, layer.lora_B, layer.gate))


def test_loading_and_going_on_changes_no_bit(tmp_path: Path) -> None:
    found = []
    with learner(MoeLora()) as one:
        one.save(tmp_path / "0")
        for stage in (1, 2):
            one.train_stage(stage)
            found.append(logits(one))
            one.save(tmp_path / f"{stage}")
    with learner(MoeLora()) as other:
        other.load(tmp_path / "1")
        assert torch.equal(logits(other), found[0])
        other.train_stage(2)
        assert torch.equal(logits(other), found[1])
        other.save(tmp_path / "again")
        other.load(tmp_path / "0")
        other.train_stage(1)
        assert torch.equal(logits(other), found[0])
    kept = [load_file(tmp_path / folder / EXPERTS_FILE) for folder in ("2", "again")]
    assert kept[0].keys() == kept[1].keys()
    assert all(torch.equal(tensor, kept[1][name]) for name, tensor in kept[0].items())


def test_experts_of_another_shape_are_refused(tmp_path: Path) -> None:
    model = copy.deepcopy(tiny_streams.loaded().model)
    for sizes in ({"rank": 4, "experts": 2}, {"rank": 8, "experts": 2}):
        weights = ExpertLora(model, alpha=8, seed=0, **sizes)
        if sizes["rank"] == 4:
            weights.begin("a")
            weights.save(tmp_path)
        else:
            with pytest.raises(ValueError, match=r"experts.safetensors: .*lora_A is \[4, "):
                weights.load(tmp_path)
        weights.restore()


@pytest.mark.parametrize("experts", [0, 3, -2, 16])
def test_experts_must_divide_the_rank(experts: int) -> None:
    spec = {"name": "moelora", "experts": experts}
    with pytest.raises(SettingError, match=f"must divide the rank, 8; got {experts}"):
        settings.from_spec("clmm.strategies", spec, where="strategies[0]")
