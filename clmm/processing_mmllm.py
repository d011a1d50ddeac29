"""The processor of the multimodal LLM, and its byte-level tokenizer.

One placeholder in the text becomes as many as the model will fill. Knows no weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoProcessor,
    BatchFeature,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)

from clmm.configuration_mmllm import MMLLMConfig

IMAGE = "<image>"
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "<|{{ message['role'] }}|>"
    "{%- if message['content'] is string -%}{{ message['content'] }}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}<image>{%- else -%}{{ part['text'] }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{%- if message['role'] == 'assistant' -%}{{ eos_token }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)


def byte_tokenizer(corpus: Iterable[str] = (), *, vocabulary: int = 0) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as GPT-2's: 256 bytes and six marks, so that no text is out of vocabulary.

    `corpus` teaches merges until there are `vocabulary` tokens; without it, every byte is a token.
    """
    marks = ["<pad>", "</s>", IMAGE, "<|user|>", "<|assistant|>", "<|system|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=max(vocabulary, len(marks) + 256),
        special_tokens=marks,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        additional_special_tokens=marks[2:],
        clean_up_tokenization_spaces=False,
    )


class MMLLMProcessor(ProcessorMixin):
    """Text and images → what `MMLLMForConditionalGeneration` takes."""

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        num_tokens: dict[str, int] | None = None,
        chat_template: str | None = CHAT_TEMPLATE,
        **kwargs: Any,
    ) -> None:
        self.num_tokens = dict(num_tokens or {"image": 1})
        self.image_token = IMAGE
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE)

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        *,
        padding: bool | str = False,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """`text` holds one `<image>` an image; ValueError when the two numbers differ."""
        texts = [text] if isinstance(text, str) else list(text or [])
        flat = _flatten(images)
        placeholders = sum(t.count(IMAGE) for t in texts)
        if placeholders != len(flat):
            raise ValueError(f"{placeholders} {IMAGE} placeholders in the text, {len(flat)} images")
        expanded = [t.replace(IMAGE, IMAGE * self.num_tokens["image"]) for t in texts]
        side = {} if padding_side is None else {"padding_side": padding_side}
        data = dict(
            self.tokenizer(
                expanded,
                padding=padding,
                return_tensors=return_tensors,
                return_token_type_ids=False,
                **side,
            )
        )
        if flat:
            data |= self.image_processor(flat, return_tensors=return_tensors or "pt")
        return BatchFeature(data)


def _flatten(images: Any) -> list[Any]:
    if images is None:
        return []
    if isinstance(images, (list, tuple)):
        return [image for item in images for image in _flatten(item)]
    return [images]


AutoProcessor.register(MMLLMConfig, MMLLMProcessor)
