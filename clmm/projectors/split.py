"""A linear map for each part of a feature, outputs side by side: Vary's (arXiv 2312.06109)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Split:
    """P_X = [W₁ F₁ ; W₂ F₂ ; …], where F = [F₁ ; F₂ ; …]: [B, n, d] → [B, n, D].

    For an encoder whose features are several networks' side by side, each with a map of its own.
    """

    parts: int = 2
    """Parts of equal width of a feature, and of a token."""

    def num_tokens(self, features: int) -> int:
        return features

    def build(self, *, input_width: int, output_width: int) -> nn.Module:
        for name, width in (("features", input_width), ("tokens", output_width)):
            if width % self.parts:
                raise ValueError(
                    f"split: the width {width} of {name} is no multiple of {self.parts}"
                )
        widths = input_width // self.parts, output_width // self.parts
        return _Split(nn.ModuleList(nn.Linear(*widths) for _ in range(self.parts)))


class _Split(nn.Module):
    def __init__(self, maps: nn.ModuleList) -> None:
        super().__init__()
        self.maps = maps

    def forward(self, features: Tensor) -> Tensor:
        """[B, n, d] → [B, n, D]."""
        parts = features.chunk(len(self.maps), dim=-1)
        mapped = [linear(part) for linear, part in zip(self.maps, parts, strict=True)]
        return torch.cat(mapped, dim=-1)
