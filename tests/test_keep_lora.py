"""KeepLoRA starts from the gradient outside of the base's main directions and earlier inputs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_runs
import tiny_streams
import torch
from torch import Tensor

from clmm.adapters_frozen import lora_layers
from clmm.strategies.keep_lora import KeepLora
from clmm.subspaces import second_moments
from streams import settings
from streams.settings import SettingError

STREAM, SETTINGS = tiny_runs.STREAM, tiny_runs.SETTINGS
learner = tiny_runs.learner
Pairs = dict[str, tuple[Tensor, Tensor]]


def pairs(model: Any, stage: int) -> Pairs:
    """Layer → A and B of a stage's adapter."""
    name = f"stage-{stage:04d}"
    return {
        key: (layer.lora_A[name].weight.detach(), layer.lora_B[name].weight.detach())
        for key, layer in lora_layers(model).items()
    }


def weight_of(model: Any, layer: str) -> Tensor:
    weight: Tensor = lora_layers(model)[layer].get_base_layer().weight
    return weight


def main_directions(matrix: Tensor, share: float) -> Tensor:
    """The fewest right singular vectors that hold `share` of the squares [in, m]."""
    _, sizes, rows = torch.linalg.svd(matrix.double())
    shares = sizes.square().cumsum(0) / sizes.square().sum()
    return rows[: 1 + int((shares < share).sum())].T


def gradients(one: Any, places: range, task: int) -> dict[str, Tensor]:
    """∂loss/∂W of the model as it is, of all samples in one batch."""
    layers = lora_layers(one._model)
    batch = one.batcher.training([STREAM.tasks[task].train[i] for i in places])
    batch.pop("token_type_ids", None)
    weights = {name: layer.get_base_layer().weight for name, layer in layers.items()}
    for weight in weights.values():
        weight.requires_grad_(True)
    loss = one._model.eval()(**batch).loss
    found = torch.autograd.grad(loss, list(weights.values()))
    for weight in weights.values():
        weight.requires_grad_(False)
    return dict(zip(weights, found, strict=True))


def test_a_is_what_the_gradient_has_outside_of_the_kept_directions() -> None:
    with learner(KeepLora(rank=4, samples=4, principal=0.5, threshold=0.6)) as one:
        plugin = one._method.plugins[0]
        for stage in (1, 2):
            expected: dict[str, Any] = {}
            before = dict(plugin.bases)

            def look(strategy: Any, found: Any = expected, k: int = stage, **_: Any) -> None:
                if not found:
                    found["G"] = gradients(one, range(0, 16, 4), k - 1)
                    found["M"] = dict(plugin.bases)
                    found["A"] = {key: a.clone() for key, (a, _) in pairs(one._model, k).items()}
                    assert not any(b.any() for _, b in pairs(one._model, k).values())

            one._method.plugins.append(SimpleNamespace(before_training_epoch=look))
            one._trainer = None
            one.train_stage(stage)
            one._method.plugins.pop()
            for key, (a, b) in pairs(one._model, stage).items():
                m, g = expected["M"][key], expected["G"][key].double()
                if stage == 1:
                    own = main_directions(weight_of(one._model, key), 0.5)
                    assert own.shape == m.shape
                    torch.testing.assert_close((m @ m.T).double(), own @ own.T, rtol=0, atol=1e-5)
                else:
                    assert torch.equal(m, before[key])
                    torch.testing.assert_close(m.T @ m, torch.eye(m.shape[1]), rtol=0, atol=1e-5)
                rest = g - g @ m.double() @ m.double().T
                best = torch.linalg.svdvals(rest)[:4].square().sum()
                held = (rest @ a.double().T).square().sum()
                torch.testing.assert_close(held, best, rtol=1e-5, atol=0)
                torch.testing.assert_close(a @ a.T, torch.eye(4), rtol=0, atol=1e-5)
                assert torch.equal(a, expected["A"][key])
                assert b.any()
                # What is learnt leaves what is kept alone.
                assert float((b @ a @ m).abs().max()) < 1e-5


