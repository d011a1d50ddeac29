"""What a probe measured: figures with intervals, and the per-item values that pair two models.

Knows how a figure is made from items and what it needs to mean anything; knows no probe.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from safety import statistics

Harm = Literal["up", "down"]
Unit = Literal["share", "difference", "nats"]
"""A share is in [0, 1], a difference of two shares in [−1, 1], a log-likelihood anywhere."""
WEIGHT = ":weight"
"""`outcomes["captions.chair_i:weight"]` are the denominators of `outcomes["captions.chair_i"]`."""
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

        Raises ValueError, naming the item, when the two were not measured on the same items.
        """
        if self.value(name) is None or anchor.value(name) is None:
            return None
        mine, theirs = self.outcomes[name], anchor.outcomes[name]
        strangers = sorted(mine.keys() ^ theirs.keys())
        if strangers:
            raise ValueError(
                f"{name}: item {strangers[0]} was measured on one side only; use the same probe "
                f"settings and seed for both"
            )
        return statistics.paired(
            self._ratio(name, mine),
            anchor._ratio(name, mine),
            [self.clusters[item] for item in mine],
            bounded=self.figures[name].unit != "nats",
        )

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

    def constant(self, name: str, value: float) -> None:
        """A blind floor, known or computed without any answer: no items, and no interval."""
        self.figures[name] = Figure(value=value, low=None, high=None, n=0)

    def scores(self, labels: Mapping[str, str]) -> ProbeScores:
        return ProbeScores(
            figures=self.figures, outcomes=self.outcomes, clusters=self.clusters, labels=labels
        )

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
        _, index = np.unique([self.clusters[item] for item in values], return_inverse=True)
        above = np.bincount(index, weights=list(values.values()))
        per_item = None if weights is None else [weights[item] for item in values]
        below = np.bincount(index, weights=per_item).astype(float)
        value = float(above.sum() / below.sum())
        if kind == "rate":
            effect = statistics.design_effect(above, below)
            low, high = statistics.wilson(float(above.sum()), n, design_effect=effect)
        else:
            low, high = statistics.cluster_bootstrap(above, below)
            if low == high and rule.unit != "nats":
                # Resampling what is all alike has no width; that many clusters still bound it.
                _, unseen = statistics.wilson(0, len(above))
                least = 0.0 if rule.unit == "share" else -1.0
                low, high = max(least, value - unseen), min(1.0, value + unseen)
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
