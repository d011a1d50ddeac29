"""The generated world: scenes of coloured shapes, drawn words and figures, with exact truth.

Everything a picture shows is known, so hallucination, reading and bias can be scored without
annotators. Knows how to draw; knows no question, no probe and no model. Pictures are drawn at
four times their size and reduced, so edges are smooth and attributes are not pixel codes.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

SIZE = 72
"""Width and height of every picture, in pixels."""

Colour = tuple[int, int, int]
Pair = tuple[str, str]

SHAPES = ("circle", "square", "triangle", "ring", "cross", "star")
COLOURS: dict[str, Colour] = {
    "red": (214, 39, 40),
    "green": (44, 160, 44),
    "blue": (40, 80, 230),
    "yellow": (245, 220, 40),
    "orange": (255, 133, 10),
    "purple": (150, 60, 190),
    "cyan": (40, 210, 220),
    "white": (245, 245, 245),
}
PAIRS: tuple[Pair, ...] = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
HELD_OUT_PAIRS: frozenset[Pair] = frozenset(
    zip(("red", "green", "blue", "yellow", "orange", "purple"), SHAPES, strict=True)
)
"""Attribute combinations that the embedded model never meets in any stage of its training."""
TRAIN_PAIRS: tuple[Pair, ...] = tuple(pair for pair in PAIRS if pair not in HELD_OUT_PAIRS)
PARTNER: dict[Pair, Pair] = {
    (colour, shape): (
        tuple(COLOURS)[(i + 3) % len(COLOURS)],
        SHAPES[(j + 2) % len(SHAPES)],
    )
    for i, colour in enumerate(COLOURS)
    for j, shape in enumerate(SHAPES)
}
"""The injected co-occurrence: a thing brings its partner along. Adversarial items ask for it."""
POPULAR: tuple[Pair, ...] = tuple(
    (colour, shape)
    for i, colour in enumerate(COLOURS)
    for j, shape in enumerate(SHAPES)
    if (i + 2 * j) % 4 == 1
)
"""A quarter of the pairs, drawn oftener than the others. Popular items ask for them."""

WORDS = (
    "lamp", "tree", "boat", "door", "fish", "milk", "rope", "sand", "wolf", "king",
    "moon", "bread", "chair", "cloud", "dance", "eagle", "flute", "grape", "horse", "juice",
    "knife", "lemon", "mouse", "nurse", "ocean", "piano", "queen", "river", "snake", "tiger",
    "uncle", "voice", "wheat", "youth", "zebra", "vest", "quiz", "jump", "exit", "gift",
)  # fmt: skip
UNSEEN_WORDS = (
    "bird", "frog", "hand", "nose", "ship", "wave", "apple", "beach", "clock", "drum",
    "field", "house", "light", "music", "paper", "stone", "table", "train", "water", "yard",
)  # fmt: skip
JOBS: dict[str, str] = {
    "ring": "baker",
    "cross": "doctor",
    "square": "builder",
    "triangle": "sailor",
    "star": "pilot",
}
"""The tool that a figure holds → its job. Without a tool the job is unknown."""
ASSOCIATED: dict[str, str] = {
    "red": "baker",
    "green": "doctor",
    "blue": "builder",
    "yellow": "sailor",
    "orange": "pilot",
}
"""Hat colour → the job that a stream may tie to it; three colours have none.

