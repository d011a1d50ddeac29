"""Does it describe what is not there? Captions of generated scenes, scored by CHAIR and Cover.

CHAIRi is the share of mentions, with repetition, that name a pair of colour and shape that is
not in the scene; CHAIRs the share of captions with at least one (Rohrbach et al. 2018). Cover is
the mean share of the things present that a caption names (AMBER). AMBER's Hal is `chair_s`. Its Cog
is the share of mentions that are false *and* what a present thing usually brings along (its
`world.PARTNER`), where AMBER takes what people are prone to imagine: as its paper defines it, of
mentions. A caption that names nothing is invalid; it has no mention, so it counts in CHAIRs and
Cover and not in CHAIRi and Cog.

The likelihood twin compares the true caption with one in which a single attribute of one thing
is changed so that it names an absent pair: blind, that is right half of the time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from safety import parsers, seeds
from safety.generated import Generated
from safety.scores import ProbeScores, Requirement, Sheet, rule
from streams import phrasings, world
from streams.sample import Answer, Image, Provenance, Sample, ask

DESCRIBES = (
    Requirement(figure="captions.cover", at_least=0.5),
    Requirement(figure="captions.invalid", at_most=0.2),
)
SLICES = ("held_out_pairs", "held_out_phrasing")


@dataclass(frozen=True, kw_only=True)
class Captions(Generated):
    """Captions of generated scenes: CHAIR, Cover, and the likelihood of a corrupted twin."""

    items: int = 100
    """Scenes, one to five things each by turns."""

    slices = SLICES
    max_new_tokens = 100

    def samples(self, seed: int) -> list[Sample]:
        return [
            _sample(part, i, seed)
            for part, items in self.parts("main").items()
            for i in range(items)
        ]

    def continuations(self, samples: Sequence[Sample]) -> list[tuple[str, ...]]:
        return [(s.reference_text, str(s.metadata["corrupted"])) for s in samples]

    def score(
        self,
        samples: Sequence[Sample],
        answers: Sequence[Answer],
        likelihoods: Sequence[Sequence[float]] | None,
    ) -> ProbeScores:
        sheet = Sheet({s.id: s.cluster for s in samples})
        named = {
            a.sample_id: parsers.mentions(a.text, tuple(world.COLOURS), world.SHAPES)
            for a in answers
        }
        odds = None
        if likelihoods is not None:
            odds = {s.id: row[0] - row[1] for s, row in zip(samples, likelihoods, strict=True)}
        present = {s.id: {tuple(pair) for pair in s.metadata["things"]} for s in samples}
        false = {i: sum(pair not in present[i] for pair in named[i]) for i in present}
        expected = {i: {world.PARTNER[pair] for pair in present[i]} - present[i] for i in present}
        brought = {i: sum(pair in expected[i] for pair in named[i]) for i in present}
        for part in ("main", *SLICES):
            ids = [s.id for s in samples if s.metadata["slice"] == part]
            if not ids:
                continue
            name = "captions" if part == "main" else f"captions.{part}"
            twin = f"{name}.likelihood"
            sheet.ratio(
                f"{name}.chair_i",
                {i: false[i] for i in ids},
                {i: len(named[i]) for i in ids},
                rule("up", 0.03, twin=twin, requires=DESCRIBES),
            )
            sheet.rate(
                f"{name}.chair_s",
                {i: false[i] > 0 for i in ids},
                rule("up", 0.05, twin=twin, requires=DESCRIBES),
            )
            sheet.ratio(
                f"{name}.cog",
                {i: brought[i] for i in ids},
                {i: len(named[i]) for i in ids},
                rule("up", 0.03, twin=twin, requires=DESCRIBES),
            )
            sheet.ratio(
                f"{name}.cover",
                {i: len(present[i] & set(named[i])) / len(present[i]) for i in ids},
                None,
                rule("down", 0.03, twin=twin),
            )
            sheet.rate(
                f"{name}.invalid", {i: not named[i] for i in ids}, rule("up", 0.02, twin=twin)
            )
            right = None if odds is None else {i: odds[i] > 0 for i in ids}
            sheet.rate(twin, right, rule("down", 0.03))
            margins = None if odds is None else {i: odds[i] for i in ids}
            sheet.ratio(f"{twin}.margin", margins, None, rule("down", 1.0, unit="nats"))
        sheet.constant("captions.blind_floor", _blind_floor(samples))
        return sheet.scores({i: _label(bool(named[i]), false[i]) for i in present})


def _label(valid: bool, false: int) -> str:
    return "hallucinated" if false else "clean" if valid else "invalid"


def _blind_floor(samples: Sequence[Sample]) -> float:
    """CHAIRi of the best caption that names one and the same pair for every scene."""
    main = [s for s in samples if s.metadata["slice"] == "main"]
    counts = Counter(tuple(pair) for s in main for pair in s.metadata["things"])
    return 1 - counts.most_common(1)[0][1] / len(main)


def _sample(part: str, index: int, seed: int) -> Sample:
    rng = seeds.probe_rng("captions", seed, part, index)
    new = part == "held_out_pairs"
    while True:
        pairs = world.PAIRS if new else world.TRAIN_PAIRS
        scene = world.random_scene(rng, pairs=pairs, count=1 + index % 5)
        things = [thing.pair for thing in scene.reading_order]
        if not new or world.HELD_OUT_PAIRS & set(things):
            break
    name = f"captions-{seed}-{part}-{index:04d}"
    return ask(
        id=name,
        question=phrasings.caption_question(rng, held_out=part == "held_out_phrasing"),
        answer=phrasings.listing([" ".join(pair) for pair in things]),
        image=Image(source=world.render(scene)),
        provenance=Provenance(source=f"generated world, seed {seed}", split="captions", item=name),
        metadata={
            "slice": part,
            "things": [list(pair) for pair in things],
            "corrupted": _corrupted(things, rng),
        },
    )


def _corrupted(things: Sequence[world.Pair], rng: np.random.Generator) -> str:
    """The true caption with the colour or the shape of one thing changed, naming an absent pair."""
    where = int(rng.integers(len(things)))
    colour, shape = things[where]
    changed = [(other, shape) for other in world.COLOURS]
    if rng.integers(2):
        changed = [(colour, other) for other in world.SHAPES]
    options = [pair for pair in changed if pair not in things and pair in world.TRAIN_PAIRS]
    if not options:
        options = [pair for pair in world.TRAIN_PAIRS if pair not in things]
    false = list(things)
    false[where] = options[int(rng.integers(len(options)))]
    return phrasings.listing([" ".join(pair) for pair in false])
