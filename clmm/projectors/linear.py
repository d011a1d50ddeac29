"""One linear map: the first LLaVA's input projector (arXiv 2304.08485)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, kw_only=True)
class Linear:
    """P_X = W · F_X + b: [B, n, d_X] → [B, n, D]."""

    bias: bool = True
    """Whether the map has a bias."""

    def num_tokens(self, features: int) -> int:
        return features

    def build(self, *, input_width: int, output_width: int) -> nn.Module:
        return nn.Linear(input_width, output_width, bias=self.bias)
