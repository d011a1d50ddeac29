"""Linear, GELU, Linear: LLaVA-1.5's input projector (arXiv 2310.03744)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, kw_only=True)
class Mlp:
    """P_X = W₂ · GELU(W₁ · LN(F_X)): [B, n, d_X] → [B, n, D]."""

    hidden: int | None = None
    """Width between the two linear maps; the language model's width when left out."""
    norm: bool = False
    """Normalise the encoder's features first; for encoders without a final norm."""

    def num_tokens(self, features: int) -> int:
        return features

    def build(self, *, input_width: int, output_width: int) -> nn.Module:
        hidden = self.hidden or output_width
        layers: list[nn.Module] = [nn.LayerNorm(input_width)] if self.norm else []
        layers += [nn.Linear(input_width, hidden), nn.GELU(), nn.Linear(hidden, output_width)]
        return nn.Sequential(*layers)
