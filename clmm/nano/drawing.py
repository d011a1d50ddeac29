"""What is asked of the painter: one or two coloured things, and how they stand to each other.

Knows scenes and words; no model. A wish is of taught pairs for whoever learns, and has a pair that
nobody was taught for whoever measures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from streams import phrasings
from streams.world import (
    COLOURS,
    HELD_OUT_PAIRS,
    SHAPES,
    TRAIN_PAIRS,
    Pair,
    Scene,
    Thing,
    render,
)
from streams.world import random_scene as scene_of

RELATIONS = ("above", "below", "left of", "right of")
REQUESTS = (
    "Draw {}", "Draw {}.", "draw {}", "Please draw {}.", "Paint {}.", "paint {}", "Show me {}.",
    "Make a picture of {}.", "Make an image of {}.", "Give me a picture of {}.",
)  # fmt: skip


@dataclass(frozen=True)
class Wish:
    """A picture in words; `relation` is that of the first thing to the second, or none is said."""

    pairs: tuple[Pair, ...]
    relation: str | None = None

    @property
    def text(self) -> str:
        """`a red ring`, `a red ring and a blue square`, `a red ring above a blue square`."""
        return f" {self.relation or 'and'} ".join(
            phrasings.article(" ".join(pair)) for pair in self.pairs
        )


def wish_of(scene: Scene, rng: np.random.Generator) -> Wish:
    """What a scene of one or two things is a picture of. Without a relation, in reading order."""
    things = scene.reading_order
    if len(things) == 1 or rng.random() < 0.4:
        return Wish(tuple(thing.pair for thing in things))
    one, other = (things[int(i)] for i in rng.permutation(2))
    true = relations(one, other)
    return Wish((one.pair, other.pair), true[int(rng.integers(len(true)))])


def relations(one: Thing, other: Thing) -> list[str]:
    """All that is true: their boxes are apart in that direction. There is one at least."""
    apart = (one.size + other.size) / 2 + 1
    found = []
    if abs(one.y - other.y) > apart:
        found.append("above" if one.y < other.y else "below")
    if abs(one.x - other.x) > apart:
        found.append("left of" if one.x < other.x else "right of")
    return found


def taught(rng: np.random.Generator, count: int) -> list[Scene]:
    """Scenes of one or two things of taught pairs."""
    return [random_scene(rng, TRAIN_PAIRS, most=2) for _ in range(count)]


def wishes(rng: np.random.Generator, count: int) -> list[Wish]:
    """Wishes of taught pairs alone, without their pictures."""
    return [wish_of(scene, rng) for scene in taught(rng, count)]


def random_scene(rng: np.random.Generator, pairs: Sequence[Pair], *, most: int) -> Scene:
    """One thing to `most`, none oftener than another."""
    count = int(rng.integers(1, most + 1))
    return scene_of(rng, pairs=pairs, count=count, partner_rate=0.0, popular_rate=0.0)


def pixels(drawn: Sequence[Scene]) -> Tensor:
    """[N, 3, 72, 72] in [0, 1]."""
    made = torch.from_numpy(np.stack([render(scene) for scene in drawn]))
    return made.permute(0, 3, 1, 2).float() / 255


def request(text: str, rng: np.random.Generator) -> str:
    """`Draw a red ring`, in one of the ways that are taught."""
    return phrasings.pick(REQUESTS, rng).format(text)


def untaught(rng: np.random.Generator, count: int) -> list[Wish]:
    """Different wishes, each with a pair that nobody was taught; two things in five of six."""
    held, taught = sorted(HELD_OUT_PAIRS), [*TRAIN_PAIRS]
    found: dict[Wish, None] = {Wish((pair,)): None for pair in held[: max(1, count // 6)]}
    while len(found) < count:
        pair = held[int(rng.integers(len(held)))]
        others = taught if rng.random() < 0.75 else [one for one in held if one != pair]
        pairs = [pair, others[int(rng.integers(len(others)))]]
        order = rng.permutation(2)
        relation = (*RELATIONS, None)[int(rng.integers(5))]
        found[Wish((pairs[order[0]], pairs[order[1]]), relation)] = None
    return [*found][:count]


def corpus() -> list[str]:
    """What the painter's own words are learnt from: each is one token."""
    words = [*COLOURS, *SHAPES, "a", "an", "and", *" ".join(RELATIONS).split()]
    return [f"a {word} {word}" for word in words] * 8
