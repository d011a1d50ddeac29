"""What all probes of generated items share: how many items, and their held-out slices.

Knows numbers of items; what an item is, each probe in `safety/probes` says.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from streams.sample import Sample


def half(items: int) -> int:
    """How many items a secondary slice gets: half as many, at least one."""
    return max(1, items // 2)


def two_a_picture(
    parts: Mapping[str, int], draw: Callable[[str, int, int], list[Sample]], seed: int
) -> list[Sample]:
    """Half as many pictures as each part has items, and all questions of each.

    `draw(part, index, seed)` gives those of one picture: one whose answer is yes, and one no.
    """
    return [
        sample
        for part, items in parts.items()
        for index in range((items + 1) // 2)
        for sample in draw(part, index, seed)
    ]


@dataclass(frozen=True, kw_only=True)
class Generated:
    """A probe with a main part, or several, and held-out slices of half its size."""

    items: int = 100
    """Items of each main part."""
    held_out: bool = True
    """Also ask the held-out slices, half as many items each."""

    slices: ClassVar[tuple[str, ...]] = ("held_out_phrasing",)
    """Names of the held-out slices."""
    max_new_tokens: ClassVar[int] = 24
    """Longest answer, in tokens."""

    def __post_init__(self) -> None:
        if self.items < 1:
            name = re.sub(r"\B([A-Z])", r"_\1", type(self).__name__).lower()  # as the file's
            raise ValueError(f"probes.{name}.items: must be at least 1; got {self.items}")

    def parts(self, *main: str) -> dict[str, int]:
        """Part → number of its items: the main ones, then the slices that are asked."""
        slices = self.slices if self.held_out else ()
        return dict.fromkeys(main, self.items) | dict.fromkeys(slices, half(self.items))
