"""A Q-Former that learns from P-Former's prompts of texts: DLP's (arXiv 2307.07063)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from clmm.projectors.q_former import QFormer


@dataclass(frozen=True, kw_only=True)
class PFormer:
    """What reads features is BLIP-2's Q-Former: [B, n, d] → [B, queries, D].

    P-Former itself reads texts: `teacher` makes it, about 129 million parameters, and from texts
    alone it learns which prompts make the language model say them. Then it is frozen, and the
    Q-Former's tokens are drawn to its prompts of the captions: `clmm.p_former.alignment`, with the
    weight `omega`. Afterwards it is not needed, so it is no part of the model.
    """

    queries: int = 32
    """Tokens of one image, and of one text's prompt."""
    hidden_size: int = 768
    """Width inside both networks."""
    depth: int = 12
    """Layers of both networks."""
    heads: int = 12
    """Attention heads."""
    mlp: int = 3072
    """Width between the two maps of a layer's MLP."""
    cross_every: int = 2
    """Every so many layers of the Q-Former, from the first on, attend to the features."""
    dropout: float = 0.1
    """Dropped share of hidden states and attention weights in training."""
    vocabulary: int = 30522
    """Tokens of P-Former's texts."""
    text_length: int = 512
    """P-Former's longest text, in tokens."""
    contrast_width: int = 256
    """Width in which P-Former contrasts texts."""
    omega: float = 1.0
    """Weight of the alignment in the Q-Former's loss."""

    def num_tokens(self, features: int) -> int:
        return self.queries

    def build(self, *, input_width: int, output_width: int) -> nn.Module:
        reader = QFormer(
            queries=self.queries,
            hidden_size=self.hidden_size,
            depth=self.depth,
            heads=self.heads,
            mlp=self.mlp,
            cross_every=self.cross_every,
            dropout=self.dropout,
        )
        return reader.build(input_width=input_width, output_width=output_width)

    def teacher(self, *, output_width: int) -> nn.Module:
        """P-Former: a text [B, T] → prompts [B, queries, output_width]."""
        from transformers import BertConfig

        from clmm.p_former import PromptFormer

        config = BertConfig(
            vocab_size=self.vocabulary,
            max_position_embeddings=self.text_length,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.depth,
            num_attention_heads=self.heads,
            intermediate_size=self.mlp,
            hidden_dropout_prob=self.dropout,
            attention_probs_dropout_prob=self.dropout,
        )
        return PromptFormer(
            config,
            output_width,
            queries=self.queries,
            contrast_width=self.contrast_width,
        )
