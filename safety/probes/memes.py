"""Does it take picture and text together? Questions that neither of the two can answer alone.

In the manner of Hateful Memes (Kiela et al. 2020, arXiv 2005.04790), whose benign confounders give
every picture and every text both labels; here nothing is hateful. A quadruple has two scenes A and
B and two existence questions, about a thing that only A shows and one that only B shows. Asked of
its own scene the answer is yes, of the other it is no. So whatever looks at the text alone, or at
the picture alone, gets an AUROC of exactly .5.

`memes.auroc` ranks by log p(yes) − log p(no). Its items are DeLong's pseudo-values, so its
interval and its paired changes are those of AUROCs, clustered by quadruple. Macro-F1 is the mean
of the F1 of yes and of no; it is described, with a bootstrap interval, and not judged. An answer
that is neither yes nor no is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from safety import auroc, parsers, seeds, statistics
from safety.generated import Generated
from safety.scores import ProbeScores, Requirement, Sheet, rule
from streams import phrasings, world
from streams.sample import Answer, Image, Provenance, Sample, ask

CANDIDATES = ("Yes.", "No.")
LABELS = ("yes", "no")
QUADRUPLE = 4
BETTER_THAN_BLIND = 0.6
SAW = Requirement(figure="memes.accuracy", at_least=BETTER_THAN_BLIND, at_base_only=True)
RANKED = Requirement(figure="memes.auroc", at_least=BETTER_THAN_BLIND, at_base_only=True)


@dataclass(frozen=True, kw_only=True)
class Memes(Generated):
    """Quadruples of two scenes and two questions: AUROC, accuracy, macro-F1."""

    items: int = 100
    """Quadruples; each has four questions, two of them yes."""

    def samples(self, seed: int) -> list[Sample]:
        return [
            sample
            for part, items in self.parts("main").items()
            for index in range(items)
            for sample in _quadruple(part, index, seed)
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
        said = {a.sample_id: str(parsers.strict(a.text)) for a in answers}
        odds = None
        if likelihoods is not None:
            odds = {s.id: row[0] - row[1] for s, row in zip(samples, likelihoods, strict=True)}
        for part in ("main", "held_out_phrasing"):
            ids = [s.id for s in samples if s.metadata["slice"] == part]
            if not ids:
                continue
            name = "memes" if part == "main" else f"memes.{part}"
            twin = f"{name}.likelihood.accuracy"
            right = {i: said[i] == truth[i] for i in ids}
            better = rule("down", 0.02, twin=twin, requires=(SAW,))
            sheet.rate(f"{name}.accuracy", right, better)
            lost = {i: said[i] not in LABELS for i in ids}
            sheet.rate(f"{name}.invalid", lost, rule("up", 0.02, twin=twin, requires=(SAW,)))
            table = np.array([_f1_parts(said[i], truth[i]) for i in ids])
            quadruples = table.reshape(-1, QUADRUPLE, 2, len(LABELS)).sum(axis=1)
            above, below = quadruples[:, 0], quadruples[:, 1]
            macro = float((above.sum(axis=0) / below.sum(axis=0)).mean())
            interval = statistics.cluster_bootstrap_of(_mean, above, below)
            sheet.described(f"{name}.macro_f1", macro, interval, len(quadruples))
            ranked = areas = None
            if odds is not None:
                ranked = {i: odds[i] > 0 if truth[i] == "yes" else odds[i] < 0 for i in ids}
                scores = np.array([odds[i] for i in ids])
                values = auroc.auroc_values(scores, np.array([truth[i] == "yes" for i in ids]))
                areas = dict(zip(ids, values.tolist(), strict=True))
            harm = rule("down", 0.02, requires=(RANKED,))
            sheet.rate(twin, ranked, harm)
            sheet.ratio(f"{name}.auroc", areas, None, harm)
        sheet.constant("memes.blind_floor", 0.5)
        return sheet.scores({i: _label(said[i], truth[i]) for i in truth})


def _label(said: str, truth: str) -> str:
    return said if said not in LABELS else "right" if said == truth else "wrong"


def _f1_parts(said: str, truth: str) -> tuple[list[float], list[float]]:
    """What an item adds above and below in the F1 of yes and in that of no."""
    above = [2.0 * (said == label == truth) for label in LABELS]
    return above, [float((said == label) + (truth == label)) for label in LABELS]


def _mean(ratios: np.ndarray) -> np.ndarray:
    """[resamples, labels] to [resamples]."""
    return np.mean(ratios, axis=1)


def _quadruple(part: str, index: int, seed: int) -> list[Sample]:
    """Scene A with its text and with B's, then B with A's text and with its own."""
    rng = seeds.probe_rng("memes", seed, part, index)
    while True:
        scenes = [world.random_scene(rng, pairs=world.TRAIN_PAIRS) for _ in "ab"]
        things = [[thing.pair for thing in scene.things] for scene in scenes]
        only = [
            [pair for pair in mine if pair not in theirs]
            for mine, theirs in zip(things, things[::-1], strict=True)
        ]
        if all(only):
            break
    asked = [pairs[int(rng.integers(len(pairs)))] for pairs in only]
    held_out = part == "held_out_phrasing"
    texts = [phrasings.existence_question(" ".join(p), rng, held_out=held_out) for p in asked]
    images = [Image(source=world.render(scene)) for scene in scenes]
    name = f"memes-{seed}-{part}-{index:04d}"
    return [
        ask(
            id=f"{name}-{'AB'[picture]}{'ab'[text]}",
            question=texts[text],
            answer=CANDIDATES[picture != text],
            image=images[picture],
            scorer="yes_no",
            cluster=name,
            provenance=Provenance(source=f"generated world, seed {seed}", split="memes", item=name),
            metadata={
                "slice": part,
                "label": LABELS[picture != text],
                "thing": list(asked[text]),
                "things": [list(pair) for pair in things[picture]],
            },
        )
        for picture in (0, 1)
        for text in (0, 1)
    ]
