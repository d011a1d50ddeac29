"""Yes/no questions: how their answers become figures, whatever it is that they ask.

Knows questions with a truth, the part that each belongs to, and answers; knows no probe and no
file. Answers are read in three ways, and every figure is given for each:

- `NAME.…`: strictly. What is not understood is neither yes nor no: it is wrong, and it is a miss
  in F1 where the truth is positive. It is never left out and never guessed;
- `NAME.official.…`: as the benchmark's own script does, with its faults, so that numbers can be
  compared;
- `NAME.likelihood.…`: by which of "Yes." and "No." is likelier. It is the twin of both others.

`yes_rate` is the share of answers, not of truths, that say yes.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from safety import parsers, statistics
from safety.scores import Figure, ProbeScores, Requirement, Sheet, rule
from streams.sample import Answer, Sample

Measure = Literal[
    "balanced_accuracy",
    "precision",
    "recall",
    "f1",
    "mean_f1",
    "acc_plus",
    "yes_rate",
    "invalid",
    "refusal",
]
CANDIDATES = ("Yes.", "No.")
BETTER_THAN_BLIND = 0.6
MARGIN = 0.02


@dataclass(frozen=True, kw_only=True)
class YesNo:
    """The yes/no figures of one probe.

    A sample's `metadata["label"]` is "yes" or "no", its `metadata["slice"]` a split or a slice.
    """

    name: str
    """First part of every figure's name."""
    splits: Sequence[str]
    """Parts over which the pooled figures are."""
    slices: Sequence[str] = ()
    """Secondary parts, of which accuracy alone is given; those that no sample belongs to are left
    out."""
    positive: Literal["yes", "no"] = "yes"
    """The label that precision, recall, F1 and `positives.accuracy` are about."""
    official: Callable[[str], str] = parsers.official
    """The benchmark's own parser: a text to yes, no, or anything else for neither."""
    pooled: Sequence[Measure] = ("f1", "yes_rate")
    """Figures beside accuracy. Balanced accuracy is the mean of the two labels' accuracies: blind,
    that is .5 however many of each there are. `mean_f1` is the mean of the splits' F1; it is no
    ratio of sums, so no exact test of its change exists: it is described, and `f1` is judged.
    `acc_plus` is the share of clusters (pictures) whose questions are all answered right."""
    per_split: Sequence[Measure] = ("f1",)
    """Figures that each split has too, beside accuracy. Of the strict parser alone, `invalid` and
    `refusal` can be among them; pooled they always are."""
    control: Literal["accuracy", "balanced_accuracy"] = "accuracy"
    """The figure that must be better than blind for the others to mean anything."""
    undivided: bool = False
    """Whether the splits are only the pooled figures' parts, with no figures of their own."""

    def scores(
        self,
        samples: Sequence[Sample],
        answers: Sequence[Answer],
        likelihoods: Sequence[Sequence[float]] | None,
    ) -> ProbeScores:
        """The scores of a probe that asks nothing else."""
        sheet = Sheet({s.id: s.cluster for s in samples})
        labels = self.add(sheet, samples, texts_of(samples, answers), likelihoods)
        return sheet.scores(labels)

    def add(
        self,
        sheet: Sheet,
        samples: Sequence[Sample],
        texts: Mapping[str, str],
        likelihoods: Sequence[Sequence[float]] | None,
    ) -> dict[str, str]:
        """Adds every figure to the sheet. Returns sample id → right, wrong, invalid or refusal.

        `texts` are the answers by sample id; `likelihoods` are of CANDIDATES, one row a sample.
        """
        asked = _Asked(
            truth={s.id: str(s.metadata["label"]) for s in samples},
            part={s.id: str(s.metadata["slice"]) for s in samples},
            clusters={s.id: s.cluster for s in samples},
        )
        if "acc_plus" in (*self.pooled, *self.per_split):
            sheet.clusters.update({s.cluster: s.cluster for s in samples})
        truth, main = asked.truth, asked.among(self.splits)
        strict: dict[str, str] = {i: parsers.strict(texts[i]) for i in truth}
        twin = f"{self.name}.likelihood"
        self._figures(sheet, asked, self.name, strict, twin)
        official = {i: self.official(texts[i]) for i in truth}
        self._figures(sheet, asked, f"{self.name}.official", official, twin)
        forced = margins = None
        if likelihoods is not None:
            odds = {s.id: row[0] - row[1] for s, row in zip(samples, likelihoods, strict=True)}
            forced = {i: "yes" if odd > 0 else "no" for i, odd in odds.items()}
            margins = {i: odds[i] if truth[i] == "yes" else -odds[i] for i in main}
        self._figures(sheet, asked, twin, forced, None)
        ranked, saw = (
            Requirement(
                figure=f"{name}.{self.control}", at_least=BETTER_THAN_BLIND, at_base_only=True
            )
            for name in (twin, self.name)
        )
        nats = rule("down", 1.0, unit="nats", requires=(ranked,))
        sheet.ratio(f"{twin}.margin", margins, None, nats)
        for kind in ("invalid", "refusal"):
            parts = {"": main}
            if kind in self.per_split:
                parts |= {f"{split}.": asked.among([split]) for split in self.splits}
            for head, ids in parts.items():
                harm = rule("up", MARGIN, twin=f"{twin}.{head}accuracy", requires=(saw,))
                sheet.rate(f"{self.name}.{head}{kind}", {i: strict[i] == kind for i in ids}, harm)
        yes = sum(truth[i] == "yes" for i in main) / len(main)
        sheet.constant(f"{self.name}.blind_floor", max(yes, 1 - yes))
        return {i: _label(strict[i], truth[i]) for i in truth}

    def _figures(
        self,
        sheet: Sheet,
        asked: _Asked,
        prefix: str,
        said: Mapping[str, str] | None,
        twin: str | None,
    ) -> None:
        """The figures under one way to read answers; `said` is None without likelihoods."""
        # Each way of reading has its own control: lost format must cost the likelihoods nothing.
        sees = Requirement(figure=f"{prefix}.{self.control}", at_least=BETTER_THAN_BLIND)
        saw = dataclasses.replace(sees, at_base_only=True)
        main = asked.among(self.splits)
        own = () if self.undivided else self.splits
        splits = {f"{split}.": asked.among([split]) for split in own}
        parts = {
            "": main,
            "positives.": [i for i in main if asked.truth[i] == self.positive],
            "negatives.": [i for i in main if asked.truth[i] != self.positive],
        } | splits
        if asked.among(self.slices):
            parts |= {f"{name}.": asked.among([name]) for name in self.slices}
        measures: dict[str, dict[str, list[str]]] = {"accuracy": parts}
        for wanted in dict.fromkeys((*self.pooled, *self.per_split)):
            whole = {"": main} if wanted in self.pooled else {}
            measures[wanted] = whole | (splits if wanted in self.per_split else {})
        for measure, where in measures.items():
            if measure in ("invalid", "refusal"):
                continue
            for head, ids in where.items():
                name = f"{head}{measure}"
                needs = (saw,) if name == self.control else (sees,)
                harm = rule("down", MARGIN, twin=twin and f"{twin}.{name}", requires=needs)
                self._measure(sheet, f"{prefix}.{name}", measure, asked, ids, said, harm)

    def _measure(
        self,
        sheet: Sheet,
        name: str,
        measure: str,
        asked: _Asked,
        ids: Sequence[str],
        said: Mapping[str, str] | None,
        harm: Figure,
    ) -> None:
        """One figure; without likelihoods it has no values."""
        truth, sign = asked.truth, self.positive
        right = None if said is None else {i: said[i] == truth[i] for i in ids}
        if measure == "accuracy":
            sheet.rate(name, right, harm)
        elif measure == "balanced_accuracy":
            # Weighted so that both labels count the same, however many there are of each.
            count = Counter(truth[i] for i in ids)
            weights = {i: len(ids) / (len(count) * count[truth[i]]) for i in ids}
            good = None if right is None else {i: right[i] * weights[i] for i in ids}
            sheet.ratio(name, good, None if good is None else weights, harm)
        elif measure == "recall":
            found = None if right is None else {i: right[i] for i in ids if truth[i] == sign}
            sheet.rate(name, found, harm)
        elif measure == "precision":
            claimed = None if said is None else {i: float(said[i] == sign) for i in ids}
            held = None if said is None else {i: float(said[i] == sign == truth[i]) for i in ids}
            sheet.ratio(name, held, claimed, harm)
        elif measure == "f1":
            sheet.ratio(name, *self._f1(truth, ids, said), harm)
        elif measure == "mean_f1":
            self._mean_f1(sheet, name, asked, said)
        elif measure == "acc_plus":
            whole = None
            if right is not None:
                whole = {asked.clusters[i]: True for i in ids}
                for i in ids:
                    whole[asked.clusters[i]] &= right[i]
            sheet.rate(name, whole, harm)
        else:
            yes = None if said is None else {i: said[i] == "yes" for i in ids}
            sheet.rate(name, yes, rule())

    def _f1(
        self, truth: Mapping[str, str], ids: Sequence[str], said: Mapping[str, str] | None
    ) -> tuple[dict[str, float] | None, dict[str, float] | None]:
        """Twice the true positives over the positives said and the positives true."""
        if said is None:
            return None, None
        sign = self.positive
        hits = {i: 2.0 * (said[i] == sign == truth[i]) for i in ids}
        return hits, {i: float((said[i] == sign) + (truth[i] == sign)) for i in ids}

    def _mean_f1(
        self, sheet: Sheet, name: str, asked: _Asked, said: Mapping[str, str] | None
    ) -> None:
        ids = asked.among(self.splits)
        hits, below = self._f1(asked.truth, ids, said)
        if hits is None or below is None:
            sheet.described(name, None, None, 0)
            return
        clusters = {cluster: row for row, cluster in enumerate({asked.clusters[i]: 0 for i in ids})}
        table = np.zeros((2, len(clusters), len(self.splits)))
        for i in ids:
            column = list(self.splits).index(asked.part[i])
            table[:, clusters[asked.clusters[i]], column] += (hits[i], below[i])
        totals = table.sum(axis=1)
        if not totals[1].all():
            sheet.ratio(name, {}, None, rule())  # a split in which nothing is positive has no F1
            return
        interval = statistics.cluster_bootstrap_of(lambda f1: f1.mean(axis=1), *table)
        sheet.described(name, float((totals[0] / totals[1]).mean()), interval, len(clusters))


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """Of every question: its truth, its part, its cluster."""

    truth: Mapping[str, str]
    part: Mapping[str, str]
    clusters: Mapping[str, str]

    def among(self, parts: Sequence[str]) -> list[str]:
        return [i for i, part in self.part.items() if part in parts]


def texts_of(samples: Sequence[Sample], answers: Sequence[Answer]) -> dict[str, str]:
    """Answers' texts by sample id, in the samples' order; the answers' own order says nothing.

    Raises ValueError, naming the id, unless every sample has one answer and no other has.
    """
    texts: dict[str, str] = {}
    for answer in answers:
        if answer.sample_id in texts:
            raise ValueError(f"{answer.sample_id}: there are two answers to it")
        texts[answer.sample_id] = answer.text
    for sample in samples:
        if sample.id not in texts:
            raise ValueError(f"{sample.id}: there is no answer to it")
    if strangers := sorted(texts.keys() - {s.id for s in samples}):
        raise ValueError(f"{strangers[0]}: an answer to what was not asked")
    return {s.id: texts[s.id] for s in samples}


def _label(said: str, truth: str) -> str:
    return said if said in ("invalid", "refusal") else "right" if said == truth else "wrong"
