"""Neighbouring features joined along the width: MiniGPT-v2's input projector (arXiv 2310.09478)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Concat:
    """`group` features in reading order become one, then a linear map: [B, n, d] → [B, n/group, D].

    Section 2 of the paper joins four adjacent tokens, so 1024 features become 256.
    """

    group: int = 4
    """Features that are joined."""
    bias: bool = True
    """Whether the map has a bias."""

    def num_tokens(self, features: int) -> int:
        if features % self.group:
            raise ValueError(f"concat: {features} features are no multiple of group {self.group}")
        return features // self.group

    def build(self, *, input_width: int, output_width: int) -> nn.Module:
        joined = nn.Linear(self.group * input_width, output_width, bias=self.bias)
        return nn.Sequential(_Joined(self), joined)


class _Joined(nn.Module):
    def __init__(self, settings: Concat) -> None:
        super().__init__()
        self.settings = settings

    def forward(self, features: Tensor) -> Tensor:
        """[B, n, d] → [B, n/group, group · d]."""
        tokens = self.settings.num_tokens(features.shape[1])
        return features.reshape(len(features), tokens, -1)
