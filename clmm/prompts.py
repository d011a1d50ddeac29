"""Soft prompts: embeddings put before the inputs of a vision-language model's language model.

By hooks on the decoder, so that no model class is known: its inputs, mask and positions get the
prompt in front of each row's first real input, and its hidden states lose those positions again.
Heads, labels and `logits_to_keep` therefore see the rows that they always see. In `generate` the
first pass puts the prompt into the key–value cache; later ones only count it. Knows modules and
tensors; nothing of samples, strategies or files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from clmm import components, key_value_cache
from clmm.batching import Batch, to_model


def decoder_of(model: nn.Module) -> Any:
    """The language model without its head: inputs in, hidden states out."""
    inner = model.get_submodule(components.find(model)["language_model"][0])
    return getattr(inner, "base_model", inner)


def inserted(rows: Tensor, new: Tensor, first: Tensor) -> Tensor:
    """`new` [B, P, ...] before place `first` [B] of `rows` [B, L, ...]: [B, P + L, ...]."""
    count, place = new.shape[1], _places(rows, new.shape[1] + rows.shape[1])
    start = first.unsqueeze(1)
    index = torch.where(place < start, place + count, place)
    index = torch.where((place >= start) & (place < start + count), place - start, index)
    return _taken(torch.cat([new, rows], dim=1), index)


def stripped(rows: Tensor, count: int, first: Tensor) -> Tensor:
    """What `inserted` was given as its rows."""
    place = _places(rows, rows.shape[1] - count)
    return _taken(rows, torch.where(place < first.unsqueeze(1), place, place + count))


class Insertion:
    """Puts `prompts(B)` [B or 1, P, D] before the inputs of B rows, while `on`; until `remove`."""

    def __init__(self, model: nn.Module, prompts: Callable[[int], Tensor]) -> None:
        self.on = True
        self._prompts = prompts
        self._now: tuple[int, Tensor] | None = None
        decoder = decoder_of(model)
        self._hooks = [
            decoder.register_forward_pre_hook(self._insert, with_kwargs=True),
            decoder.register_forward_hook(self._strip),
        ]

    @staticmethod
    def refusal(model: nn.Module, batch: Batch) -> str | None:
        """Why this model's inputs can have no prompt before them; None when they can.

        `batch` is one sample's; the pass ends at the decoder.
        """
        if any("rope_deltas" in vars(module) for module in model.modules()):
            return "counts positions on its own (rotary deltas), which a prompt would displace"
        given = _given(model, batch)
        embeds, mask, positions = (
            given.pop(name, None) for name in ("inputs_embeds", "attention_mask", "position_ids")
        )
        if embeds is None:
            return "gives its language model no inputs_embeds by keyword"
        if mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 2):
            return "gives its language model a finished attention mask"
        if positions is not None and positions.ndim != 2:
            return "gives its language model positions along several axes"
        for name, value in given.items():
            if isinstance(value, Tensor) and embeds.shape[1] in value.shape[:2]:
                return f"gives its language model {name}, which would no longer fit its inputs"
        return None

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _insert(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._now = None
        if not self.on:
            return None
        cache = key_value_cache.given(kwargs)
        seen = cache.get_seq_length() if cache is not None else 0
        if seen:
            return args, kwargs | _counted(seen, kwargs)
        embeds, mask = kwargs["inputs_embeds"], kwargs.get("attention_mask")
        prompts = self._prompts(len(embeds)).to(embeds.dtype).expand(len(embeds), -1, -1)
        first = _first(mask, embeds)
        self._now = (prompts.shape[1], first)
        changed = {"inputs_embeds": inserted(embeds, prompts, first)}
        return args, kwargs | changed | _put(kwargs, prompts.shape[1], first)

    def _strip(self, _: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if self._now is None:
            return output
        output.last_hidden_state = stripped(output.last_hidden_state, *self._now)
        if output.get("hidden_states") is not None:
            states = (stripped(state, *self._now) for state in output.hidden_states)
            output.hidden_states = tuple(states)
        self._now = None
        return output


class _Given(Exception):  # noqa: N818  (it carries values, it is no error)
    def __init__(self, kwargs: dict[str, Any]) -> None:
        self.kwargs = kwargs


def _given(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """The keywords that the decoder is called with."""

    def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _Given(kwargs)

    weight = next(model.parameters())
    hook = decoder_of(model).register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with components.evaluating(model), torch.no_grad():
            model(**to_model(batch, device=weight.device, dtype=weight.dtype), use_cache=False)
    except _Given as given:
        return dict(given.kwargs)
    finally:
        hook.remove()
    return {}


def _counted(seen: int, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Mask and positions of inputs that follow `seen` cached ones, prompts among them."""
    mask, positions = kwargs.get("attention_mask"), kwargs.get("position_ids")
    embeds = kwargs["inputs_embeds"]
    if mask is not None:
        count = seen + embeds.shape[1] - mask.shape[1]
    elif positions is not None:
        # Without a mask there is no padding, so a position is the number of inputs before it.
        count = seen - int(positions[0, 0])
    else:
        return {}
    first = _first(mask, embeds)
    changed = _put(kwargs | {"position_ids": None}, count, first)
    return changed | ({} if positions is None else {"position_ids": positions + count})


def _put(kwargs: dict[str, Any], count: int, first: Tensor) -> dict[str, Any]:
    """Mask and positions, where there are any, with `count` more at `first`."""
    changed = {}
    mask, positions = kwargs.get("attention_mask"), kwargs.get("position_ids")
    if mask is not None:
        changed["attention_mask"] = inserted(mask, mask.new_ones(len(mask), count), first)
    if positions is not None:
        rows = positions.expand(len(first), -1)
        steps = torch.arange(count, device=rows.device)
        new = rows.gather(1, first.unsqueeze(1)) + steps
        changed["position_ids"] = inserted(rows + count, new, first)
    return changed


def _first(mask: Tensor | None, embeds: Tensor) -> Tensor:
    """The place of each row's first real input [B]; prompts stay beside it under left padding."""
    if mask is None:
        return torch.zeros(len(embeds), dtype=torch.long, device=embeds.device)
    return mask.int().argmax(dim=1)


def _places(rows: Tensor, length: int) -> Tensor:
    return torch.arange(length, device=rows.device).expand(len(rows), -1)


def _taken(rows: Tensor, index: Tensor) -> Tensor:
    shape = index.shape + rows.shape[2:]
    return rows.gather(1, index.reshape(index.shape + (1,) * (rows.ndim - 2)).expand(shape))
