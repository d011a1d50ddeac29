"""Which adapter answers a sample: routers, and answering through them.

Knows features of the frozen base model, no training. A route depends on the sample alone, never
on the batch it came in, and the oracle is not a router: it is told the task.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clmm.answering import Answerer
from clmm.batching import Batcher, content
from clmm.routing_features import Features, evenly, image_and_text, media_tokens
from clmm.strategy import BASE, Router, Weights
from streams.sample import Answer, Sample, Text

PROTOTYPES_FILE = "prototypes.safetensors"
AXES = 16
"""Directions in which a task's features vary most; the rest share one variance."""
FLOOR = 1e-4
"""Least variance in any direction, as a share of the mean square of a feature."""
CALIBRATION = 5
"""One in so many training samples measures the reach of a task and does not fit it."""


class PrototypeRouter:
    """The task whose training data the sample looks like; BASE when it looks like none.

    A sample's features are two parts [D] each, from the frozen base: the mean projected image
    token and the mean embedded text token. A task is a Gaussian in each part: a mean, the
    variance along its main axes, and one variance for all other directions (probabilistic PCA,
    Tipping and Bishop 1999). Both parts must lie within the task's reach: `margin` times the
    `quantile` of the Mahalanobis distances of training samples that did not fit it. Of the tasks
    within reach the likeliest wins. Not the nearest mean by cosine: with one task learnt a cosine
    has no origin, and questions of one task differ along few directions, in which others differ
    more, so that a mean alone cannot tell a new kind of question from a known one. The price: a
    question worded as the task never worded it may go to the base.

    Stores 2·(D·(AXES + 1) + AXES + 3) floats a task, which never change once learnt.
    """

    def __init__(
        self,
        model: nn.Module,
        batcher: Batcher,
        weights: Weights,
        *,
        quantile: float = 0.99,
        margin: float = 1.1,
    ) -> None:
        media_tokens(batcher)
        self._quantile, self._margin = quantile, margin
        self._tasks: dict[str, dict[str, Tensor]] = {}
        self.features = Features(model, batcher, weights, image_and_text)
        """Of samples [samples, 2, D], on the CPU."""

    @property
    def stored_bytes(self) -> int:
        return sum(t.nbytes for entry in self._tasks.values() for t in entry.values())

    def learn(self, task: str, samples: Sequence[Sample]) -> None:
        chosen = evenly(samples)
        features = self.features(chosen)
        held = torch.arange(len(chosen)) % CALIBRATION == 0
        fitted = features[~held] if (~held).any() else features
        parts = [_fit(fitted[:, part]) for part in range(2)]
        entry = {key: torch.stack([part[key] for part in parts]) for key in parts[0]}
        own = _distances(features[held], entry)
        entry["reach"] = self._margin * torch.quantile(own, self._quantile, dim=0)
        self._tasks[task] = entry

    def routes(self, samples: Sequence[Sample]) -> list[str]:
        if not self._tasks or not samples:
            return [BASE] * len(samples)
        features = self.features.remembered(samples)
        scores = []
        for entry in self._tasks.values():
            distances = _distances(features, entry)
            surprise = (distances.square() + entry["volume"]).sum(dim=1)
            near = (distances <= entry["reach"]).all(dim=1)
            scores.append(surprise.masked_fill(~near, torch.inf))
        best = torch.stack(scores).min(dim=0)
        names = list(self._tasks)
        return [
            names[index] if score < torch.inf else BASE
            for score, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def save(self, folder: Path) -> None:
        tensors = {f"{t}.{k}": v for t, entry in self._tasks.items() for k, v in entry.items()}
        save_file(tensors, folder / PROTOTYPES_FILE)

    def load(self, folder: Path) -> None:
        self._tasks = {}
        for name, tensor in load_file(folder / PROTOTYPES_FILE).items():
            task, _, key = name.rpartition(".")
            self._tasks.setdefault(task, {})[key] = tensor


ROUTING_GATE = 0.9
"""Less than this share of own-task test items at their adapter: routing has failed."""


@dataclass(frozen=True, kw_only=True)
class RoutingAccuracy:
    """How many test items of the tasks learnt so far reach their own adapter."""

    by_task: Mapping[str, float]
    """Task → share of its test items."""
    accuracy: float
    """Over all those items."""

    @property
    def failed(self) -> bool:
        return self.accuracy < ROUTING_GATE


Known = dict[str, Any]
"""What was answered before: a route and a question (as text) → an answer or its likelihoods."""


class RoutedAnswerer:
    """Answers each sample through the weights its router chooses, and says which on the answer.

    With `oracle`, every sample goes where the oracle says; the router is not asked. With `known`,
    what a route answered once is not asked again: right only while routes keep their weights.
    Answers of other decoding options are others. In half precision it is also what keeps an answer
    from changing with the company it is asked in.
    """

    def __init__(
        self,
        router: Router,
        weights: Weights,
        answerer: Answerer,
        *,
        oracle: str | None = None,
        known: Known | None = None,
    ) -> None:
        self._router, self._weights, self._answerer = router, weights, answerer
        self._oracle, self._known = oracle, known

    def answer(self, samples: Sequence[Sample], *, max_new_tokens: int = 48) -> list[Answer]:
        def ask(rows: list[int]) -> list[str]:
            asked = [samples[i] for i in rows]
            found = self._answerer.answer(asked, max_new_tokens=max_new_tokens)
            return [answer.text for answer in found]

        questions = [f"{max_new_tokens}" for _ in samples]
        return [
            Answer(sample_id=sample.id, parts=(Text(text=text),), route=route)
            for sample, (route, text) in zip(
                samples, self._each(samples, questions, ask), strict=True
            )
        ]

    def log_likelihood(
        self, samples: Sequence[Sample], continuations: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        def ask(rows: list[int]) -> list[list[float]]:
            return self._answerer.log_likelihood(
                [samples[i] for i in rows], [continuations[i] for i in rows]
            )

        questions = [repr(list(texts)) for texts in continuations]
        return [sums for _, sums in self._each(samples, questions, ask)]

    def _each(
        self, samples: Sequence[Sample], questions: Sequence[str], ask: Callable[[list[int]], Any]
    ) -> list[tuple[str, Any]]:
        """Route and what `ask` finds, of each sample; `questions` tell apart what is asked."""
        found: dict[int, tuple[str, Any]] = {}
        known = {} if self._known is None else self._known
        for route, rows in self._groups(samples):
            decoding = self._answerer.decoding.key
            keys = {i: _key(route, questions[i] + decoding, samples[i]) for i in rows}
            fresh = [i for i in rows if keys[i] not in known]
            new = dict(zip(fresh, ask(fresh), strict=True)) if fresh else {}
            found |= {i: (route, new[i] if i in new else known[keys[i]]) for i in rows}
            if self._known is not None:
                # What is known is saved with the checkpoint: no text of a withheld sample.
                self._known |= {
                    keys[i]: one
                    for i, one in new.items()
                    if not (samples[i].withheld and isinstance(one, str))
                }
        return [found[i] for i in range(len(samples))]

    def _groups(self, samples: Sequence[Sample]) -> Any:
        """(route, its rows), with that route's weights selected while the caller works."""
        routes = [self._oracle] * len(samples) if self._oracle else self._router.routes(samples)
        try:
            for route in dict.fromkeys(routes):
                self._weights.select(route)
                yield route, [i for i, r in enumerate(routes) if r == route]
        finally:
            self._weights.select(None)


def _key(route: str, question: str, sample: Sample) -> str:
    text = repr((question, content(sample)))
    return f"{route} {hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}"


def _fit(features: Tensor) -> dict[str, Tensor]:
    """A Gaussian of one part's features [samples, D]."""
    count, width = features.shape
    mean = features.mean(dim=0)
    _, sizes, axes = torch.linalg.svd(features - mean, full_matrices=False)
    floor = FLOOR * features.square().mean() + 1e-12
    variances = sizes.square() / count
    kept = min(AXES, count // 4, width // 4)
    spread = torch.zeros(AXES)
    spread[:kept] = variances[:kept]
    along = torch.zeros(AXES, width)
    along[:kept] = axes[:kept]
    spread += floor
    rest = variances[kept:].sum() / (width - kept) + floor
    # Axes that are not used stay zero vectors and add nothing to a distance.
    volume = (spread[:kept].log().sum() + (width - kept) * rest.log()) / width
    return {"mean": mean, "axes": along, "spread": spread, "rest": rest, "volume": volume}


def _distances(features: Tensor, entry: dict[str, Tensor]) -> Tensor:
    """Mahalanobis distances [samples, 2], divided by √D."""
    centred = features - entry["mean"]
    along = torch.einsum("spd,pkd->spk", centred, entry["axes"])
    rest = (centred.square().sum(dim=2) - along.square().sum(dim=2)).clamp(min=0)
    square = (along.square() / entry["spread"]).sum(dim=2) + rest / entry["rest"]
    return (square / features.shape[2]).sqrt()
