"""Models whose every word is written down, for tests of probes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from streams.sample import Answer, Sample, Text


@dataclass
class Spoken:
    """Says what `say` says."""

    say: Callable[[Sample], str]

    def answer(self, samples: Sequence[Sample], *, max_new_tokens: int = 48) -> list[Answer]:
        return [Answer(sample_id=s.id, parts=(Text(text=self.say(s)),)) for s in samples]


@dataclass
class Scripted(Spoken):
    """Scores what it `prefer`s, or else what it would say, above everything else."""

    prefer: Callable[[Sample], str] | None = None

    def log_likelihood(
        self, samples: Sequence[Sample], continuations: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        prefer = self.prefer or self.say
        return [
            [-1.0 if text == prefer(s) else -5.0 for text in texts]
            for s, texts in zip(samples, continuations, strict=True)
        ]


@dataclass
class Rated(Spoken):
    """Scores each continuation as `rate` does."""

    rate: Callable[[Sample, str], float] = lambda sample, text: 0.0

    def log_likelihood(
        self, samples: Sequence[Sample], continuations: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        return [
            [self.rate(s, text) for text in texts]
            for s, texts in zip(samples, continuations, strict=True)
        ]


def truth(sample: Sample) -> str:
    return sample.reference_text
