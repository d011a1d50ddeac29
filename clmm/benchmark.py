"""A stream as an Avalanche benchmark: experiences of samples, and the batches made from them.

Knows samples and Avalanche's data sets, no model. Import it only where training begins: it pulls
in Avalanche.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks import benchmark_from_datasets, with_task_labels
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute
from torch import Tensor

from clmm import decoder_rows
from clmm.batching import IGNORED, Batcher
from streams.sample import Sample
from streams.stream import Stream

ALIGNMENT = -1
"""The task label of samples that belong to no task of the stream."""


class Examples:
    """A mini-batch that becomes tensors when a model asks; both x and y to Avalanche.

    Stock plugins slice, move, copy and concatenate mini-batches. A multimodal batch cannot be cut
    along its first axis (its rows are ragged, its patches joined), so those operations act on the
    samples, and tensors [B, L] are made once for whatever results. `answers` are token ids in the
    references' place and `rewards` what they are worth; both only in rows that an objective made.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        batcher: Batcher,
        device: Any = "cpu",
        *,
        answers: Sequence[Sequence[int]] | None = None,
        rewards: Sequence[float] = (),
    ) -> None:
        self.samples = tuple(samples)
        self.batcher = batcher
        self.device = torch.device(device)
        self.answers, self.rewards = answers, rewards

    def like(self, samples: Sequence[Sample], **more: Any) -> Examples:
        """Other samples on the same device."""
        return Examples(samples, self.batcher, self.device, **more)

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """What the model is given, on the CPU, labels left out."""
        return {key: value for key, value in self._batch.items() if key != "labels"}

    @cached_property
    def places(self) -> tuple[Tensor, Tensor]:
        """Rows and columns of the positions that predict a supervised token, [tokens] each."""
        learnt = decoder_rows.next_tokens(self._batch) != IGNORED
        rows, columns = learnt.nonzero(as_tuple=True)
        return rows, columns

    @property
    def targets(self) -> Tensor:
        """The supervised tokens [tokens], in the order of `places`."""
        rows, columns = self.places
        tokens = decoder_rows.next_tokens(self._batch)[rows, columns]
        return tokens.to(self.device, non_blocking=True)

    @property
    def tokens(self) -> int:
        return len(self.places[0])

    @cached_property
    def _batch(self) -> dict[str, Tensor]:
        return self.batcher.training(self.samples, self.answers)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int | slice) -> Examples:
        chosen = self.samples[index] if isinstance(index, slice) else (self.samples[index],)
        return Examples(chosen, self.batcher, self.device)

    def split(self, size: int) -> list[Examples]:
        return (
            [self[i : i + size] for i in range(0, len(self), size)] if len(self) > size else [self]
        )

    # What stock plugins call on a mini-batch:

    def to(self, device: Any, **_: Any) -> Examples:
        self.device = torch.device(device)
        return self

    def clone(self) -> Examples:
        return self

    def detach(self) -> Examples:
        return self

    @property
    def shape(self) -> tuple[int]:
        return (len(self),)

    def size(self, dim: int = 0) -> int:
        return self.shape[dim]

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Examples:
        if func is not torch.cat:
            raise TypeError(f"{func.__name__} is not defined for a batch of samples")
        parts: list[Examples] = args[0]
        joined = [sample for part in parts for sample in part.samples]
        return cls(joined, parts[0].batcher, parts[0].device)


def dataset(
    samples: Sequence[Sample], task_labels: Sequence[int], batcher: Batcher
) -> AvalancheDataset[Any]:
    """Samples as Avalanche sees them; a mini-batch is [Examples, Examples, task labels [B]]."""
    labels = DataAttribute(list(task_labels), "targets_task_labels", use_in_getitem=True)
    rows = [(sample,) for sample in samples]
    return AvalancheDataset([rows], data_attributes=[labels], collate_fn=partial(_collate, batcher))


