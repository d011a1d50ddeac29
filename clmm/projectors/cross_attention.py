"""One cross-attention layer with learned queries: Qwen-VL's adapter (arXiv 2308.12966)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clmm.grids import positions, resized, side


@dataclass(frozen=True, kw_only=True)
class CrossAttention:
    """Queries on a square grid attend to the features' grid: [B, n, d] → [B, queries, D].

    P_X = MHA(LN(q) + p_q, LN(W F_X) + p_k, LN(W F_X)), section 2.1 of the paper. p are sine and
    cosine positions of the queries' grid; the features' are those, interpolated. The released model
    normalises and maps once more (`project`).
    """

    queries: int = 256
    """Learned queries, a square number: the tokens of one image."""
    heads: int = 32
    """Attention heads."""
    eps: float = 1e-6
    """What the layer norms add to the variance."""
    project: bool = True
    """A layer norm and a square map without bias afterwards, as in the released model."""

    def __post_init__(self) -> None:
        side(self.queries, where="cross_attention.queries")

    def num_tokens(self, features: int) -> int:
        side(features, where="cross_attention")
        return self.queries

    def build(self, *, input_width: int, output_width: int) -> nn.Module:
        if output_width % self.heads or output_width % 4:
            raise ValueError(
                f"cross_attention: output width {output_width} is no multiple of 4 and of heads "
                f"{self.heads}"
            )
        return _CrossAttention(self, input_width, output_width)


class _CrossAttention(nn.Module):
    def __init__(self, settings: CrossAttention, input_width: int, width: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(settings.queries, width) * 0.02)
        self.kv_proj = (
            nn.Identity() if input_width == width else nn.Linear(input_width, width, bias=False)
        )
        self.attn = nn.MultiheadAttention(width, settings.heads, batch_first=True)
        self.ln_q = nn.LayerNorm(width, eps=settings.eps)
        self.ln_kv = nn.LayerNorm(width, eps=settings.eps)
        self.ln_post = self.proj = None
        if settings.project:
            self.ln_post = nn.LayerNorm(width, eps=settings.eps)
            self.proj = nn.Parameter(torch.randn(width, width) / math.sqrt(width))

    def forward(self, features: Tensor) -> Tensor:
        """[B, n, d] → [B, queries, D]."""
        queries, width = self.query.shape
        edge = side(features.shape[1], where="cross_attention")
        own = positions(math.isqrt(queries), width, device=features.device)
        there = resized(own, edge)
        keys = self.ln_kv(self.kv_proj(features))
        query = self.ln_q(self.query) + own.to(self.query.dtype)
        attended, _ = self.attn(
            query.expand(len(features), -1, -1),
            keys + there.to(keys.dtype),
            keys,
            need_weights=False,
        )
        if self.ln_post is None or self.proj is None:
            return attended
        return self.ln_post(attended) @ self.proj
