"""Continual pre-training for the embedded model: four new visual domains, each with captions.

A sample is plain: the picture, then its caption, without a question and without a chat template,
as models are pre-trained on. What is new is how pictures look; each domain says two things:

- `handwriting`: handwritten digits of scikit-learn in coloured ink: "a red seven";
- `light_shapes`: the pictures of easy-VQA, dark shapes on light ground: "a teal rectangle";
- `outlines`: two shapes of the generated world in pencil on paper, from left to right:
  "a ring and a star";
- `textures`: one shape of the generated world with a pattern: "a striped ring".

Plain text is new to the embedded model, so an epoch of LoRA is too little to learn it from: tune
all weights, `strategies: [sequential_full]` and `train: {epochs: 3, learning_rate: 0.001}`.

A caption is right when all of it is. The attribute pairs that are held out for the probes occur
in no caption, and the test digits are those of `digits`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image as Pillow
from PIL import ImageFilter
from pydantic import NonNegativeInt, PositiveInt

from streams import world
from streams.phrasings import article
from streams.sample import Image, Message, Provenance, Sample, Text
from streams.settings import SettingError
from streams.sources import _handwriting
from streams.sources._drawn import LICENCE, Drawn, Split, generator, until
from streams.sources.digits import WORDS
from streams.stream import Task

Domain = Literal["handwriting", "light_shapes", "outlines", "textures"]
PATTERNS = ("plain", "striped", "dotted", "checked")
_SHAPES = ("rectangle", "circle", "triangle")
_COLOURS = ("black", "gray", "red", "green", "blue", "yellow", "teal", "brown")


@dataclass(frozen=True, kw_only=True)
class VisualDomains:
    """Every caption of a domain equally often, as far as chance allows."""

    domains: tuple[Domain, ...] = ("handwriting", "light_shapes", "outlines", "textures")
    """The tasks, in this order."""
    train_items: PositiveInt = 2000
    """Train items of each domain; at most some 2,500 where `light_shapes` is one."""
    test_items: PositiveInt = 200
    """Test items of each domain; at most 360."""
    seed: NonNegativeInt = 0
    """Chooses items and draws scenes. The split does not depend on it."""

    def __post_init__(self) -> None:
        if len(set(self.domains)) != max(len(self.domains), 1):
            got = f"got {list(self.domains)}"
            raise SettingError(f"visual_domains.domains: name each once, at least one; {got}")

    def tasks(self) -> tuple[Task, ...]:
        return tuple(
            Task(
                name=domain,
                train=_DOMAINS[domain]("train", self.train_items, self.seed),
                test=_DOMAINS[domain]("test", self.test_items, self.seed),
                description="What does the picture show? Plain captions, to pre-train on.",
            )
            for domain in self.domains
        )


def _captioned(
    id: str, picture: np.ndarray | Path, caption: str, provenance: Provenance, cluster: str = ""
) -> Sample:
    return Sample(
        id=id,
        messages=(Message(role="user", parts=(Image(source=picture),)),),
        reference=(Text(text=caption),),
        provenance=provenance,
        cluster=cluster or id,
        plain=True,
    )


def _handwritten(split: Split, count: int, seed: int) -> Drawn:
    """A picture that comes back does so in another ink."""
    inks = tuple(world.COLOURS)
    pools = _handwriting.pool(split)
    dealt = _handwriting.deal(pools, count, len(inks), split, seed, "visual_domains")

    def draw(index: int) -> Sample:
        row, ink = dealt[index]
        pictures, labels = _handwriting.handwriting()
        ground = world.random_background(np.random.default_rng([row, ink, 3]))
        cover = _handwriting.enlarge(pictures[row])
        return _captioned(
            f"handwriting/{split}/{row:04d}/{inks[ink]}",
            _painted(ground, cover, world.COLOURS[inks[ink]]),
            article(f"{inks[ink]} {WORDS[int(labels[row])]}"),
            Provenance(
                source=_handwriting.SOURCE,
                split=split,
                item=f"row {row}",
                licence=_handwriting.LICENCE,
            ),
            cluster=f"handwriting/{row:04d}",
        )

    return Drawn(count, draw)


@cache
def _light(split: Split) -> tuple[tuple[Path, ...], tuple[tuple[int, ...], ...], tuple[str, ...]]:
    """easy-VQA's pictures of a split, their numbers by name, and those names."""
    import easy_vqa

    read = {
        "train": (easy_vqa.get_train_questions, easy_vqa.get_train_image_paths),
        "test": (easy_vqa.get_test_questions, easy_vqa.get_test_image_paths),
    }
    facts: defaultdict[int, set[str]] = defaultdict(set)
    for text, answer, image in zip(*read[split][0](), strict=True):
        words = set(text.rstrip("?").split())
        # The answer no to a negated question says that it is there.
        if answer not in ("yes", "no") or (answer == "yes") != bool(words & {"not", "no"}):
            facts[image] |= (words | {answer}) & {*_SHAPES, *_COLOURS}
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for image, known in sorted(facts.items()):
        colour = next((word for word in _COLOURS if word in known), None)
        shape = next((word for word in _SHAPES if word in known), None)
        if colour and shape and (colour, shape) not in world.HELD_OUT_PAIRS:
            groups[f"{colour} {shape}"].append(image)
    paths = read[split][1]()
    every = tuple(Path(paths[image]) for image in range(len(paths)))
    return every, tuple(tuple(groups[name]) for name in sorted(groups)), tuple(sorted(groups))


