"""Causal transformer: learned queries, each seeing those before it, Emu's (arXiv 2307.05222)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class CausalFormer:
    """A T5 decoder over learned queries and the features: [B, n, d] → [B, queries, D].

    Section 2.1 of the paper; T5-base's size, 129 million parameters from a width of 1408 to one of
    5120. Causal, so that an image is a sequence that can be predicted as text is.
    """

    queries: int = 32
    """Learned queries: the tokens of one image."""
    hidden_size: int = 768
    """Width inside."""
    depth: int = 12
    """Layers."""
    heads: int = 12
    """Attention heads."""
    head_width: int = 64
    """Width of a head."""
    mlp: int = 3072
    """Width between the two maps of a layer's MLP."""
    dropout: float = 0.1
    """Dropped share of hidden states in training."""

    def num_tokens(self, features: int) -> int:
        return self.queries

    def build(self, *, input_width: int, output_width: int) -> nn.Module:
        from transformers import T5Config
        from transformers.models.t5.modeling_t5 import T5Stack

        config = T5Config(
            vocab_size=2,
            d_model=self.hidden_size,
            d_kv=self.head_width,
            d_ff=self.mlp,
            num_layers=self.depth,
            num_decoder_layers=self.depth,
            num_heads=self.heads,
            dropout_rate=self.dropout,
            is_decoder=True,
            use_cache=False,
        )
        decoder: Any = T5Stack(config)
        # Queries are its input, so there are no words; features are wider than it is inside.
        decoder.embed_tokens = nn.Identity()
        for block in decoder.block:
            attention = block.layer[1].EncDecAttention
            inner = self.heads * self.head_width
            for name in ("k", "v"):
                linear = nn.Linear(input_width, inner, bias=False)
                nn.init.normal_(linear.weight, std=input_width**-0.5)
                setattr(attention, name, linear)
        return _CausalFormer(self, decoder, output_width)


class _CausalFormer(nn.Module):
    def __init__(self, settings: CausalFormer, decoder: nn.Module, output_width: int) -> None:
        super().__init__()
        shape = (1, settings.queries, settings.hidden_size)
        self.causal_tokens = nn.Parameter(torch.randn(shape) * 0.02)
        self.cformer = decoder
        self.projection = nn.Linear(settings.hidden_size, output_width)

    def forward(self, features: Tensor) -> Tensor:
        """[B, n, d] → [B, queries, D]."""
        queries = self.causal_tokens.expand(len(features), -1, -1)
        read = self.cformer(inputs_embeds=queries, encoder_hidden_states=features, use_cache=False)
        projected: Tensor = self.projection(read.last_hidden_state)
        return projected
