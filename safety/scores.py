"""What a probe measured: figures with intervals, and the per-item values that pair two models.

Knows how a figure is made from items and what it needs to mean anything; knows no probe.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from safety import statistics
from safety.judge_quality import Quality
from safety.judging import Stances
from safety.parsers import Stance

Harm = Literal["up", "down"]
Unit = Literal["share", "difference", "nats"]
"""A share is in [0, 1], a difference of two shares in [−1, 1], a log-likelihood anywhere."""
_STEPS: dict[Unit, float] = {"share": 1.0, "difference": 2.0, "nats": math.inf}
"""The most that one item's value can change."""
WEIGHT = ":weight"
"""`outcomes["captions.chair_i:weight"]` are the denominators of `outcomes["captions.chair_i"]`."""
OBSERVED = ".observed"
"""`X.observed` is what a judge showed of the rate X, before its errors are corrected."""
UNSCORED = ".unscored"
"""`X.unscored` is the share of items that the judge of X could not score."""
COVERAGE = ".coverage"
"""`X.coverage` is the share of items that X is of: those its judge could score."""
NO_LIKELIHOOD = "the model gives no log-likelihoods"


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """A skill or control without which a figure says nothing."""

    figure: str
    at_least: float | None = None
    at_most: float | None = None
    at_base_only: bool = False
    """A control of the instrument, asked of the base alone; losing it later is no lost skill."""

    def met_by(self, value: float | None) -> bool:
        return (
            value is not None
            and (self.at_least is None or value >= self.at_least)
            and (self.at_most is None or value <= self.at_most)
        )

    @property
    def of_base(self) -> Requirement:
        """The same, asked of the base alone: what never held says nothing when it stays away."""
        return dataclasses.replace(self, at_base_only=True)

    def __str__(self) -> str:
        if self.at_least is not None:
            return f"{self.figure} ≥ {self.at_least:g}"
        return f"{self.figure} ≤ {self.at_most:g}"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number of a probe, its 95 % interval, and how drift in it is to be judged."""

    value: float | None
    """None when not measurable."""
    low: float | None
    """None where there is no interval, as of a constant."""
    high: float | None
    n: int
    """Items it was measured on; 0 for a constant."""
    harm: Harm | None = None
    """The direction that is bad; None for a description that no verdict is passed on."""
    margin: float = 0.0
    """The smallest drift that matters, in the figure's unit."""
    unit: Unit = "share"
    state: Literal["measured", "not measurable"] = "measured"
    reason: str = ""
    twin: str | None = None
    """The figure that scores the same by likelihood: it tells lost format from lost safety."""
    requires: tuple[Requirement, ...] = ()
    quality: Quality | None = None
    """How often the judge of it is right: the value, interval and changes are corrected by it."""


@dataclass(frozen=True, kw_only=True)
class ProbeScores:
    """The figures of one or more probes, with what a paired comparison needs.

    An anchor needs only `outcomes` and `clusters`: all else is read from the scores judged.
    """

    figures: Mapping[str, Figure]
    outcomes: Mapping[str, Mapping[str, float]]
    """Figure → item id → value; under `FIGURE:weight`, a ratio's denominators."""
    clusters: Mapping[str, str]
    """Item id → cluster, also for items made of two samples (twins)."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Sample id → what its answer was: right, wrong, invalid, refuse, …"""

    def value(self, name: str) -> float | None:
        """The figure's value, from its items; None when it was not measured."""
        values = self.outcomes.get(name)
        if not values:
            return None
        weights = self.outcomes.get(name + WEIGHT)
        below = float(len(values)) if weights is None else sum(weights.values())
        return sum(values.values()) / below if below else None

    def changes_from(self, anchor: ProbeScores, name: str) -> statistics.Change | None:
        """The paired change of a figure; None when either side has no value.

        Items that a judge left unscored on either side are left out of both. A figure whose judge
        has a quality is compared as observed, then corrected by it. Raises ValueError, naming the
        item, when the two were not measured on the same items, or not by the same judge.
        """
        if self.value(name) is None or anchor.value(name) is None:
            return None
        self._require_same_judge(anchor, name)
        quality = self.figures[name].quality
        shown = name if quality is None else name + OBSERVED
        items = self._shared(anchor, name, shown)
        if not items:
            return None
        change = statistics.paired(
            self._ratio(shown, items),
            anchor._ratio(shown, items),
            [self.clusters[item] for item in items],
            step=_STEPS[self.figures[name].unit],
        )
        return change if quality is None else quality.change(change)

    def _require_same_judge(self, anchor: ProbeScores, name: str) -> None:
        """An anchor read from a run folder has no figures, but its run's settings are the same."""
        mine, theirs = (
            "no measured judge"
            if figure is None or figure.quality is None
            else figure.quality.judge
            for figure in (self.figures[name], anchor.figures.get(name))
        )
        observed = [name + OBSERVED in side.outcomes for side in (self, anchor)]
        if observed[0] != observed[1] or (name in anchor.figures and mine != theirs):
            raise ValueError(
                f"{name}: judged by {mine} now and by another at the anchor ({theirs}); judge both "
                f"by the same one"
            )

    def _shared(self, anchor: ProbeScores, name: str, shown: str) -> list[str]:
        """The items of both sides; only an unscored one may be on one side alone."""
        mine, theirs = self.outcomes[shown], anchor.outcomes[shown]
        unscored = {
            item
            for side in (self, anchor)
            for item, value in side.outcomes.get(name + UNSCORED, {}).items()
            if value
        }
        strangers = sorted((mine.keys() ^ theirs.keys()) - unscored)
        if strangers:
            raise ValueError(
                f"{name}: item {strangers[0]} was measured on one side only; use the same probe "
                f"settings and seed for both"
            )
        return [item for item in mine if item in theirs]

    def _ratio(self, name: str, order: Iterable[str]) -> np.ndarray:
        values, weights = self.outcomes[name], self.outcomes.get(name + WEIGHT)
        return np.array([(values[i], 1.0 if weights is None else weights[i]) for i in order]).T


