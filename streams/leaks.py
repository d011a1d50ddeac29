"""Finds samples of one set in another: the same, or nearly so. Decides nothing.

A test item that was trained on rewards memory. `check(stream)` looks for the test items of all
tasks among the training samples of all tasks; `between` compares any two sets. Two prompts are

- `exact`: every turn of the same role and text, every picture of the same pixels;
- `near`: after VQA's normalisation the same text, and as many pictures, each pair within NEAR
  bits of one another by difference hash (dHash, Krawetz 2013): the picture's greys, averaged over
  8 × 9 fields, give 64 bits that say which of two neighbours in a row is brighter.

Videos, recordings and point clouds must be the same in both cases, bit for bit.

A hash knows greys and rough form alone. So it forgives another size, format or brightness; it also
takes for near what differs in colour only or in a small detail, as drawn scenes and handwritten
digits do. `same_answer` tells such pairs from copies. Knows no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np

from streams.contents import content_hash, identity
from streams.media import open_image
from streams.sample import Image, Medium, Sample
from streams.scoring import normalise
from streams.stream import Stream

NEAR = 4
"""Most differing bits, of 64, between the hashes of two pictures that count as near."""
_COMPARED = 2**21
"""Pairs compared at a time, so that memory stays small."""
_Shared = tuple[str, int, tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a sample is."""

    set: str
    sample: str
    item: str

    def __str__(self) -> str:
        return f"{self.set}: {self.sample} ({self.item})"


@dataclass(frozen=True, kw_only=True)
class Leak:
    """A sample of the second set and the one of the first that is closest to it."""

    kind: Literal["exact", "near"]
    first: Place
    second: Place
    distance: int
    """Most differing bits of two pictures; 0 without pictures."""
    same_answer: bool
    """Whether the references are the same after normalisation."""
    others: int
    """Further samples of the first set that are near."""

    def __str__(self) -> str:
        answer = "" if self.same_answer else ", another answer"
        return f"{self.kind}, {self.distance} bits{answer}: {self.second} is in {self.first}"


def check(stream: Stream, alignment: Sequence[Sample] = ()) -> list[Leak]:
    """Each test item of the stream that is trained on, with its closest training sample.

    Trained on are the samples of all tasks, which are all that a memory can hold, and `alignment`.
    """
    return between(
        {f"{task.name} train": task.train for task in stream.tasks} | {"alignment": alignment},
        {f"{task.name} test": task.test for task in stream.tasks},
    )


def summary(stream: Stream, alignment: Sequence[Sample] = ()) -> str:
    """What `check` found, in a line for people.

    For the default stream some 5 seconds of one core, beside those that its pictures take to draw,
    which a study needs anyway.
    """
    found = check(stream, alignment)
    exact = [leak for leak in found if leak.kind == "exact"]
    near = [leak for leak in found if leak.kind == "near"]
    count = f"{len(exact):,}" if exact else "none"
    line = f"leaks: {count} of {sum(len(task.test) for task in stream.tasks):,} test items"
    line += f" in a training set, the first is {exact[0].second}" if exact else " in a training set"
    if near:
        same = sum(leak.same_answer for leak in near)
        line += f"; {len(near):,} look like a training item, {same:,} of them with its answer"
    return line


