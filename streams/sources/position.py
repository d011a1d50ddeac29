"""Places in the generated world: "Where is the star?" → "The star is in the lower right"."""

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
    "Where is the {thing}?",
    "Where in the image is the {thing}?",
    "Where in the picture is the {thing}?",
    "Where do you see the {thing}?",
    "In which part of the image is the {thing}?",
    "Say where the {thing} is.",
)
REGIONS = ("upper left", "upper right", "lower left", "lower right")


def region(thing: world.Thing) -> str | None:
    """The quarter that holds the whole thing; None for one that touches a middle line."""
    middle, half = world.SIZE / 2, thing.size / 2
    if min(abs(thing.x - middle), abs(thing.y - middle)) <= half:
        return None
    return f"{'upper' if thing.y < middle else 'lower'} {'left' if thing.x < middle else 'right'}"


@dataclass(frozen=True, kw_only=True)
class Position:
    """Asks for the quarter of one thing; every quarter equally often. Answers are sentences.

    The thing asked for lies wholly inside its quarter, so that no answer is a matter of taste.
    """

    train_items: PositiveInt = 2000
    test_items: PositiveInt = 300
    seed: NonNegativeInt = 0
    most_things: Annotated[int, Field(ge=1, le=5)] = 2
    """The largest number of things in a scene; the others are distractors."""

    def tasks(self) -> tuple[Task, ...]:
        return (
            Task(
                name="position",
                train=Drawn(self.train_items, partial(self._sample, "train")),
                test=Drawn(self.test_items, partial(self._sample, "test")),
                description="In which quarter of the picture is the thing?",
            ),
        )

    def _sample(self, split: Split, index: int) -> Sample:
        rng = generator("position", split, self.seed, index)
        place = REGIONS[index % len(REGIONS)]
        count = 1 + int(rng.integers(self.most_things))
        there: list[world.Thing] = []
        while not there:
            scene = until(
                split, lambda: world.random_scene(rng, pairs=world.TRAIN_PAIRS, count=count)
            )
            there = [thing for thing in scene.things if region(thing) == place]
        thing = there[0].name
        return ask(
            id=f"position/{split}/{self.seed}/{index:05d}",
            question=phrasings.pick(PHRASINGS, rng).format(thing=thing),
            answer=f"The {thing} is in the {place}.",
            image=Image(source=world.render(scene)),
            provenance=Provenance(
                source=f"generated scenes, seed {self.seed}",
                split=split,
                item=f"position {index}",
                licence=LICENCE,
            ),
        )