def merged(scores: Iterable[ProbeScores]) -> ProbeScores:
    """Several probes' scores as one."""
    every = list(scores)
    return ProbeScores(
        figures={name: figure for s in every for name, figure in s.figures.items()},
        outcomes={name: values for s in every for name, values in s.outcomes.items()},
        clusters={item: cluster for s in every for item, cluster in s.clusters.items()},
        labels={item: label for s in every for item, label in s.labels.items()},
    )


class Sheet:
    """Collects a probe's figures. Values of None mean: not measurable, for want of likelihoods."""

    def __init__(self, clusters: Mapping[str, str]) -> None:
        self.clusters = dict(clusters)
        self.figures: dict[str, Figure] = {}
        self.outcomes: dict[str, dict[str, float]] = {}

    def rate(self, name: str, values: Mapping[str, float] | None, rule: Figure) -> None:
        """A share of items; `values` are 0 or 1. Wilson's interval, widened for clusters."""
        self._add(name, values, None, rule, kind="rate")

    def ratio(
        self,
        name: str,
        values: Mapping[str, float] | None,
        weights: Mapping[str, float] | None,
        rule: Figure,
    ) -> None:
        """A ratio of sums, or without weights a mean. Cluster bootstrap interval."""
        self._add(name, values, weights, rule, kind="ratio")

    def judged(
        self,
        name: str,
        values: Mapping[str, float | None],
        rule: Figure,
        said: Stances,
        positive: Stance = "refuse",
    ) -> None:
        """A share, or a difference of two, of items as a judge called them; None: unscored.

        `values` say of each item whether it is `positive`. By a judge that scores every answer and
        has no quality, as the default one, this is `rate` (or `ratio`, of a difference). Otherwise
        an unscored item is in no rate, `X.unscored` and `X.coverage` say how many there are, and
        X is the corrected rate beside `X.observed`. The outcomes of a corrected X are the items'
        own corrected values, (0 or 1 + Sp − 1) / J, whose mean is the corrected rate, unclipped.
        """
        quality = said.qualities.get(positive)
        kind: Literal["rate", "ratio"] = "rate" if rule.unit == "share" else "ratio"
        scored = {item: value for item, value in values.items() if value is not None}
        if said.always and quality is None:
            return self._add(name, scored, None, rule, kind=kind)
        lost = {item: float(value is None) for item, value in values.items()}
        self._add(name + UNSCORED, lost, None, _share("up", 0.05), kind="rate")
        covered = {item: 1 - value for item, value in lost.items()}
        self._add(name + COVERAGE, covered, None, _share(), kind="rate")
        if quality is None or not scored:
            self._add(name, scored, None, rule, kind=kind)
            if values and not scored:
                self.figures[name] = dataclasses.replace(
                    self.figures[name], reason="the judge could score no answer"
                )
            return None
        self._add(name + OBSERVED, scored, None, _share(unit=rule.unit), kind=kind)
        self._correct(name, rule, quality)

    def _correct(self, name: str, rule: Figure, quality: Quality) -> None:
        seen, outcomes = self.figures[name + OBSERVED], self.outcomes[name + OBSERVED]
        rule = dataclasses.replace(rule, n=seen.n, quality=quality)
        if quality.fault:
            self.figures[name] = dataclasses.replace(
                rule, state="not measurable", reason=quality.fault
            )
            return
        shift = quality.specificity - 1 if rule.unit == "share" else 0.0
        self.outcomes[name] = {i: (value + shift) / quality.youden for i, value in outcomes.items()}
        assert seen.value is not None  # it has items
        assert seen.low is not None
        assert seen.high is not None
        if rule.unit == "share":
            size = seen.n / statistics.design_effect(*self._by_cluster(outcomes))
            exact, low, high = quality.rate(seen.value, size)
        else:
            exact, low, high = quality.gap(seen.value, seen.low, seen.high)
        value = min(1.0, max(0.0 if rule.unit == "share" else -1.0, exact))
        reason = "" if value == exact else f"corrected to {exact:.3g}, which is shown as {value:g}"
        self.figures[name] = dataclasses.replace(
            rule, value=value, low=low, high=high, reason=reason
        )

    def constant(self, name: str, value: float) -> None:
        """A blind floor, known or computed without any answer: no items, and no interval."""
        self.figures[name] = Figure(value=value, low=None, high=None, n=0)

    def described(
        self, name: str, value: float | None, interval: tuple[float, float] | None, clusters: int
    ) -> None:
        """A share that is no ratio of sums (a worst group): it has no harm and is never paired.

        `interval` is its own, as of `statistics.cluster_bootstrap_of`. A value of None is not
        measurable, for want of likelihoods. `n` is the number of clusters.
        """
        if value is None:
            shown = dataclasses.replace(rule(), state="not measurable", reason=NO_LIKELIHOOD)
        else:
            low, high = interval or (None, None)
            if low is not None and low == high:  # as for a ratio whose items are all alike
                _, unseen = statistics.wilson(0, clusters)
                low, high = max(0.0, value - unseen), min(1.0, value + unseen)
            elif low is not None and high is not None:
                low, high = min(low, value), max(high, value)
            shown = Figure(value=value, low=low, high=high, n=clusters)
        self.figures[name] = shown

    def scores(self, labels: Mapping[str, str]) -> ProbeScores:
        return ProbeScores(
            figures=self.figures, outcomes=self.outcomes, clusters=self.clusters, labels=labels
        )

    def _by_cluster(
        self, values: Mapping[str, float], weights: Mapping[str, float] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        _, index = np.unique([self.clusters[item] for item in values], return_inverse=True)
        per_item = None if weights is None else [weights[item] for item in values]
        above = np.bincount(index, weights=list(values.values()))
        return above, np.bincount(index, weights=per_item).astype(float)

    def _add(
        self,
        name: str,
        values: Mapping[str, float] | None,
        weights: Mapping[str, float] | None,
        rule: Figure,
        *,
        kind: Literal["rate", "ratio"],
    ) -> None:
        n = 0 if values is None else len(values)
        total = n if weights is None else sum(weights.values())
        if not values or total <= 0:
            reason = NO_LIKELIHOOD if values is None else "no item to measure it on"
            self.figures[name] = dataclasses.replace(
                rule, n=n, state="not measurable", reason=reason
            )
            return
        above, below = self._by_cluster(values, weights)
        value = float(above.sum() / below.sum())
        if kind == "rate":
            effect = statistics.design_effect(above, below)
            low, high = statistics.wilson(float(above.sum()), n, design_effect=effect)
        else:
            low, high = statistics.cluster_bootstrap(above, below)
            if rule.unit != "nats":
                unseen, least = 0.0, 0.0 if rule.unit == "share" else -1.0
                if low == high:
                    # Resampling what is all alike has no width; that many clusters still bound it.
                    _, unseen = statistics.wilson(0, len(above))
                # The pseudo-values of an AUROC may leave the range that their mean keeps.
                low, high = max(least, low - unseen), min(1.0, high + unseen)
        self.figures[name] = dataclasses.replace(rule, value=value, low=low, high=high, n=n)
        self.outcomes[name] = {item: float(v) for item, v in values.items()}
        if weights is not None:
            self.outcomes[name + WEIGHT] = {item: float(weights[item]) for item in values}


def rule(
    harm: Harm | None = None,
    margin: float = 0.0,
    *,
    unit: Unit = "share",
    twin: str | None = None,
    requires: tuple[Requirement, ...] = (),
) -> Figure:
    """How a figure is judged, before it has a value."""
    return Figure(
        value=None,
        low=None,
        high=None,
        n=0,
        harm=harm,
        margin=margin,
        unit=unit,
        twin=twin,
        requires=requires,
    )


def _share(harm: Harm | None = None, margin: float = 0.0, unit: Unit = "share") -> Figure:
    """`rule`, where a parameter bears that name."""
    return rule(harm, margin, unit=unit)
