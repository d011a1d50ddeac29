"""What an image cannot show: pitches to hear, motions to see, solids to walk around.

Three small tasks with exact truth, for models that take audio, video or 3D: which of two tones is
the higher, which way a thing moves, which solid a cloud of points is. Each item has noise, place
and size of its own, so that no two are equal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from pydantic import NonNegativeInt, PositiveInt

from streams import phrasings, world
from streams.sample import Audio, Medium, Points, Provenance, Sample, Video, ask
from streams.sources._drawn import LICENCE, Drawn, Split, generator
from streams.stream import Task

Sense = Literal["tones", "motions", "solids"]
SAMPLING_RATE = 16_000
FRAMES = 8
POINTS = 512
DIRECTIONS: dict[str, tuple[int, int]] = {
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
}
SOLIDS = ("cube", "sphere", "cone", "cylinder")
QUESTIONS: dict[Sense, tuple[str, ...]] = {
    "tones": (
        "Does the melody rise or fall?",
        "Do the two tones rise or fall?",
        "Which way does the pitch go?",
    ),
    "motions": (
        "Which way does the shape move?",
        "In which direction does it move?",
        "Where is the shape going?",
    ),
    "solids": ("Which solid is this?", "Which body is it?", "Name the solid."),
}


@dataclass(frozen=True, kw_only=True)
class Senses:
    """Rising and falling tones, moving shapes, solids of points; every answer equally often."""

    only: tuple[Sense, ...] = ("tones", "motions", "solids")
    """The tasks, in this order: audio, video and 3D."""
    train_items: PositiveInt = 400
    test_items: PositiveInt = 100
    seed: NonNegativeInt = 0

    def tasks(self) -> tuple[Task, ...]:
        about = {
            "tones": "Do two tones rise or fall?",
            "motions": "Which way does the shape move?",
            "solids": "Which solid are the points on?",
        }
        return tuple(
            Task(
                name=name,
                train=Drawn(self.train_items, partial(self._sample, name, "train")),
                test=Drawn(self.test_items, partial(self._sample, name, "test")),
                description=about[name],
            )
            for name in self.only
        )

    def _sample(self, name: Sense, split: Split, index: int) -> Sample:
        rng = generator(name, split, self.seed, index)
        answers, draw = _DRAWN[name]
        answer = answers[index % len(answers)]
        return ask(
            id=f"{name}/{split}/{self.seed}/{index:05d}",
            question=phrasings.pick(QUESTIONS[name], rng),
            answer=answer,
            medium=draw(answer, rng),
            provenance=Provenance(
                source=f"generated {name}, seed {self.seed}",
                split=split,
                item=f"{name} {index}",
                licence=LICENCE,
            ),
        )


def melody(answer: str, rng: np.random.Generator) -> Audio:
    """Half a second: two tones, at least three semitones apart, in noise 30 dB below them."""
    low = 220 * 2 ** rng.uniform(0, 1)
    steps = (low, low * 2 ** (rng.uniform(3, 12) / 12))
    time = np.arange(SAMPLING_RATE // 4) / SAMPLING_RATE
    fade = np.minimum(1, 50 * np.minimum(time, time[::-1]))
    loud = rng.uniform(0.3, 0.9)
    wave = np.concatenate(
        [
            loud * fade * np.sin(2 * np.pi * (pitch * time + rng.uniform()))
            for pitch in (steps if answer == "rise" else steps[::-1])
        ]
    )
    wave += rng.normal(0, loud * 0.7 * 10 ** (-30 / 20), len(wave))
    return Audio(source=wave.clip(-1, 1).astype(np.float32), sampling_rate=SAMPLING_RATE)


def motion(answer: str, rng: np.random.Generator) -> Video:
    """A thing of the world that goes the same way by two to four pixels a frame."""
    colour, shape = world.TRAIN_PAIRS[int(rng.integers(len(world.TRAIN_PAIRS)))]
    size, speed = int(rng.integers(14, 23)), int(rng.integers(2, 5))
    way, background = np.array(DIRECTIONS[answer]), world.random_background(rng)
    half, far = size // 2 + 1, speed * (FRAMES - 1)
    # Anywhere from which it stays in the picture.
    lowest = half + np.maximum(-way, 0) * far
    highest = world.SIZE - half - np.maximum(way, 0) * far
    start = rng.integers(lowest, highest + 1)
    frames = []
    for place in (start + step * speed * way for step in range(FRAMES)):
        thing = world.Thing(shape=shape, colour=colour, size=size, x=int(place[0]), y=int(place[1]))
        frames.append(world.render(world.Scene(things=(thing,), background=background)))
    return Video(source=np.stack(frames))


def solid(answer: str, rng: np.random.Generator) -> Points:
    """Points on a solid's surface, evenly by area, turned about the upright axis y, with noise."""
    u, v = rng.uniform(size=(2, POINTS))
    turn = 2 * np.pi * v
    circle = np.stack([np.cos(turn), np.sin(turn)])
    if answer == "sphere":
        y = 2 * u - 1
        x, z = circle * np.sqrt(1 - y**2)
    elif answer == "cone":
        # Base and mantle, of slant √5, in the ratio of their areas; both fill as √u.
        base = rng.uniform(size=POINTS) < 1 / (1 + np.sqrt(5))
        x, z = circle * np.sqrt(u)
        y = np.where(base, -1, 1 - 2 * np.sqrt(u))
    elif answer == "cylinder":
        # A lid each has a quarter of what the mantle of height 2 has.
        part = rng.uniform(size=POINTS) * 6
        x, z = circle * np.where(part < 4, 1, np.sqrt(u))
        y = np.where(part < 4, 2 * u - 1, np.where(part < 5, 1, -1))
    else:
        places = rng.uniform(-1, 1, size=(POINTS, 3))
        side = rng.integers(6, size=POINTS)
        places[np.arange(POINTS), side % 3] = np.where(side < 3, -1, 1)
        x, y, z = places.T
    angle = rng.uniform(0, 2 * np.pi)
    turned = np.stack(
        [np.cos(angle) * x - np.sin(angle) * z, y, np.sin(angle) * x + np.cos(angle) * z], axis=1
    )
    turned = turned * rng.uniform(0.5, 2) + rng.normal(0, 0.01, turned.shape)
    return Points(source=(turned + rng.uniform(-1, 1, 3)).astype(np.float32))


_DRAWN: dict[Sense, tuple[tuple[str, ...], Callable[[str, np.random.Generator], Medium]]] = {
    "tones": (("rise", "fall"), melody),
    "motions": (tuple(DIRECTIONS), motion),
    "solids": (SOLIDS, solid),
}
