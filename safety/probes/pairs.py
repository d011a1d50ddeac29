"""Does it answer both questions of a picture right? MME's form on generated scenes, in four kinds.

Every picture is asked two questions, one whose answer is yes and one whose answer is no, of the
world's de-biased twin, in which no thing is likelier than another:

- existence: "Is there a red ring?", of a thing that is there and of one that is not;
- count: "Are there exactly two circles?", one to three of a shape being there; a number is as often
  wrong as right;
- position: "Is the red star in the upper half of the image?", of a thing wholly in one half;
- colour: "Is the ring red?", of a shape that is there once.

Accuracy is over questions and `acc_plus` over pictures, both of whose questions must be right
(Fu et al. 2023, arXiv 2306.13394): blind, at most .5 and, with one answer for all, 0. MME's score,
100·(accuracy + acc_plus) of a kind, in points, is described and gets no verdict; `pairs.score` adds
the four. `official` reads answers as MME's tool does. Each kind has a control of its own, better
than blind at the base. The slice is of existence, about combinations that nano never met.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from safety import seeds
from safety.generated import Generated, two_a_picture
from safety.probes.mme import mme_parser
from safety.scores import ProbeScores, Sheet
from safety.yes_no import CANDIDATES, YesNo, texts_of
from streams import phrasings, world
from streams.sample import Answer, Image, Provenance, Sample, ask

KINDS = ("existence", "count", "position", "colour")
SLICES = ("held_out_pairs",)
MOST = 3
"""The largest number of things of one shape that is asked for."""
OPPOSITE = {"left": "right", "right": "left", "upper": "lower", "lower": "upper"}


@dataclass(frozen=True, kw_only=True)
class Pairs(Generated):
    """Two questions a picture, as MME's: existence, count, position and colour."""

    items: int = 100
    """Questions of each kind, two a picture; an odd number is rounded up."""

    slices = SLICES

    def samples(self, seed: int) -> list[Sample]:
        return two_a_picture(self.parts(*KINDS), _questions, seed)

    def continuations(self, samples: Sequence[Sample]) -> list[tuple[str, ...]]:
        return [CANDIDATES for _ in samples]

    def score(
        self,
        samples: Sequence[Sample],
        answers: Sequence[Answer],
        likelihoods: Sequence[Sequence[float]] | None,
    ) -> ProbeScores:
        sheet = Sheet({s.id: s.cluster for s in samples})
        texts = texts_of(samples, answers)
        labels: dict[str, str] = {}
        for kind in KINDS:
            rows = [i for i, s in enumerate(samples) if s.metadata["kind"] == kind]
            questions = YesNo(
                name=f"pairs.{kind}",
                splits=(kind,),
                slices=SLICES,
                official=mme_parser,
                pooled=("acc_plus", "yes_rate"),
                undivided=True,
            )
            scored = None if likelihoods is None else [likelihoods[i] for i in rows]
            labels |= questions.add(sheet, [samples[i] for i in rows], texts, scored)
        for reading in ("", "official.", "likelihood."):
            _points(sheet, reading)
        return sheet.scores(labels)


def _points(sheet: Sheet, reading: str) -> None:
    """MME's scores under one way to read answers; none without likelihoods."""
    total = 0.0
    for kind in KINDS:
        names = [f"pairs.{kind}.{reading}{measure}" for measure in ("accuracy", "acc_plus")]
        known = [value for n in names if (value := sheet.figures[n].value) is not None]
        if len(known) < len(names):
            return
        sheet.constant(f"pairs.{kind}.{reading}score", 100 * sum(known))
        total += 100 * sum(known)
    sheet.constant(f"pairs.{reading}score", total)


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """Two questions on one scene, by label, and what each is about."""

    question: Mapping[str, str]
    about: Mapping[str, list[str]]


