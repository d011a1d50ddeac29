"""Rows of a language model that is an encoder and a decoder: prompts go into one, answers into the
other, under the names of transformers (`decoder_input_ids`, and labels that are as long as these).

Also what both kinds of rows have in common, so that whoever trains and scores need not ask which
they are. Knows token ids; nothing of samples and media.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from clmm.generation_losses import IGNORED

DECODER = "decoder_input_ids"


def start_of(model: Any) -> int | None:
    """The id that the model's decoder begins with; None where prompt and answer are one row.

    Raises ValueError for an encoder–decoder that says none.
    """
    config = model.config
    if not getattr(config, "is_encoder_decoder", False):
        return None
    for holder in (getattr(model, "generation_config", None), config.get_text_config(), config):
        start = getattr(holder, "decoder_start_token_id", None)
        if start is not None:
            return int(start)
    raise ValueError(
        f"{type(model).__name__}: its decoder has no decoder_start_token_id in config.json, so it "
        "cannot begin to answer"
    )


def opened(batch: dict[str, Tensor], start: int | None) -> dict[str, Tensor]:
    """Prompts, and what a decoder of its own begins each answer with, [B, 1]."""
    if start is None:
        return batch
    return batch | {DECODER: batch["input_ids"].new_full((len(batch["input_ids"]), 1), start)}


def answers(ids: Sequence[Any], start: int, pad: int) -> dict[str, Tensor]:
    """`labels` [B, T], padded on the right, and `decoder_input_ids`: the same, one place later."""
    labels = torch.full((len(ids), max(map(len, ids))), IGNORED)
    for row, one in zip(labels, ids, strict=True):
        row[: len(one)] = torch.as_tensor(one)
    before = torch.cat([labels.new_full((len(ids), 1), start), labels[:, :-1]], dim=1)
    return {"labels": labels, DECODER: before.masked_fill(before == IGNORED, pad)}


def length(batch: Mapping[str, Tensor]) -> int:
    """Places of a batch's logits: its tokens, of an encoder–decoder the decoder's."""
    return batch.get(DECODER, batch["input_ids"]).shape[1]


def next_tokens(batch: Mapping[str, Tensor]) -> Tensor:
    """The token that the logits in each place predict, −100 where none is to be learnt."""
    return batch["labels"] if DECODER in batch else batch["labels"][:, 1:]
