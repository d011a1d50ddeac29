"""How a stage trains: its settings, its learning rate over time, its seeds, and how it fails.

Knows numbers only. The loop that obeys them is `clmm.trainer`; keeping it apart lets a study be
read and checked without importing torch or Avalanche.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Literal

from streams.settings import SettingError


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How every stage trains; all strategies of a study share it."""

    learning_rate: float = 2e-4
    """Highest rate of AdamW, cosine to zero over each stage. A strategy may have its own."""
    batch_size: int = 16
    """Samples an update, over all processes and micro-batches."""
    micro_batch_size: int | None = None
    """Samples in one forward pass of one process; gradients are accumulated. None: all at once."""
    epochs: float | None = None
    """Passes over a stage's samples, rounded up to whole updates; 1 when neither is given."""
    steps: int | None = None
    """Updates a task instead of epochs; a stage of several tasks takes that many for each."""
    online: bool = False
    """One exact pass: batches of `batch_size` new samples, the last one short; what a strategy
    mixes in comes on top. Otherwise batches are full, and what is mixed in takes the place of new
    samples."""
    warmup_share: float = 0.03
    """Share of a stage's updates in which the learning rate rises linearly."""
    weight_decay: float = 0.0
    """AdamW's decay, of matrices only: biases and norms are spared."""
    clip_norm: float | None = 1.0
    """Largest norm of the whole gradient; None clips nothing."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the forward pass (autocast). Trained weights keep the precision they were loaded in."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    max_length: int | None = None
    """Longest row in tokens: longer prompts are refused, longer answers cut. None: no bound."""

    def __post_init__(self) -> None:
        if self.epochs is not None and self.steps is not None:
            _refuse("steps", self.steps, f"epochs is {self.epochs} already; give one of the two")
        if self.online and (self.epochs is not None or self.steps is not None):
            _refuse("online", True, "is one pass by itself; leave out epochs and steps")
        for name in ("learning_rate", "batch_size", "micro_batch_size", "epochs", "steps",
                     "clip_norm", "max_length"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                _refuse(name, value, "must be above 0")
        if not 0 <= self.warmup_share < 1:
            _refuse("warmup_share", self.warmup_share, "must be from 0 to below 1")
        if self.weight_decay < 0:
            _refuse("weight_decay", self.weight_decay, "must not be negative")

    def updates(self, samples: int, tasks: int = 1) -> int:
        """Updates of a stage that has so many samples of so many tasks."""
        if self.steps is not None:
            return self.steps * tasks
        return math.ceil((self.epochs or 1) * samples / self.batch_size)

    def learning_rate_at(self, update: int, updates: int) -> float:
        """The rate of update 0, 1, … of `updates`: linear warm-up, then cosine towards zero."""
        warmup = math.ceil(self.warmup_share * updates)
        if update < warmup:
            return self.learning_rate * (update + 1) / warmup
        progress = (update - warmup) / max(1, updates - warmup)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


class TrainingDiverged(RuntimeError):  # noqa: N818  (what happened, as UnknownName)
    """Loss or gradient stopped being a number; weights are those before the named update."""

    def __init__(self, *, stage: int, step: int, steps: int, loss: float, norm: float) -> None:
        super().__init__(
            f"stage {stage}: training diverged at step {step} of {steps}: loss {loss}, gradient "
            f"norm {norm}; earlier stages are kept. A lower train.learning_rate usually helps"
        )
        self.stage, self.step = stage, step


def derived_seed(seed: int, stage: int, purpose: str) -> int:
    """The seed of one purpose (order, adapters, …) in one stage of one run, below 2³².

    It does not depend on the strategy: strategies that do the same so far then train the same,
    which makes comparisons paired and lets tests demand equal trajectories.
    """
    digest = hashlib.sha256(f"{seed}/{stage}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def _refuse(field: str, value: object, reason: str) -> None:
    raise SettingError(f"train.{field}: {reason}; got {value!r}")
