"""Answering through a mixture of all adapters, each sample by its own shares.

Knows anchors, adapters and how samples become batches. A sample's shares come from the sample
alone, and reach its own row of a batch alone, so an answer never depends on its company.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from clmm.adapters_mixed import MixedLora, Rows, RowsUnknown
from clmm.answering import Answerer
from clmm.batching import Batch, Batcher, content
from clmm.routing_anchors import AnchorRouter
from clmm.routing_features import media_tokens
from clmm.strategy import BASE
from streams.sample import Answer, Sample

T = TypeVar("T")


class MixedAnswerer:
    """Answers by softmax(similarity / temperature); the route on an answer is the largest share.

    Before any task is learnt the base answers. Takes the answerer for itself.
    """

    def __init__(
        self, router: AnchorRouter, weights: MixedLora, temperature: float, answerer: Answerer
    ) -> None:
        self._router, self._weights, self._temperature = router, weights, temperature
        self._answerer: Any = answerer

    def answer(self, samples: Sequence[Sample], *, max_new_tokens: int = 48) -> list[Answer]:
        found = self._mixed(
            samples, lambda: self._answerer.answer(samples, max_new_tokens=max_new_tokens)
        )
        routes = self._router.routes(samples)
        return [replace(answer, route=route) for answer, route in zip(found, routes, strict=True)]

    def log_likelihood(
        self, samples: Sequence[Sample], continuations: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        # One continuation a row: where a prompt served several, they would outnumber the rows.
        asked = [s for s, texts in zip(samples, continuations, strict=True) for _ in texts]
        each = [[text] for texts in continuations for text in texts]
        found = self._mixed(asked, lambda: self._answerer.log_likelihood(asked, each))
        flat = iter(found)
        return [[next(flat)[0] for _ in texts] for texts in continuations]

    def _mixed(self, samples: Sequence[Sample], ask: Callable[[], list[T]]) -> list[T]:
        if not samples:
            return []
        if not self._router.tasks:
            self._weights.select(BASE)
            try:
                return ask()
            finally:
                self._weights.select(None)
        shares = self._router.shares(samples, self._temperature)
        known = dict(zip(map(content, samples), shares, strict=True))
        batcher = self._answerer.batcher
        self._answerer.batcher = _Noting(batcher, self._weights, known)
        try:
            with self._weights.mixing(self._router.tasks):
                return self._in_turn(ask)
        finally:
            self._answerer.batcher = batcher

    def _in_turn(self, ask: Callable[[], list[T]]) -> list[T]:
        """One sample at a time where a batch's layers do not show their rows."""
        if not self._weights.one_by_one:
            try:
                return ask()
            except RowsUnknown:
                self._weights.one_by_one = True
        self._answerer.batch_size = 1
        return ask()


class _Noting:
    """A batcher that tells the adapters what each row of the batch is."""

    def __init__(
        self, batcher: Batcher, weights: MixedLora, shares: dict[Hashable, Tensor]
    ) -> None:
        self._batcher, self._weights, self._shares = batcher, weights, shares
        self._media_tokens = media_tokens(batcher)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batcher, name)

    def prompts(self, samples: Sequence[Sample]) -> Batch:
        return self._noted(samples, self._batcher.prompts(samples))

    def continuations(self, samples: Sequence[Sample], texts: Sequence[str]) -> Batch:
        return self._noted(samples, self._batcher.continuations(samples, texts))

    def _noted(self, samples: Sequence[Sample], batch: Batch) -> Batch:
        self._weights.rows = Rows(
            shares=torch.stack([self._shares[content(sample)] for sample in samples]),
            media=torch.isin(batch["input_ids"], self._media_tokens).sum(dim=1),
        )
        return batch
