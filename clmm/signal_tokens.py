"""Signal tokens [X0] … [X_{r−1}]: how the language model says that a medium comes here.

Knows a tokenizer, token ids and embedding rows; no projector and no generator. After [X0] the
others follow of themselves, so a language model only learns when to say [X0] (GILL, NExT-GPT).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor

_SHORT = {"image": "IMG", "video": "VID", "audio": "AUD"}


def mark(name: str) -> str:
    """What stands in a text for all signal tokens of an output: [IMG], [VID], [AUD]."""
    return f"[{_SHORT.get(name, name.upper())}]"


def signal_tokens(name: str, count: int) -> list[str]:
    """[IMG0], [IMG1], …"""
    return [f"{mark(name)[:-1]}{i}]" for i in range(count)]


def expand(text: str, counts: Mapping[str, int]) -> str:
    """A text with each mark replaced by the signal tokens it stands for."""
    for name, count in counts.items():
        text = text.replace(mark(name), "".join(signal_tokens(name, count)))
    return text


def add_to(tokenizer: Any, counts: Mapping[str, int]) -> dict[str, list[int]]:
    """Adds each output's tokens, as special ones; returns their ids by output."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name}: {count} signal tokens; give at least 1")
        tokenizer.add_tokens(signal_tokens(name, count), special_tokens=True)
    return {
        name: tokenizer.convert_tokens_to_ids(signal_tokens(name, count))
        for name, count in counts.items()
    }


class ForcedSignals(LogitsProcessor):
    """After [X0] come [X1] … [X_{r−1}], and they come nowhere else, as `never`. Logits [B, V]."""

    def __init__(self, ids: Sequence[Sequence[int]], *, never: Iterable[int] = ()) -> None:
        self.later = [*never, *(i for one in ids for i in one[1:])]
        self.next = {a: b for one in ids for a, b in pairwise(one)}

    def __call__(self, input_ids: torch.LongTensor, scores: Any) -> Any:
        if not self.later:
            return scores
        forbidden = torch.tensor(self.later, device=scores.device)
        scores = scores.index_fill(1, forbidden, -torch.inf)
        for before, after in self.next.items():
            here = (input_ids[:, -1] == before).to(scores.device)
            only = torch.full_like(scores[:1], -torch.inf)
            only[0, after] = 0.0
            scores = torch.where(here[:, None], only, scores)
        return scores


def spans(input_ids: Tensor, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Where an output's signal tokens are: rows [n] and positions [n, r], in reading order.

    Raises ValueError where they are not whole sequences [X0] … [X_{r−1}].
    """
    signals = torch.tensor(ids, device=input_ids.device)
    rows, columns = torch.isin(input_ids, signals).nonzero(as_tuple=True)
    found = input_ids[rows, columns]
    count = len(found) // len(ids)
    whole = torch.equal(found, signals.repeat(count))
    if whole and count:
        rows, columns = rows.view(count, len(ids)), columns.view(count, len(ids))
        steps = torch.arange(len(ids), device=columns.device)
        whole = bool((rows == rows[:, :1]).all() and (columns == columns[:, :1] + steps).all())
    if not whole:
        raise ValueError(
            f"{len(found)} signal tokens in the text are not whole sequences of {len(ids)}, in "
            "their order and side by side"
        )
    return rows.view(count, len(ids))[:, 0], columns.view(count, len(ids))


def completed(
    sequences: Tensor,
    ids: Sequence[Sequence[int]],
    *,
    start: int,
    pad: int,
    ends: Sequence[int] = (),
    wanted: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Answers [B, N] whose last signal sequence is whole, and where they have tokens: [B, N'].

    From column `start` on a row is an answer; padding after it is taken off and put back. A
    sequence that the answer's length cut off is finished, for what it lacks would be forced anyway.
    With `wanted`, ids of an output, a row that has none of them gets them before its end.
    """
    follow = {a: b for one in ids for a, b in pairwise(one)}
    rows = []
    for row in sequences.tolist():
        answer = row[start:]
        while answer and answer[-1] == pad:
            answer.pop()
        while answer and answer[-1] in follow:
            answer.append(follow[answer[-1]])
        if wanted is not None and wanted[0] not in answer:
            end = [answer.pop()] if answer and answer[-1] in ends else []
            answer += [*wanted, *end]
        rows.append(answer)
    width = max(map(len, rows))
    tokens = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    there = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    whole = torch.cat([sequences[:, :start], tokens.to(sequences)], dim=1)
    return whole, there.to(sequences)


class _Rows(nn.Module):
    """An embedding or a head, some of whose rows are a parameter of their own, [r, D].

    Costs r rows a pass; the table is neither copied nor touched.
    """

    def __init__(self, base: Any, ids: Sequence[int], rows: nn.Parameter) -> None:
        super().__init__()
        self.base = base
        self.rows = rows
        self.ids = tuple(ids)

    @property
    def weight(self) -> Tensor:
        """The table, as transformers asks for it; the rows are not in it yet."""
        weight: Tensor = self.base.weight
        return weight

    def forward(self, inputs: Tensor) -> Tensor:
        """Token ids → embeddings, or states → logits, as the base's."""
        output: Tensor = self.base(inputs)
        ids = torch.tensor(self.ids, device=inputs.device)
        if isinstance(self.base, nn.Embedding):
            hit = inputs.unsqueeze(-1) == ids
            own = self.rows[hit.int().argmax(-1)] * getattr(self.base, "embed_scale", 1.0)
            return torch.where(hit.any(-1, keepdim=True), own.to(output.dtype), output)
        bias = self.base.bias[ids] if self.base.bias is not None else None
        own = nn.functional.linear(inputs, self.rows.to(inputs.dtype), bias)
        return output.index_copy(-1, ids, own.to(output.dtype))


def train_rows(language_model: nn.Module, ids: Sequence[int]) -> list[nn.Parameter]:
    """Makes these rows of the embedding, and of the head, the only ones of them that train.

    In place. The rows become parameters of their own, so neither weight decay nor momentum reaches
    the other rows, which a mask on the gradient would let through. `keep_rows` writes them back;
    save only after that. Returns the new parameters: one where embedding and head are tied.
    """
    model: Any = language_model
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if isinstance(embedding, _Rows):
        raise ValueError("signal rows are trained already; call keep_rows first")
    tables = [embedding]
    if head is not None:
        tables.append(head)
    made: dict[int, nn.Parameter] = {}
    for table in tables:
        weight = table.weight
        if id(weight) not in made:
            # Small updates of a half would be rounded away.
            exact = torch.promote_types(weight.dtype, torch.float32)
            made[id(weight)] = nn.Parameter(weight.detach()[[*ids]].to(exact))
        name = next(name for name, module in model.named_modules() if module is table)
        _put(model, name, _Rows(table, ids, made[id(weight)]))
        table.requires_grad_(False)
    return [*made.values()]


def keep_rows(model: nn.Module) -> None:
    """Writes trained rows into the embedding and the head, which are plain modules again."""
    for name, layer in [*model.named_modules()]:
        if isinstance(layer, _Rows):
            with torch.no_grad():
                layer.weight[[*layer.ids]] = layer.rows.to(layer.weight.dtype)
            _put(model, name, layer.base)


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)
