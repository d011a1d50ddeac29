"""What all probes of generated items share: how many items, and their held-out slices.

Knows numbers of items; what an item is, each probe in `safety/probes` says.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar


def half(items: int) -> int:
    """How many items a secondary slice gets: half as many, at least one."""
    return max(1, items // 2)


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
