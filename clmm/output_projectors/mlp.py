"""Linear, GELU, Linear on each signal token: CoDi-2's output projector; Emu's is one map."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch import nn


@dataclass(frozen=True, kw_only=True)
class Mlp:
    """H_X = W₂ · GELU(W₁ · S_X), token by token: [B, r, D] → [B, r, d_c].

    As many tokens come out as signals go in, so r must be the condition's L, unless the generator
    takes any length and nothing is aligned (DreamLLM, arXiv 2309.11499; CoDi-2, 2311.18775).
    """

    hidden: int | None = None
    """Width between the two linear maps; the condition's width when left out."""
    layers: int = 2
    """Linear maps: 1 is Emu's regression head."""
    add_embedding: bool = False
    """Add each signal token's own embedding to its hidden state first."""

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise ValueError(f"mlp: layers must be at least 1; got {self.layers}")

    def num_tokens(self, signals: int) -> int:
        return signals

    def build(self, *, input_width: int, output_width: int) -> nn.Module:
        widths = [input_width, *[self.hidden or output_width] * (self.layers - 1), output_width]
        maps: list[nn.Module] = []
        for before, after in pairwise(widths):
            maps += [nn.GELU()] if maps else []
            maps.append(nn.Linear(before, after))
        return nn.Sequential(*maps)
