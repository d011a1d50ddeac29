"""A model answers samples: greedy decoding, and log-likelihoods of given continuations.

Implements `safety.answering`. Knows a model and its batcher; knows nothing of strategies, so a
router wraps this. With several processes each answers its share and all get every answer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from peft.helpers import disable_input_dtype_casting
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel

from clmm import decoder_rows, key_value_cache
from clmm.batching import IGNORED, Batch, Batcher, SampleError, to_model
from clmm.components import evaluating, merged
from clmm.decoding_options import Decoding
from clmm.objective import Drawn
from streams.sample import Answer, Sample, Text

T = TypeVar("T")


class Answerer:
    """Answers with `model`, whose mode (train or eval) is as before after every call.

    `batch_size` rows at a time, longest first; on CUDA it is halved when memory runs out.
    `autocast` computes in that precision. `share_prompts` runs each prompt once for all its
    continuations; None decides: not for models whose positions the cache does not carry
    (Qwen-VL's rotary deltas), nor with learnt prompt tokens, nor for an encoder–decoder.
    `decoding` changes how answers are made.
    """

    def __init__(
        self,
        model: nn.Module,
        batcher: Batcher,
        *,
        batch_size: int = 64,
        autocast: torch.dtype | None = None,
        share_prompts: bool | None = None,
        route: str | None = None,
        decoding: Decoding | None = None,
    ) -> None:
        self.model: Any = model
        self.decoding = decoding or Decoding()
        self.batcher: Batcher = self.decoding.asking(batcher)
        self.batch_size = batch_size
        self.route = route
        self._autocast = autocast
        self._share_prompts = share_prompts

    def answer(self, samples: Sequence[Sample], *, max_new_tokens: int = 48) -> list[Answer]:
        """One greedy answer a sample, in order; text before the end token, stripped."""
        texts = self.decoding.revised(
            self.batcher,
            samples,
            self._written(samples, max_new_tokens),
            self._written,
            max_new_tokens=max_new_tokens,
        )
        return [
            Answer(sample_id=sample.id, parts=(Text(text=text),), route=self.route)
            for sample, text in zip(samples, texts, strict=True)
        ]

    def decoded(self, options: Sequence[Any]) -> Answerer:
        """The same model and batcher with other decoding options, from one that has none.

        Raises SettingError for an option that the model cannot serve.
        """
        decoding = Decoding(options)
        decoding.check(self.model, self.batcher)
        return Answerer(
            self.model,
            self.batcher,
            batch_size=self.batch_size,
            autocast=self._autocast,
            share_prompts=self._share_prompts,
            route=self.route,
            decoding=decoding,
        )

    def _written(self, samples: Sequence[Sample], max_new_tokens: int) -> list[str]:
        settings = self._greedy(max_new_tokens)

        def work(rows: Sequence[int]) -> list[str]:
            prompts, processors = self.decoding.prompts(self.batcher, [samples[i] for i in rows])
            batch = self._to_model(prompts)
            written = self.model.generate(
                **batch,
                generation_config=settings,
                logits_processor=LogitsProcessorList(processors),
            )
            written = written[: len(rows), decoder_rows.length(batch) :]
            return self._decode(written, settings.eos_token_id)

        lengths = [_extent(self.decoding.asked(sample)) for sample in samples]
        return self._spread(lengths, work, each=self.decoding.rows_each)

    def draw(
        self, samples: Sequence[Sample], *, count: int, temperature: float, max_new_tokens: int
    ) -> list[list[Drawn]]:
        """`count` sampled answers a sample, from the global generator, in one batch.

        For training: every process draws for its own samples.
        """
        settings = self._greedy(max_new_tokens)
        settings.do_sample, settings.temperature, settings.top_k = True, temperature, 0
        # Not by num_return_sequences: it repeats pictures one by one, not sample by sample.
        rows = [sample for sample in samples for _ in range(count)]
        with self._asking():
            batch = self._to_model(self.batcher.prompts(rows))
            written = self.model.generate(**batch, generation_config=settings)
        written = written[:, decoder_rows.length(batch) :]
        stop, ids = set(settings.eos_token_id), []
        for row in written.tolist():
            end = next((i + 1 for i, token in enumerate(row) if token in stop), len(row))
            ids.append(tuple(row[:end]))
        texts = self._decode(written, settings.eos_token_id)
        drawn = [Drawn(ids=i, text=text) for i, text in zip(ids, texts, strict=True)]
        return [drawn[i : i + count] for i in range(0, len(drawn), count)]

    def log_likelihood(
        self, samples: Sequence[Sample], continuations: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """Sum of log-probabilities (nats) of each continuation's tokens and the end token."""
        pairs = [(i, text) for i, texts in enumerate(continuations) for text in texts]
        if self._shares_prompts():
            asked = [i for i, texts in enumerate(continuations) if texts]
            groups = self._spread(
                [_extent(samples[i]) for i in asked],
                lambda rows: self._shared(
                    [samples[asked[row]] for row in rows],
                    [continuations[asked[row]] for row in rows],
                ),
                each=max((len(continuations[i]) for i in asked), default=1) / 2,
            )
            flat = iter([value for group in groups for value in group])
        else:
            sums = self._spread(
                [_extent(samples[i]) + len(text) for i, text in pairs],
                lambda rows: self._direct(
                    [samples[pairs[row][0]] for row in rows], [pairs[row][1] for row in rows]
                ),
            )
            flat = iter(sums)
        return [[next(flat) for _ in texts] for texts in continuations]

    def check(self, samples: Sequence[Sample]) -> None:
        """Raises SampleError, naming the sample, for what would stop training later.

        Every sample becomes tensors, and the first with media of each kind goes through the model,
        which refuses a number of placeholders that differs from its features.
        """
        self.batcher.check(samples)
        firsts: dict[str, Sample] = {}
        for sample in samples:
            for medium in sample.media:
                firsts.setdefault(medium.kind, sample)
        for seeing in {id(sample): sample for sample in firsts.values()}.values():
            try:
                self._spread([0], partial(self._pass, seeing))
            except (ValueError, RuntimeError) as error:
                raise SampleError(f"sample {seeing.id}: the model refused it: {error}") from error

    def _pass(self, sample: Sample, _: Sequence[int]) -> list[Any]:
        return [self.model(**self._to_model(self.batcher.prompts([sample])))]

    def _direct(self, samples: Sequence[Sample], texts: Sequence[str]) -> list[float]:
        """One row for each pair; logits only where a label follows."""
        batch = self._to_model(self.batcher.continuations(samples, texts))
        labels = decoder_rows.next_tokens(batch)
        del batch["labels"]
        first = int((labels != IGNORED).any(dim=0).int().argmax())
        if "logits_to_keep" in inspect.signature(_base(self.model).forward).parameters:
            places = torch.arange(first, labels.shape[1], device=labels.device)
            logits = self.model(**batch, logits_to_keep=places).logits
        else:
            logits = self.model(**batch).logits[:, first : labels.shape[1]]
        return _summed(logits, labels[:, first:]).tolist()

    def _shared(
        self, samples: Sequence[Sample], continuations: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """Each prompt once; its key–value cache then serves all its continuations."""
        owner = [i for i, texts in enumerate(continuations) for _ in texts]
        batch = self._to_model(self.batcher.prompts(samples))
        mask = batch["attention_mask"]
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        seen = self.model(**batch, position_ids=positions, use_cache=True, logits_to_keep=1)
        ids = [
            self.batcher.answer_ids(text, sample.plain)
            for sample, texts in zip(samples, continuations, strict=True)
            for text in texts
        ]
        labels = torch.full((len(ids), max(map(len, ids))), IGNORED)
        for row, tokens in enumerate(ids):
            labels[row, : len(tokens)] = torch.tensor(tokens)
        labels = labels.to(mask.device)
        rows = torch.tensor(owner, device=mask.device)
        sums = _summed(seen.logits[rows], labels[:, :1])
        if labels.shape[1] > 1:
            cache = key_value_cache.given(seen)
            cache.reorder_cache(rows)
            given = labels[:, :-1]
            there = given != IGNORED
            steps = torch.arange(1, given.shape[1] + 1, device=mask.device)
            logits = self.model(
                input_ids=given.masked_fill(~there, self.batcher.pad_id),
                attention_mask=torch.cat([mask[rows], there.to(mask.dtype)], dim=1),
                position_ids=positions[rows, -1:] + steps,
                use_cache=True,
                **{key_value_cache.NAME: cache},
            ).logits
            sums = sums + _summed(logits, labels[:, 1:])
        flat = iter(sums.tolist())
        return [[next(flat) for _ in texts] for texts in continuations]

    def _shares_prompts(self) -> bool:
        if self._share_prompts is not None:
            return self._share_prompts
        if self.batcher.decoder_start is not None:
            return False  # its cache holds answers; what the prompts became lies beside it
        peft = getattr(self.model, "active_peft_config", None)
        own_positions = any("rope_deltas" in vars(module) for module in self.model.modules())
        return not (own_positions or getattr(peft, "is_prompt_learning", False))

    def _greedy(self, max_new_tokens: int) -> GenerationConfig:
        """Plain greedy decoding, whatever sampling the model's own settings ask for."""
        own = _base(self.model).generation_config.eos_token_id
        ends = {self.batcher.turns.end_id, *(own if isinstance(own, list) else [own])} - {None}
        placeholders = set(self.batcher.inputs.ids.values())
        return GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            temperature=1.0,
            top_p=1.0,
            top_k=50,
            repetition_penalty=1.0,
            # A placeholder that is written stands for no medium, and some models then fail.
            suppress_tokens=sorted(placeholders) or None,
            eos_token_id=sorted(ends),
            pad_token_id=self.batcher.pad_id,
        )

    def _decode(self, written: Tensor, ends: list[int]) -> list[str]:
        stop, texts = set(ends), []
        for row in written.tolist():
            length = next((i for i, token in enumerate(row) if token in stop), len(row))
            texts.append(row[:length])
        decode = self.batcher.processor.tokenizer.decode
        return [decode(row, skip_special_tokens=True).strip() for row in texts]

    def _to_model(self, batch: Batch) -> Batch:
        weight = next(self.model.parameters())
        return to_model(batch, device=weight.device, dtype=_base(self.model).dtype)

    def _spread(
        self,
        lengths: Sequence[int],
        work: Callable[[Sequence[int]], list[T]],
        *,
        each: float = 1,
    ) -> list[T]:
        """Calls `work` on batches of row numbers of like length; results in the rows' order.

        A row that needs the memory of `each` ones counts as so many.
        """
        order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
        rank, world = 0, 1
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        mine = order[rank::world]
        done: dict[int, T] = {}
        with self._asking():
            while len(done) < len(mine):
                size = max(1, int(self.batch_size / max(1, each)))
                rows = mine[len(done) : len(done) + size]
                results = self._unless_full(work, rows)
                if results is not None:
                    done.update(zip(rows, results, strict=True))
        if world > 1:
            shares: list[Any] = [None] * world
            torch.distributed.all_gather_object(shares, done)
            done = {row: result for share in shares for row, result in share.items()}
        return [done[row] for row in range(len(lengths))]

    @contextmanager
    def _asking(self) -> Iterator[None]:
        device = next(self.model.parameters()).device.type
        autocast = torch.autocast(device, self._autocast, enabled=self._autocast is not None)
        # Under autocast LoRA layers need not widen inputs that are narrowed again at once.
        narrow = disable_input_dtype_casting(self.model, active=self._autocast is not None)
        with evaluating(self.model), merged(self.model), torch.inference_mode(), autocast, narrow:
            yield

    def _unless_full(
        self, work: Callable[[Sequence[int]], list[T]], rows: Sequence[int]
    ) -> list[T] | None:
        """None, and half the batch size from now on, when the device's memory is full."""
        try:
            return work(rows)
        except torch.OutOfMemoryError:
            if len(rows) == 1:
                raise
        self.batch_size = (len(rows) + 1) // 2
        torch.cuda.empty_cache()
        return None


def _extent(sample: Sample) -> int:
    """Grows with the prompt's length, without opening its media."""
    return sum(len(message.text) for message in sample.messages) + 1024 * len(sample.media)


def _base(model: Any) -> PreTrainedModel:
    """The Hugging Face model inside a peft wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _summed(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probabilities [rows] of `labels` [rows, n] under `logits` [rows, n, vocabulary]."""
    kept = labels != IGNORED
    picked = logits.float().log_softmax(dim=-1).gather(-1, labels.clamp(min=0).unsqueeze(-1))
    return (picked.squeeze(-1) * kept).sum(dim=1)
