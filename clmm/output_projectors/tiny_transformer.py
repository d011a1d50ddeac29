"""Learnable queries read the signal tokens: GILL's output projector, and NExT-GPT's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class TinyTransformer:
    """D → 512, four encoder and four decoder layers, 77 queries, 512 → d_c (arXiv 2305.17216).

    32 million parameters at D = 4096. MiniGPT-5 (arXiv 2310.02239) has `hidden` 1024, 8 heads,
    `mlp` 4096, `entry` mlp, no `exit`, and does not add the embedding: 122.9 million.
    """

    hidden: int = 512
    """Width inside."""
    heads: int = 4
    """Attention heads."""
    encoder_layers: int = 4
    """Layers over the signal tokens."""
    decoder_layers: int = 4
    """Layers of the queries over what the encoder made."""
    mlp: int = 2048
    """Width between the two maps of a layer's MLP."""
    queries: int = 77
    """L, the tokens of the condition: 77 for a CLIP text encoder's, 1 for CLAP's."""
    entry: Literal["linear", "mlp"] = "linear"
    """How D becomes `hidden`: one linear map, or linear, GELU, linear."""
    exit: bool = True
    """A last linear map to d_c; without it `hidden` must be d_c."""
    add_embedding: bool = True
    """Add each signal token's own embedding to its hidden state first."""

    def num_tokens(self, signals: int) -> int:
        return self.queries

    def build(self, *, input_width: int, output_width: int) -> nn.Module:
        if not self.exit and self.hidden != output_width:
            raise ValueError(
                f"tiny_transformer: without an exit its width {self.hidden} must be the "
                f"condition's {output_width}"
            )
        return _Mapper(self, input_width, output_width)


class _Mapper(nn.Module):
    """[B, r, D] → [B, L, d_c]."""

    def __init__(self, settings: TinyTransformer, input_width: int, output_width: int) -> None:
        super().__init__()
        width = settings.hidden
        entry: list[nn.Module] = [nn.Linear(input_width, width)]
        if settings.entry == "mlp":
            entry += [nn.GELU(), nn.Linear(width, width)]
        self.entry = nn.Sequential(*entry)
        block: dict[str, Any] = {
            "d_model": width, "nhead": settings.heads, "dim_feedforward": settings.mlp,
            "dropout": 0.0, "batch_first": True, "norm_first": True,
        }  # fmt: skip
        # The two halves of nn.Transformer. Itself it would ask for nested tensors, which pre-norm
        # layers cannot have, and warn; and its `encoder` would pass for a modality encoder.
        self.over_signals = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(**block),
            settings.encoder_layers,
            nn.LayerNorm(width),
            enable_nested_tensor=False,
        )
        self.over_queries = nn.TransformerDecoder(
            nn.TransformerDecoderLayer(**block), settings.decoder_layers, nn.LayerNorm(width)
        )
        for half in (self.over_signals, self.over_queries):
            for parameter in half.parameters():
                if parameter.dim() > 1:
                    nn.init.xavier_uniform_(parameter)
        # Not zeros: equal queries would stay equal, and all tokens of the condition the same.
        self.queries = nn.Parameter(torch.randn(1, settings.queries, width))
        self.exit = nn.Linear(width, output_width) if settings.exit else nn.Identity()

    def forward(self, signals: Tensor) -> Tensor:
        queries = self.queries.expand(len(signals), -1, -1)
        condition: Tensor = self.exit(
            self.over_queries(queries, self.over_signals(self.entry(signals)))
        )
        return condition
