"""A Q-Former that reads the instruction: InstructBLIP's (arXiv 2305.06500)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class InstructQFormer:
    """Queries read an instruction, and by it the features: [B, n, d] → [B, queries, D].

    Section 2.3 of the paper; 185.66 million parameters at the published size, the queries and the
    linear map to the language model not counted. The instruction comes in tokens of the Q-Former's
    own vocabulary, `qformer_input_ids` and `qformer_attention_mask`.
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
    """Width between the two maps of a layer's MLPs."""
    cross_every: int = 2
    """Every so many layers, from the first on, attend to the features."""
    dropout: float = 0.1
    """Dropped share of hidden states and attention weights in training."""
    vocabulary: int = 30523
    """Tokens of the instruction: BERT's 30522 and a beginning of text."""
    text_length: int = 512
    """Longest instruction, in tokens."""

    reads_instruction: ClassVar[bool] = True

    @property
    def unused(self) -> tuple[str, ...]:
        """Prefixes of parameters without effect: of the last layer's text, which nobody reads."""
        last = f"qformer.encoder.layer.{self.depth - 1}."
        return (last + "intermediate.", last + "output.")

    def num_tokens(self, features: int) -> int:
        return self.queries

    def build(self, *, input_width: int, output_width: int) -> nn.Module:
        from transformers import InstructBlipQFormerConfig, InstructBlipQFormerModel

        config = InstructBlipQFormerConfig(
            vocab_size=self.vocabulary,
            max_position_embeddings=self.text_length,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.depth,
            num_attention_heads=self.heads,
            intermediate_size=self.mlp,
            hidden_dropout_prob=self.dropout,
            attention_probs_dropout_prob=self.dropout,
            cross_attention_frequency=self.cross_every,
            encoder_hidden_size=input_width,
        )
        return _InstructQFormer(self, InstructBlipQFormerModel(config), output_width)


class _InstructQFormer(nn.Module):
    """Parameters are named as in transformers' InstructBLIP."""

    reads_instruction = True

    def __init__(self, settings: InstructQFormer, model: nn.Module, output_width: int) -> None:
        super().__init__()
        self.text_length = settings.text_length
        self.query_tokens = nn.Parameter(
            torch.randn(1, settings.queries, settings.hidden_size) * 0.02
        )
        self.qformer = model
        self.language_projection = nn.Linear(settings.hidden_size, output_width)

    def forward(
        self,
        features: Tensor,
        qformer_input_ids: Tensor | None = None,
        qformer_attention_mask: Tensor | None = None,
    ) -> Tensor:
        """[B, n, d] and an instruction [B, T] a row → [B, queries, D]."""
        if qformer_input_ids is None:
            raise ValueError("instruct_q_former reads the instruction: give qformer_input_ids")
        if len(qformer_input_ids) != len(features):
            raise ValueError(
                f"instruct_q_former: {len(qformer_input_ids)} instructions for {len(features)} "
                "media"
            )
        if qformer_input_ids.shape[1] > self.text_length:
            raise ValueError(
                f"instruct_q_former: an instruction of {qformer_input_ids.shape[1]} tokens, but "
                f"text_length is {self.text_length}"
            )
        queries = self.query_tokens.expand(len(features), -1, -1)
        if qformer_attention_mask is None:
            qformer_attention_mask = torch.ones_like(qformer_input_ids)
        ones = qformer_attention_mask.new_ones(queries.shape[:2])
        read = self.qformer(
            input_ids=qformer_input_ids,
            attention_mask=torch.cat([ones, qformer_attention_mask], dim=1),
            query_embeds=queries,
            encoder_hidden_states=features,
        )
        projected: Tensor = self.language_projection(read.last_hidden_state[:, : queries.shape[1]])
        return projected
