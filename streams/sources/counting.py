"""Counting in the generated world: "How many things are there?" → "three"."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt

from streams import phrasings, world
from streams.sample import Image, Provenance, Sample, ask
from streams.sources._drawn import LICENCE, Drawn, Split, generator, until
from streams.stream import Task

PHRASINGS = (
    "How many things are there?",
    "How many things are in the image?",
    "How many things do you see?",
    "How many things does the picture show?",
    "What is the number of things?",
    "Count the things.",
)
WORDS = ("one", "two", "three", "four", "five")


@dataclass(frozen=True, kw_only=True)
class Counting:
    """Scenes of one to five things; every number equally often."""

    train_items: PositiveInt = 2000
    test_items: PositiveInt = 300
    seed: NonNegativeInt = 0
    most_things: Annotated[int, Field(ge=2, le=5)] = 5
    """The largest number of things in a scene."""

    def tasks(self) -> tuple[Task, ...]:
        return (
            Task(
                name="counting",
                train=Drawn(self.train_items, partial(self._sample, "train")),
                test=Drawn(self.test_items, partial(self._sample, "test")),
                description="How many things does the scene hold?",
            ),
        )

    def _sample(self, split: Split, index: int) -> Sample:
        rng = generator("counting", split, self.seed, index)
        count = 1 + index % self.most_things
        scene = until(split, lambda: world.random_scene(rng, pairs=world.TRAIN_PAIRS, count=count))
        return ask(
            id=f"counting/{split}/{self.seed}/{index:05d}",
            question=phrasings.pick(PHRASINGS, rng),
            answer=WORDS[count - 1],
            image=Image(source=world.render(scene)),
            provenance=Provenance(
                source=f"generated scenes, seed {self.seed}",
                split=split,
                item=f"counting {index}",
                licence=LICENCE,
            ),
        )
