"""Samples whose pictures are drawn when they are first asked for, and whose scenes never leak.

Loading a stream must not wait for thousands of pictures. Each generated item has its own
generator, so an item does not change when a task gets longer. Which side of the split a scene may
serve is decided by the scene itself: whatever the seeds, no scene is trained on here and tested
on there. The same holds for figures.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar, overload

import numpy as np

from streams.sample import Sample
from streams.world import Figure, Scene

Split = Literal["train", "test"]
Shown = TypeVar("Shown", Scene, Figure)
LICENCE = "MIT (generated)"


class Drawn(Sequence[Sample]):
    """`count` samples; `draw(i)` makes the i-th, once."""

    def __init__(self, count: int, draw: Callable[[int], Sample]) -> None:
        self._draw = draw
        self._made: list[Sample | None] = [None] * count

    def __len__(self) -> int:
        return len(self._made)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        made = self._made[index]
        if made is None:
            made = self._made[index] = self._draw(index)
        return made


def generator(name: str, split: Split, seed: int, index: int) -> np.random.Generator:
    """The randomness of one item, shared with no other item, task, split or probe."""
    return np.random.default_rng([zlib.crc32(f"streams/{name}/{split}".encode()), seed, index])


def chosen(name: str, count: int, share: float, seed: int) -> dict[int, int]:
    """A share of `count` training items, one at least: index → its place in the draw."""
    rng = generator(name, "train", seed, count)  # the first number that is no item's
    order = rng.permutation(count)[: max(1, round(share * count))].tolist()
    return {index: place for place, index in enumerate(order)}


def side(shown: Scene | Figure) -> Split:
    """A fifth of all scenes and figures belongs to the test, by their content.

    A figure's hat and tool do not count: it stays on its side with another hat or tool, or none.
    """
    content: tuple[object, ...]
    if isinstance(shown, Figure):
        content = (shown.x, shown.y, shown.background)
    else:
        content = (sorted(map(repr, shown.things)), shown.background)
    return "test" if hashlib.sha256(repr(content).encode()).digest()[0] % 5 == 0 else "train"


def until(split: Split, draw: Callable[[], Shown]) -> Shown:
    """The first scene or figure drawn that belongs to `split`."""
    while True:
        shown = draw()
        if side(shown) == split:
            return shown
