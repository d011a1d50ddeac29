"""The processor of the multimodal LLM, and its byte-level tokenizer.

Serves every input of a composition: one placeholder in the text becomes as many as the model will
fill, and each input's media go through that input's own preprocessor. Knows no weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image as Pillow
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    BatchFeature,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)

from clmm import given_media, saved_preprocessors, signal_tokens
from clmm.configuration_mmllm import MMLLMConfig
from clmm.modeling_mmllm import values_key

IMAGE = "<image>"
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "<|{{ message['role'] }}|>"
    "{%- if message['content'] is string -%}{{ message['content'] }}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'text' -%}{{ part['text'] }}{%- else -%}<{{ part['type'] }}>"
    "{%- endif -%}{%- endfor -%}{%- endif -%}"
    "{%- if message['role'] == 'assistant' -%}{{ eos_token }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)
"""A part of another type than text, such as audio, is its input's placeholder."""

SLOTS = {"image": "image_processor", "audio": "feature_extractor"}
"""Where transformers' tools look for an input's preprocessor, in an object and in JSON."""
_KEPT = ("chat_template", "signals", "image_start", "image_end", "images_first")
_LIMITS = ("n_samples", "nb_max_samples", "samples")
"""What preprocessors call the samples that they would cut a longer recording to."""
_INSTRUCTION = "qformer_tokenizer"
_OLDER = ("AudioProcessor", "InstructionProcessor")
"""What was converted before one class served all inputs names these; it loads as that class."""


