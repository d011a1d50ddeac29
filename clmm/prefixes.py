"""Prefixes: learnt keys and values that chosen layers of a language model attend to besides.

Through transformers' attention interface, so that no model class is known. A prefix stands outside
the sequence and its cache: it has no position, every input sees it, and it is joined anew at every
pass. Knows modules and tensors; nothing of samples, strategies or files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from clmm import components, key_value_cache
from clmm.batching import Batch, to_model
from clmm.prompts import decoder_of

NAME = "prefixes"


class Prefixes:
    """Joins `prefixes(B)`, layer → [B, 2, heads, P, width], to the keys and values of B rows.

    Asked once for a prompt; later passes of `generate` keep what it gave. While `on`; until
    `remove`.
    """

    def __init__(self, model: nn.Module, prefixes: Callable[[int], Mapping[int, Tensor]]) -> None:
        decoder = decoder_of(model)
        if hasattr(decoder, NAME):
            raise RuntimeError("the model carries prompts; close its other Learner first")
        AttentionInterface.register(NAME, _attend)
        AttentionMaskInterface.register(NAME, _mask)
        self._prefixes = prefixes
        self._now: Mapping[int, Tensor] = {}
        self._config, self._plain = decoder.config, decoder.config._attn_implementation
        layers = [one for one in decoder.modules() if hasattr(one, "layer_idx")]
        self._modules = [decoder, *layers]
        for module in self._modules:
            module.prefixes = self
        self._hook = decoder.register_forward_pre_hook(self._choose, with_kwargs=True)
        self.on = True

    @staticmethod
    def refusal(model: nn.Module, batch: Batch) -> str | None:
        """Why this model's layers can have no prefix; None when they can."""
        if not shapes(model, batch):
            return "does not attend through transformers' attention interface"
        return None

    @property
    def on(self) -> bool:
        return bool(self._config._attn_implementation == NAME)

    @on.setter
    def on(self, on: bool) -> None:
        self._config._attn_implementation = NAME if on else self._plain

    def remove(self) -> None:
        self.on = False
        self._hook.remove()
        for module in self._modules:
            del module.prefixes

    def joined(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, heads, P + L, width] of one layer."""
        if layer not in self._now:
            return key, value
        prefix = self._now[layer].to(key.dtype)
        if len(prefix) != len(key):
            raise RuntimeError(f"prefixes were chosen for {len(prefix)} rows, but {len(key)} came")
        return torch.cat([prefix[:, 0], key], dim=2), torch.cat([prefix[:, 1], value], dim=2)

    def _choose(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        cache = key_value_cache.given(kwargs)
        if self.on and not (cache is not None and cache.get_seq_length()):
            given = kwargs.get("inputs_embeds")
            self._now = self._prefixes(len(kwargs["input_ids"] if given is None else given))


def shapes(model: nn.Module, batch: Batch) -> dict[int, tuple[int, int]]:
    """Layer → heads of its keys and values, and their width; of layers that can have a prefix."""
    found: dict[int, tuple[int, int]] = {}

    class Watching(Prefixes):
        def joined(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
            if key.shape == value.shape:
                found[layer] = (key.shape[1], key.shape[3])
            return key, value

    weight = next(model.parameters())
    watching = Watching(model, lambda rows: {})
    try:
        with components.evaluating(model), torch.no_grad():
            model(**to_model(batch, device=weight.device, dtype=weight.dtype), use_cache=False)
    finally:
        watching.remove()
    return found


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
) -> Any:
    length = key.shape[2]
    key, value = module.prefixes.joined(module.layer_idx, key, value)
    if key.shape[2] > length:
        attention_mask = nn.functional.pad(attention_mask, (key.shape[2] - length, 0), value=True)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


def _mask(*args: Any, **kwargs: Any) -> Any:
    """Always written out: a causal mask that is only meant has no room for a prefix."""
    return sdpa_mask(*args, **kwargs | {"allow_is_causal_skip": False})
