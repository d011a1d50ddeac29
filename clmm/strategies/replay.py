"""Experience replay: part of every batch comes from a small memory of earlier tasks.

Memory: a reservoir (Vitter 1985; Avalanche's ReservoirSamplingBuffer), so that after any stage
every training sample seen so far is in it with the same probability. Batches: `share` of each is
drawn from the memory, without replacement until all have been seen, and `alignment_share` from
samples of wanted behaviour; the stage's own samples fill the rest. The number and size of updates
do not change, so replayed samples take the place of new ones and cost no time.

Stores one adapter (or the changed weights) and the memory's samples. Supports several processes;
no sharded parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clmm.strategy import Context, Tuned
from clmm.training import derived_seed
from streams.sample import Sample
from streams.settings import SettingError


@dataclass(frozen=True, kw_only=True)
class Replay(Tuned):
    """Sequential tuning that revisits stored samples, and alignment samples if asked."""

    budget: float = 0.05
    """Memory: a share of all training samples of the stream if below 1, else how many samples."""
    share: float = 0.5
    """Part of each batch that is drawn from the memory once it holds something (stage 2 on)."""
    alignment_share: float = 0.0
    """Part of each batch, from stage 1 on, that is drawn from the study's alignment samples."""

    def __post_init__(self) -> None:
        if self.budget < 0 or (self.budget >= 1 and self.budget != int(self.budget)):
            raise SettingError(
                f"replay.budget: {self.budget} is neither a share below 1 nor a number of samples"
            )
        for name in ("share", "alignment_share"):
            if not 0 <= getattr(self, name) < 1:
                raise SettingError(
                    f"replay.{name}: must be from 0 to below 1; got {getattr(self, name)}"
                )
        if self.share + self.alignment_share >= 1:
            raise SettingError(
                f"replay.alignment_share: with share {self.share} and alignment_share "
                f"{self.alignment_share} no room is left for new samples"
            )

    def parts(self, context: Context) -> list[Any]:
        if self.alignment_share and not context.alignment:
            raise SettingError(
                f"replay.alignment_share: is {self.alignment_share}, but the study has no "
                "alignment samples; name their source in `alignment`"
            )
        total = sum(len(task.train) for task in context.stream.tasks)
        size = round(self.budget * total) if self.budget < 1 else int(self.budget)
        memory = Reservoir(size=size, share=self.share, seed=context.seed)
        return [memory, Alignment(context, share=self.alignment_share)]


class Reservoir:
    """An Avalanche plugin: a uniform memory of `size` samples, mixed into later stages."""

    supports_distributed = True

    def __init__(self, *, size: int, share: float, seed: int) -> None:
        from avalanche.training.storage_policy import ReservoirSamplingBuffer

        self.memory = ReservoirSamplingBuffer(size)
        self._share, self._seed = share, seed

    @property
    def samples(self) -> list[Sample]:
        return [self.memory.buffer[i][0] for i in range(len(self.memory.buffer))]

    def before_training_exp(self, strategy: Any, **_: Any) -> None:
        strategy.dataloader = strategy.dataloader.mixed_with(self.memory.buffer, self._share)

    def after_training_exp(self, strategy: Any, **_: Any) -> None:
        import torch

        # A seed of its own: processes must keep the same samples whatever they drew in training.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(self._seed, strategy.stage, "memory"))
            self.memory.update_from_dataset(strategy.experience.dataset)

    @property
    def stored_bytes(self) -> int:
        return sum(_bytes(sample) for sample in self.samples)

    def state(self) -> dict[str, Any]:
        """Sample ids and the keys by which the reservoir ranks them, highest first."""
        return {
            "ids": [sample.id for sample in self.samples],
            "keys": self.memory._buffer_weights.tolist(),
        }

    def load_state(self, state: Mapping[str, Any], pool: Any) -> None:
        import torch

        places = {pool[i][0].id: i for i in range(len(pool))}
        missing = [name for name in state["ids"] if name not in places]
        if missing:
            raise ValueError(f"the memory holds sample {missing[0]}, which the stream has not")
        self.memory.buffer = pool.subset([places[name] for name in state["ids"]])
        self.memory._buffer_weights = torch.tensor(state["keys"], dtype=torch.float32)


class Alignment:
    """An Avalanche plugin: alignment samples in every batch of every stage."""

    supports_distributed = True

    def __init__(self, context: Context, *, share: float) -> None:
        self._context, self._share = context, share

    def before_training_exp(self, strategy: Any, **_: Any) -> None:
        from clmm.benchmark import ALIGNMENT, dataset

        samples = self._context.alignment
        data = dataset(samples, [ALIGNMENT] * len(samples), self._context.batcher)
        strategy.dataloader = strategy.dataloader.mixed_with(data, self._share)


def _bytes(sample: Sample) -> int:
    """What keeping a sample costs: its images and its text."""
    text = "".join(message.text for message in sample.messages) + sample.reference_text
    images = [image.source for image in sample.images]
    return len(text.encode()) + sum(
        s.nbytes if isinstance(s, np.ndarray) else Path(s).stat().st_size for s in images
    )
