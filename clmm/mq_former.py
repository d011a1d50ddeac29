"""The network of MQ-Former: BERT layers over two sets of queries and a text.

Knows features and tokens; what in it is the paper's and what our reading of it, the docstring of
`clmm/projectors/mq_former.py` says.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TwoQuerySets(nn.Module):
    """[B, n, d], and a text [B, T] where there is a vocabulary → [B, image + grounding, D]."""

    def __init__(
        self,
        input_width: int,
        output_width: int,
        *,
        hidden: int,
        queries: tuple[int, int],
        image_features: int,
        depth: int,
        heads: int,
        mlp: int,
        cross_every: int,
        dropout: float,
        vocabulary: int,
        text_length: int,
    ) -> None:
        super().__init__()
        self.image_features = image_features
        self.reads_instruction = vocabulary > 0
        self.image_queries = nn.Parameter(torch.randn(queries[0], hidden) * 0.02)
        self.grounding_queries = nn.Parameter(torch.randn(queries[1], hidden) * 0.02)
        self.words = nn.Embedding(vocabulary, hidden) if vocabulary else None
        self.word_positions = nn.Embedding(text_length, hidden) if vocabulary else None
        self.norm = nn.LayerNorm(hidden, eps=1e-12)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            _Layer(
                hidden,
                input_width,
                heads=heads,
                mlp=mlp,
                dropout=dropout,
                crosses=index % cross_every == 0,
                # The last layer's text is read by nobody, so it has no MLP there.
                text=vocabulary > 0 and index < depth - 1,
            )
            for index in range(depth)
        )
        self.language_projection = nn.Linear(hidden, output_width)

    def forward(
        self,
        features: Tensor,
        qformer_input_ids: Tensor | None = None,
        qformer_attention_mask: Tensor | None = None,
    ) -> Tensor:
        """[B, n, d] → [B, image + grounding, D]."""
        rows, count = features.shape[:2]
        if count <= self.image_features:
            raise ValueError(
                f"mq_former: {count} features, of which the first {self.image_features} are the "
                "image's, leave none for the grounding queries"
            )
        image, objects = features.split([self.image_features, count - self.image_features], dim=1)
        sets = (len(self.image_queries), len(self.grounding_queries))
        queries = torch.cat([self.image_queries, self.grounding_queries])
        hidden = queries.expand(rows, -1, -1)
        padding = None
        if self.words is not None and self.word_positions is not None:
            text = self._text(self.words, self.word_positions, qformer_input_ids, rows)
            hidden = torch.cat([hidden, text], dim=1)
            if qformer_attention_mask is not None:
                seen = qformer_attention_mask.new_ones(rows, sum(sets))
                padding = torch.cat([seen, qformer_attention_mask], dim=1) == 0
        hidden = self.dropout(self.norm(hidden))
        for layer in self.layers:
            hidden = layer(hidden, image, objects, sets=sets, padding=padding)
        projected: Tensor = self.language_projection(hidden[:, : sum(sets)])
        return projected

    @staticmethod
    def _text(words: nn.Module, positions: nn.Embedding, ids: Tensor | None, rows: int) -> Tensor:
        if ids is None:
            raise ValueError("mq_former reads the text: give qformer_input_ids")
        if len(ids) != rows:
            raise ValueError(f"mq_former: {len(ids)} texts for {rows} media")
        if ids.shape[1] > positions.num_embeddings:
            raise ValueError(
                f"mq_former: a text of {ids.shape[1]} tokens, but text_length is "
                f"{positions.num_embeddings}"
            )
        places = torch.arange(ids.shape[1], device=ids.device)
        embedded: Tensor = words(ids) + positions(places)
        return embedded


class _Layer(nn.Module):
    """Post-norm, as BERT: self-attention of all, cross-attention by set, an MLP a kind."""

    def __init__(
        self,
        hidden: int,
        input_width: int,
        *,
        heads: int,
        mlp: int,
        dropout: float,
        crosses: bool,
        text: bool,
    ) -> None:
        super().__init__()
        self.attention = _Attention(hidden, hidden, heads=heads, dropout=dropout)
        self.image_attention = self.grounding_attention = None
        if crosses:
            self.image_attention = _Attention(hidden, input_width, heads=heads, dropout=dropout)
            self.grounding_attention = _Attention(hidden, input_width, heads=heads, dropout=dropout)
        self.query_mlp = _Mlp(hidden, mlp, dropout=dropout)
        self.text_mlp = _Mlp(hidden, mlp, dropout=dropout) if text else None

    def forward(
        self,
        hidden: Tensor,
        image: Tensor,
        objects: Tensor,
        *,
        sets: tuple[int, int],
        padding: Tensor | None,
    ) -> Tensor:
        """[B, queries + T, hidden] → the same; `padding` [B, queries + T] is not attended to."""
        hidden = self.attention(hidden, hidden, padding=padding)
        first, second, text = hidden.split([*sets, hidden.shape[1] - sum(sets)], dim=1)
        if self.image_attention is not None and self.grounding_attention is not None:
            first = self.image_attention(first, image)
            second = self.grounding_attention(second, objects)
        queries = self.query_mlp(torch.cat([first, second], dim=1))
        if self.text_mlp is not None:
            text = self.text_mlp(text)
        return torch.cat([queries, text], dim=1)


class _Attention(nn.Module):
    def __init__(self, hidden: int, width: int, *, heads: int, dropout: float) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(
            hidden, heads, dropout=dropout, kdim=width, vdim=width, batch_first=True
        )
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(hidden, eps=1e-12)

    def forward(self, hidden: Tensor, read: Tensor, *, padding: Tensor | None = None) -> Tensor:
        mixed, _ = self.inner(hidden, read, read, key_padding_mask=padding, need_weights=False)
        normed: Tensor = self.norm(hidden + self.dropout(mixed))
        return normed


class _Mlp(nn.Module):
    def __init__(self, hidden: int, mlp: int, *, dropout: float) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(hidden, mlp), nn.GELU(), nn.Linear(mlp, hidden))
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(hidden, eps=1e-12)

    def forward(self, hidden: Tensor) -> Tensor:
        normed: Tensor = self.norm(hidden + self.dropout(self.inner(hidden)))
        return normed