def byte_tokenizer(
    corpus: Iterable[str] = (), *, vocabulary: int = 0, image: bool = True
) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as GPT-2's: 256 bytes and six marks, so that no text is out of vocabulary.

    `corpus` teaches merges until there are `vocabulary` tokens; without it, every byte is a token.
    Without `image` there are five marks, and the placeholder of images may be added anywhere.
    """
    marks = ["<pad>", "</s>", *([IMAGE] if image else []), "<|user|>", "<|assistant|>",
             "<|system|>"]  # fmt: skip
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
    """Text and media → what `MMLLMForConditionalGeneration` takes.

    `preprocessors` has one for each input (`image_processor` is the image's), and `num_tokens` how
    many tokens one medium of it becomes. `placeholders` says what stands for a medium in a text
    where that is not `<audio>` for audio, and so on; `image_start` and `image_end` come around all
    that an image becomes. With `images_first` those tokens stand in front of a row, before what the
    tokenizer begins it with. `signals` has the number of signal tokens of each output; [IMG] in a
    text becomes as many. `qformer_tokenizer` is for a projector that reads the instruction: the
    text without its placeholders, in tokens of that projector's own.

    Raises ValueError for an input without a count, and a mark that the tokenizer does not know.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        num_tokens: Mapping[str, int] | None = None,
        chat_template: str | None = CHAT_TEMPLATE,
        signals: Mapping[str, int] | None = None,
        *,
        preprocessors: Mapping[str, Any] | None = None,
        placeholders: Mapping[str, str] | None = None,
        image_start: str = "",
        image_end: str = "",
        images_first: bool = False,
        qformer_tokenizer: Any = None,
    ) -> None:
        super().__init__(tokenizer=tokenizer, chat_template=chat_template)
        seeing = {} if image_processor is None else {"image": image_processor}
        self.preprocessors = {**seeing, **(preprocessors or {})}
        self.num_tokens = dict(num_tokens or dict.fromkeys(self.preprocessors, 1))
        self.image_start, self.image_end, self.images_first = image_start, image_end, images_first
        self.signals = dict(signals or {})
        self.qformer_tokenizer = qformer_tokenizer
        if self.num_tokens.keys() != self.preprocessors.keys():
            raise ValueError(
                f"num_tokens: counts for {[*self.num_tokens]}, but preprocessors for "
                f"{[*self.preprocessors]}"
            )
        for name, count in self.num_tokens.items():
            if not isinstance(count, int) or count < 1:
                raise ValueError(f"num_tokens.{name}: {count!r}; give 1 or more")
        for name in placeholders or {}:
            if name not in self.preprocessors:
                raise ValueError(f"placeholders.{name}: there is no preprocessor of {name}")
        self.placeholders = {name: f"<{name}>" for name in self.preprocessors}
        self.placeholders |= placeholders or {}
        for name, token in self.placeholders.items():
            # By these names transformers' tools find them.
            setattr(self, f"{name}_token", token)
            setattr(self, f"{name}_token_id", self._id(token, f"placeholders.{name}"))
            if name in SLOTS:
                setattr(self, SLOTS[name], self.preprocessors[name])
        for name, number in self.signals.items():
            for signal in signal_tokens.signal_tokens(name, number):
                self._id(signal, f"signals.{name}")

    def _id(self, token: str, where: str) -> int:
        tokenizer: Any = self.tokenizer
        found = tokenizer.convert_tokens_to_ids(token)
        if found in (None, tokenizer.unk_token_id):
            raise ValueError(f"{where}: the tokenizer has no {token}; add it as a special token")
        return int(found)

    @classmethod
    def get_attributes(cls) -> list[str]:
        """What transformers itself saves and loads; how many others there are, each says."""
        return ["tokenizer"]

    @property
    def model_input_names(self) -> list[str]:
        """Keys that a call may make."""
        instruction = ["input_ids", "attention_mask"] if self.qformer_tokenizer else []
        return [
            *self.tokenizer.model_input_names,
            *map(values_key, self.preprocessors),
            *(f"qformer_{key}" for key in instruction),
        ]

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        videos: Any = None,
        audio: Any = None,
        *,
        sampling_rate: int | None = None,
        padding: bool | str = False,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        add_special_tokens: bool = True,
        **kwargs: Any,
    ) -> BatchFeature:
        """`text` holds one placeholder a medium; each input's media come in reading order.

        A video is uint8 [frames, height, width, 3] or a list of pictures; a recording floats
        [samples] at `sampling_rate`, or the encoder's own where that is not said. Inputs of other
        names come under these: `points` [n, 3 or 6], `depth`, `thermal`, `imu`. Media may lie in
        nested lists.

        Raises ValueError where placeholders and media are not as many, with both numbers; for
        another sampling rate than the encoder's, with both; for a recording that is longer than the
        encoder hears; and for media of what is no input.
        """
        texts = [text] if isinstance(text, str) else list(text or [])
        named = {"images": images, "videos": videos, "audio": audio, **kwargs}
        media = given_media.by_input(named, [*self.preprocessors])
        expanded = texts
        for name, token in self.placeholders.items():
            placeholders = sum(t.count(token) for t in texts)
            if placeholders != len(media[name]):
                raise ValueError(
                    f"{placeholders} {token} placeholders in the text, {len(media[name])} "
                    f"{given_media.plural(name)}"
                )
            many = token * self.num_tokens[name]
            if name == "image":
                many = "" if self.images_first else self.image_start + many + self.image_end
            expanded = [t.replace(token, many) for t in expanded]
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
            self._put_images_first(rows, texts)
            data = dict(self.tokenizer.pad(rows, **shape))
        else:
            data = dict(self.tokenizer(expanded, **words, **shape))
        for name, given in media.items():
            if given:
                data[values_key(name)] = self._preprocessed(
                    name, given, sampling_rate=sampling_rate, return_tensors=return_tensors or "pt"
                )
        if self.qformer_tokenizer is not None:
            data |= self._instruction(texts, padding=padding, return_tensors=return_tensors)
        return BatchFeature(data)

    def _preprocessed(
        self, name: str, media: list[Any], *, sampling_rate: int | None, return_tensors: str
    ) -> Any:
        preprocessor = self.preprocessors[name]
        rate = getattr(preprocessor, "sampling_rate", None)
        limits = (getattr(preprocessor, key, None) for key in _LIMITS)
        longest = next((limit for limit in limits if limit), None)
        how = {} if rate is None else {"sampling_rate": rate}
        if rate is not None and sampling_rate not in (None, rate):
            raise ValueError(
                f"{name}: recordings of {sampling_rate} Hz, but the encoder hears {rate} Hz; "
                "resample them first"
            )
        kind = "audio" if rate else name
        arrays = [
            given_media.checked(medium, kind, f"{name}[{number}]", longest=longest)
            for number, medium in enumerate(media)
        ]
        made = preprocessor(arrays, return_tensors=return_tensors, **how)
        # An input of a name of its own has the preprocessor of another.
        (values,) = [made[values_key(name)]] if values_key(name) in made else made.values()
        if len(values) != len(media):
            raise ValueError(
                f"{name}: {len(media)} were given, but {len(values)} were made of them"
            )
        return values

    def _put_images_first(self, rows: Any, texts: Sequence[str]) -> None:
        token = self.placeholders["image"]
        for row, t in enumerate(texts):
            count = self.num_tokens["image"] * t.count(token)
            first = [self.tokenizer.convert_tokens_to_ids(token)] * count
            rows["input_ids"][row] = first + rows["input_ids"][row]
            rows["attention_mask"][row] = [1] * len(first) + rows["attention_mask"][row]

    def _instruction(self, texts: Sequence[str], **how: Any) -> dict[str, Any]:
        """The text without its placeholders, padded on its own tokenizer's side."""
        words = texts
        for token in self.placeholders.values():
            words = [t.replace(token, "") for t in words]
        read = self.qformer_tokenizer
        made = read([t.strip() for t in words], return_token_type_ids=False, **how)
        longest = max(map(len, made["input_ids"]), default=0)
        if longest > read.model_max_length:
            raise ValueError(
                f"an instruction of {longest} tokens, but the Q-Former reads "
                f"{read.model_max_length}"
            )
        return {f"qformer_{key}": made[key] for key in ("input_ids", "attention_mask")}

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

    def to_dict(self) -> dict[str, Any]:
        """All but the tokenizers and the chat template, as JSON has it."""
        saved = {name: one.to_dict() for name, one in self.preprocessors.items()}
        return {
            "processor_class": MMLLMProcessor.__name__,
            "num_tokens": self.num_tokens,
            "signals": self.signals,
            "image_start": self.image_start,
            "image_end": self.image_end,
            "images_first": self.images_first,
            _INSTRUCTION: self.qformer_tokenizer is not None,
            **{f"{name}_token": token for name, token in self.placeholders.items()},
            **{slot: saved.pop(name) for name, slot in SLOTS.items() if name in saved},
            "preprocessors": saved,
        }

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """JSON and tokenizers into a folder; nothing is pickled."""
        if self.qformer_tokenizer is not None:
            self.qformer_tokenizer.save_pretrained(Path(save_directory) / _INSTRUCTION)
        return super().save_pretrained(save_directory, *args, **kwargs)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any
    ) -> MMLLMProcessor:
        """From a folder or hub id. Raises ValueError for settings that make no processor."""
        source = pretrained_model_name_or_path
        values, _ = cls.get_processor_dict(source, **kwargs)
        preprocessors = {}
        if SLOTS["image"] in values:
            # Of the classes that bear the name it takes the one whose libraries are there.
            preprocessors["image"] = AutoImageProcessor.from_pretrained(source, **kwargs)
        saved = dict(values.get("preprocessors") or {})
        if SLOTS["audio"] in values:
            saved["audio"] = values[SLOTS["audio"]]
        preprocessors |= {
            name: saved_preprocessors.restored(one, where=f"preprocessors.{name}")
            for name, one in saved.items()
        }
        reads = None
        if values.get(_INSTRUCTION) or values.get("processor_class") == _OLDER[1]:
            within = {**kwargs, "subfolder": _INSTRUCTION}
            reads = AutoTokenizer.from_pretrained(source, **within)
        tokens = {name: values.get(f"{name}_token") for name in preprocessors}
        return MMLLMProcessor(
            tokenizer=AutoTokenizer.from_pretrained(source, **kwargs),
            preprocessors=preprocessors,
            num_tokens=values.get("num_tokens"),
            placeholders={name: token for name, token in tokens.items() if token is not None},
            qformer_tokenizer=reads,
            **{key: values[key] for key in _KEPT if key in values},
        )


AutoProcessor.register(MMLLMConfig, MMLLMProcessor)
for _older in (type(name, (MMLLMProcessor,), {}) for name in _OLDER):
    # AutoProcessor finds by its name what is registered for anything.
    AutoProcessor.register(_older, _older)
