"""Memories of earlier tasks: what is kept of a stage, and how it comes back in later batches.

Avalanche plugins for `clmm.trainer`. Knows samples and tasks, no strategy; imports torch and
Avalanche only where something is kept, so that settings are checked without them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from clmm.strategy import Context
from clmm.training import derived_seed
from streams.contents import stored_bytes
from streams.sample import Part, Sample, Text
from streams.settings import SettingError
from streams.stream import Stream

Rank = Callable[[Sequence[Sample], int], list[int]]
"""Places of the so many samples of a task that are kept, the one to be dropped last first."""


def check_budget(field: str, budget: float) -> None:
    if not budget >= 0 or (budget >= 1 and not float(budget).is_integer()):
        raise SettingError(f"{field}: {budget} is neither a share below 1 nor a number of samples")


def check_share(field: str, share: float) -> None:
    if not 0 <= share < 1:
        raise SettingError(f"{field}: must be from 0 to below 1; got {share}")


def slots(budget: float, stream: Stream) -> int:
    """How many samples a memory holds: `budget` is a share of the training samples or a number."""
    total = sum(len(task.train) for task in stream.tasks)
    return round(budget * total) if budget < 1 else int(budget)


class Memory(ABC):
    """Samples of earlier tasks, `share` of each later batch; subclasses say which are kept."""

    supports_distributed = True
    plain_first_stage = True
    buffer: Any
    """An Avalanche data set."""

    def __init__(self, *, share: float, seed: int) -> None:
        self._share, self._seed = share, seed

    @property
    def samples(self) -> list[Sample]:
        return [self.buffer[i][0] for i in range(len(self.buffer))]

    @property
    def stored_bytes(self) -> int:
        return sum(sample_bytes(sample) for sample in self.samples)

    def before_training_exp(self, strategy: Any, **_: Any) -> None:
        strategy.dataloader = strategy.dataloader.mixed_with(self.buffer, self._share)

    def after_training_exp(self, strategy: Any, **_: Any) -> None:
        import torch

        # A seed of its own: processes must keep the same samples whatever they drew in training.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(self._seed, strategy.stage, "memory"))
            self.update(strategy.experience.dataset, strategy)

    @abstractmethod
    def update(self, data: Any, strategy: Any) -> None:
        """Keeps what it likes of `data`, which the model has just learnt."""


class Reservoir(Memory):
    """A uniform memory: every sample seen so far is in it with the same probability."""

    def __init__(self, *, size: int, share: float, seed: int) -> None:
        from avalanche.training.storage_policy import ReservoirSamplingBuffer

        super().__init__(share=share, seed=seed)
        self.memory = ReservoirSamplingBuffer(size)

    @property
    def buffer(self) -> Any:
        return self.memory.buffer

    def update(self, data: Any, strategy: Any) -> None:
        self.memory.update_from_dataset(data)

    def state(self) -> dict[str, Any]:
        """Sample ids and the keys by which the reservoir ranks them, highest first."""
        return {
            "ids": [sample.id for sample in self.samples],
            "keys": self.memory._buffer_weights.tolist(),
        }

    def load_state(self, state: Mapping[str, Any], pool: Any) -> None:
        import torch

        self.memory.buffer = named(state["ids"], pool)
        self.memory._buffer_weights = torch.tensor(state["keys"], dtype=torch.float32)


class TaskMemory(Memory):
    """The same number of slots for every task, give or take one; a task is ranked when learnt.

    `tasks` is how many the slots are for; None: as many as were seen, so that older tasks give
    slots back. What a smaller task leaves free stays free.
    """

    def __init__(
        self, *, size: int, share: float, seed: int, rank: Rank, tasks: int | None = None
    ) -> None:
        super().__init__(share=share, seed=seed)
        self._size, self._rank, self._tasks = size, rank, tasks
        self._kept: dict[int, Any] = {}

    @property
    def buffer(self) -> Any:
        from avalanche.benchmarks.utils.utils import concat_datasets

        return concat_datasets(list(self._kept.values()))

    def update(self, data: Any, strategy: Any) -> None:
        rows = data.targets_task_labels.val_to_idx
        self._kept |= {label: None for label in sorted(rows) if label not in self._kept}
        over = self._tasks or len(self._kept)
        for place, (label, kept) in enumerate(self._kept.items()):
            count = self._size // over + (place < self._size % over)
            if kept is None:
                task = data.subset(list(rows[label]))
                samples = [task[i][0] for i in range(len(task))]
                self._kept[label] = task.subset(self._rank(samples, min(count, len(task))))
            else:
                self._kept[label] = kept.subset(range(min(count, len(kept))))

    def state(self) -> dict[str, Any]:
        """Sample ids by the task's number, the one to be dropped first last."""
        ids = {str(n): [kept[i][0].id for i in range(len(kept))] for n, kept in self._kept.items()}
        return {"tasks": ids}

    def load_state(self, state: Mapping[str, Any], pool: Any) -> None:
        self._kept = {int(label): named(ids, pool) for label, ids in state["tasks"].items()}


def shuffled(samples: Sequence[Sample], count: int) -> list[int]:
    """Uniform, by keys drawn as ReservoirSamplingBuffer draws them."""
    import torch

    ranked: list[int] = torch.rand(len(samples)).argsort(descending=True)[:count].tolist()
    return ranked


class Alignment:
    """Alignment samples in every stage: in each batch, or as the stage's last batches."""

    supports_distributed = True

    def __init__(
        self, context: Context, *, share: float, field: str, mode: Literal["during", "after"]
    ) -> None:
        """Raises SettingError, which names `field`, when the study has no alignment samples."""
        if share and not context.alignment:
            raise SettingError(
                f"{field}: is {share}, but the study has no alignment samples; name their source "
                "in `alignment`"
            )
        self._context, self._share, self._mode = context, share, mode
        self.plain_first_stage = not share
        self.mixed_in = context.alignment if share else ()

    def before_training_exp(self, strategy: Any, **_: Any) -> None:
        from clmm.benchmark import ALIGNMENT, dataset

        samples = self._context.alignment
        data = dataset(samples, [ALIGNMENT] * len(samples), self._context.batcher)
        mixture = strategy.dataloader
        mixed = mixture.mixed_with if self._mode == "during" else mixture.ending_with
        strategy.dataloader = mixed(data, self._share)


def named(ids: Sequence[str], pool: Any) -> Any:
    """The samples of `pool` that bear these ids, in their order; ValueError when one is missing."""
    places = {pool[i][0].id: i for i in range(len(pool))} if ids else {}
    missing = [name for name in ids if name not in places]
    if missing:
        raise ValueError(f"the memory holds sample {missing[0]}, which the stream has not")
    return pool.subset([places[name] for name in ids])


def sample_bytes(sample: Sample) -> int:
    """What keeping a sample costs: its media and its text."""
    return prompt_bytes(sample) + _bytes((*sample.reference, *sample.rejected))


def prompt_bytes(sample: Sample) -> int:
    """The same without the answers."""
    return sum(_bytes(message.parts) for message in sample.messages)


def _bytes(parts: Sequence[Part]) -> int:
    return sum(
        len(part.text.encode()) if isinstance(part, Text) else stored_bytes(part) for part in parts
    )
