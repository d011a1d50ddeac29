"""BEATs' network (Chen et al. 2022, arXiv 2212.09058): a deep-norm transformer over fbank patches.

Positions come from a grouped convolution and from a relative bias that every block gates anew
(WavLM, arXiv 2110.13900, section 3.1). Knows filter banks; `clmm.audio_preprocessing` makes them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm


def relative_buckets(length: int, *, buckets: int, furthest: int) -> Tensor:
    """The bucket of every pair's distance (T5, arXiv 1910.10683): [length, length], from query to
    key.

    Half of the buckets are for keys behind, half for keys ahead; of each half, one half for a
    distance each, the other for logarithmic ranges up to `furthest`.
    """
    place = torch.arange(length)
    offset = place[None] - place[:, None]
    half = buckets // 2
    exact = half // 2
    distance = offset.abs()
    ranges = torch.log(distance.clamp(min=1) / exact) / math.log(furthest / exact)
    far = (exact + (ranges * (half - exact)).long()).clamp(max=half - 1)
    return torch.where(distance < exact, distance, far) + half * (offset > 0)


class GatedAttention(nn.Module):
    """Self-attention whose relative bias is scaled for each query by two gates of the query.

    With u, v = σ of the sums of four outputs each of a linear map of the query q_i, head by head:
    bias_ij = (u · (v · s − 1) + 2) · d_|i−j|, where s is learned for each head.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.gate = nn.Linear(width // heads, 8)
        self.gate_scale = nn.Parameter(torch.ones(heads, 1, 1))

    def forward(self, states: Tensor, bias: Tensor) -> Tensor:
        """States [N, n, width] and the ungated bias [heads, n, n] → [N, n, width]."""
        query, key, value = (
            part(states).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        gates = self.gate(query).unflatten(-1, (2, 4)).sum(-1).sigmoid()
        update, reset = gates.split(1, dim=-1)
        gated = (update * (reset * self.gate_scale - 1.0) + 2.0) * bias
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=gated)
        joined: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return joined


class DeepNormBlock(nn.Module):
    """x ← LN(α · x + f(x)) for attention and MLP, α = (2 · depth)^¼ (DeepNet, arXiv 2203.00555)."""

    def __init__(self, width: int, heads: int, mlp: int, *, depth: int):
        super().__init__()
        self.alpha = (2 * depth) ** 0.25
        self.attention = GatedAttention(width, heads)
        self.attention_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, mlp), nn.GELU(), nn.Linear(mlp, width))
        self.mlp_norm = nn.LayerNorm(width)
        beta = (8 * depth) ** -0.25
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Linear):
                plain = name in ("attention.query", "attention.key", "attention.gate")
                nn.init.xavier_normal_(layer.weight, gain=1.0 if plain else beta)
                nn.init.zeros_(layer.bias)

    def forward(self, states: Tensor, bias: Tensor) -> Tensor:
        states = self.attention_norm(self.alpha * states + self.attention(states, bias))
        normed: Tensor = self.mlp_norm(self.alpha * states + self.mlp(states))
        return normed


class PositionConvolution(nn.Module):
    """x + GELU(conv(x)): a wide grouped convolution along the patches, weight-normalised."""

    def __init__(self, width: int, *, kernel: int, groups: int):
        super().__init__()
        layer = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=groups)
        nn.init.normal_(layer.weight, std=math.sqrt(4 / (kernel * width)))
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self.layer = weight_norm(layer, dim=2)

    def forward(self, states: Tensor) -> Tensor:
        moved = self.layer(states.transpose(1, 2))[..., : states.shape[1]]
        return states + nn.functional.gelu(moved).transpose(1, 2)


class BeatsNetwork(nn.Module):
    """Filter banks [N, frames, bins] → [N, patches, width], patches time by time, then by band."""

    def __init__(
        self,
        *,
        patch: int,
        patch_width: int,
        width: int,
        depth: int,
        heads: int,
        mlp: int,
        buckets: int,
        furthest: int,
        kernel: int,
        groups: int,
    ):
        super().__init__()
        self.furthest = furthest
        self.patches = nn.Conv2d(1, patch_width, patch, stride=patch, bias=False)
        self.patch_norm = nn.LayerNorm(patch_width)
        self.project = nn.Linear(patch_width, width)
        self.positions = PositionConvolution(width, kernel=kernel, groups=groups)
        self.norm = nn.LayerNorm(width)
        self.relative_bias = nn.Embedding(buckets, heads)
        nn.init.normal_(self.relative_bias.weight, std=0.02)
        self.blocks = nn.ModuleList(
            DeepNormBlock(width, heads, mlp, depth=depth) for _ in range(depth)
        )

    def forward(self, values: Tensor) -> Tensor:
        """[N, frames, bins] → [N, patches, width]."""
        patches = self.patches(values[:, None]).flatten(2).transpose(1, 2)
        states = self.norm(self.positions(self.project(self.patch_norm(patches))))
        table = self.relative_bias
        buckets = relative_buckets(
            states.shape[1], buckets=table.num_embeddings, furthest=self.furthest
        )
        bias = table(buckets.to(states.device)).permute(2, 0, 1)
        for block in self.blocks:
            states = block(states, bias)
        return states
