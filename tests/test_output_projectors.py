"""Output projectors have the published sizes and equal their definitions."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from clmm.output_projectors.mlp import Mlp
from clmm.output_projectors.tiny_transformer import TinyTransformer

TINY: dict[str, Any] = {
    "hidden": 16, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "mlp": 24, "queries": 7,
}  # fmt: skip
MINIGPT5: dict[str, Any] = {
    "hidden": 1024, "heads": 8, "mlp": 4096, "entry": "mlp", "exit": False, "add_embedding": False,
}  # fmt: skip


def millions(module: nn.Module) -> float:
    return round(sum(p.numel() for p in module.parameters()) / 1e6, 2)


@pytest.mark.parametrize(
    ("settings", "width", "count"),
    [
        ({}, 768, 31.96),
        ({}, 1024, 32.09),
        ({"queries": 1}, 512, 31.79),
        (MINIGPT5, 1024, 122.90),
    ],
)
def test_published_sizes(settings: dict[str, Any], width: int, count: float) -> None:
    with torch.device("meta"):
        module = TinyTransformer(**settings).build(input_width=4096, output_width=width)
    assert millions(module) == count


def test_codi_2s_mlp() -> None:
    with torch.device("meta"):
        module = Mlp(hidden=4096).build(input_width=4096, output_width=1024)
    assert millions(module) == round((4096 * 4096 + 4096 + 4096 * 1024 + 1024) / 1e6, 2)


def test_equals_nn_transformer_around_two_linear_maps() -> None:
    torch.manual_seed(0)
    ours: Any = TinyTransformer(**TINY).build(input_width=12, output_width=6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about nested tensors, which is why ours is put together
        theirs = nn.Transformer(16, 2, 1, 1, 24, dropout=0.0, batch_first=True, norm_first=True)
    theirs.encoder.load_state_dict(ours.over_signals.state_dict())
    theirs.decoder.load_state_dict(ours.over_queries.state_dict())
    signals = torch.randn(2, 4, 12)
    first, last = ours.entry[0], ours.exit
    inside = signals @ first.weight.T + first.bias
    expected = theirs(inside, ours.queries.expand(2, -1, -1)) @ last.weight.T + last.bias
    torch.testing.assert_close(ours(signals), expected, rtol=1e-5, atol=1e-5)


def test_queries_differ_from_the_start() -> None:
    torch.manual_seed(0)
    module = TinyTransformer(**TINY).build(input_width=12, output_width=6)
    condition = module(torch.randn(1, 4, 12))[0]
    assert torch.cdist(condition, condition).triu(1).flatten().topk(21).values.min() > 0.01


def test_mlp_is_its_formula() -> None:
    torch.manual_seed(0)
    module: Any = Mlp(hidden=5).build(input_width=12, output_width=6)
    signals = torch.randn(2, 4, 12)
    inside = nn.functional.gelu(signals @ module[0].weight.T + module[0].bias)
    torch.testing.assert_close(module(signals), inside @ module[2].weight.T + module[2].bias)


def test_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="its width 16 must be the condition's 6"):
        TinyTransformer(**TINY, exit=False).build(input_width=12, output_width=6)
    with pytest.raises(ValueError, match="layers must be at least 1; got 0"):
        Mlp(layers=0)
