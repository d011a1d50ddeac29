"""HPA keeps the columns that its scores name and takes the rest less its part along the old."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_models
import tiny_runs
import tiny_streams
import torch
from torch import Tensor

from clmm import components
from clmm.adapters_edited import EditAfterwards, Edited
from clmm.curvature import hessian, orthogonal, retained
from clmm.gradients import Named
from clmm.learner import Learner
from clmm.loading import load
from clmm.strategies.hpa import Hpa
from clmm.strategies.sequential_lora import SequentialLora
from clmm.strategy import Method, Tuned
from clmm.subspaces import second_moments
from streams import settings
from streams.settings import SettingError

ALIGNMENT = [tiny_streams.sample("aligned", "train", i, image=i < 2) for i in range(5)]
TUNINGS: list[Any] = ["lora", "full"]


def learner(strategy: Any, alignment: Any = ALIGNMENT) -> Learner:
    return tiny_runs.learner(strategy, alignment=alignment)


def stages(strategy: Any) -> list[Named]:
    """All weights after each stage."""
    found = []
    with learner(strategy) as one:
        for stage in (1, 2, 3):
            one.train_stage(stage)
            found.append(tiny_streams.weights(one._model))
    return found


# The closed forms


def reference_mask(
    change: Tensor, safety: Tensor, task: Tensor, share: float, low: float, high: float
) -> list[int]:
    """The paper's selection, one column at a time; `safety` and `task` are inverse Hessians."""
    rows, columns = change.shape

    def scores(inverse: Tensor) -> list[float]:
        return [
            sum(float(change[i, j]) ** 2 / float(inverse[j, j]) for i in range(rows)) / rows
            for j in range(columns)
        ]

    def top(score: list[float], among: Any, count: int) -> list[int]:
        return sorted(among, key=lambda j: -score[j])[:count]

    epsilon, zeta = scores(safety), scores(task)
    logs = [torch.tensor(e / z).log() for e, z in zip(epsilon, zeta, strict=True)]
    alpha = low + (high - low) * (1 + float((sum(logs) / columns).tanh())) / 2
    focus = round(2 * share * columns)
    safe, useful = (set(top(s, range(columns), focus)) for s in (epsilon, zeta))
    phi = [e - alpha * z for e, z in zip(epsilon, zeta, strict=True)]
    count = round(share * columns)
    alone = top(epsilon, safe - useful, count)
    return sorted([*alone, *top(phi, safe & useful, count - len(alone))])


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.4, 0.8, 1.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_columns_are_chosen_as_in_the_paper(share: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    change = torch.randn(6, 20, generator=generator, dtype=torch.float64)
    spread = torch.rand(2, 20, generator=generator, dtype=torch.float64) * 3
    x = torch.randn(2, 50, 20, generator=generator, dtype=torch.float64) * spread[:, None]
    inverses = [torch.linalg.inv(2 * one.T @ one) for one in x]
    mask = retained(change, *(1 / i.diagonal() for i in inverses), share=share, balance=(0.4, 0.8))
    assert mask.nonzero()[:, 0].tolist() == reference_mask(change, *inverses, share, 0.4, 0.8)
    assert int(mask.sum()) == round(share * 20)


def test_safety_alone_goes_before_what_is_shared() -> None:
    change = torch.ones(2, 10)
    safety = torch.tensor([9.0, 8, 7, 6, 1, 1, 1, 1, 1, 1]).double()
    task = torch.tensor([1.0, 1, 99, 1, 5, 6, 7, 1, 1, 1]).double()
    # Focused on safety: 0 to 3; on the task: 2, 4, 5, 6. So 2 is shared and comes last.
    mask = retained(change, safety, task, share=0.2, balance=(0.4, 0.8))
    assert mask.nonzero()[:, 0].tolist() == [0, 1]
    # Here 0, 1 and 3 are shared: 2 comes first, then 0, the least bad of them whatever α is.
    task = torch.tensor([99.0, 98, 1, 97, 1, 1, 1, 1, 1, 96]).double()
    mask = retained(change, safety, task, share=0.2, balance=(0.4, 0.8))
    assert mask.nonzero()[:, 0].tolist() == [0, 2]


def test_the_update_loses_its_part_along_the_old_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    change, weight = torch.randn(2, 4, 5, generator=generator)
    found = orthogonal(change, weight)
    assert abs(float((found * weight).sum())) < 1e-6
    along = torch.dot(change.flatten(), weight.flatten()) / weight.norm() ** 2
    torch.testing.assert_close(found.float(), change - along * weight)
    assert torch.equal(orthogonal(change, torch.zeros(4, 5)), change.double())


# The strategy


@pytest.mark.parametrize("family", ["mmllm", "qwen2_vl"])
def test_the_projector_is_the_shallowest(family: str, tmp_path: Path) -> None:
    model: Any = load(tiny_models.FAMILIES[family](tmp_path), device="cpu").model
    names = list(Edited(model, tuning="full", rank=4, alpha=8, seed=0).layers)
    projector = components.find(model)["input_projector"][0]
    assert names[0].startswith(projector)
    assert [name for name in names if not name.startswith(projector)] == (
        components.language_linears(model)
    )


@pytest.mark.parametrize("tuning", TUNINGS)
def test_retained_columns_are_old_and_the_rest_is_orthogonal(tuning: Any) -> None:
    model = tiny_streams.loaded().model
    base = tiny_streams.weights(model)
    strategy = Hpa(tuning=tuning, rank=4, first=0.3, last=0.1, safety_samples=3, task_samples=4)
    with learner(strategy) as one:
        weights: Any = one._method.weights
        seen: dict[str, Any] = {}

        def look(strategy: Any, **_: Any) -> None:
            data = strategy.experience.dataset
            task = [data[place][0] for place in (0, 4, 8, 12)]
            safety = [ALIGNMENT[place] for place in (0, 2, 4)]
            for key, samples in (("safety", safety), ("task", task)):
                moments = second_moments(strategy.model, weights.layers, samples, one.batcher)
                seen[key] = {n: hessian(m, len(samples)) for n, m in moments.items()}
            for name, layer in weights.layers.items():
                seen[name] = layer.weight.detach().clone()
                if tuning == "lora":
                    seen[name] += layer.get_delta_weight(f"stage-{strategy.stage:04d}").detach()

        one._method.plugins.insert(0, SimpleNamespace(after_training_exp=look))
        before = base
        for stage in (1, 2):
            one.train_stage(stage)
            after = tiny_streams.weights(model)
            names = list(weights.layers)
            assert names[0].startswith("model.multi_modal_projector")
            for depth, name in enumerate(names):
                old, new = before[f"{name}.weight"], seen[name]
                share = 0.3 - depth / (len(names) - 1) * 0.2
                change = new.double() - old.double()
                inverses = [torch.linalg.inv(seen[key][name]) for key in ("safety", "task")]
                mask = reference_mask(change, *inverses, share, 0.4, 0.8)
                wanted = (old + orthogonal(change, old)).float()
                wanted[:, mask] = old[:, mask]
                found = after[f"{name}.weight"]
                torch.testing.assert_close(found, wanted)
                assert torch.equal(found[:, mask], old[:, mask])
                assert not torch.equal(found, old)
            before = after
        touched = {f"{name}.weight" for name in weights.layers}
        assert all(torch.equal(after[n], t) for n, t in base.items() if n not in touched)
        assert one.stored_bytes == sum(base[name].nbytes for name in touched)
    assert all(torch.equal(t, base[name]) for name, t in model.state_dict().items())


def test_layers_that_no_safety_sample_reaches_retain_nothing() -> None:
    blind = [tiny_streams.sample("aligned", "train", i, image=False) for i in range(3)]
    model = tiny_streams.loaded().model
    base = tiny_streams.weights(model)
    strategy = Hpa(tuning="full", first=0.5, last=0.5)
    with learner(strategy, blind) as one:
        weights: Any = one._method.weights
        one.train_stage(1)
        for name in weights.layers:
            new, old = model.state_dict()[f"{name}.weight"], base[f"{name}.weight"]
            same = int((new == old).all(dim=0).sum())
            assert same == (0 if "projector" in name else old.shape[1] // 2)


@dataclass(frozen=True, kw_only=True)
class Plain(Tuned):
    """The same layers tuned one task after another, and left as they are."""

    def build(self, context: Any) -> Method:
        weights = Edited(
            context.model, tuning=self.tuning, rank=self.rank, alpha=self.alpha, seed=context.seed
        )
        edit = EditAfterwards(weights, lambda strategy, stage: lambda name, old, new: new)
        return Method(weights=weights, plugins=[edit])


@pytest.mark.parametrize("tuning", TUNINGS)
def test_without_its_parts_it_is_sequential_tuning(tuning: Any) -> None:
    nothing = Hpa(tuning=tuning, first=0, last=0, orthogonal=False)
    assert tiny_runs.same(stages(nothing), stages(Plain(tuning=tuning)))


def test_the_first_stage_trains_as_sequential_lora_does() -> None:
    found: list[list[float]] = []
    for strategy in (Hpa(), SequentialLora()):
        with learner(strategy) as one:
            found.append([])
            one.train_stage(1, lambda event: found[-1].append(event["loss"]))
    assert found[0] == found[1]


@pytest.mark.parametrize("tuning", TUNINGS)
def test_a_loaded_run_goes_on_to_the_last_bit(tuning: Any, tmp_path: Path) -> None:
    strategy = Hpa(tuning=tuning, rank=4, task_samples=4)
    expected = stages(strategy)
    with learner(strategy) as one:
        one.train_stage(1)
        one.save(tmp_path)
    with learner(strategy) as other:
        other.load(tmp_path)
        assert tiny_runs.same(tiny_streams.weights(other._model), expected[0])
        for stage in (2, 3):
            other.train_stage(stage)
            assert tiny_runs.same(tiny_streams.weights(other._model), expected[stage - 1])


def test_alignment_must_be_there() -> None:
    with pytest.raises(SettingError, match=r"hpa\.safety_samples: is 8, but the study has no"):
        tiny_runs.learner(Hpa())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"first": 1.5}, r"hpa\.first: must be from 0 to 1; got 1.5"),
        ({"last": float("nan")}, r"hpa\.last: must be from 0 to 1; got nan"),
        ({"balance": [0.8, 0.4]}, r"hpa\.balance: must be two numbers from 0 on"),
        ({"safety_samples": 0}, r"hpa\.safety_samples: must be 1 or more; got 0"),
        ({"task_samples": 0}, r"hpa\.task_samples: must be 1 or more; got 0"),
        ({"tuning": "prompt"}, r"hpa\.tuning: .*'lora' or 'full'"),
    ],
)
def test_settings_say_what_is_wrong(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        settings.from_spec("clmm.strategies", {"name": "hpa", **values}, where="strategies[0]")
