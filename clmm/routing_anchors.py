"""The task whose anchors a sample is most like: cosines of features from the frozen base.

Knows features, no training and no adapters. An anchor is the mean of a task's training samples (at
most 640, taken evenly) in one part of the features. Similarities depend on the sample alone, never
on its batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clmm.batching import Batcher
from clmm.routing_features import Extract, Features, evenly, image_and_text, last_state, words
from clmm.strategy import BASE
from streams.sample import Sample

ANCHORS_FILE = "anchors.safetensors"
TEXT = {"words": words, "state": last_state}
"""How a text becomes features [samples, 1, D]."""


def image_and(text: str) -> Extract:
    """The mean projected image token, then the text's features: [samples, 2, D]."""

    def extract(model: nn.Module, batcher: Batcher, samples: Sequence[Sample]) -> Tensor:
        seen = image_and_text(model, batcher, samples)[:, :1]
        read = TEXT[text](model, batcher, samples)
        if seen.shape != read.shape:
            raise ValueError(
                f"images have {seen.shape[2]} features and texts {read.shape[2]}; take another text"
            )
        return torch.cat([seen, read], dim=1)

    return extract


class AnchorRouter:
    """The learnt task with the highest mean cosine; BASE only before any task is learnt.

    A part that a sample lacks, such as an image, is a zero vector and counts as cosine 0.
    Stores 4·parts·D bytes a task. `example` is a sample whose features are taken at once, so that
    a model that does not give them is refused before it is trained.
    """

    def __init__(self, features: Features, example: Sequence[Sample]) -> None:
        features(example)
        self._features = features
        self._anchors: dict[str, Tensor] = {}

    @property
    def tasks(self) -> list[str]:
        """By the alphabet, as they are after loading too."""
        return sorted(self._anchors)

    @property
    def stored_bytes(self) -> int:
        return sum(anchor.nbytes for anchor in self._anchors.values())

    def learn(self, task: str, samples: Sequence[Sample]) -> None:
        self._anchors[task] = self._features(evenly(samples)).mean(dim=0)

    def similarities(self, samples: Sequence[Sample]) -> Tensor:
        """Mean cosine with each task's anchors [samples, tasks]."""
        features = self._features.remembered(samples).unsqueeze(1)
        anchors = torch.stack([self._anchors[task] for task in self.tasks])
        return nn.functional.cosine_similarity(features, anchors, dim=-1).mean(dim=-1)

    def shares(self, samples: Sequence[Sample], temperature: float) -> Tensor:
        """softmax(similarity / temperature) [samples, tasks]; rows sum to 1."""
        return (self.similarities(samples) / temperature).softmax(dim=-1)

    def routes(self, samples: Sequence[Sample]) -> list[str]:
        if not self._anchors or not samples:
            return [BASE] * len(samples)
        best = self.similarities(samples).argmax(dim=-1).tolist()
        return [self.tasks[index] for index in best]

    def save(self, folder: Path) -> None:
        save_file(self._anchors, folder / ANCHORS_FILE)

    def load(self, folder: Path) -> None:
        self._anchors = load_file(folder / ANCHORS_FILE)
