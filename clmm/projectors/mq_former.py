"""MQ-Former: a Q-Former with a second set of queries for objects: Lyrics's (arXiv 2312.05278)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, kw_only=True)
class MqFormer:
    """Image queries and grounding queries share self-attention: [B, n, d] → [B, both, D].

    No code of Lyrics is public. From its section 3: a Q-Former in which one set of queries reads
    the image encoder's features and another those of a visual refiner (detection, segmentation,
    tags), and both and the text share self-attention. Our reading, where it leaves room: sizes are
    BLIP-2's, with 32 queries a set; each set has cross-attention of its own, at every other layer;
    both share one MLP and the text has its own; the refiner's features come behind the image's in
    one sequence and have its width, as the encoder `joined` makes them; all queries go to the
    language model through one linear map. The text (boxes, tags, instruction) comes as in
    InstructBLIP.
    """

    image_features: int = 256
    """Leading features that are the image encoder's; those behind are the visual refiner's. 256 is
    a ViT-L/14's at 224 pixels."""
    image_queries: int = 32
    """Queries that read the image encoder's features."""
    grounding_queries: int = 32
    """Queries that read the visual refiner's features."""
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
    vocabulary: int = 30522
    """Tokens of the text; 0 for a network that reads none."""
    text_length: int = 512
    """Longest text, in tokens."""

    @property
    def reads_instruction(self) -> bool:
        return self.vocabulary > 0

    def num_tokens(self, features: int) -> int:
        if features <= self.image_features:
            raise ValueError(
                f"mq_former: of {features} features the first {self.image_features} are the "
                "image's, which leaves none for the grounding queries"
            )
        return self.image_queries + self.grounding_queries

    def build(self, *, input_width: int, output_width: int) -> nn.Module:
        from clmm.mq_former import TwoQuerySets

        return TwoQuerySets(
            input_width,
            output_width,
            hidden=self.hidden_size,
            queries=(self.image_queries, self.grounding_queries),
            image_features=self.image_features,
            depth=self.depth,
            heads=self.heads,
            mlp=self.mlp,
            cross_every=self.cross_every,
            dropout=self.dropout,
            vocabulary=self.vocabulary,
            text_length=self.text_length,
        )
