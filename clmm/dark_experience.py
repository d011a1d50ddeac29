"""Dark experience: a reservoir of samples with the logits that the model once gave for them.

An Avalanche plugin for `clmm.trainer`, in one process. Knows examples and logits at supervised
tokens; which strengths and sizes is the strategy's choice (`clmm/strategies/der_pp.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clmm.memory import named, sample_bytes
from clmm.training import derived_seed
from streams.sample import Sample


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A sample and the logits [supervised tokens, V] that it had when it was stored."""

    sample: Sample
    logits: Tensor


def distances(logits: Tensor, stored: Tensor) -> Tensor:
    """Mean over the vocabulary of (z − z_buf)² [tokens]; both are [tokens, V].

    Tokens that a model rules out with −∞, or with less than fp16 holds, differ by nothing.
    """
    return torch.where(stored.isfinite(), logits - stored, 0.0).square().mean(dim=1)


class DarkExperience:
    """Adds α·mean((z − z_buf)²) + β·CE(buffer) to each update's loss, and stores as it trains.

    Every update first draws its memory batch, then offers its own samples of the stage to the
    reservoir, with the logits of the very forward pass that trains on them. Memory batches are
    cut into as many parts as the batch has micro-batches.
    """

    supervised_only = True

    def __init__(
        self, *, size: int, share: float, alpha: float, beta: float, dtype: torch.dtype, seed: int
    ) -> None:
        self._size, self._share, self._dtype, self._seed = size, share, dtype, seed
        self._alpha, self._beta = alpha, beta
        self.entries: list[Entry] = []
        self.drawn: list[Entry] = []
        """The memory batch of this update."""
        self._seen = 0
        self._parts: Iterator[tuple[list[Entry], Any]] = iter(())
        self._tokens = 0

    def before_training_exp(self, strategy: Any, **_: Any) -> None:
        seed = derived_seed(self._seed, strategy.stage, "memory")
        # One for what is stored and one for what is drawn: neither depends on the other's use.
        self._storing, self._drawing = map(np.random.default_rng, ([seed, 0], [seed, 1]))
        self._own = set(strategy.experience.dataset.targets_task_labels.uniques)

    def before_training_iteration(self, strategy: Any, **_: Any) -> None:
        from clmm.benchmark import Examples

        batch = strategy.mb_x
        wanted = round(self._share * strategy.settings.batch_size)
        count = min(wanted, len(self.entries)) if self._alpha or self._beta else 0
        chosen = self._drawing.choice(len(self.entries), count, replace=False) if count else ()
        self.drawn = [self.entries[i] for i in chosen]
        parts = np.array_split(np.arange(count), -(-len(batch) // strategy.train_mb_size))
        drawn = [[self.drawn[i] for i in part] for part in parts]
        examples = [
            Examples([e.sample for e in part], batch.batcher, batch.device) for part in drawn
        ]
        self._tokens = sum(one.tokens for one in examples if len(one))
        self._parts = iter(list(zip(drawn, examples, strict=True)))

    def after_forward(self, strategy: Any, **_: Any) -> None:
        entries, examples = next(self._parts)
        if entries:
            logits = strategy.model(examples)
            stored = torch.cat([entry.logits for entry in entries]).to(logits)
            squares = distances(logits, stored).sum()
            entropy = nn.functional.cross_entropy(logits, examples.targets, reduction="sum")
            penalty = self._alpha * squares + self._beta * entropy
            strategy.loss = strategy.loss + penalty / self._tokens
        self._offer(strategy.mb_x, strategy.mb_task_id.tolist(), strategy.mb_output)

    def _offer(self, examples: Any, labels: list[int], logits: Tensor) -> None:
        """Reservoir sampling (Vitter 1985, algorithm R) over the stage's own samples."""
        lengths = examples.places[0].bincount(minlength=len(examples)).tolist()
        rows = zip(examples.samples, labels, logits.detach().split(lengths), strict=True)
        for sample, label, own in rows:
            if label not in self._own:
                continue  # another part of the strategy has mixed it in
            full = self._seen >= self._size
            place = int(self._storing.integers(self._seen + 1)) if full else self._seen
            self._seen += 1
            if place >= self._size:
                continue
            entry = Entry(sample=sample, logits=own.to("cpu", self._dtype, copy=True))
            self.entries[place : place + 1] = [entry]

    @property
    def stored_bytes(self) -> int:
        return sum(sample_bytes(entry.sample) + entry.logits.nbytes for entry in self.entries)

    def state(self) -> dict[str, Any]:
        """Sample ids and logits slot by slot, and how many samples were offered so far."""
        return {
            "seen": self._seen,
            "ids": [entry.sample.id for entry in self.entries],
            "logits": {str(slot): entry.logits for slot, entry in enumerate(self.entries)},
        }

    def load_state(self, state: Mapping[str, Any], pool: Any) -> None:
        self._seen = state["seen"]
        rows = named(state["ids"], pool)
        self.entries = [
            Entry(sample=rows[slot][0], logits=state["logits"][str(slot)])
            for slot in range(len(state["ids"]))
        ]
