"""Patches are what surgery on the layer's squared error says; all else is the base, bit for bit."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_runs
import tiny_streams
import torch
from torch import Tensor, nn

from clmm import curvature
from clmm.adapters_edited import Edited
from clmm.curvature import evenly, hessian, patch, prices, stitched
from clmm.strategies.isolated_lora import IsolatedLora
from clmm.strategies.model_tailor import ModelTailor
from clmm.subspaces import second_moments
from streams import settings
from streams.settings import SettingError

TUNINGS: list[Any] = ["lora", "full"]


def tensors(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def losses(strategy: Any) -> list[float]:
    found: list[float] = []
    with tiny_runs.learner(strategy) as one:
        for stage in (1, 2, 3):
            one.train_stage(stage, lambda event: found.append(event["loss"]))
    return found


# The closed forms


def test_the_hessian_is_that_of_the_squared_error_and_damped() -> None:
    (x,) = tensors((5, 3))
    error = torch.autograd.functional.hessian(
        lambda w: (x @ w).square().sum(), torch.zeros(3).double()
    )
    found = hessian((x.T @ x).float(), samples=2)
    damping = 0.01 * error.diagonal().mean() * torch.eye(3)
    torch.testing.assert_close(found, (error + damping) / 2, rtol=1e-6, atol=1e-6)
    assert found.dtype == torch.float64
    assert prices(hessian(torch.zeros(3, 3), samples=1)).isfinite().all()


def test_a_price_is_what_taking_back_a_column_costs_when_the_others_adapt() -> None:
    x, change = tensors((20, 5), (5,))
    found = change.square() * prices(2 * x.T @ x) / 2
    for column in range(5):
        others = [place for place in range(5) if place != column]
        target = x[:, column] * change[column]  # what the others have to make up for
        best = torch.linalg.lstsq(x[:, others], target[:, None]).solution
        increase = (x[:, others] @ best - target[:, None]).square().sum()
        torch.testing.assert_close(found[column], increase)


def test_kept_entries_solve_least_squares_with_the_others_held_at_the_base() -> None:
    x, before, after = tensors((30, 8), (4, 8), (4, 8))
    columns, values = patch(before, after, 2 * x.T @ x, share=0.4, salience=0.3)
    assert columns.shape == values.shape == (4, 3)
    for row in range(4):
        kept = columns[row].tolist()
        gone = [place for place in range(8) if place not in kept]
        target = x @ after[row] - x[:, gone] @ before[row, gone]
        best = torch.linalg.lstsq(x[:, kept], target[:, None]).solution[:, 0]
        torch.testing.assert_close(values[row], best)


@pytest.mark.parametrize("salience", [0.0, 0.8, 1.0])
def test_the_largest_fused_scores_are_kept(salience: float) -> None:
    x, before, after = tensors((30, 8), (4, 8), (4, 8))
    h = 2 * x.T @ x
    columns, _ = patch(before, after, h, share=0.25, salience=salience)
    inverse = torch.linalg.inv(h)
    for row in range(4):
        scores = []
        for score in (
            [abs(float(after[row, j] - before[row, j])) for j in range(8)],
            [float((after[row, j] - before[row, j]) ** 2 / inverse[j, j]) for j in range(8)],
        ):
            mean = sum(score) / 8
            spread = (sum((one - mean) ** 2 for one in score) / 8) ** 0.5
            scores.append([(one - mean) / spread for one in score])
        fused = [salience * a + (1 - salience) * b for a, b in zip(*scores, strict=True)]
        assert columns[row].tolist() == sorted(sorted(range(8), key=lambda j: -fused[j])[:2])


def test_rows_are_solved_in_batches_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    x, before, after = tensors((30, 8), (5, 8), (5, 8))
    cut = partial(patch, before, after, 2 * x.T @ x, share=0.5, salience=0.5)
    whole = cut()
    monkeypatch.setattr(curvature, "_ROOM", 1)
    torch.testing.assert_close(cut(), whole)


def test_patches_are_sewn_to_the_base_and_shared_entries_averaged() -> None:
    base = torch.zeros(2, 3)
    first = (torch.tensor([[0, 2], [1, 2]]).int(), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    second = (torch.tensor([[2], [0]]).int(), torch.tensor([[6.0], [7.0]]))
    assert torch.equal(stitched(base, []), base)
    expected = torch.tensor([[1.0, 0.0, 4.0], [7.0, 3.0, 4.0]])
    assert torch.equal(stitched(base, [first, second]), expected)


def test_samples_are_taken_evenly() -> None:
    assert evenly(range(10), 4) == [0, 3, 6, 9]
    assert evenly("abc", 8) == ["a", "b", "c"]
    assert evenly((), 8) == []


# The strategy


@pytest.mark.parametrize("tuning", TUNINGS)
def test_each_stage_leaves_patches_in_the_base(tuning: Any) -> None:
    model = tiny_streams.loaded().model
    before = tiny_streams.weights(model)
    with tiny_runs.learner(ModelTailor(tuning=tuning, rank=4, samples=3)) as one:
        patches, weights = one._method.plugins[1], one._method.weights
        seen: dict[str, Any] = {}

        def look(strategy: Any, **_: Any) -> None:
            data = strategy.experience.dataset
            samples = [data[place][0] for place in (0, 6, 12)]
            seen["moments"] = second_moments(strategy.model, weights.layers, samples, one.batcher)
            for name, layer in weights.layers.items():
                seen[name] = layer.weight.detach().clone()
                if tuning == "lora":
                    seen[name] += layer.get_delta_weight(f"stage-{strategy.stage:04d}").detach()

        one._method.plugins.insert(0, SimpleNamespace(after_training_exp=look))
        sewn = {name: before[f"{name}.weight"][None] for name in weights.layers}
        for stage in (1, 2):
            one.train_stage(stage)
            for name in weights.layers:
                base = before[f"{name}.weight"]
                columns = patches.columns[f"{stage:04d}.{name}"].long()
                kept = torch.zeros_like(base, dtype=torch.bool).scatter_(1, columns, True)
                assert columns.shape == (len(base), round(0.1 * base.shape[1]))
                assert int(kept.sum()) == columns.numel()
                h = hessian(seen["moments"][name], 3)
                whole = seen[name].double()
                row = len(base) // 2
                k, r = kept[row].nonzero()[:, 0], (~kept[row]).nonzero()[:, 0]
                lost = (whole - base)[row, r]
                moved = torch.linalg.inv(h[k][:, k]) @ h[k][:, r] @ lost
                expected = (whole[row, k] + moved).float()
                own = patches.values[f"{stage:04d}.{name}"]
                torch.testing.assert_close(own[row], expected, rtol=1e-5, atol=1e-6)
                alone = base.scatter(1, columns, own).masked_fill(~kept, torch.nan)
                sewn[name] = torch.cat([sewn[name], alone[None]])
                wanted = sewn[name][1:].nanmean(dim=0)
                wanted = wanted.where(wanted.isfinite(), base)
                torch.testing.assert_close(model.state_dict()[f"{name}.weight"], wanted)
        touched = {f"{name}.weight" for name in weights.layers}
        after = model.state_dict()
        assert after.keys() == before.keys()
        assert all(torch.equal(after[n], t) for n, t in before.items() if n not in touched)
        base_bytes = sum(before[name].nbytes for name in touched)
        entries = sum(columns.numel() for columns in patches.columns.values())
        assert one.stored_bytes == base_bytes + 8 * entries
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_every_stage_trains_on_the_base_alone() -> None:
    assert losses(ModelTailor(rank=4)) == losses(IsolatedLora(rank=4))


@pytest.mark.parametrize("tuning", TUNINGS)
def test_the_whole_patch_of_one_task_is_the_tuned_model(tuning: Any) -> None:
    with tiny_runs.learner(ModelTailor(tuning=tuning, share=1.0)) as one:
        batch = one.batcher.training(tiny_runs.STREAM.tasks[0].test[:3])
        found: list[Tensor] = []

        @torch.no_grad()
        def look(*_: Any, **__: Any) -> None:
            found.append(one._model.eval()(**batch).logits)

        one._method.plugins.insert(0, SimpleNamespace(after_training_exp=look))
        one.train_stage(1)
        look()
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    assert tuning == "lora" or torch.equal(*found)


@pytest.mark.parametrize("tuning", TUNINGS)
def test_a_stage_that_breaks_off_leaves_no_trace(tuning: Any) -> None:
    model = tiny_streams.loaded().model
    before = tiny_streams.weights(model)

    def stop(*_: Any, **__: Any) -> None:
        raise RuntimeError("enough")

    with tiny_runs.learner(ModelTailor(tuning=tuning)) as one:
        one.train_stage(1)
        one._method.plugins.append(SimpleNamespace(after_update=stop))
        one._trainer = None
        with pytest.raises(RuntimeError, match="enough"):
            one.train_stage(2)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("tuning", TUNINGS)
def test_a_loaded_run_goes_on_to_the_last_bit(tuning: Any, tmp_path: Path) -> None:
    tiny_runs.check_resuming(ModelTailor(tuning=tuning, rank=4, samples=4), tmp_path)


def test_weights_that_cannot_be_edited_are_refused() -> None:
    model = copy.deepcopy(tiny_streams.loaded().model)
    edited = partial(Edited, rank=4, alpha=8, seed=0)
    for tuning in TUNINGS:
        with pytest.raises(ValueError, match=r"proj.*bfloat16, but edits .* takes fp32"):
            edited(copy.deepcopy(model).to(torch.bfloat16), tuning=tuning)
    first, second = (layer.self_attn for layer in model.model.language_model.layers)
    second.q_proj.weight = first.q_proj.weight
    with pytest.raises(ValueError, match=r"q_proj and .*q_proj share one weight"):
        edited(model, tuning="full")
    second.q_proj.weight = nn.Parameter(torch.zeros(2, 2, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ValueError, match=r"q_proj: its weights are torch\.uint8"):
        edited(model, tuning="full")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"share": 0}, "model_tailor.share: must be above 0 and at most 1; got 0"),
        ({"share": float("nan")}, "model_tailor.share: must be above 0 and at most 1; got nan"),
        ({"salience": 1.5}, "model_tailor.salience: must be from 0 to 1; got 1.5"),
        ({"samples": 0}, "model_tailor.samples: must be 1 or more; got 0"),
        ({"tuning": "prompt"}, r"model_tailor.tuning: .*'lora' or 'full'"),
    ],
)
def test_settings_say_what_is_wrong(values: dict[str, Any], message: str) -> None:
    spec = {"name": "model_tailor", **values}
    with pytest.raises(SettingError, match=message):
        settings.from_spec("clmm.strategies", spec, where="strategies[0]")
    if "tuning" in values:
        with pytest.raises(SettingError, match=r"must be lora or full; got 'prompt'"):
            ModelTailor(**values)
