"""InfLoRA reads only what earlier inputs left free, by singular vectors of those inputs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_runs
import tiny_streams
import torch
from torch import Tensor, nn

from clmm.adapters_frozen import lora_layers
from clmm.learner import Learner
from clmm.strategies.inf_lora import InfLora
from clmm.strategies.sequential_lora import SequentialLora
from clmm.subspaces import free_directions, grown, second_moments
from clmm.training import TrainSettings
from streams import settings
from streams.settings import SettingError

STREAM = tiny_streams.stream("colour", "yes", "count", train=16)
SETTINGS = TrainSettings(steps=3, batch_size=8, learning_rate=1e-2)


def learner(strategy: Any, train: TrainSettings = SETTINGS) -> Learner:
    return Learner(strategy, tiny_streams.loaded(), STREAM, train, seed=0)


def inputs(seed: int, rank: int = 12) -> Tensor:
    """Tokens [40, 12] that vary ever less along later directions."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.logspace(0, -2, 12) * (torch.arange(12) < rank)
    turn = torch.linalg.qr(torch.randn(12, 12, generator=generator)).Q
    return torch.randn(40, 12, generator=generator) * spread @ turn


def projector(basis: Tensor) -> Tensor:
    return basis @ basis.T


def test_directions_are_singular_vectors_of_the_unused_part() -> None:
    old, new = inputs(0), inputs(1)
    basis = grown(torch.zeros(12, 0), old.T @ old, 0.95)
    _, sizes, vectors = torch.linalg.svd(old)
    shares = sizes.square().cumsum(0) / sizes.square().sum()
    count = next(k for k in range(1, 13) if shares[k - 1] >= 0.95)
    assert basis.shape == (12, count)
    torch.testing.assert_close(projector(basis), projector(vectors[:count].T), rtol=0, atol=1e-5)

    directions, squares = free_directions(basis, new.T @ new)
    unused = new - new @ projector(basis)
    _, sizes, vectors = torch.linalg.svd(unused)
    torch.testing.assert_close(squares, sizes.square()[: 12 - count], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(
        projector(directions[:, :3]), projector(vectors[:3].T), rtol=0, atol=1e-4
    )
    torch.testing.assert_close(directions.T @ basis, torch.zeros(12 - count, count))

    # ‖X's part in the old basis‖² + the fewest new ones reach the share.
    wider = grown(basis, new.T @ new, 0.97)
    held = [float((new @ wider[:, :k]).square().sum() / new.square().sum()) for k in range(13)]
    assert torch.equal(wider[:, :count], basis)
    assert next(k for k in range(count, 13) if held[k] >= 0.97) == wider.shape[1]
    torch.testing.assert_close(wider.T @ wider, torch.eye(wider.shape[1]), rtol=0, atol=1e-5)
    assert grown(wider, new.T @ new, 0.5) is wider


def test_a_layer_without_inputs_or_room_is_left_alone() -> None:
    nothing = torch.zeros(12, 12)
    assert grown(nothing[:, :0], nothing, 0.95).shape == (12, 0)
    full = torch.eye(12)
    assert free_directions(full, inputs(0).T @ inputs(0))[0].shape == (12, 0)
    assert grown(full, inputs(0).T @ inputs(0), 1.0).shape == (12, 12)


def test_second_moments_are_those_of_the_inputs_without_padding() -> None:
    with learner(SequentialLora()) as one:
        one.train_stage(1)
        assert one._trainer is not None
        layers = lora_layers(one._model)
        samples = [task.train[0] for task in STREAM.tasks]
        found = second_moments(one._trainer.model, layers, samples, one.batcher)
        seen: dict[str, list[Tensor]] = {name: [] for name in layers}
        hooks = [
            layer.register_forward_hook(
                lambda _, args, __, name=name: seen[name].append(args[0][0])
            )
            for name, layer in layers.items()
        ]
        for sample in samples:
            with torch.no_grad():
                one._model.eval()(**one.batcher.training([sample]))
        for hook in hooks:
            hook.remove()
        for name, parts in seen.items():
            rows = torch.cat(parts)
            torch.testing.assert_close(found[name], rows.T @ rows, rtol=1e-4, atol=1e-4)
        assert not any(layer._forward_pre_hooks for layer in layers.values())


def weights_of(model: nn.Module, stage: int) -> dict[str, tuple[Tensor, Tensor]]:
    name = f"stage-{stage:04d}"
    return {
        key: (
            layer.lora_A[name].weight.detach().clone(),
            layer.lora_B[name].weight.detach().clone(),
        )
        for key, layer in lora_layers(model).items()
    }


def test_a_task_learns_outside_of_earlier_inputs() -> None:
    model = tiny_streams.loaded().model
    before = tiny_streams.weights(model)
    with learner(InfLora(rank=4, samples=5)) as one:
        plugin = one._method.plugins[0]
        for stage in (1, 2, 3):
            bases = dict(plugin.bases)
            started: dict[str, Any] = {}
            start = SimpleNamespace(
                after_backward=lambda strategy, k=stage, found=started, **_: (
                    found or found.update(weights_of(strategy.model.model, k))
                )
            )
            one._method.plugins.append(start)
            one._trainer = None
            one.train_stage(stage)
            one._method.plugins.remove(start)
            trained = {n: w for n, w in model.named_parameters() if w.requires_grad}
            assert all(f"lora_B.stage-{stage:04d}" in name for name in trained)
            assert one.trainable_parameters == sum(w.numel() for w in trained.values())
            for key, (a, b) in weights_of(model, stage).items():
                assert torch.equal(a, started[key][0])
                assert b.any() == a.any()
                rows = a[a.any(dim=1)]
                assert len(rows) == min(4, a.shape[1] - (bases[key].shape[1] if bases else 0))
                torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows)), rtol=0, atol=1e-5)
                if bases:
                    assert float((a @ bases[key]).abs().max()) < 1e-5
                    now = plugin.bases[key]
                    assert torch.equal(now[:, : bases[key].shape[1]], bases[key])
        adapters = sum(
            t.nbytes for k in (1, 2, 3) for p in weights_of(model, k).values() for t in p
        )
        assert one.stored_bytes == adapters + sum(basis.nbytes for basis in plugin.bases.values())
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_subspaces_stay_exact_when_the_model_computes_in_half_precision() -> None:
    with learner(InfLora(rank=4, samples=2), replace(SETTINGS, precision="bf16")) as one:
        one.train_stage(1)
        bases = dict(one._method.plugins[0].bases)
        one.train_stage(2)
        for key, (a, _) in weights_of(one._model, 2).items():
            assert a.dtype == bases[key].dtype == torch.float32
            assert float((a @ bases[key]).abs().max()) < 1e-5


def test_a_loaded_run_goes_on_to_the_last_bit(tmp_path: Path) -> None:
    tiny_runs.check_resuming(InfLora(samples=4), tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"threshold": 1.0}, "inf_lora.threshold: must be between 0 and 1; got 1.0"),
        ({"threshold": float("nan")}, "inf_lora.threshold: must be between 0 and 1; got nan"),
        ({"samples": 0}, "inf_lora.samples: must be 1 or more; got 0"),
    ],
)
def test_settings_say_what_is_wrong(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        settings.from_spec("clmm.strategies", {"name": "inf_lora", **values}, where="strategies[0]")