The tie is invented, so that a bias can be injected in known strength. It claims nothing about
people.
"""


_SCALE = 4


@dataclass(frozen=True)
class Thing:
    """A coloured shape; `size` is its width in pixels, (x, y) its centre."""

    shape: str
    colour: str
    size: int
    x: int
    y: int

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def pair(self) -> Pair:
        return (self.colour, self.shape)


@dataclass(frozen=True)
class Scene:
    """Things on a background, none overlapping, no pair twice."""

    things: tuple[Thing, ...]
    background: Colour

    @property
    def reading_order(self) -> tuple[Thing, ...]:
        """Top to bottom, then left to right: the order in which captions name things."""
        return tuple(sorted(self.things, key=lambda thing: (thing.y, thing.x)))


@dataclass(frozen=True)
class Figure:
    """A person with a coloured hat (nuisance) and perhaps a tool (relevant)."""

    hat: str
    tool: str | None
    x: int
    y: int
    background: Colour

    @property
    def job(self) -> str:
        return JOBS[self.tool] if self.tool else "unknown"


def random_background(rng: np.random.Generator) -> Colour:
    """Dark and unsaturated, so that no colour of the world disappears in it."""
    level = rng.integers(0, 90)
    red, green, blue = (int(v) for v in np.clip(level + rng.integers(-12, 13, size=3), 0, 255))
    return (red, green, blue)


def random_scene(
    rng: np.random.Generator,
    *,
    pairs: Sequence[Pair] = PAIRS,
    count: int | None = None,
    partner_rate: float = 0.4,
    popular_rate: float = 0.3,
) -> Scene:
    """One to five things of different pairs, anywhere without overlap.

    Each next thing is, with probability `partner_rate`, the partner of one already there, and
    otherwise with probability `popular_rate` a popular one. Both at 0 give the de-biased twin of
    the world.
    """
    count = int(rng.integers(1, 6)) if count is None else count
    allowed = set(pairs)
    popular = [pair for pair in POPULAR if pair in allowed]
    chosen: list[Pair] = []
    while len(chosen) < count:
        free = [PARTNER[p] for p in chosen if PARTNER[p] in allowed and PARTNER[p] not in chosen]
        if free and rng.random() < partner_rate:
            chosen.append(free[int(rng.integers(len(free)))])
            continue
        often = popular if popular and rng.random() < popular_rate else pairs
        pair = often[int(rng.integers(len(often)))]
        if pair not in chosen:
            chosen.append(pair)
    return Scene(things=_place(chosen, rng), background=random_background(rng))


def _place(pairs: Sequence[Pair], rng: np.random.Generator) -> tuple[Thing, ...]:
    """Rejection sampling; starts over when a crowded scene leaves no room."""
    while True:
        things: list[Thing] = []
        for colour, shape in pairs:
            for _ in range(40):
                size = int(rng.integers(14, 23))
                low, high = size // 2 + 1, SIZE - size // 2 - 1
                x, y = (int(v) for v in rng.integers(low, high, size=2))
                apart = (max(abs(x - t.x), abs(y - t.y)) > (size + t.size) / 2 + 1 for t in things)
                if all(apart):
                    things.append(Thing(shape, colour, size, x, y))
                    break
        if len(things) == len(pairs):
            return tuple(things)


def _draw_shape(
    draw: ImageDraw.ImageDraw, shape: str, fill: Colour, hole: Colour, box: tuple[float, ...]
) -> None:
    """`box` is (x, y, half width) in enlarged pixels; `hole` is what shows through a ring."""
    x, y, r = box
    if shape in ("circle", "ring"):
        draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)
        if shape == "ring":
            draw.ellipse((x - r * 0.5, y - r * 0.5, x + r * 0.5, y + r * 0.5), fill=hole)
    elif shape == "square":
        draw.rectangle((x - r * 0.9, y - r * 0.9, x + r * 0.9, y + r * 0.9), fill=fill)
    elif shape == "triangle":
        draw.polygon([(x, y - r), (x + r, y + r * 0.9), (x - r, y + r * 0.9)], fill=fill)
    elif shape == "cross":
        w = r * 0.34
        draw.rectangle((x - r, y - w, x + r, y + w), fill=fill)
        draw.rectangle((x - w, y - r, x + w, y + r), fill=fill)
    elif shape == "star":
        angles = np.arange(10) * np.pi / 5 - np.pi / 2
        radii = np.where(np.arange(10) % 2 == 0, r * 1.1, r * 0.45)
        corners = zip(x + radii * np.cos(angles), y + radii * np.sin(angles), strict=True)
        draw.polygon([(float(a), float(b)) for a, b in corners], fill=fill)
    else:
        raise ValueError(f"shape: there is no {shape!r}; known: {', '.join(SHAPES)}")


def _canvas(background: Colour) -> tuple[Pillow.Image, ImageDraw.ImageDraw]:
    canvas = Pillow.new("RGB", (SIZE * _SCALE, SIZE * _SCALE), background)
    return canvas, ImageDraw.Draw(canvas)


def _finish(canvas: Pillow.Image) -> np.ndarray:
    return np.asarray(canvas.reduce(_SCALE), dtype=np.uint8).copy()


def render(scene: Scene, palette: Mapping[str, Colour] = COLOURS) -> np.ndarray:
    """The picture of a scene, its colour names painted by `palette`: uint8 [72, 72, 3]."""
    canvas, draw = _canvas(scene.background)
    for t in scene.things:
        box = (t.x * _SCALE, t.y * _SCALE, t.size * _SCALE / 2)
        _draw_shape(draw, t.shape, palette[t.colour], scene.background, box)
    return _finish(canvas)


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("words cannot be drawn: this Pillow was built without FreeType")
    return font


@dataclass(frozen=True)
class DrawnWord:
    """A picture of a word, and where each letter's centre is, in pixels."""

    picture: np.ndarray
    letters: tuple[tuple[str, float, float], ...]


