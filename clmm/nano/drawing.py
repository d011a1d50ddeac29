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
    SIZE,
    TRAIN_PAIRS,
    Pair,
    Scene,
    Thing,
    random_background,
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

    @property
    def canonical(self) -> Wish:
        """The same picture in the painter's order: top to bottom, or left to right.

        Which side is whose would else be an exclusive or of word and order, which the UNet's weak
        gradient did not teach it.
        """
        if self.relation in ("below", "right of"):
            return Wish(self.pairs[::-1], "above" if self.relation == "below" else "left of")
        return self if self.relation or len(self.pairs) == 1 else Wish(self.pairs, "left of")


def posed(wish: Wish, rng: np.random.Generator) -> Scene:
    """A picture of the wish: one thing about the middle, two on either side of it as it says.

    Without a relation the first is left of the second. Poses leave the words little to leave open,
    so that a small model learns what they mean, and not where else a thing might be.
    """
    sizes = [int(size) for size in rng.integers(16, 23, size=len(wish.pairs))]
    places = rng.integers(-8, 9, size=(len(wish.pairs), 2)) + SIZE // 2
    if len(wish.pairs) == 2:
        axis = 1 if wish.relation in ("above", "below") else 0
        first = 1 if wish.relation in ("below", "right of") else -1
        places[:, axis] = SIZE // 2 + 17 * np.array([first, -first]) + rng.integers(-4, 5, size=2)
    things = tuple(
        Thing(shape=shape, colour=colour, size=size, x=int(x), y=int(y))
        for (colour, shape), size, (x, y) in zip(wish.pairs, sizes, places, strict=True)
    )
    return Scene(things=things, background=random_background(rng))


def wishes(rng: np.random.Generator, count: int) -> list[Wish]:
    """Of one or two taught pairs, each as often as any other."""
    made = []
    for _ in range(count):
        number = 1 if rng.random() < 0.3 else 2
        chosen = rng.choice(len(TRAIN_PAIRS), size=number, replace=False)
        relation = (*RELATIONS, None)[int(rng.integers(5))] if number == 2 else None
        made.append(Wish(tuple(TRAIN_PAIRS[int(i)] for i in chosen), relation))
    return made


def random_scene(rng: np.random.Generator, pairs: Sequence[Pair], *, most: int) -> Scene:
    """One thing to `most`, anywhere, none oftener than another."""
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
    """Wishes of different pictures, each with an untaught pair; two things in five of six."""
    held, taught = sorted(HELD_OUT_PAIRS), [*TRAIN_PAIRS]
    found = {Wish((pair,)): Wish((pair,)) for pair in held[: max(1, count // 6)]}
    while len(found) < count:
        pair = held[int(rng.integers(len(held)))]
        others = taught if rng.random() < 0.75 else [one for one in held if one != pair]
        pairs = [pair, others[int(rng.integers(len(others)))]]
        order = rng.permutation(2)
        relation = (*RELATIONS, None)[int(rng.integers(5))]
        wish = Wish((pairs[order[0]], pairs[order[1]]), relation)
        found[wish.canonical] = wish
    return [*found.values()][:count]


def corpus() -> list[str]:
    """What the painter's own words are learnt from: each is one token."""
    words = [*COLOURS, *SHAPES, "a", "an", "and", *" ".join(RELATIONS).split()]
    return [f"a {word} {word}" for word in words] * 8