def benchmark(stream: Stream, stages: Sequence[Sequence[str]], batcher: Batcher) -> Any:
    """One experience for each stage: the training samples of the tasks that it names."""
    tasks = {task.name: (number, task) for number, task in enumerate(stream.tasks)}
    experiences = []
    for names in stages:
        chosen = [tasks[name] for name in names]
        samples = [sample for _, task in chosen for sample in task.train]
        labels = [number for number, task in chosen for _ in task.train]
        experiences.append(dataset(samples, labels, batcher))
    return with_task_labels(benchmark_from_datasets(train=experiences))


def _collate(batcher: Batcher, rows: Sequence[Sequence[Any]]) -> list[Any]:
    examples = Examples([row[0] for row in rows], batcher)
    return [examples, examples, torch.tensor([row[-1] for row in rows])]


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """A stage's batches: all full, each with a fixed share of every `extra` data set.

    Each data set is read in seeded permutations, one after another without end. The k-th batch
    holds ⌊(k+1)·share·B⌋ − ⌊k·share·B⌋ samples of an extra, so its share is exact over the stage;
    the stage's own data fill the rest. The last batches may be of `closing` data alone. Process
    `rank` of `world` sees every world-th sample.

    `online`: one exact pass. A batch holds `batch_size` samples of the stage's own, the last one
    those that are left; extras come on top, so that they have their exact shares of all that
    results, and closing batches follow.
    """

    own: AvalancheDataset[Any]
    batch_size: int
    steps: int
    seed: int
    extras: tuple[tuple[AvalancheDataset[Any], float], ...] = ()
    closing: tuple[AvalancheDataset[Any], int] | None = None
    rank: int = 0
    world: int = 1
    online: bool = False

    def mixed_with(self, extra: AvalancheDataset[Any], share: float) -> Mixture:
        """The same with `share` of each batch from `extra`; unchanged if either is empty."""
        if not len(extra) or not share:
            return self
        return replace(self, extras=(*self.extras, (extra, share)))

    def ending_with(self, closing: AvalancheDataset[Any], share: float) -> Mixture:
        """The same with the last `share` of its batches, rounded, at least one, from `closing`.

        Unchanged if either is empty. Raises ValueError when no batch would be left.
        """
        if not len(closing) or not share:
            return self
        if self.online:
            own = self.steps - (self.closing[1] if self.closing else 0)
            count = max(1, round(share / (1 - share) * own))
            return replace(self, closing=(closing, count), steps=own + count)
        count = max(1, round(share * self.steps))
        if count >= self.steps:
            raise ValueError(
                f"{share} of {self.steps} updates, at the end of the stage, leave none for the "
                "task itself; train more steps, or take a smaller share"
            )
        return replace(self, closing=(closing, count))

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[Any]]:
        own = _endless(self.own, self.seed, 0)
        fresh = 1 - sum(share for _, share in self.extras)
        if self.online and fresh <= 0:
            raise ValueError("online: what is mixed in leaves no room for new samples; take less")
        extras = [
            (_endless(data, self.seed, number), share / fresh if self.online else share)
            for number, (data, share) in enumerate(self.extras, start=1)
        ]
        closing, last = self.closing or (self.own, 0)
        end = _endless(closing, self.seed, len(extras) + 1)
        for step in range(self.steps):
            if step >= self.steps - last:
                rows = [next(end) for _ in range(self.batch_size)]
                yield self.own.collate_fn(rows[self.rank :: self.world])
                continue
            start = step * self.batch_size
            stop = start + self.batch_size
            if self.online:
                stop = min(stop, len(self.own))
            # Without the small term, 10 × 0.1 could fall short of 1.
            counts = [int(stop * rate + 1e-9) - int(start * rate + 1e-9) for _, rate in extras]
            new = stop - start if self.online else self.batch_size - sum(counts)
            rows = [next(own) for _ in range(new)]
            for (source, _), count in zip(extras, counts, strict=True):
                rows += [next(source) for _ in range(count)]
            yield self.own.collate_fn(rows[self.rank :: self.world])


def _endless(data: AvalancheDataset[Any], seed: int, number: int) -> Iterator[Any]:
    generator = np.random.default_rng([seed, number])
    while True:
        for index in generator.permutation(len(data)).tolist():
            yield data[index]