def test_directions_grow_by_a_task_s_inputs() -> None:
    with learner(KeepLora(rank=2, samples=3, principal=0.3, threshold=0.8)) as one:
        one.train_stage(1)
        plugin = one._method.plugins[0]
        samples = [STREAM.tasks[0].train[i] for i in (0, 6, 12)]
        assert one._trainer is not None
        layers = lora_layers(one._model)
        moments = second_moments(one._trainer.model, layers, samples, one.batcher)
        for key, m in plugin.bases.items():
            kept = main_directions(weight_of(one._model, key), 0.3)
            count = kept.shape[1]
            torch.testing.assert_close(
                (m[:, :count] @ m[:, :count].T).double(), kept @ kept.T, rtol=0, atol=1e-5
            )
            held = [float((m[:, :k].T @ moments[key] @ m[:, :k]).trace()) for k in
                    range(m.shape[1] + 1)]  # fmt: skip
            wanted = 0.8 * float(moments[key].trace())
            assert held[-1] >= wanted * (1 - 1e-5)
            assert m.shape[1] == count or held[-2] < wanted


def test_the_weights_subspace_can_be_left_out() -> None:
    with learner(KeepLora(rank=2, samples=2, principal=0.0)) as one:
        plugin = one._method.plugins[0]
        started: dict[str, int] = {}

        def look(strategy: Any, **_: Any) -> None:
            started.update({key: m.shape[1] for key, m in plugin.bases.items()})

        one._method.plugins.append(SimpleNamespace(before_training_epoch=look))
        one.train_stage(1)
        assert set(started.values()) == {0}


def test_only_b_is_trained_and_the_base_comes_back() -> None:
    model = tiny_streams.loaded().model
    before = tiny_streams.weights(model)
    with learner(KeepLora(rank=4, samples=2), replace(SETTINGS, precision="bf16")) as one:
        for stage in (1, 2, 3):
            one.train_stage(stage)
            trained = {n: w for n, w in model.named_parameters() if w.requires_grad}
            assert all(f"lora_B.stage-{stage:04d}" in name for name in trained)
            assert one.trainable_parameters == sum(w.numel() for w in trained.values())
        plugin = one._method.plugins[0]
        adapters = sum(t.nbytes for k in (1, 2, 3) for p in pairs(model, k).values() for t in p)
        assert one.stored_bytes == adapters + sum(m.nbytes for m in plugin.bases.values())
        assert {m.dtype for m in plugin.bases.values()} == {torch.float32}
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())
    assert not any(weight.requires_grad for weight in model.parameters())


def test_a_layer_without_room_learns_nothing() -> None:
    with learner(KeepLora(rank=4, samples=2, principal=0.5)) as one:
        plugin = one._method.plugins[0]
        one.train_stage(1)
        full = next(iter(plugin.bases))
        plugin.bases[full] = torch.eye(len(plugin.bases[full]))
        one.train_stage(2)
        a, b = pairs(one._model, 2)[full]
        assert not a.any()
        assert not b.any()
        assert all(b.any() for key, (_, b) in pairs(one._model, 2).items() if key != full)


def test_a_loaded_run_goes_on_to_the_last_bit(tmp_path: Path) -> None:
    tiny_runs.check_resuming(KeepLora(samples=3), tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"principal": 1.0}, "keep_lora.principal: must be from 0 to below 1; got 1.0"),
        ({"principal": float("nan")}, "keep_lora.principal: must be from 0 to below 1; got nan"),
        ({"threshold": 0}, "keep_lora.threshold: must be between 0 and 1; got 0"),
        ({"samples": 0}, "keep_lora.samples: must be 1 or more; got 0"),
    ],
)
def test_settings_say_what_is_wrong(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        settings.from_spec(
            "clmm.strategies", {"name": "keep_lora", **values}, where="strategies[0]"
        )
