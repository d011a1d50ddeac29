"""The processor of the multimodal LLM, and its byte-level tokenizer.

One placeholder in the text becomes as many as the model will fill. Knows no weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from PIL import Image as Pillow
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoProcessor,
    BatchFeature,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)

from clmm import signal_tokens
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
    """Text and images → what `MMLLMForConditionalGeneration` takes.

    `signals` has the number of signal tokens of each output; [IMG] in a text becomes as many.
    `image_token` stands for an image in a text; `image_start` and `image_end` come around all that
    it becomes. With `images_first` those tokens stand in front of a row, before what the tokenizer
    begins it with.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        num_tokens: dict[str, int] | None = None,
        chat_template: str | None = CHAT_TEMPLATE,
        signals: dict[str, int] | None = None,
        image_token: str = IMAGE,
        image_start: str = "",
        image_end: str = "",
        images_first: bool = False,
        **kwargs: Any,
    ) -> None:
        self.image_start, self.image_end, self.images_first = image_start, image_end, images_first
        self.signals = dict(signals or {})
        self.num_tokens = dict(num_tokens or {"image": 1})
        self.image_token = image_token
        # What a subclass has besides, such as another tokenizer.
        more = {key: value for key, value in kwargs.items() if key in self.get_attributes()}
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **more)
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        for name, number in self.signals.items():
            for signal in signal_tokens.signal_tokens(name, number):
                if tokenizer.convert_tokens_to_ids(signal) in (None, tokenizer.unk_token_id):
                    raise ValueError(
                        f"signals.{name}: the tokenizer has no {signal}; add it with "
                        "signal_tokens.add_to"
                    )

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        *,
        padding: bool | str = False,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        add_special_tokens: bool = True,
        **kwargs: Any,
    ) -> BatchFeature:
        """`text` holds one `image_token` an image; ValueError when the two numbers differ."""
        texts = [text] if isinstance(text, str) else list(text or [])
        flat = _flatten(images)
        token = self.image_token
        placeholders = sum(t.count(token) for t in texts)
        if placeholders != len(flat):
            raise ValueError(f"{placeholders} {token} placeholders in the text, {len(flat)} images")
        count = self.num_tokens["image"]
        one = self.image_start + token * count + self.image_end
        expanded = [t.replace(token, "" if self.images_first else one) for t in texts]
        if self.image_start and self.image_start == self.image_end:
            # Between two images a mark that is both stands once.
            expanded = [
                t.replace(self.image_end + self.image_start, self.image_end) for t in expanded
            ]
        expanded = [signal_tokens.expand(t, self.signals) for t in expanded]
        side = {} if padding_side is None else {"padding_side": padding_side}
        shape = {"padding": padding, "return_tensors": return_tensors, **side}
        words = {"add_special_tokens": add_special_tokens, "return_token_type_ids": False}
        if self.images_first:
            rows = self.tokenizer(expanded, **words)
            for row, t in enumerate(texts):
                first = [self.image_token_id] * (count * t.count(token))
                rows["input_ids"][row] = first + rows["input_ids"][row]
                rows["attention_mask"][row] = [1] * len(first) + rows["attention_mask"][row]
            data = dict(self.tokenizer.pad(rows, **shape))
        else:
            data = dict(self.tokenizer(expanded, **words, **shape))
        if flat:
            made = self.image_processor(flat, return_tensors=return_tensors or "pt")
            data["pixel_values"] = made["pixel_values"]
        return BatchFeature(data)

    def post_process_multimodal_output(
        self,
        generated_outputs: Any,
        skip_special_tokens: bool = True,
        generation_mode: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Texts of token ids; or of generated media, Pillow images, or arrays of what is none."""
        if generation_mode in (None, "text"):
            return super().post_process_multimodal_output(
                generated_outputs, skip_special_tokens=skip_special_tokens, **kwargs
            )
        arrays = generated_outputs.float().cpu().numpy()
        if generation_mode != "image":
            return list(arrays)
        pixels = (arrays.transpose(0, 2, 3, 1) * 255).round().astype("uint8")
        return [Pillow.fromarray(picture) for picture in pixels]


def _flatten(images: Any) -> list[Any]:
    if images is None:
        return []
    if isinstance(images, (list, tuple)):
        return [image for item in images for image in _flatten(item)]
    return [images]


AutoProcessor.register(MMLLMConfig, MMLLMProcessor)
