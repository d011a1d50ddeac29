"""What a continual strategy is: one file in `clmm/strategies`, put to work by `clmm.learner`.

A strategy is a frozen keyword-only dataclass, its fields its settings. It says which tasks each
stage trains on and builds its parts: the weights it trains, Avalanche plugins, a router. Knows no
training loop; imports no torch, so that settings are checked without it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from streams.sample import Sample
from streams.stream import Stream

if TYPE_CHECKING:
    from pathlib import Path

    from clmm.batching import Batcher

BASE = "base"
"""The route of an answer that the untouched base model gave."""

Stages = tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a strategy may build itself from."""

    model: Any
    """The Hugging Face model, frozen; strategies make parts of it trainable."""
    batcher: Batcher
    stream: Stream
    alignment: tuple[Sample, ...]
    """Samples of wanted behaviour that belong to no task; often empty."""
    seed: int


class Weights(Protocol):
    """The weights that a strategy trains, and the only thing that changes a model."""

    @property
    def trainable_parameters(self) -> int:
        """How many parameters one stage trains."""

    @property
    def stored_bytes(self) -> int:
        """Bytes kept beside the base model, of all stages so far."""

    def begin(self, task: str) -> None:
        """Makes ready what the stage of this task trains."""

    def select(self, route: str | None) -> None:
        """Answers come from these weights from now on: a task's, BASE, or (None) the latest."""

    def save(self, folder: Path) -> None: ...

    def load(self, folder: Path) -> None: ...

    def restore(self) -> None:
        """The base model is again what it was, bit for bit."""


@runtime_checkable
class Prefixed(Protocol):
    """Weights whose first stage may be what another strategy's was.

    Strategies that do the same so far train the same (`clmm.training.derived_seed`), so a study
    trains it once. Their plugins must say so too: `plain_first_stage = True` is a plugin that only
    watches the first stage, before and after its training.
    """

    as_trained: bool
    """Whether what a stage has trained is, as it is, what answers after it."""

    @property
    def trains(self) -> Hashable | None:
        """Equal where the first stage trains the same parameters from the same values."""

    def take(self, folder: Path) -> None:
        """The weights in training become what a first stage with equal `trains` has saved."""


class Router(Protocol):
    """Chooses weights for a sample, from the sample alone."""

    @property
    def stored_bytes(self) -> int: ...

    def learn(self, task: str, samples: Sequence[Sample]) -> None: ...

    def routes(self, samples: Sequence[Sample]) -> list[str]:
        """A learnt task's name, or BASE, for each sample; independent of the other samples."""

    def save(self, folder: Path) -> None: ...

    def load(self, folder: Path) -> None: ...


@runtime_checkable
class Stateful(Protocol):
    """A plugin whose memory survives a restart as JSON; samples are kept by their ids.

    `pool` is an Avalanche data set of all the stream's training samples, to find them in again.
    Values of the state that are tensors, or mappings of names to tensors, are kept as safetensors;
    the others have to be JSON.
    """

    @property
    def stored_bytes(self) -> int: ...

    def state(self) -> dict[str, Any]: ...

    def load_state(self, state: Mapping[str, Any], pool: Any) -> None: ...


@dataclass(kw_only=True)
class Method:
    """A strategy at work on one model."""

    weights: Weights
    plugins: list[Any] = field(default_factory=list)
    """Avalanche plugins, or objects with some of their callbacks."""
    router: Router | None = None
    routes_stay: bool = False
    """Once its stage is over, a route's weights never change: its answers need no asking again."""
    answering: Callable[[Any], Any] | None = None
    """Turns the plain `clmm.answering.Answerer` into what answers; in place of a router."""


class Strategy(Protocol):
    """The one public dataclass of a file in `clmm/strategies`.

    It may have two further settings that the learner obeys: `learning_rate` (in place of
    `train.learning_rate` when not None) and `plugins` (stock Avalanche plugins, see
    `clmm.avalanche_plugins`).
    """

    def stages(self, tasks: Sequence[str]) -> Stages:
        """The tasks that each stage trains on; () when nothing is trained."""

    def build(self, context: Context) -> Method: ...


@dataclass(frozen=True, kw_only=True)
class LoraTuned:
    """A strategy that tunes one LoRA adapter on task after task; a base for others.

    A strategy that adds something to plain tuning overrides `parts`, and can then be combined
    with any weights (`clmm/strategies/combined.py`).
    """

    rank: int = 8
    """Rank of each LoRA update; equal ranks train equally many parameters in all strategies."""
    alpha: int = 16
    """LoRA's scale is alpha / rank."""
    learning_rate: float | None = None
    """In place of train.learning_rate."""
    plugins: tuple[Any, ...] = ()
    """Stock Avalanche plugins by name and settings, e.g. {name: EWCPlugin, ewc_lambda: 1.0}."""

    def stages(self, tasks: Sequence[str]) -> Stages:
        return one_by_one(tasks)

    def parts(self, context: Context) -> list[Any]:
        """What this strategy adds to plain tuning: Avalanche plugins."""
        return []

    def build(self, context: Context) -> Method:
        from clmm.adapters import Lora

        lora = Lora(context.model, rank=self.rank, alpha=self.alpha, seed=context.seed)
        return Method(weights=lora, plugins=self.parts(context))


@dataclass(frozen=True, kw_only=True)
class Tuned(LoraTuned):
    """The same with a choice of what is tuned."""

    tuning: Literal["lora", "full"] = "lora"
    """What is trained: a LoRA adapter, or projector and language model themselves."""

    def build(self, context: Context) -> Method:
        if self.tuning == "lora":
            return LoraTuned.build(self, context)
        from clmm.adapters import Full

        return Method(weights=Full(context.model), plugins=self.parts(context))


def one_by_one(tasks: Sequence[str]) -> Stages:
    """The continual protocol: a stage for each task, in order."""
    return tuple((task,) for task in tasks)