def _light_shapes(split: Split, count: int, seed: int) -> Drawn:
    paths, groups, names = _light(split)
    name_of = {image: name for name, images in zip(names, groups, strict=True) for image in images}
    dealt = _handwriting.deal(groups, count, 1, split, seed, "visual_domains")

    def draw(index: int) -> Sample:
        image, _ = dealt[index]
        return _captioned(
            f"light_shapes/{split}/{image:04d}",
            paths[image],
            article(name_of[image]),
            Provenance(source="easy-vqa 1.0", split=split, item=f"image {image}", licence="MIT"),
        )

    return Drawn(count, draw)


def _generated(
    domain: Domain,
    draw: Callable[[np.random.Generator, int], world.Scene],
    finish: Callable[[world.Scene, np.random.Generator, int], tuple[np.ndarray, str]],
    split: Split,
    count: int,
    seed: int,
) -> Drawn:
    """Scenes from `draw`, their pictures and captions from `finish`; both get the item's index."""

    def sample(index: int) -> Sample:
        rng = generator(f"visual_domains/{domain}", split, seed, index)
        scene = until(split, lambda: draw(rng, index))
        picture, caption = finish(scene, rng, index)
        return _captioned(
            f"{domain}/{split}/{seed}/{index:05d}",
            picture,
            caption,
            Provenance(
                source=f"generated {domain}, seed {seed}",
                split=split,
                item=f"{domain} {index}",
                licence=LICENCE,
            ),
        )

    return Drawn(count, sample)


def _two_shapes(rng: np.random.Generator, index: int) -> world.Scene:
    """One in the left half and another in the right one."""
    first = index % len(world.SHAPES)
    others = [shape for i, shape in enumerate(world.SHAPES) if i != first]
    shapes = (world.SHAPES[first], others[int(rng.integers(len(others)))])
    things = []
    for side, shape in enumerate(shapes):
        size = int(rng.integers(20, 31))
        x = int(rng.integers(size // 2 + 2, world.SIZE // 2 - size // 2)) + side * world.SIZE // 2
        y = int(rng.integers(size // 2 + 2, world.SIZE - size // 2 - 2))
        things.append(world.Thing(shape, "white", size, x, y))
    return world.Scene(things=tuple(things), background=(0, 0, 0))


def _pencilled(scene: world.Scene, rng: np.random.Generator, index: int) -> tuple[np.ndarray, str]:
    cover = _cover(scene)
    inner = Pillow.fromarray(np.rint(cover * 255).astype(np.uint8)).filter(ImageFilter.MinFilter(5))
    line = cover - np.asarray(inner, dtype=np.float32) / 255
    paper, pencil = int(rng.integers(205, 251)), int(rng.integers(10, 90))
    caption = " and ".join(article(thing.shape) for thing in scene.things)
    return _painted((paper,) * 3, line, (pencil,) * 3), caption


def _one_shape(rng: np.random.Generator, index: int) -> world.Scene:
    shape = world.SHAPES[index // len(PATTERNS) % len(world.SHAPES)]
    size = int(rng.integers(34, 53))
    x, y = (int(v) for v in rng.integers(size // 2 + 2, world.SIZE - size // 2 - 2, size=2))
    colours = [colour for colour, other in world.TRAIN_PAIRS if other == shape]
    colour = colours[int(rng.integers(len(colours)))]
    thing = world.Thing(shape, colour, size, x, y)
    return world.Scene(things=(thing,), background=world.random_background(rng))


def _patterned(scene: world.Scene, rng: np.random.Generator, index: int) -> tuple[np.ndarray, str]:
    thing = scene.things[0]
    pattern = PATTERNS[index % len(PATTERNS)]
    rows, columns = np.indices((world.SIZE, world.SIZE)) + rng.integers(0, 8, size=(2, 1, 1))
    dark = {
        "plain": np.zeros((world.SIZE, world.SIZE), dtype=bool),
        "striped": rows // 3 % 2 == 0,
        "dotted": (rows % 8 - 3.5) ** 2 + (columns % 8 - 3.5) ** 2 < 7,
        "checked": (rows // 4 + columns // 4) % 2 == 0,
    }[pattern]
    fill = np.array(world.COLOURS[thing.colour]) * np.where(dark, 0.3, 1)[:, :, None]
    return _painted(scene.background, _cover(scene), fill), article(f"{pattern} {thing.shape}")


def _cover(scene: world.Scene) -> np.ndarray:
    """How much of each pixel a thing covers: float [72, 72] in [0, 1]."""
    bare = world.Scene(things=scene.things, background=(0, 0, 0))
    white = dict.fromkeys(world.COLOURS, (255, 255, 255))
    cover: np.ndarray = world.render(bare, white)[:, :, 0].astype(np.float32) / 255
    return cover


def _painted(
    ground: world.Colour, cover: np.ndarray, ink: np.ndarray | Sequence[int]
) -> np.ndarray:
    """`ink`, one colour or a colour a pixel, over the ground where `cover` says so."""
    over, under = np.asarray(ink, dtype=np.float32), np.asarray(ground, dtype=np.float32)
    return np.rint(under + cover[:, :, None] * (over - under)).astype(np.uint8)


_DOMAINS: dict[Domain, Callable[[Split, int, int], Sequence[Sample]]] = {
    "handwriting": _handwritten,
    "light_shapes": _light_shapes,
    "outlines": partial(_generated, "outlines", _two_shapes, _pencilled),
    "textures": partial(_generated, "textures", _one_shape, _patterned),
}
