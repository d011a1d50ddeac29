"""What prompt strategies choose, weigh and pull, against their formulas written out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from clmm.prompt_weights import query
from clmm.strategies.coda_prompt import _Components, overlap
from clmm.strategies.dual_prompt import DualPrompt, _General
from clmm.strategies.l2p import _Pool
from clmm.strategies.modal_prompt import _Guided
from streams import settings
from streams.settings import SettingError


def cos(one: Tensor, other: Tensor) -> float:
    norms = float(one.norm()) * float(other.norm())
    return float(one.double() @ other.double()) / norms if norms else 0.0


def fixed(recipe: Any, *, count: int = 1, width: int = 6) -> list[dict[str, Tensor]]:
    torch.manual_seed(0)
    parts: list[dict[str, Tensor]] = []
    for _ in range(count):
        fresh = recipe.tensors(parts, torch.randn(20, width))
        parts.append({k: t + 0.1 * torch.randn_like(t) for k, t in fresh.items()})
    return parts


def features(rows: int = 5, width: int = 6) -> Tensor:
    found = torch.randn(rows, 2, width, generator=torch.Generator().manual_seed(1))
    found[0, 0] = 0  # no image
    return found


def asked(row: Tensor) -> Tensor:
    """q(x), written out."""
    parts = [part / part.norm() if part.any() else part for part in row]
    return torch.cat(parts) / math.sqrt(2)


def test_l2p_reads_the_nearest_keys_prompts_and_pulls_those_keys() -> None:
    recipe, rows = _Pool(length=2, pool=5, selected=3), features()
    [part] = fixed(recipe)
    found, pulled = recipe.prompts([part], rows, training=True), recipe.distance([part], rows)
    assert found.shape == (5, 6, 6)
    for row, prompt, pull in zip(rows, found, pulled, strict=True):
        near = {i: cos(asked(row), part["key"][i]) for i in range(5)}
        best = sorted(near, key=lambda i: -near[i])[:3]
        torch.testing.assert_close(prompt, torch.cat([part["prompt"][i] for i in best]))
        assert float(pull) == pytest.approx(sum(1 - near[i] for i in best), abs=1e-5)


def test_coda_weighs_components_by_attention_and_keeps_them_apart() -> None:
    recipe, rows = _Components(length=2, components=2), features()
    parts = fixed(recipe, count=3)
    components = [
        (part["prompt"][i], part["key"][i], part["attention"][i]) for part in parts for i in (0, 1)
    ]
    found = recipe.prompts(parts, rows, training=True)
    for row, prompt in zip(rows, found, strict=True):
        expected = sum(cos(asked(row) * a, k) * p for p, k, a in components)
        torch.testing.assert_close(prompt, expected, atol=1e-5, rtol=1e-5)
    penalty = 0.0
    for place in range(3):
        flat = [component[place].flatten() for component in components]
        for i, first in enumerate(flat):
            for j, second in enumerate(flat):
                penalty += (float(first @ second) - (i == j)) ** 2
    assert float(overlap(parts)) == pytest.approx(penalty, rel=1e-5)


def test_coda_starts_where_its_penalty_is_zero() -> None:
    torch.manual_seed(0)
    recipe, parts = _Components(length=2, components=2), []
    for _ in range(3):
        parts.append(recipe.tensors(parts, torch.randn(9, 6)))
    assert float(overlap(parts)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("training", [True, False])
def test_modal_prompt_is_guided_by_both_modalities(training: bool) -> None:
    recipe, rows = _Guided(length=2, fused=2, image_share=0.3), features()
    parts = fixed(recipe, count=4)
    prototypes = []
    for part in parts:
        tokens = []
        for token in part["prompt"]:
            hidden = part["inner_weight"] @ token + part["inner_bias"]
            hidden = hidden / (1 + (-hidden).exp())
            tokens.append(part["outer_weight"] @ hidden + part["outer_bias"])
        prototypes.append(sum(tokens) / len(tokens))
    found = recipe.prompts(parts, rows, training=training)
    pulled = recipe.distance(parts, rows)
    for row, prompt, pull in zip(rows, found, pulled, strict=True):
        guidance = [0.3 * cos(row[0], z) + 0.7 * cos(row[1], z) for z in prototypes]
        order = sorted(range(3 if training else 4), key=lambda i: guidance[i])
        last = [*order[-1:], 3] if training else order[-2:]
        torch.testing.assert_close(prompt, torch.cat([parts[i]["prompt"] for i in last]))
        right = 2 - cos(row[0], prototypes[3]) - cos(row[1], prototypes[3])
        assert float(pull) == pytest.approx(right, abs=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_dual_prompt_reads_the_general_prefix_and_one_expert(training: bool) -> None:
    mine = DualPrompt(length=3, general_length=2, general_layers=(1, 4), expert_layers=(2,))
    recipe, rows = _General(mine, 2, 5), features()
    parts = fixed(recipe, count=3)
    found = recipe.prompts(parts, rows, training=training)
    assert {layer: tuple(one.shape) for layer, one in found.items()} == {
        0: (5, 2, 2, 2, 5), 3: (5, 2, 2, 2, 5), 1: (5, 2, 2, 3, 5),
    }  # fmt: skip
    nearest = []
    for number, row in enumerate(rows):
        near = [cos(asked(row), part["key"]) for part in parts]
        nearest.append(near.index(max(near)))
        expert = parts[2 if training else nearest[-1]]["expert"]
        assert torch.equal(found[1][number], expert[0])
        assert torch.equal(found[3][number], parts[2]["general"][1])
        assert float(recipe.distance(parts, rows)[number]) == pytest.approx(1 - near[2], abs=1e-5)
    assert len(set(nearest)) > 1
    general = recipe.tensors(parts, torch.randn(9, 6))["general"]
    assert torch.equal(general, parts[2]["general"])


def test_a_query_has_both_parts_in_equal_share() -> None:
    rows = features()
    for row, found in zip(rows, query(rows), strict=True):
        torch.testing.assert_close(found, asked(row))
    assert query(rows)[1:].norm(dim=1).tolist() == pytest.approx([1] * 4)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "progressive_prompts", "length": 0}, "progressive_prompts.length: must be 1"),
        ({"name": "l2p", "pool": 0}, "l2p.pool: must be 1 or more; got 0"),
        ({"name": "l2p", "selected": 11}, "l2p.selected: the pool has 10 prompts; got 11"),
        ({"name": "l2p", "pull": -1.0}, "l2p.pull: must be 0 or above"),
        ({"name": "coda_prompt", "components": 0}, "coda_prompt.components: must be 1"),
        ({"name": "coda_prompt", "orthogonality": float("nan")}, "coda_prompt.orthogonality"),
        ({"name": "modal_prompt", "fused": 0}, "modal_prompt.fused: must be 1"),
        ({"name": "modal_prompt", "align": float("inf")}, "modal_prompt.align: must be 0"),
        ({"name": "modal_prompt", "image_share": 1.5}, "modal_prompt.image_share: must be from 0"),
        ({"name": "dual_prompt", "general_length": 0}, "dual_prompt.general_length: must be 1"),
        ({"name": "dual_prompt", "expert_layers": [2]}, r"none of them twice .*\(1, 2\); got"),
        ({"name": "dual_prompt", "expert_layers": []}, "dual_prompt.expert_layers: one layer"),
        ({"name": "combined", "of": ["replay", "l2p"]}, "L2p brings weights of its own"),
    ],
)
def test_settings_say_what_is_wrong(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        settings.from_spec("clmm.strategies", spec, where="strategies[0]")
