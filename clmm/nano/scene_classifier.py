"""Who judges the painter: a classifier of real scenes that has never seen a painted one.

A small convolutional network that says which coloured things a picture shows, and where. It shares
nothing with nano and nothing with the painter, and learns all pairs, the held-out ones too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clmm.nano import drawing
from clmm.nano.build import Stage, fit
from clmm.nano.drawing import Wish
from streams.world import PAIRS, SIZE, Pair, Scene

FILE = "scene_classifier.safetensors"

Place = tuple[float, float]


class SceneClassifier(nn.Module):
    """Pictures [N, 3, 72, 72] → evidence for each pair at each place, logits [N, 48, 9, 9].

    A picture shows a pair whose evidence is above 0 somewhere; it is where there is most of it.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        # Receptive fields of 31 pixels: a whole thing, and little else.
        for before, after, stride in (
            (3, width, 2),
            (width, 2 * width, 2),
            (2 * width, 2 * width, 2),
            (2 * width, 2 * width, 1),
        ):
            layers += [
                nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(2 * width, len(PAIRS), 1))

    def forward(self, pictures: Tensor) -> Tensor:
        evidence: Tensor = self.layers(pictures * 2 - 1)
        return evidence

    @torch.no_grad()
    def read(self, pictures: Tensor) -> list[dict[Pair, Place]]:
        """What each picture shows, and at which (x, y), in pixels."""
        evidence = self.eval()(pictures)
        side = SIZE // evidence.shape[-1]
        best, at = evidence.flatten(2).max(-1)
        found = []
        for row, places in zip(best, at, strict=True):
            shown = row.gt(0).nonzero().flatten().tolist()
            rows, columns = places // evidence.shape[-1], places % evidence.shape[-1]
            found.append(
                {
                    PAIRS[i]: ((int(columns[i]) + 0.5) * side, (int(rows[i]) + 0.5) * side)
                    for i in shown
                }
            )
        return found

    def save(self, path: Path) -> None:
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, path)

    @classmethod
    def load(cls, path: Path) -> SceneClassifier:
        made = cls()
        made.load_state_dict(load_file(path))
        return made.eval()


def train(stage: Stage, report: Callable[[int, float], None], *, seed: int) -> SceneClassifier:
    """On real scenes of one to three things of any pair, which of them are there."""
    torch.manual_seed(seed)
    made = SceneClassifier().train()

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([seed, 8, step])
        drawn = [drawing.random_scene(rng, PAIRS, most=3) for _ in range(stage.batch_size)]
        shown = [{thing.pair for thing in scene.things} for scene in drawn]
        wanted = torch.tensor([[float(pair in pairs) for pair in PAIRS] for pairs in shown])
        evidence = made(drawing.pixels(drawn)).flatten(2).amax(-1)
        return nn.functional.binary_cross_entropy_with_logits(evidence, wanted) * len(PAIRS)

    fit(made.parameters(), loss, stage, report)
    return made.eval()


def reads_right(seen: Mapping[Pair, Place], wish: Wish) -> tuple[bool, bool]:
    """Whether exactly what was asked for is there; and whether it stands as it was asked to."""
    pairs = {*seen} == {*wish.pairs}
    if not pairs or wish.relation is None:
        return pairs, pairs
    (x, y), (to_x, to_y) = (seen[pair] for pair in wish.pairs)
    stands = {
        "above": y < to_y,
        "below": y > to_y,
        "left of": x < to_x,
        "right of": x > to_x,
    }
    return True, stands[wish.relation]


def accuracy(judge: SceneClassifier, drawn: Sequence[Scene]) -> float:
    """Share of real scenes in which it names exactly what is there."""
    seen: Any = judge.read(drawing.pixels(drawn))
    wanted = [{thing.pair for thing in scene.things} for scene in drawn]
    return float(np.mean([{*s} == w for s, w in zip(seen, wanted, strict=True)]))
