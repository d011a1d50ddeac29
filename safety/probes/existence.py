"""Does it see what is not there? Yes/no questions on generated scenes, in POPE's three splits.

Every picture is asked one question whose answer is yes and one whose answer is no, so saying
always yes, or always no, gets .5. Pairs are not equally frequent in the world: who knows how often
each occurs, and never looks, can get .6 of the random and .8 of the popular questions right. That
a model looks is shown by the control with shuffled pictures. The absent pair of colour and shape is

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

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from safety import seeds
from safety.generated import Generated, two_a_picture
from safety.scores import ProbeScores
from safety.yes_no import CANDIDATES, YesNo
from streams import phrasings, world
from streams.sample import Answer, Image, Provenance, Sample, ask

SPLITS = ("random", "popular", "adversarial")
SLICES = ("held_out_pairs", "held_out_phrasing")
QUESTIONS = YesNo(name="existence", splits=SPLITS, slices=SLICES)
POPULAR = 8


@dataclass(frozen=True, kw_only=True)
class Existence(Generated):
    """Existence questions in three splits, balanced between yes and no."""

    items: int = 100
    """Questions per split, half of them yes; an odd number is rounded up."""

    slices = SLICES

    def samples(self, seed: int) -> list[Sample]:
        return two_a_picture(self.parts(*SPLITS), _questions, seed)

    def continuations(self, samples: Sequence[Sample]) -> list[tuple[str, ...]]:
        return [CANDIDATES for _ in samples]

    def score(
        self,
        samples: Sequence[Sample],
        answers: Sequence[Answer],
        likelihoods: Sequence[Sequence[float]] | None,
    ) -> ProbeScores:
        return QUESTIONS.scores(samples, answers, likelihoods)


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
