"""A processor whose text goes to the Q-Former too, in tokens of its own: InstructBLIP's.

Knows no weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import AutoProcessor, BatchFeature

from clmm.processing_mmllm import CHAT_TEMPLATE, IMAGE, MMLLMProcessor


class InstructionProcessor(MMLLMProcessor):
    """Adds `qformer_input_ids` and `qformer_attention_mask` [B, T]: the text without its images."""

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        qformer_tokenizer: Any = None,
        num_tokens: dict[str, int] | None = None,
        chat_template: str | None = CHAT_TEMPLATE,
        image_token: str = IMAGE,
        images_first: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            image_processor,
            tokenizer,
            num_tokens,
            chat_template,
            image_token=image_token,
            images_first=images_first,
            qformer_tokenizer=qformer_tokenizer,
        )

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        *,
        padding: bool | str = False,
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """As `MMLLMProcessor`'s; the instruction is padded on its own tokenizer's side."""
        data = super().__call__(
            images, text, padding=padding, return_tensors=return_tensors, **kwargs
        )
        texts = [text] if isinstance(text, str) else list(text or [])
        read: Any = self.qformer_tokenizer  # type: ignore[attr-defined]  # set by the base class
        words = read(
            [one.replace(self.image_token, "").strip() for one in texts],
            padding=padding,
            return_tensors=return_tensors,
            return_token_type_ids=False,
        )
        data["qformer_input_ids"] = words["input_ids"]
        data["qformer_attention_mask"] = words["attention_mask"]
        return data


# AutoProcessor finds by its name what is registered for anything.
AutoProcessor.register(InstructionProcessor, InstructionProcessor)
