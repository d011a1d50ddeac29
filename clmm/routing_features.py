"""What routers see of a sample: features from the frozen base, so they stay what they are.

Knows a model, its batcher and how to select the base; nothing of tasks. Features of one sample do
not depend on the others.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from clmm import components
from clmm.batching import IGNORED, Batcher, content, to_model
from clmm.strategy import BASE, Weights
from streams.sample import Message, Sample, Text

CHUNK = 64
REMEMBERED = 10_000
"""Samples whose features are kept."""
LEARNT = 640
"""Training samples that a task is known by at most; more cost time and tell little."""

Extract = Callable[[nn.Module, Batcher, Sequence[Sample]], Tensor]
"""A few samples' features [samples, parts, D]."""


class Features:
    """Features [samples, parts, D] on the CPU, from the base without adapters."""

    def __init__(
        self, model: nn.Module, batcher: Batcher, weights: Weights, extract: Extract
    ) -> None:
        self._model, self._batcher, self._weights = model, batcher, weights
        self._extract = extract
        self._kept: dict[Hashable, Tensor] = {}

    def __call__(self, samples: Sequence[Sample]) -> Tensor:
        self._weights.select(BASE)
        try:
            chunks = [samples[i : i + CHUNK] for i in range(0, len(samples), CHUNK)]
            with torch.no_grad():
                return torch.cat([self._extract(self._model, self._batcher, c) for c in chunks])
        finally:
            self._weights.select(None)

    def remembered(self, samples: Sequence[Sample]) -> Tensor:
        """The same, computed once a sample."""
        wanted = {content(sample): sample for sample in samples}
        fresh = [key for key in wanted if key not in self._kept]
        if len(self._kept) + len(fresh) > REMEMBERED:
            self._kept, fresh = {}, list(wanted)
        if fresh:
            rows = self([wanted[key] for key in fresh])
            self._kept |= {key: row.clone() for key, row in zip(fresh, rows, strict=True)}
        return torch.stack([self._kept[content(sample)] for sample in samples])


def evenly(samples: Sequence[Sample]) -> list[Sample]:
    """At most `LEARNT` of a task's samples, at equal distances."""
    return [samples[i] for i in range(0, len(samples), -(-len(samples) // LEARNT))]


def media_tokens(batcher: Batcher) -> Tensor:
    """The tokens that stand for a vector of a medium [tokens]; ValueError where there is none."""
    if not batcher.inputs.ids:
        raise ValueError(f"{type(batcher.processor).__name__} names no token for images")
    return torch.tensor(sorted(batcher.inputs.ids.values()))


def image_and_text(model: nn.Module, batcher: Batcher, samples: Sequence[Sample]) -> Tensor:
    """The mean projected token of images or other media and the mean embedded text token of each
    prompt."""
    prompts = batcher.prompts(samples)
    embedded = embedded_inputs(model, prompts).float().cpu()
    there = prompts["attention_mask"].bool()
    media = there & torch.isin(prompts["input_ids"], media_tokens(batcher))
    return torch.stack([_mean(embedded, media), _mean(embedded, there & ~media)], dim=1)


def words(model: Any, batcher: Batcher, samples: Sequence[Sample]) -> Tensor:
    """The mean embedded token of each sample's own words, without the chat template."""
    embedding = model.get_input_embeddings()
    device, rows = next(embedding.parameters()).device, []
    for sample in samples:
        text = "\n".join(message.text for message in sample.messages)
        ids = batcher.processor.tokenizer.encode(text, add_special_tokens=False)
        vectors = embedding(torch.tensor(ids, dtype=torch.long, device=device)).float()
        rows.append(vectors.sum(dim=0).cpu() / max(1, len(ids)))
    return torch.stack(rows).unsqueeze(1)


def last_state(model: nn.Module, batcher: Batcher, samples: Sequence[Sample]) -> Tensor:
    """The base's last hidden state at the end of each prompt, of which it reads the text alone."""
    heard = [_without_images(sample) for sample in samples]
    batch = batcher.continuations(heard, [""] * len(heard))
    labels = batch.pop("labels")
    # Padded on the right, where nothing that comes before can see it.
    end = ((labels != IGNORED).int().argmax(dim=1) - 1).clamp(min=0)
    states = last_states(model, batch).float().cpu()
    return states[torch.arange(len(samples)), end].unsqueeze(1)


def embedded_inputs(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """What the language model is given: text and projected media, [B, L, D].

    Every vision-language model hands its language model `inputs_embeds`; the pass ends there.
    """

    def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _Seen(kwargs["inputs_embeds"])

    hook = _language_model(model).register_forward_pre_hook(stop, with_kwargs=True)
    return _run_to(hook, model, batch)


def last_states(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The language model's last hidden states [B, L, D]; the pass ends there, before the head."""

    def stop(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not hasattr(output, "last_hidden_state"):
            raise ValueError(f"{type(module).__name__} does not give its last hidden state")
        raise _Seen(output.last_hidden_state)

    inner: Any = _language_model(model)
    # Of a language model with a head this is the part below it.
    return _run_to(inner.base_model.register_forward_hook(stop), model, batch)


class _Seen(Exception):  # noqa: N818  (it carries a value, it is no error)
    def __init__(self, value: Tensor) -> None:
        self.value = value


def _language_model(model: nn.Module) -> nn.Module:
    return model.get_submodule(components.find(model)["language_model"][0])


def _run_to(hook: Any, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """What the hook saw; it is removed."""
    weight = next(model.parameters())
    try:
        with components.evaluating(model):
            model(**to_model(batch, device=weight.device, dtype=weight.dtype), use_cache=False)
    except _Seen as seen:
        return seen.value
    finally:
        hook.remove()
    raise RuntimeError(f"{type(model).__name__} did not call its language model")


def _mean(embedded: Tensor, where: Tensor) -> Tensor:
    """Mean over the marked positions [B, D]; zero where a row has none."""
    weight = where.unsqueeze(-1).float()
    return (embedded * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)


def _without_images(sample: Sample) -> Sample:
    messages = tuple(
        Message(role=message.role, parts=(Text(text=message.text),)) for message in sample.messages
    )
    return replace(sample, messages=messages)
