"""Projectors and an encoder that single recipes need: their formulas and published sizes."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_components as tiny
import torch
from torch import nn

from clmm.encoders.vary import Vary
from clmm.projectors.causal_former import CausalFormer
from clmm.projectors.chain import Chain
from clmm.projectors.expand import Expand
from clmm.projectors.split import Split
from streams.settings import from_spec

SMALL = {key: value for key, value in tiny.PROJECTORS["causal_former"].items() if key != "name"}
VARY: Any = from_spec("clmm.encoders", tiny.VARY, where="encoders.image")


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_causal_former_is_of_its_published_size() -> None:
    with torch.device("meta"):
        module = CausalFormer().build(input_width=1408, output_width=5120)
    layer = 4 * 768**2 + 2 * 768**2 + 2 * 1408 * 768 + 2 * 768 * 3072 + 3 * 768
    ends = 32 * 12 + 768 + 32 * 768 + 768 * 5120 + 5120  # positions, norm, queries, projection
    assert count(module) == 12 * layer + ends
    assert round(count(module) / 1e6) == 129


def test_a_query_sees_none_behind_it() -> None:
    torch.manual_seed(0)
    module: Any = CausalFormer(**SMALL).build(input_width=6, output_width=12).eval()
    features = torch.randn(1, 4, 6)
    before = module(features)
    with torch.no_grad():
        module.causal_tokens[:, 1] += 1.0
    after = module(features)
    torch.testing.assert_close(after[:, 0], before[:, 0])
    assert not torch.allclose(after[:, 2], before[:, 2])


def test_a_chain_is_one_after_the_other() -> None:
    chain = Chain(projectors=({"name": "linear"}, {"name": "mlp"}), widths=(5,))
    module: Any = chain.build(input_width=6, output_width=12)
    features = torch.randn(2, 4, 6)
    torch.testing.assert_close(module(features), module[1](module[0](features)))
    with pytest.raises(ValueError, match="chain: 2 widths between 2 projectors"):
        Chain(projectors=({"name": "linear"}, {"name": "mlp"}), widths=(5, 6))
    with pytest.raises(ValueError, match="gated_cross_attention takes more than features"):
        Chain(projectors=({"name": "gated_cross_attention"},), widths=()).num_tokens(4)


def test_expand_takes_the_first_feature() -> None:
    module: Any = Expand(tokens=3).build(input_width=6, output_width=12)
    features = torch.randn(2, 4, 6)
    expected = (features[:, 0] @ module.linear.weight.T + module.linear.bias).reshape(2, 3, 12)
    torch.testing.assert_close(module(features), expected)


def test_split_keeps_parts_apart() -> None:
    module: Any = Split().build(input_width=6, output_width=12)
    features = torch.randn(2, 4, 6)
    left, right = module(features).chunk(2, dim=-1)
    torch.testing.assert_close(left, module.maps[0](features[..., :3]))
    torch.testing.assert_close(right, module.maps[1](features[..., 3:]))
    with pytest.raises(ValueError, match="split: the width 7 of features is no multiple of 2"):
        Split().build(input_width=7, output_width=12)


def test_vary_joins_two_eyes() -> None:
    torch.manual_seed(0)
    module: Any = VARY.build().eval()
    pictures = torch.randn(2, 3, 32, 32)
    features = module(pictures)
    assert features.shape == (2, VARY.num_tokens(VARY.shape), VARY.width) == (2, 4, 36)
    features.square().sum().backward()
    assert all(p.grad is not None for p in module.vocabulary.parameters())
    assert all(p.grad is not None for p in module.halving.parameters())
    read = module.vocabulary(pictures).transpose(1, 2).reshape(2, 8, 8, 8)
    halved = module.halving(read).flatten(2).transpose(1, 2)
    torch.testing.assert_close(features[..., 16:], halved)
    made = VARY.preprocessor()([torch.zeros(3, 50, 40).numpy()], return_tensors="pt")
    assert made["pixel_values"].shape == (1, 3, 32, 32)
    with pytest.raises(ValueError, match="clip makes 256 features, sam_hq and 1 convolutions 1024"):
        Vary(channels=(512,))


def test_vary_is_of_its_published_size() -> None:
    vary = Vary()
    assert (vary.num_tokens(vary.shape), vary.width) == (256, 2048)
    with torch.device("meta"):
        module: Any = vary.build()
    assert round(count(module.eye) / 1e6, 2) == 303.18
    assert count(module.halving) == 9 * (256 * 512 + 512 * 1024)
    assert round(count(module.vocabulary) / 1e6, 1) == 89.7
