"""Runs a probe on anything that answers: asks its items, scores likelihoods where there are any.

Knows the two protocols of `safety.answering`; knows no probe and no model.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from safety.answering import Answering, Scoring
from safety.scores import Figure, ProbeScores
from streams.sample import Answer, Image, Message, Sample, Text

Likelihoods = Sequence[Sequence[float]]


class Probe(Protocol):
    """Items with exact truth, and how their answers become figures. One file in safety/probes."""

    @property
    def max_new_tokens(self) -> int: ...

    def samples(self, seed: int) -> list[Sample]:
        """The items; the same for the same seed, and not those of any training set."""
        ...

    def continuations(self, samples: Sequence[Sample]) -> list[tuple[str, ...]] | None:
        """Candidates to score by likelihood, () where an item has none; None if no item has."""
        ...

    def score(
        self, samples: Sequence[Sample], answers: Sequence[Answer], likelihoods: Likelihoods | None
    ) -> ProbeScores: ...


@dataclass(frozen=True, kw_only=True, repr=False)
class ProbeRun:
    """A probe's scores with what they were made of."""

    samples: Sequence[Sample]
    answers: Sequence[Answer]
    likelihoods: Likelihoods | None
    scores: ProbeScores

    def __repr__(self) -> str:
        """Counts alone: answers to withheld samples may hold what is never shown."""
        return (
            f"ProbeRun({len(self.samples)} samples, {len(self.answers)} answers, "
            f"{len(self.figures)} figures)"
        )

    @property
    def figures(self) -> Mapping[str, Figure]:
        return self.scores.figures


@dataclass(frozen=True)
class Spoken:
    """A plain function from a sample to a text, as something that answers."""

    function: Callable[[Sample], str]

    def answer(self, samples: Sequence[Sample], *, max_new_tokens: int = 48) -> list[Answer]:
        """Raises TypeError for what is no text; what the function raises names the sample."""
        return [Answer(sample_id=s.id, parts=(Text(text=self._text(s)),)) for s in samples]

    def _text(self, sample: Sample) -> str:
        try:
            said = self.function(sample)
        except Exception as error:
            error.add_note(f"while answering sample {sample.id}")
            raise
        if not isinstance(said, str):
            raise TypeError(
                f"{sample.id}: the function must return a text; it returned {type(said).__name__}"
            )
        return said


def run_probe(
    probe: Probe,
    model: Answering | Callable[[Sample], str],
    seed: int = 0,
    *,
    shuffle_images: bool = False,
) -> ProbeRun:
    """Asks the probe's items and scores them.

    `model` is anything with `answer`, or a function from a sample to a text. Without
    `log_likelihood` the figures that need it are not measurable. `shuffle_images` is a control:
    a model that looks must do badly when every question is asked of another item's picture.
    Raises ValueError when the answers are not to the samples, one each and in order, or a
    log-likelihood is no finite number; TypeError for a model that cannot answer.
    """
    if not hasattr(model, "answer") and not callable(model):
        raise TypeError(
            f"run_probe: a {type(model).__name__} does not answer; give a function from a sample "
            "to a text or something with `answer`: clmm.experiment.answerer(FOLDER) makes one of "
            "a model's folder, and `clmm probe FOLDER` asks it from the command line"
        )
    samples = probe.samples(seed)
    answering: Answering = model if hasattr(model, "answer") else Spoken(model)
    asked = with_shuffled_images(samples, seed) if shuffle_images else samples
    answers = answering.answer(asked, max_new_tokens=probe.max_new_tokens)
    _check_ids(samples, answers)
    likelihoods = None
    candidates = probe.continuations(samples) if isinstance(answering, Scoring) else None
    if candidates is not None and isinstance(answering, Scoring):
        likelihoods = _likelihoods(answering, asked, candidates)
    return ProbeRun(
        samples=samples,
        answers=answers,
        likelihoods=likelihoods,
        scores=probe.score(samples, answers, likelihoods),
    )


def with_shuffled_images(samples: Sequence[Sample], seed: int) -> list[Sample]:
    """The samples, each with the picture of a sample of another cluster; the rest is left alone."""
    shown = [s for s in samples if s.images]
    firsts = {s.cluster: s.images[0] for s in shown}
    clusters = list(firsts)
    if len(clusters) == 1:
        raise ValueError("shuffle_images: there is only one picture to shuffle")
    order = [clusters[i] for i in np.random.default_rng([seed]).permutation(len(clusters))]
    other = dict(zip(order, order[1:] + order[:1], strict=True))
    return [_with_image(s, firsts[other[s.cluster]]) if s.images else s for s in samples]


def _with_image(sample: Sample, image: Image) -> Sample:
    messages = tuple(
        Message(
            role=message.role,
            parts=tuple(image if isinstance(part, Image) else part for part in message.parts),
        )
        for message in sample.messages
    )
    return replace(sample, messages=messages)


def _check_ids(samples: Sequence[Sample], answers: Sequence[Answer]) -> None:
    if len(answers) != len(samples):
        raise ValueError(f"{len(samples)} samples were asked and {len(answers)} answers came back")
    for sample, answer in zip(samples, answers, strict=True):
        if sample.id != answer.sample_id:
            raise ValueError(
                f"the answer to {answer.sample_id} stands where that to {sample.id} belongs"
            )


def _likelihoods(
    model: Scoring, samples: Sequence[Sample], candidates: Sequence[tuple[str, ...]]
) -> list[list[float]]:
    """Scores only the items that have candidates; the others get an empty list."""
    wanted = [i for i, options in enumerate(candidates) if options]
    scored = model.log_likelihood([samples[i] for i in wanted], [candidates[i] for i in wanted])
    if scored is None or len(scored) != len(wanted):
        count = "none" if scored is None else len(scored)
        raise ValueError(f"log_likelihood: {len(wanted)} samples were given, {count} came back")
    table: list[list[float]] = [[] for _ in samples]
    for i, values in zip(wanted, scored, strict=True):
        if values is None or len(values) != len(candidates[i]):
            count = "no" if values is None else len(values)
            raise ValueError(
                f"{samples[i].id}: {len(candidates[i])} continuations, {count} likelihoods"
            )
        table[i] = [_likelihood(value, samples[i].id) for value in values]
    return table


def _likelihood(value: object, sample: str) -> float:
    """NaN compares with nothing, and one −inf would make a mean of margins no number."""
    if not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise ValueError(f"{sample}: a log-likelihood must be a finite number; got {value!r}")
    return float(value)
