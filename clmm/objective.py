"""What an objective is: one file in `clmm/objectives`, how the samples of a task become a loss.

A task names its objective (`streams.stream.Task.objective`), so supervised stages, preference
stages and reinforcement follow one another in a stream, and a replayed sample is learnt as its own
task is. An objective turns samples into rows, whose supervised tokens the model predicts, and those
predictions into a loss. Knows no loop and no weights; imports no torch until it is at work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from clmm.benchmark import Examples
    from streams.sample import Sample


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One sampled answer."""

    ids: tuple[int, ...]
    """Its tokens, with the end token unless it was cut."""
    text: str


class Actor(Protocol):
    """The model in training, as an objective may ask it."""

    def draw(
        self, examples: Examples, *, count: int, temperature: float, max_new_tokens: int
    ) -> list[list[Drawn]]:
        """`count` answers to each sample, drawn from the model as it is now."""

    def earlier(self, rows: Examples) -> Tensor:
        """Logits [supervised tokens, V] of the weights that the stage began with; no gradient."""


class Objective(Protocol):
    """The one public dataclass of a file in `clmm/objectives`."""

    def check(self, samples: Sequence[Sample]) -> None:
        """Raises ValueError for the first sample that cannot be learnt this way."""

    def rows(self, examples: Examples, actor: Actor) -> Examples:
        """What goes through the model for these samples."""

    def size(self, examples: Examples) -> int:
        """What the loss is a mean over: how many of it these samples have."""

    def loss(self, logits: Tensor, rows: Examples, actor: Actor) -> Tensor:
        """The mean loss; `logits` [supervised tokens, V] as `rows.places` orders them."""


class StagedObjective(Objective, Protocol):
    """One that needs other parts than the model has: it has a stage of its own.

    `loss` takes what its network makes of the rows in place of logits.
    """

    def size_beside(self, model: Any) -> int:
        """How many parameters it adds to the model's own."""

    def begin(self, model: Any) -> None:
        """Adds them, under names with `.first_stage.`, which `clmm.stages.finish` takes off."""

    def network(self, model: Any, processor: Any, *, autocast: Any) -> Any:
        """What is trained in the model's place: a module of rows."""

    def trains(self, model: Any) -> set[str]:
        """The model's own parameters that the loss depends on."""


def row_sums(values: Tensor, rows: Examples) -> Tensor:
    """Values of supervised tokens [tokens], added up within each row [rows]."""
    place = rows.places[0].to(values.device)
    return values.new_zeros(len(rows)).index_add(0, place, values)


def token_log_likelihoods(logits: Tensor, rows: Examples, temperature: float = 1.0) -> Tensor:
    """log p of each supervised token [tokens], in nats."""
    from torch.nn.functional import cross_entropy

    return -cross_entropy(logits / temperature, rows.targets, reduction="none")


def log_likelihoods(logits: Tensor, rows: Examples, temperature: float = 1.0) -> Tensor:
    """log p of each row's supervised tokens [rows], in nats."""
    return row_sums(token_log_likelihoods(logits, rows, temperature), rows)


def of(spec: Any, *, where: str, staged: bool = False) -> Objective:
    """The objective that a task, or a stage of its own (`staged`), names; raises SettingError."""
    from streams.settings import SettingError, from_spec

    made: Objective = from_spec("clmm.objectives", spec, where=where)
    if not all(callable(getattr(made, name, None)) for name in ("check", "rows", "size", "loss")):
        raise SettingError(f"{where}: {made!r} is no objective; see clmm/objectives")
    if hasattr(made, "network") and not staged:
        raise SettingError(
            f"{where}: {spec!r} trains parts that the model has not; make it the objective of a "
            "stage of `clmm train`"
        )
    return made
