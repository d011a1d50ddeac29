"""A prefix that a composed model keeps: learnt keys and values in each layer of its decoder.

P-tuning v2's prefix tuning without a network behind it (Li and Liang 2021, arXiv 2101.00190; Liu et
al. 2022, arXiv 2110.07602). peft's is a cache, which shifts positions and which only language
models without media take. Knows a decoder's settings; how attention takes it is `clmm/prefixes.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from clmm import components
from clmm.prefixes import Prefixes
from streams.settings import SettingError

NAME = "language_prefix"
"""Under which a language model has it."""


def shape(text: Any) -> tuple[int, int, int]:
    """Layers, heads of keys and values, and their width, by the language model's configuration."""
    heads = text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    return text.num_hidden_layers, getattr(text, "num_key_value_heads", None) or heads, width


class LanguagePrefix(nn.Module):
    """For each layer, keys and values [2, heads, tokens, width]."""

    def __init__(self, text: Any, tokens: int) -> None:
        super().__init__()
        layers, heads, width = shape(text)
        self.layers = nn.ParameterList(
            nn.Parameter(torch.randn(2, heads, tokens, width) * 0.02) for _ in range(layers)
        )


class _Kept(Prefixes):
    """Every row has the same one, at every pass."""

    def __init__(self, model: nn.Module, prefix: LanguagePrefix) -> None:
        self.prefix = prefix
        self.heard: set[int] = set()
        super().__init__(model, lambda rows: {})

    def joined(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        self.heard.add(layer)
        pair = self.prefix.layers[layer].to(key.dtype).unsqueeze(1)
        pair = pair.expand(-1, len(key), -1, -1, -1)
        return torch.cat([pair[0], key], dim=2), torch.cat([pair[1], value], dim=2)


def add_prefix(model: Any, tokens: int) -> None:
    """Gives a composed model's language model a prefix, which is saved with it.

    Raises SettingError where some layer would never see it.
    """
    language_model = model.language_model
    weight = language_model.get_input_embeddings().weight
    with weight.device:
        prefix = LanguagePrefix(model.config.text_config, tokens)
    setattr(language_model, NAME, prefix)
    model.config.prefix_tokens = tokens
    kept = _Kept(model, prefix)
    if weight.is_meta:
        return
    with components.evaluating(language_model), torch.no_grad():
        language_model(inputs_embeds=weight.new_zeros(1, 1, weight.shape[1]), use_cache=False)
    if len(kept.heard) < len(prefix.layers):
        kept.remove()
        delattr(language_model, NAME)
        model.config.prefix_tokens = 0
        raise SettingError(
            f"prefix: {len(prefix.layers) - len(kept.heard)} layers of the "
            f"{model.config.text_config.model_type} do not attend through transformers' attention "
            "interface, so no prefix can come to them"
        )