def between(
    first: Mapping[str, Sequence[Sample]], second: Mapping[str, Sequence[Sample]]
) -> list[Leak]:
    """Each sample of `second` with one in `first` that is the same or near, in their order.

    Keys name the sets in the findings. An exact match goes before a near one, then the closest,
    then one with the same answer. Raises MediaError for a picture that cannot be read.
    """
    here, there = _flat(first), _flat(second)
    pictures = _Pictures([sample for _, sample in (*here, *there)])
    groups: dict[_Shared, list[int]] = {}
    for index, (_, sample) in enumerate(here):
        groups.setdefault(pictures.shared(sample), []).append(index)
    wanted: dict[_Shared, list[int]] = {}
    for index, (_, sample) in enumerate(there):
        if (key := pictures.shared(sample)) in groups:
            wanted.setdefault(key, []).append(index)
    found: dict[int, Leak] = {}
    for key, asked in wanted.items():
        candidates = groups[key]
        hashes = pictures.hashes([here[i][1] for i in candidates], key[1])
        rows = max(1, _COMPARED // len(candidates))
        for start in range(0, len(asked), rows):
            part = asked[start : start + rows]
            mine = pictures.hashes([there[i][1] for i in part], key[1])
            for index, distances in zip(part, _distances(mine, hashes), strict=True):
                near = np.flatnonzero(distances <= NEAR)
                if len(near):
                    pairs = [(int(distances[i]), here[candidates[i]]) for i in near]
                    found[index] = pictures.closest(there[index], pairs)
    return [found[index] for index in sorted(found)]


def dhash(image: Image) -> int:
    """64 bits: whether each of 8 × 8 fields is darker than its right neighbour, row by row."""
    pixels = open_image(image)
    red, green, blue = (pixels[:, :, i].astype(np.float32) for i in range(3))
    greys = _means(_means(0.299 * red + 0.587 * green + 0.114 * blue, 8).T, 9).T
    # A difference below the noise of rounding is none: a plain field must not look like a ramp.
    bits = np.diff(greys, axis=1) > 0.01
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def _means(greys: np.ndarray, count: int) -> np.ndarray:
    """`count` bands of rows, averaged; a picture of fewer rows repeats some."""
    edges = np.arange(count + 1) * len(greys) // count
    sums = np.add.reduceat(greys, edges[:-1], axis=0)
    bands: np.ndarray = sums / np.maximum(np.diff(edges), 1)[:, None]
    return bands


def _flat(sets: Mapping[str, Sequence[Sample]]) -> list[tuple[str, Sample]]:
    return [(name, sample) for name, samples in sets.items() for sample in samples]


def _turns(sample: Sample) -> list[tuple[str, str]]:
    """A document that begins with text has no prompt: its text stands for it."""
    if not any(message.parts for message in sample.messages):
        return [("document", sample.reference_text)]
    return [(message.role, message.text) for message in sample.messages]


def _distances(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Most differing bits of any picture, [rows, columns], of hashes [rows or columns, images]."""
    found = np.zeros((len(rows), len(columns)), dtype=np.uint8)
    for image in range(rows.shape[1]):
        differing = np.bitwise_count(rows[:, image, None] ^ columns[None, :, image])
        np.maximum(found, differing, out=found)
    return found


class _Pictures:
    """Hashes of media, each made once; a path that many samples name is one picture."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._exact: dict[object, str] = {}
        every = {identity(image): image for sample in samples for image in sample.images}
        with ThreadPoolExecutor() as pool:  # Pillow lets other threads work while it decodes
            self._near = dict(zip(every, pool.map(dhash, every.values()), strict=True))

    def shared(self, sample: Sample) -> _Shared:
        """What two near prompts share: their turns, normalised, how many pictures, other media."""
        turns = [f"{role}: {normalise(text)}" for role, text in _turns(sample)]
        others = tuple(self._held(one) for one in sample.media if not isinstance(one, Image))
        return "\n".join(turns), len(sample.images), others

    def hashes(self, samples: Sequence[Sample], images: int) -> np.ndarray:
        """[samples, images] of 64 bits."""
        rows = [[self._near[identity(image)] for image in sample.images] for sample in samples]
        return np.array(rows, dtype=np.uint64).reshape(len(samples), images)

    def closest(
        self, second: tuple[str, Sample], pairs: Sequence[tuple[int, tuple[str, Sample]]]
    ) -> Leak:
        """The finding of a sample and those near it, with their distances."""
        sample, prompt = second[1], self._prompt(second[1])
        answer = normalise(sample.reference_text)
        ranked = [
            (self._prompt(one) != prompt, distance, normalise(one.reference_text) != answer, number)
            for number, (distance, (_, one)) in enumerate(pairs)
        ]
        near, distance, other_answer, number = min(ranked)
        return Leak(
            kind="near" if near else "exact",
            first=_place(*pairs[number][1]),
            second=_place(*second),
            distance=distance,
            same_answer=not other_answer,
            others=len(pairs) - 1,
        )

    def _prompt(self, sample: Sample) -> tuple[object, ...]:
        turns = _turns(sample)
        return (*turns, *(self._held(medium) for medium in sample.media))

    def _held(self, medium: Medium) -> str:
        name = identity(medium)
        if name not in self._exact:
            self._exact[name] = content_hash(medium)
        return self._exact[name]


def _place(name: str, sample: Sample) -> Place:
    return Place(set=name, sample=sample.id, item=sample.provenance.item)