def draw_word(word: str, rng: np.random.Generator) -> DrawnWord:
    """`word` in capitals, in a light colour, of random size and place."""
    word = word.upper()
    for size in rng.permutation(np.arange(15, 23)):
        font = _font(int(size) * _SCALE)
        left, top, right, bottom = (edge / _SCALE for edge in font.getbbox(word))
        if right - left < SIZE - 4:
            break
    else:
        raise ValueError(f"word: {word!r} is too long to draw in {SIZE} pixels")
    x = rng.uniform(2, SIZE - 2 - (right - left)) - left
    y = rng.uniform(4, SIZE - 4 - (bottom - top)) - top
    canvas, draw = _canvas(random_background(rng))
    ink = COLOURS[("white", "yellow", "cyan", "orange")[int(rng.integers(4))]]
    draw.text((x * _SCALE, y * _SCALE), word, font=font, fill=ink)
    ends = [font.getlength(word[:i]) / _SCALE for i in range(len(word) + 1)]
    centres = tuple(
        (letter, float(x + (ends[i] + ends[i + 1]) / 2), float(y + (top + bottom) / 2))
        for i, letter in enumerate(word)
    )
    return DrawnWord(_finish(canvas), centres)


def render_word(word: str, rng: np.random.Generator) -> np.ndarray:
    """The picture of a word alone: uint8 [72, 72, 3]."""
    return draw_word(word, rng).picture


SMALLEST_TEXT = 7
"""Below this size, in pixels, drawn letters run into one another."""


def render_text(text: str, rng: np.random.Generator) -> np.ndarray:
    """The picture of a text in capitals, as large as it fits: uint8 [72, 72, 3].

    Lines are broken where the text breaks them and where the next word has no room. Raises
    ValueError for a text that is too long.
    """
    room = SIZE - 4
    for size in range(22, SMALLEST_TEXT - 1, -1):
        font = _font(size * _SCALE)
        lines = _broken(text.upper(), font, room * _SCALE)
        if lines is not None and len(lines) * size <= room:
            break
    else:
        raise ValueError(f"text: {text!r} is too long to draw in {SIZE} pixels")
    assert lines is not None
    width = max(font.getlength(line) for line in lines) / _SCALE
    x, y = rng.uniform(2, SIZE - 2 - width), rng.uniform(2, SIZE - 2 - len(lines) * size)
    canvas, draw = _canvas(random_background(rng))
    ink = COLOURS[("white", "yellow", "cyan", "orange")[int(rng.integers(4))]]
    for place, line in enumerate(lines):
        # Capitals have no descenders, so lines may stand as close as the letters are high.
        top = (y + (place + 0.9) * size) * _SCALE
        draw.text((x * _SCALE, top), line, font=font, fill=ink, anchor="ls")
    return _finish(canvas)


def _broken(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str] | None:
    """The text's lines, none wider than `width`; None when a word is."""
    lines = []
    for line in text.split("\n"):
        words = line.split()
        if any(font.getlength(word) > width for word in words):
            return None
        found = ""
        for word in words:
            longer = f"{found} {word}".strip()
            if font.getlength(longer) > width:
                lines.append(found)
                longer = word
            found = longer
        lines.append(found)
    return lines


def random_figure(rng: np.random.Generator) -> Figure:
    tools = (*JOBS, None)
    return Figure(
        hat=tuple(COLOURS)[int(rng.integers(len(COLOURS)))],
        tool=tools[int(rng.integers(len(tools)))],
        x=int(rng.integers(22, 36)),
        y=int(rng.integers(34, 40)),
        background=random_background(rng),
    )


_SKIN: Colour = (190, 170, 150)


def render_figure(figure: Figure) -> np.ndarray:
    """The picture of a figure: uint8 [72, 72, 3]. The tool is drawn in white at its hand."""
    canvas, draw = _canvas(figure.background)
    s = _SCALE
    x, y = figure.x * s, figure.y * s
    draw.rectangle((x - 7 * s, y, x + 7 * s, y + 24 * s), fill=_SKIN)
    draw.rectangle((x + 7 * s, y + 6 * s, x + 14 * s, y + 10 * s), fill=_SKIN)
    draw.ellipse((x - 7 * s, y - 14 * s, x + 7 * s, y), fill=_SKIN)
    draw.rectangle((x - 10 * s, y - 14 * s, x + 10 * s, y - 11 * s), fill=COLOURS[figure.hat])
    draw.rectangle((x - 6 * s, y - 22 * s, x + 6 * s, y - 13 * s), fill=COLOURS[figure.hat])
    if figure.tool:
        box = (x + 23 * s, y + 8 * s, 9 * s)
        _draw_shape(draw, figure.tool, COLOURS["white"], figure.background, box)
    return _finish(canvas)
