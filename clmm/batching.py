"""Samples become a model's tensors: prompts, training rows and rows to score.

Works with any Hugging Face processor that has a chat template; what media it takes, and how, is
`clmm/processor_inputs.py`'s. Knows no model. Prompt and answer are tokenised apart and joined, so
training sees exactly the tokens that answering starts from. Each sample is processed alone and
kept, so a row never depends on the batch it is in; media tensors are then joined along their first
axis, padded with zeros where sizes differ, which is what LLaVA (`[images, 3, h, w]`), Qwen2-VL
(`[patches, d]` and `image_grid_thw`) and Idefics3 (`[1, tiles, 3, h, w]` and
`pixel_attention_mask`) expect of a batch. Nothing is ever truncated inside a prompt.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor
from transformers import ProcessorMixin

from clmm import decoder_rows
from clmm.encoded import Prompt, pack, unpack
from clmm.processor_inputs import Inputs
from clmm.turns import Turns
from streams.contents import files
from streams.sample import Image, Medium, Sample, Text

IGNORED = -100
"""The label of a token that is not learnt from, as in every Hugging Face model."""

Batch = dict[str, Tensor]
Spread = Callable[[Callable[[list[Hashable]], bytes], list[list[Hashable]]], list[bytes]]
TOKEN_KEYS = ("mm_token_type_ids", "token_type_ids")
FRESH_AT_ONCE = 64
CACHE_BYTES = 256 * 2**20


class SampleError(ValueError):
    """A sample that cannot become tensors; the message names it and where it came from."""


class Batcher:
    """Makes batches for one processor.

    `max_length` bounds a row's tokens: a longer prompt is an error, a longer answer loses its end
    with a warning. `encode_images` (pixel_values [n, 3, h, w] → features [n, tokens, width]) is
    the frozen encoder of a model that accepts `image_features`: features then replace pixels and
    are computed once a prompt. `cache_bytes` bounds the prompts that are kept, oldest first out.
    `decoder_start` is the id that the decoder of an encoder–decoder begins an answer with.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        *,
        max_length: int | None = None,
        encode_images: Callable[[Tensor], Tensor] | None = None,
        cache_bytes: int = CACHE_BYTES,
        decoder_start: int | None = None,
    ) -> None:
        self.decoder_start = decoder_start
        self.processor = processor
        self.max_length = max_length
        self.turns = Turns.of(processor)
        self.inputs = Inputs.of(processor)
        tokenizer = processor.tokenizer
        self.pad_id: int = (
            tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.turns.end_id
        )
        special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        special |= set(self.inputs.ids.values())
        self._special = torch.tensor(sorted(special), dtype=torch.int64)
        self._encode_images = encode_images
        self._cache: OrderedDict[Hashable, Prompt] = OrderedDict()
        self._cache_bytes, self._cache_limit = 0, cache_bytes
        self._answer_ids = lru_cache(maxsize=2**16)(self.turns.answer_ids)

    def training(
        self, samples: Sequence[Sample], answers: Sequence[Sequence[int]] | None = None
    ) -> Batch:
        """Right-padded rows of prompt, reference and end token; only the last two have labels.

        `answers` are token ids to put in the references' place, such as sampled ones. Of an
        interleaved document all text after its message has labels, no special token has: they
        stand for media and their borders.

        Raises SampleError when a row has no label or `max_length` leaves no room for the answer.
        """
        if answers is not None:
            return self._joined(samples, self.encode(samples), answers, cut=True)
        whole = [self._whole(sample) for sample in samples]
        targets = [
            (self.turns.end_id,) if document else self._reference_ids(sample)
            for sample, document in zip(samples, whole, strict=True)
        ]
        prompts = self.encode([w or sample for sample, w in zip(samples, whole, strict=True)])
        heads = [
            self._head(sample) if document else len(prompt.ids)
            for sample, document, prompt in zip(samples, whole, prompts, strict=True)
        ]
        return self._joined(samples, prompts, targets, heads, cut=True)

    def continuations(self, samples: Sequence[Sample], texts: Sequence[str]) -> Batch:
        """As `training`, with `texts[i]` in place of the reference of `samples[i]`; never cut."""
        for sample, text in zip(samples, texts, strict=True):
            self._require_plain(sample, text)
        targets = [self.answer_ids(t, s.plain) for s, t in zip(samples, texts, strict=True)]
        return self._joined(samples, self.encode(samples), targets, cut=False)

    def prompts(self, samples: Sequence[Sample]) -> Batch:
        """Left-padded prompts, ready for `generate`."""
        encoded = self.encode(samples)
        batch = self._collate(encoded, [prompt.ids for prompt in encoded], left=True)
        return decoder_rows.opened(batch, self.decoder_start)

    def redrawn(
        self, batch: Batch, samples: Sequence[Sample], change: Callable[[Sample, Tensor], Tensor]
    ) -> Batch:
        """`batch`, whose last rows with pictures are `samples`, with `change(sample, pixels)` in
        place of their pixels. Neither pixels nor what is made of them are kept."""
        pixels = _join([change(one, self._encode(one).media["pixel_values"]) for one in samples])
        key, values = "pixel_values", pixels
        if self._encode_images is not None:
            key, values = "image_features", self._encode_images(pixels).cpu()
        before = batch[key][: len(batch[key]) - len(values)]
        return batch | {key: torch.cat([before, values.to(before.dtype)])}

    def check(self, samples: Sequence[Sample]) -> None:
        """Raises SampleError for the first sample that training could not use; opens all media."""
        for start in range(0, len(samples), FRESH_AT_ONCE):
            self.training(samples[start : start + FRESH_AT_ONCE])

    def encode(self, samples: Sequence[Sample]) -> list[Prompt]:
        """The prompts of `samples`, from the cache where it has them."""
        keys = [content(sample) for sample in samples]
        found: dict[Hashable, Prompt] = {}
        fresh: dict[Hashable, Prompt] = {}
        for key, sample in zip(keys, samples, strict=True):
            if key in self._cache:
                self._cache.move_to_end(key)
                found[key] = self._cache[key]
            elif key not in fresh:
                # What is kept must serve training too, even when an answer asks for it first.
                with torch.inference_mode(False):
                    fresh[key] = self._encode(sample)
        if self._encode_images is not None:
            with torch.inference_mode(False):
                fresh = dict(zip(fresh, self._with_features(list(fresh.values())), strict=True))
        self._keep(fresh)
        found |= fresh
        return [found[key] for key in keys]

    def encode_ahead(self, samples: Sequence[Sample], spread: Spread) -> None:
        """Encodes what is not kept yet, as far as it can be kept.

        `spread(work, chunks)` returns `[work(chunk) for chunk in chunks]`, computed where it likes:
        what `work` returns are bytes.
        """
        fresh = {k: s for s in samples if (k := content(s)) not in self._cache}
        if not fresh:
            return
        most = [max(fresh.values(), key=partial(_shown, kind)) for kind in self.inputs.kinds]
        largest = max(prompt.size_bytes for prompt in self.encode(most or list(fresh.values())[:1]))
        room = (self._cache_limit - self._cache_bytes) // largest
        keys = list(fresh)[:room]
        chunks = [keys[i : i + FRESH_AT_ONCE] for i in range(0, len(keys), FRESH_AT_ONCE)]
        packed = spread(lambda chunk: pack(self.encode([fresh[key] for key in chunk])), chunks)
        for chunk, data in zip(chunks, packed, strict=True):
            unpacked = zip(chunk, unpack(data), strict=True)
            self._keep({key: prompt for key, prompt in unpacked if key not in self._cache})

    def _keep(self, prompts: Mapping[Hashable, Prompt]) -> None:
        for key, prompt in prompts.items():
            self._cache[key] = prompt
            self._cache_bytes += prompt.size_bytes
        while self._cache_bytes > self._cache_limit:
            self._cache_bytes -= self._cache.popitem(last=False)[1].size_bytes

    def answer_ids(self, text: str, plain: bool = False) -> tuple[int, ...]:
        """The tokens of an answer as they follow a (plain) prompt, end token included."""
        return self._answer_ids(text, plain)

    def _encode(self, sample: Sample) -> Prompt:
        for message in sample.messages:
            self._require_plain(sample, message.text)
        try:
            given = self.inputs.keywords(sample)
        except ValueError as error:
            raise SampleError(f"{_name(sample)}: {error}") from error
        rendered = self.turns.render(sample)
        try:
            raw: dict[str, Any] = self.processor(
                text=[rendered],
                **given,
                return_tensors="pt",
                add_special_tokens=self.turns.adds_special_tokens(rendered),
            )
        except (ValueError, IndexError, TypeError) as error:
            raise SampleError(f"{_name(sample)}: the processor refused it: {error}") from error
        ids = raw["input_ids"][0].long().numpy()
        per_token = {key: raw[key][0].numpy() for key in TOKEN_KEYS if key in raw}
        if not len(ids):
            # Nothing is given and the tokenizer has no start token: as behind another document.
            ids = np.array([self.turns.end_id])
            per_token = {key: np.zeros(1, dtype=np.int64) for key in per_token}
        rest = {"input_ids", "attention_mask", *TOKEN_KEYS}
        media = {key: value for key, value in raw.items() if key not in rest}
        for key, value in media.items():
            if not isinstance(value, Tensor) or key == "cross_attention_mask":
                _refuse(sample, f"processors that return {key!r} this way are not supported")
        try:
            self.inputs.check(sample, ids, media)
        except ValueError as error:
            raise SampleError(f"{_name(sample)}: {error}") from None
        if self.max_length is not None and len(ids) > self.max_length:
            _refuse(
                sample,
                f"its prompt has {len(ids)} tokens, media included, but max_length is "
                f"{self.max_length}; raise max_length or use smaller media",
            )
        return Prompt(ids=ids, per_token=per_token, media=media)

    def _require_plain(self, sample: Sample, text: str) -> None:
        try:
            self.inputs.require_plain(text)
        except ValueError as error:
            raise SampleError(f"{_name(sample)}: {error}") from None

    def _with_features(self, prompts: list[Prompt]) -> list[Prompt]:
        assert self._encode_images is not None
        seeing = [i for i, prompt in enumerate(prompts) if "pixel_values" in prompt.media]
        for start in range(0, len(seeing), FRESH_AT_ONCE):
            chunk = seeing[start : start + FRESH_AT_ONCE]
            pixels = [prompts[i].media["pixel_values"] for i in chunk]
            with torch.no_grad():
                features = self._encode_images(torch.cat(pixels)).cpu()
            rows = features.split([len(images) for images in pixels])
            for i, row in zip(chunk, rows, strict=True):
                # A view would keep the whole chunk alive after its neighbours are evicted.
                media = {**prompts[i].media, "image_features": row.clone()}
                del media["pixel_values"]
                prompts[i] = Prompt(ids=prompts[i].ids, per_token=prompts[i].per_token, media=media)
        return prompts

    def _whole(self, sample: Sample) -> Sample | None:
        """An interleaved document as one message; None for what has text alone to answer."""
        if all(isinstance(part, Text) for part in sample.reference):
            return None
        if not sample.plain or self.decoder_start is not None:
            _refuse(sample, "its reference holds media, but this model answers in text only")
        if not sample.reference_text.strip():
            _refuse(sample, "it has no text behind its message, so no token to learn from")
        message = sample.messages[0]
        return replace(
            sample, messages=(replace(message, parts=(*message.parts, *sample.reference)),)
        )

    def _head(self, sample: Sample) -> int:
        """How many tokens a document's message has; none where all of it is to be learnt."""
        given = sample.messages[0].media or sample.messages[0].text
        return len(self.encode([sample])[0].ids) if given else 0

    def _reference_ids(self, sample: Sample) -> tuple[int, ...]:
        text = sample.reference_text
        if not text.strip():
            _refuse(sample, "it has no answer, so no token to learn from")
        self._require_plain(sample, text)
        return self.answer_ids(text, sample.plain)

    def _joined(
        self,
        samples: Sequence[Sample],
        prompts: Sequence[Prompt],
        targets: Sequence[Sequence[int]],
        heads: Sequence[int] | None = None,
        *,
        cut: bool,
    ) -> Batch:
        """Rows of prompt and target; targets have labels, and text behind `heads` tokens."""
        rows = []
        for sample, prompt, ids in zip(samples, prompts, targets, strict=True):
            row = np.concatenate([prompt.ids, ids])
            if self.max_length is not None and len(row) > self.max_length:
                if not cut or len(prompt.ids) >= self.max_length:
                    _refuse(
                        sample,
                        f"prompt and answer have {len(prompt.ids)} + {len(row) - len(prompt.ids)} "
                        f"tokens, but max_length is {self.max_length}",
                    )
                warnings.warn(
                    f"answers are cut to max_length={self.max_length}, first {_name(sample)} "
                    f"from {len(row)} tokens",
                    stacklevel=3,
                )
                row = row[: self.max_length]
            rows.append(row)
        if self.decoder_start is not None:
            batch = self._collate(prompts, [prompt.ids for prompt in prompts], left=False)
            own = [row[len(prompt.ids) :] for row, prompt in zip(rows, prompts, strict=True)]
            return batch | decoder_rows.answers(own, self.decoder_start, self.pad_id)
        batch = self._collate(prompts, rows, left=False)
        place = torch.arange(batch["input_ids"].shape[1])
        learnt = place >= torch.tensor([len(prompt.ids) for prompt in prompts])[:, None]
        if heads is not None:
            text = ~torch.isin(batch["input_ids"], self._special)
            learnt |= (place >= torch.tensor(heads)[:, None]) & text
        learnt &= batch["attention_mask"].bool()
        batch["labels"] = batch["input_ids"].masked_fill(~learnt, IGNORED)
        return batch

    def _collate(
        self, prompts: Sequence[Prompt], rows: Sequence[np.ndarray], *, left: bool
    ) -> Batch:
        """Pads token rows (each begins with its prompt's ids) and joins media."""
        width = max(len(row) for row in rows)
        shape = (len(rows), width)
        ids, mask = np.full(shape, self.pad_id, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        keys = sorted({key for prompt in prompts for key in prompt.per_token})
        per_token = {key: np.zeros(shape, dtype=np.int64) for key in keys}
        for i, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
            start = width - len(row) if left else 0
            ids[i, start : start + len(row)] = row
            mask[i, start : start + len(row)] = 1
            for key, values in prompt.per_token.items():
                per_token[key][i, start : start + len(values)] = values
        arrays = {"input_ids": ids, "attention_mask": mask, **per_token}
        batch = {key: torch.from_numpy(array) for key, array in arrays.items()}
        for key in sorted({key for prompt in prompts for key in prompt.media}):
            batch[key] = _join([p.media[key] for p in prompts if key in p.media])
        return batch


def to_model(batch: Batch, *, device: torch.device, dtype: torch.dtype) -> Batch:
    """The batch on the model's device, floating media in its precision."""
    return {
        key: value.to(device, dtype if value.is_floating_point() else None, non_blocking=True)
        for key, value in batch.items()
    }


def _join(tensors: list[Tensor]) -> Tensor:
    """Concatenates along the first axis; trailing sizes that differ are padded with zeros."""
    shapes = [tensor.shape[1:] for tensor in tensors]
    if all(shape == shapes[0] for shape in shapes):
        return torch.cat(tensors)
    widest = [max(sizes) for sizes in zip(*shapes, strict=True)]
    joined = tensors[0].new_zeros(sum(len(tensor) for tensor in tensors), *widest)
    start = 0
    for tensor in tensors:
        corner = tuple(slice(size) for size in tensor.shape[1:])
        joined[(slice(start, start + len(tensor)), *corner)] = tensor
        start += len(tensor)
    return joined


def content(sample: Sample) -> Hashable:
    """Equal for prompts of equal content, whatever the ids: probes rebuild their samples."""
    turns = tuple(
        (
            message.role,
            tuple(p.text if isinstance(p, Text) else _digest(p) for p in message.parts),
        )
        for message in sample.messages
    )
    return ("plain", *turns) if sample.plain else turns


def _digest(medium: Medium) -> Hashable:
    """A file may be an image here and a video there: but for an image the kind is part of it."""
    kind = (
        () if isinstance(medium, Image) else (medium.kind, getattr(medium, "sampling_rate", None))
    )
    if isinstance(source := medium.source, np.ndarray):
        data = np.ascontiguousarray(source).data
        return *kind, source.shape, hashlib.blake2b(data, digest_size=16).digest()
    found = [file.stat() if file.exists() else None for file in files(medium)]
    states = [status and (status.st_mtime_ns, status.st_size) for status in found]
    return *kind, str(source), *states


def _shown(kind: str, sample: Sample) -> int:
    return sum(medium.kind == kind for medium in sample.media)


def _name(sample: Sample) -> str:
    origin = sample.provenance
    return f"sample {sample.id} ({origin.source}, {origin.split}, {origin.item})"


def _refuse(sample: Sample, reason: str) -> NoReturn:
    raise SampleError(f"{_name(sample)}: {reason}")
