"""Many questions about one picture in one step: the picture is read once.

The prefix (a picture's visual tokens, or a text) goes through the language model once; its
key–value cache is shared by every question about it. The numbers are those of asking each
question alone, at a fraction of the cost. Knows tensors and a causal language model, no data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache

from clmm import key_value_cache


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One question and its answer as token ids; `prefix` is the row of the prefix it is about."""

    prefix: int
    question: list[int]
    answer: list[int]


def answer_loss(
    language_model: nn.Module,
    prefix_embeds: Tensor,
    prefix_lengths: Tensor,
    turns: Sequence[Turn],
    *,
    bucket_tokens: int = 12_000,
) -> Tensor:
    """Mean cross-entropy (nats) over all answer tokens of all turns.

    `prefix_embeds` [P, L, D] right-padded, `prefix_lengths` [P]. Turns are taken in buckets of
    similar length, `bucket_tokens` at most with padding, so that short ones do not pay for long.
    """
    rows, length = prefix_embeds.shape[:2]
    mask = torch.arange(length) < prefix_lengths[:, None]
    seen = language_model(
        inputs_embeds=prefix_embeds, attention_mask=mask, use_cache=True, logits_to_keep=1
    )
    cache = key_value_cache.given(seen)
    layers = [(layer.keys, layer.values) for layer in cache.layers]
    assert layers[0][0].shape[0] == rows
    total = prefix_embeds.new_zeros((), dtype=torch.float32)
    count = sum(len(turn.answer) for turn in turns)
    for bucket in _buckets(turns, bucket_tokens):
        width = max(len(turn.question) + len(turn.answer) for turn in bucket)
        ids = torch.zeros(len(bucket), width, dtype=torch.long)
        labels = torch.full((len(bucket), width), -100)
        for row, turn in enumerate(bucket):
            tokens = turn.question + turn.answer
            ids[row, : len(tokens)] = torch.tensor(tokens)
            labels[row, len(turn.question) : len(tokens)] = torch.tensor(turn.answer)
        source = torch.tensor([turn.prefix for turn in bucket])
        own = DynamicCache()
        for index, (keys, values) in enumerate(layers):
            own.update(keys[source], values[source], index)
        logits = language_model(
            input_ids=ids,
            attention_mask=torch.cat([mask[source], torch.ones_like(ids, dtype=torch.bool)], 1),
            position_ids=prefix_lengths[source, None] + torch.arange(width),
            use_cache=True,
            **{key_value_cache.NAME: own},
        ).logits
        total = total + functional.cross_entropy(
            logits[:, :-1].float().flatten(0, 1),
            labels[:, 1:].flatten(),
            ignore_index=-100,
            reduction="sum",
        )
    return total / count


def _buckets(turns: Sequence[Turn], limit: int) -> list[list[Turn]]:
    buckets: list[list[Turn]] = [[]]
    for turn in sorted(turns, key=lambda t: len(t.question) + len(t.answer)):
        width = len(turn.question) + len(turn.answer)
        bucket = buckets[-1]
        wide = bucket and width > 1.5 * (len(bucket[0].question) + len(bucket[0].answer)) + 8
        if bucket and (wide or width * (len(bucket) + 1) > limit):
            buckets.append([])
        buckets[-1].append(turn)
    return buckets
