"""The generated scene world as a stream: existence questions and captions with exact truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from pydantic import NonNegativeInt, PositiveInt

from streams import phrasings, world
from streams.sample import Image, Provenance, Sample, Scorer, ask
from streams.sources._drawn import LICENCE, Drawn, Split, generator, until
from streams.stream import Task

Kind = Literal["existence", "captions"]


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """What the embedded model can already do, as tasks: for models that cannot.

    Only attribute pairs and phrasings that are not held out for the probes.
    """

    kinds: tuple[Kind, ...] = ("existence", "captions")
    """The tasks, in this order."""
    train_items: PositiveInt = 2000
    test_items: PositiveInt = 300
    seed: NonNegativeInt = 0

    def tasks(self) -> tuple[Task, ...]:
        return tuple(
            Task(
                name=kind,
                train=Drawn(self.train_items, partial(self._sample, kind, "train")),
                test=Drawn(self.test_items, partial(self._sample, kind, "test")),
                description=_KINDS[kind][1],
            )
            for kind in self.kinds
        )

    def _sample(self, kind: Kind, split: Split, index: int) -> Sample:
        rng = generator(f"scenes/{kind}", split, self.seed, index)
        scene = until(split, lambda: world.random_scene(rng, pairs=world.TRAIN_PAIRS))
        scorer, _, words = _KINDS[kind]
        question, answer = words(scene, index, rng)
        return ask(
            id=f"{kind}/{split}/{self.seed}/{index:05d}",
            question=question,
            answer=answer,
            image=Image(source=world.render(scene)),
            provenance=Provenance(
                source=f"generated scenes, seed {self.seed}",
                split=split,
                item=f"{kind} {index}",
                licence=LICENCE,
            ),
            scorer=scorer,
        )


def _existence(scene: world.Scene, index: int, rng: np.random.Generator) -> tuple[str, str]:
    """Yes and no by turns; half of the absent things are partners of what is there."""
    there = [thing.pair for thing in scene.things]
    absent = [pair for pair in world.TRAIN_PAIRS if pair not in there]
    partners = [world.PARTNER[pair] for pair in there if world.PARTNER[pair] in absent]
    choice = there if index % 2 == 0 else partners if partners and index % 4 == 1 else absent
    colour, shape = choice[int(rng.integers(len(choice)))]
    question = phrasings.existence_question(f"{colour} {shape}", rng)
    return question, "Yes." if choice is there else "No."


def _caption(scene: world.Scene, index: int, rng: np.random.Generator) -> tuple[str, str]:
    """Names the things from left to right."""
    names = [thing.name for thing in scene.reading_order]
    return phrasings.caption_question(rng), phrasings.listing(names)


_Words = Callable[[world.Scene, int, np.random.Generator], tuple[str, str]]
_KINDS: dict[Kind, tuple[Scorer, str, _Words]] = {
    "existence": ("yes_no", "Is a thing of that colour and shape in the scene?", _existence),
    "captions": ("rouge_l", "Which things does the scene hold?", _caption),
}
