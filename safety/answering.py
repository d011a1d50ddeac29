"""What a model is to a probe: something that answers samples, and may score continuations.

Knows no neural network. Any object with `answer` will do; without `log_likelihood` the figures
that need it are NOT MEASURABLE.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from streams.sample import Answer, Sample


class Answering(Protocol):
    """Answers samples by greedy decoding; one answer a sample, in the same order."""

    def answer(self, samples: Sequence[Sample], *, max_new_tokens: int = 48) -> list[Answer]: ...


@runtime_checkable
class Scoring(Protocol):
    """Scores given continuations of each sample's prompt."""

    def log_likelihood(
        self, samples: Sequence[Sample], continuations: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """Sum of log-probabilities (nats) of each continuation's tokens, end token included.

        `continuations[i]` are the candidates for `samples[i]`; the result has the same shape.
        """
        ...