def _questions(part: str, index: int, seed: int) -> list[Sample]:
    """One picture and its two questions."""
    rng = seeds.probe_rng("pairs", seed, part, index)
    asked = None
    while asked is None:
        pairs = world.PAIRS if part == "held_out_pairs" else world.TRAIN_PAIRS
        scene = world.random_scene(rng, pairs=pairs, partner_rate=0, popular_rate=0)
        if part == "count":
            asked = _count(scene, index, rng)
        elif part == "position":
            asked = _position(scene, rng)
        elif part == "colour":
            asked = _colour(scene, rng)
        else:
            asked = _existence(scene, part, rng)
    name = f"pairs-{seed}-{part}-{index:04d}"
    image = Image(source=world.render(scene))
    return [
        ask(
            id=f"{name}-{label}",
            question=asked.question[label],
            answer=f"{label.capitalize()}.",
            image=image,
            scorer="yes_no",
            cluster=name,
            provenance=Provenance(source=f"generated world, seed {seed}", split="pairs", item=name),
            metadata={
                "slice": part,
                "kind": "existence" if part == "held_out_pairs" else part,
                "label": label,
                "about": asked.about[label],
                "things": [[t.colour, t.shape, t.x, t.y, t.size] for t in scene.things],
            },
        )
        for label in ("yes", "no")
    ]


def _existence(scene: world.Scene, part: str, rng: np.random.Generator) -> _Asked | None:
    asked = world.PAIRS if part == "held_out_pairs" else world.TRAIN_PAIRS
    if part == "held_out_pairs":
        asked = tuple(sorted(world.HELD_OUT_PAIRS))
    things = [thing.pair for thing in scene.things]
    present = [pair for pair in things if pair in asked]
    absent = [pair for pair in asked if pair not in things]
    if not present:
        return None
    template = phrasings.pick(phrasings.EXISTENCE, rng)
    chosen = {"yes": " ".join(_one(present, rng)), "no": " ".join(_one(absent, rng))}
    return _Asked(
        question={k: template.format(thing=phrasings.article(v)) for k, v in chosen.items()},
        about={k: v.split() for k, v in chosen.items()},
    )


def _count(scene: world.Scene, index: int, rng: np.random.Generator) -> _Asked | None:
    """One, two and three by turns."""
    number = 1 + index % MOST
    shapes = [thing.shape for thing in scene.things]
    fitting = [shape for shape in world.SHAPES if shapes.count(shape) == number]
    if not fitting:
        return None
    shape = _one(fitting, rng)
    others = [other for other in range(1, MOST + 1) if other != number]
    # By turns as well, so that each number is as often the wrong one as the right one.
    said = {"yes": number, "no": others[index // MOST % len(others)]}
    template = phrasings.pick(phrasings.COUNT, rng)
    return _Asked(
        question={k: phrasings.count_question(template, n, shape) for k, n in said.items()},
        about={k: [phrasings.NUMBERS[n], shape] for k, n in said.items()},
    )


def _position(scene: world.Scene, rng: np.random.Generator) -> _Asked | None:
    middle = world.SIZE / 2
    options = []
    for thing in scene.things:
        if abs(thing.x - middle) > thing.size / 2 + 1:
            options.append((thing.name, "left" if thing.x < middle else "right"))
        if abs(thing.y - middle) > thing.size / 2 + 1:
            options.append((thing.name, "upper" if thing.y < middle else "lower"))
    if not options:
        return None
    name, side = _one(options, rng)
    template = phrasings.pick(phrasings.SIDE, rng)
    sides = {"yes": side, "no": OPPOSITE[side]}
    return _Asked(
        question={k: template.format(thing=name, side=s) for k, s in sides.items()},
        about={k: [name, s] for k, s in sides.items()},
    )


def _colour(scene: world.Scene, rng: np.random.Generator) -> _Asked | None:
    shapes = [thing.shape for thing in scene.things]
    single = [thing for thing in scene.things if shapes.count(thing.shape) == 1]
    if not single:
        return None
    thing = single[int(rng.integers(len(single)))]
    wrong = [
        colour
        for colour in world.COLOURS
        if colour != thing.colour and (colour, thing.shape) in world.TRAIN_PAIRS
    ]
    template = phrasings.pick(phrasings.ATTRIBUTE, rng)
    colours = {"yes": thing.colour, "no": _one(wrong, rng)}
    return _Asked(
        question={k: template.format(shape=thing.shape, colour=c) for k, c in colours.items()},
        about={k: [c, thing.shape] for k, c in colours.items()},
    )


def _one(options: Sequence[Any], rng: np.random.Generator) -> Any:
    return options[int(rng.integers(len(options)))]
