"""Reads what a published processor brings along: its chat template, its placeholders.

Knows processors of transformers; no weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from clmm.configuration_mmllm import MMLLMConfig
from clmm.processor_inputs import placeholders
from clmm.turns import plain_template
from streams.settings import SettingError


def template_of(source: Any, *, otherwise: str | None = None) -> str:
    """The processor's chat template, else its tokenizer's, else `otherwise`, else the plain one.

    Never none: a processor that is loaded without a template would take our own model's.
    """
    for holder in (source, source.tokenizer):
        found = getattr(holder, "chat_template", None)
        if isinstance(found, dict):
            found = found.get("default")
        if found:
            return str(found)
    return otherwise or plain_template(placeholders(source))


def check(processor: Any, config: MMLLMConfig) -> None:
    """Raises SettingError when the processor's placeholders or media are not the model's."""
    size = config.text_config.vocab_size
    for name, token_id in config.token_ids.items():
        token = getattr(processor, f"{name}_token")
        found = processor.tokenizer.convert_tokens_to_ids(token)
        if found != token_id:
            raise SettingError(
                f"token_ids.{name}: {token_id} in config.json, but the tokenizer's {token!r} is "
                f"{found}"
            )
        if not 0 <= token_id < size:
            raise SettingError(f"token_ids.{name}: {token_id} is outside of {size} embeddings")
    if "image" not in config.inputs:
        return
    blank = np.zeros((32, 48, 3), np.uint8)
    made = processor.image_processor([blank], return_tensors="pt")["pixel_values"]
    wanted = config.encoder("image").shape
    if tuple(made.shape) != (1, *wanted):
        raise SettingError(
            f"image_processor: makes {tuple(made.shape[1:])} of an image; the encoder sees {wanted}"
        )
