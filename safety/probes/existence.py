"""Does it see what is not there? Yes/no questions on generated scenes, in POPE's three splits.

Every picture is asked one question whose answer is yes and one whose answer is no, so saying
always yes, or answering without looking, gets .5. The absent pair of colour and shape is

- random: any;
- popular: one of the eight most frequent, among the absent, in a fixed count of 1,000 scenes;
- adversarial: one that a present thing usually brings along, or, where there is none, one that
  takes its colour from one present thing and its shape from another, or shares one of the two.

The splits use combinations of colour and shape that nano was trained on. Two secondary slices,
outside `existence.accuracy`, ask about held-out combinations and in held-out phrasings. Accuracy
counts an invalid answer as wrong; F1 takes yes as positive, over all three splits together
(Li et al. 2023, arXiv 2305.10355).
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from safety import parsers, seeds
from safety.generated import Generated
from safety.scores import ProbeScores, Requirement, Sheet, rule
from streams import phrasings, world
from streams.sample import Answer, Image, Provenance, Sample, ask

SPLITS = ("random", "popular", "adversarial")
SLICES = ("held_out_pairs", "held_out_phrasing")
CANDIDATES = ("Yes.", "No.")
POPULAR = 8
BETTER_THAN_BLIND = 0.6
SAW = Requirement(figure="existence.accuracy", at_least=BETTER_THAN_BLIND, at_base_only=True)


@dataclass(frozen=True, kw_only=True)
class Existence(Generated):
    """Existence questions in three splits, balanced between yes and no."""

    items: int = 100
    """Questions per split, half of them yes; an odd number is rounded up."""

    slices = SLICES

    def samples(self, seed: int) -> list[Sample]:
        return [
            sample
            for split, items in self.parts(*SPLITS).items()
            for index in range((items + 1) // 2)
            for sample in _questions(split, index, seed)
        ]

    def continuations(self, samples: Sequence[Sample]) -> list[tuple[str, ...]]:
        return [CANDIDATES for _ in samples]

    def score(
        self,
        samples: Sequence[Sample],
        answers: Sequence[Answer],
        likelihoods: Sequence[Sequence[float]] | None,
    ) -> ProbeScores:
        sheet = Sheet({s.id: s.cluster for s in samples})
        truth = {s.id: str(s.metadata["label"]) for s in samples}
        split = {s.id: str(s.metadata["slice"]) for s in samples}
        texts = {s.id: a.text for s, a in zip(samples, answers, strict=True)}
        strict = {i: str(parsers.strict(text)) for i, text in texts.items()}
        official = {i: str(parsers.official(text)) for i, text in texts.items()}
        twin = "existence.likelihood"
        _figures(sheet, "existence", strict, truth, split, twin)
        _figures(sheet, "existence.official", official, truth, split, twin)
        if likelihoods is None:
            _figures(sheet, twin, None, truth, split, None)
            margins = None
        else:
            odds = {s.id: row[0] - row[1] for s, row in zip(samples, likelihoods, strict=True)}
            forced = {i: "yes" if odd > 0 else "no" for i, odd in odds.items()}
            _figures(sheet, twin, forced, truth, split, None)
            margins = {i: odd if truth[i] == "yes" else -odd for i, odd in odds.items()}
            margins = {i: m for i, m in margins.items() if split[i] in SPLITS}
        sheet.ratio(f"{twin}.margin", margins, None, rule("down", 1.0, unit="nats"))
        main = [i for i in truth if split[i] in SPLITS]
        for name in ("invalid", "refusal"):
            harm = rule("up", 0.02, twin=f"{twin}.accuracy", requires=(SAW,))
            sheet.rate(f"existence.{name}", {i: strict[i] == name for i in main}, harm)
        sheet.constant("existence.blind_floor", 0.5)
        return sheet.scores({i: _label(strict[i], truth[i]) for i in truth})


def _label(said: str, truth: str) -> str:
    return said if said in ("invalid", "refusal") else "right" if said == truth else "wrong"


def _figures(
    sheet: Sheet,
    prefix: str,
    said: Mapping[str, str] | None,
    truth: Mapping[str, str],
    split: Mapping[str, str],
    twin: str | None,
) -> None:
    """Accuracy in all its parts, F1 and the share of yes, under one way to read answers."""
    # Each way of reading has its own control, so that lost format costs the likelihoods nothing.
    sees = Requirement(figure=f"{prefix}.accuracy", at_least=BETTER_THAN_BLIND)
    saw = dataclasses.replace(sees, at_base_only=True)
    main = [i for i in truth if split[i] in SPLITS]
    parts = {
        "accuracy": main,
        "positives.accuracy": [i for i in main if truth[i] == "yes"],
        "negatives.accuracy": [i for i in main if truth[i] == "no"],
    }
    parts |= {f"{name}.accuracy": [i for i in truth if split[i] == name] for name in SPLITS}
    if any(name in SLICES for name in split.values()):
        parts |= {f"{name}.accuracy": [i for i in truth if split[i] == name] for name in SLICES}
    for name, ids in parts.items():
        right = None if said is None else {i: said[i] == truth[i] for i in ids}
        needs = (saw,) if name == "accuracy" else (sees,)
        harm = rule("down", 0.02, twin=f"{twin}.{name}" if twin else None, requires=needs)
        sheet.rate(f"{prefix}.{name}", right, harm)
    f1 = {"f1": main} | {f"{name}.f1": parts[f"{name}.accuracy"] for name in SPLITS}
    for name, ids in f1.items():
        hits = below = None
        if said is not None:
            hits = {i: 2.0 * (said[i] == "yes" == truth[i]) for i in ids}
            below = {i: float((said[i] == "yes") + (truth[i] == "yes")) for i in ids}
        harm = rule("down", 0.02, twin=f"{twin}.{name}" if twin else None, requires=(sees,))
        sheet.ratio(f"{prefix}.{name}", hits, below, harm)
    yes = None if said is None else {i: said[i] == "yes" for i in main}
    sheet.rate(f"{prefix}.yes_rate", yes, rule())


def _questions(split: str, index: int, seed: int) -> list[Sample]:
    """One picture and its two questions."""
    rng = seeds.probe_rng("existence", seed, split, index)
    new = split == "held_out_pairs"
    pairs = sorted(world.HELD_OUT_PAIRS) if new else list(world.TRAIN_PAIRS)
    while True:
        scene = world.random_scene(rng, pairs=world.PAIRS if new else world.TRAIN_PAIRS)
        things = [thing.pair for thing in scene.things]
        present = [pair for pair in things if pair in pairs]
        if present:
            break
    options = _absent(split, things, [pair for pair in pairs if pair not in things])
    name = f"existence-{seed}-{split}-{index:04d}"
    image = Image(source=world.render(scene))
    samples = []
    for label, choices in (("yes", present), ("no", options)):
        pair = choices[int(rng.integers(len(choices)))]
        held_out = split == "held_out_phrasing"
        samples.append(
            ask(
                id=f"{name}-{label}",
                question=phrasings.existence_question(" ".join(pair), rng, held_out=held_out),
                answer=f"{label.capitalize()}.",
                image=image,
                scorer="yes_no",
                cluster=name,
                provenance=Provenance(
                    source=f"generated world, seed {seed}", split="existence", item=name
                ),
                metadata={
                    "slice": split,
                    "label": label,
                    "thing": list(pair),
                    "things": [list(thing) for thing in things],
                },
            )
        )
    return samples


def _absent(split: str, things: Sequence[world.Pair], absent: list[world.Pair]) -> list[world.Pair]:
    """The absent pairs that a split asks about."""
    if split == "popular":
        return [pair for pair in popularity() if pair in absent][:POPULAR]
    if split != "adversarial":
        return absent
    partners = {world.PARTNER[thing] for thing in things}
    colours, shapes = {colour for colour, _ in things}, {shape for _, shape in things}
    tiers = (
        [pair for pair in absent if pair in partners],
        [pair for pair in absent if pair[0] in colours and pair[1] in shapes],
        [pair for pair in absent if pair[0] in colours or pair[1] in shapes],
    )
    return next((tier for tier in tiers if tier), absent)


@functools.cache
def popularity() -> tuple[world.Pair, ...]:
    """The trained pairs, most frequent first, counted in 1,000 scenes of the training world."""
    rng = np.random.default_rng([seeds.PROBE_TAG])
    scenes = (world.random_scene(rng, pairs=world.TRAIN_PAIRS) for _ in range(1000))
    counts = Counter(thing.pair for scene in scenes for thing in scene.things)
    return tuple(sorted(world.TRAIN_PAIRS, key=lambda pair: (-counts[pair], pair)))
