"""The perceiver resampler's network; parameters are named as in transformers' IDEFICS.

Knows features and latents; what stands before and behind it, `clmm/projectors/resampler.py` says.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.activations import ACT2FN

ACTIVATIONS = {"relu": "relu", "squared_relu": "relu2", "gelu": "gelu"}


class PerceiverResampler(nn.Module):
    """x ← x + attention(x, [f, x]), x ← x + MLP(x), then a norm: Flamingo, figure 5.

    With `frames`, features come frame by frame and each frame's get its time embedding.
    """

    def __init__(
        self,
        width: int,
        *,
        latents: int,
        depth: int,
        heads: int,
        head_width: int,
        mlp: int,
        activation: str,
        qk_norm: bool,
        frames: int | None,
    ) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(latents, width))
        self.time = nn.Parameter(torch.randn(frames, width)) if frames else None
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                [
                    PerceiverAttention(width, heads=heads, head_width=head_width, qk_norm=qk_norm),
                    PerceiverMlp(width, mlp, activation=activation),
                ]
            )
            for _ in range(depth)
        )
        self.layer_norm = nn.LayerNorm(width)

    def forward(self, features: Tensor) -> Tensor:
        """[B, n, d] → [B, latents, d]."""
        if self.time is not None:
            frames = len(self.time)
            if features.shape[1] % frames:
                raise ValueError(
                    f"resampler: {features.shape[1]} features are no multiple of frames {frames}"
                )
            timed = features.unflatten(1, (frames, -1)) + self.time.unsqueeze(1)
            features = timed.flatten(1, 2)
        latents = self.latents.expand(len(features), -1, -1)
        block: Any
        for block in self.blocks:
            latents = latents + block[0](features, latents)
            latents = latents + block[1](latents)
        normed: Tensor = self.layer_norm(latents)
        return normed


class PerceiverAttention(nn.Module):
    """Queries from the latents; keys and values from features and latents. No biases."""

    def __init__(self, width: int, *, heads: int, head_width: int, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        inner = heads * head_width
        self.context_layer_norm = nn.LayerNorm(width)
        self.latents_layer_norm = nn.LayerNorm(width)
        self.q_layer_norm = nn.LayerNorm(head_width) if qk_norm else None
        self.k_layer_norm = nn.LayerNorm(head_width) if qk_norm else None
        self.q_proj = nn.Linear(width, inner, bias=False)
        self.k_proj = nn.Linear(width, inner, bias=False)
        self.v_proj = nn.Linear(width, inner, bias=False)
        self.output_proj = nn.Linear(inner, width, bias=False)

    def forward(self, features: Tensor, latents: Tensor) -> Tensor:
        """[B, n, d] and [B, latents, d] → [B, latents, d]."""
        latents = self.latents_layer_norm(latents)
        both = torch.cat([self.context_layer_norm(features), latents], dim=1)
        query, key, value = (
            made.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for made in (self.q_proj(latents), self.k_proj(both), self.v_proj(both))
        )
        if self.q_layer_norm is not None and self.k_layer_norm is not None:
            query, key = self.q_layer_norm(query), self.k_layer_norm(key)
        attended = scaled_dot_product_attention(query, key, value)
        mixed: Tensor = self.output_proj(attended.transpose(1, 2).flatten(2))
        return mixed


class PerceiverMlp(nn.Module):
    """Norm, Linear, activation, Linear; no biases."""

    def __init__(self, width: int, hidden: int, *, activation: str) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(width)
        self.fc = nn.Linear(width, hidden, bias=False)
        self.act = ACT2FN[ACTIVATIONS[activation]]
        self.c_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., d] → [..., d]."""
        mapped: Tensor = self.c_proj(self.act(self.fc(self.ln(hidden))))
        return mapped
