"""Q-Former: learned queries that read frozen features, BLIP-2's (arXiv 2301.12597)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class QFormer:
    """A BERT whose queries read the features at every other layer: [B, n, d] → [B, queries, D].

    Section 3.1 of the paper; 105.14 million parameters at the published size, the queries and the
    linear map to the language model not counted. `clmm/q_former_losses.py` is its first stage.
    """

    queries: int = 32
    """Learned queries: the tokens of one image."""
    hidden_size: int = 768
    """Width inside."""
    depth: int = 12
    """Layers."""
    heads: int = 12
    """Attention heads."""
    mlp: int = 3072
    """Width between the two maps of a layer's MLP."""
    cross_every: int = 2
    """Every so many layers, from the first on, attend to the features."""
    dropout: float = 0.1
    """Dropped share of hidden states and attention weights in training."""

    def num_tokens(self, features: int) -> int:
        return self.queries

    def config(self, input_width: int, **more: Any) -> Any:
        """transformers' settings of the network inside."""
        from transformers import Blip2QFormerConfig

        return Blip2QFormerConfig(
            hidden_size=self.hidden_size,
            num_hidden_layers=self.depth,
            num_attention_heads=self.heads,
            intermediate_size=self.mlp,
            hidden_dropout_prob=self.dropout,
            attention_probs_dropout_prob=self.dropout,
            cross_attention_frequency=self.cross_every,
            encoder_hidden_size=input_width,
            **more,
        )

    def build(self, *, input_width: int, output_width: int) -> nn.Module:
        from transformers import Blip2QFormerModel

        model = Blip2QFormerModel(self.config(input_width))
        return _QFormer(self, model, output_width)


class _QFormer(nn.Module):
    """Parameters are named as in transformers' BLIP-2."""

    def __init__(self, settings: QFormer, model: nn.Module, output_width: int) -> None:
        super().__init__()
        # Not transformers' zeros, which are there to be loaded over: equal queries stay equal.
        self.query_tokens = nn.Parameter(
            torch.randn(1, settings.queries, settings.hidden_size) * 0.02
        )
        self.qformer = model
        self.language_projection = nn.Linear(settings.hidden_size, output_width)

    def forward(self, features: Tensor) -> Tensor:
        """[B, n, d] → [B, queries, D]."""
        queries = self.query_tokens.expand(len(features), -1, -1)
        read = self.qformer(query_embeds=queries, encoder_hidden_states=features)
        projected: Tensor = self.language_projection(read.last_hidden_state)
        return projected
