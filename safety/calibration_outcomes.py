"""Simulated outcomes of every default gate and of the skills that gates require.

Knows how often outcomes change and in which direction; knows no verdict and no model. What each
figure requires, and which way harms it, is read from the probes themselves.

An item is good or bad at the base, by chance. At every later stage its outcome differs from the
base's with a probability of its own, and so from stage to stage: a stationary chain of two states.
For an item that differs with probability q, the chain enters "differs" with q / 2(1 − q) and leaves
it with 1/2. Then it also differs from the previous stage with probability q, so both anchors see
the same discordance. Good and bad items have a q each, such that of all items `worse` are worse
than at the base and `better` are better, at every stage. With the two equal no mean moves, and base
and stage could be exchanged, which is what the tests take for granted. (Were the base the same in
all runs, the counts of worse and better items would vary less, and tests would seem too careful.)

Clusters change whole. That is the hardest way to be clustered: a cluster then says no more than
one item, and a test that took its items one by one would be most wrong.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import bdtrc, gammaln

from safety.probes.bias import Bias
from safety.probes.existence import Existence
from safety.probes.refusal import Refusal
from safety.probing import run_probe
from safety.scores import WEIGHT, Figure, ProbeScores
from safety.verdicts import DEFAULT_GATES

F1 = "existence.f1"
GOOD: dict[str, float] = {
    "refusal.incoherent": 0.85,
    "existence.accuracy": 0.75,
    "bias.accuracy": 0.85,
}
"""Chance of a good outcome at the base: skills hold, but not by much."""
GOOD_GATE = 0.75
"""The same for gates: half of a discordance of .3 must fit in on either side."""
CONTROLS = {"refusal.j": 1.0}
"""Controls asked of the base alone; they hold, else nothing would be measurable."""


@functools.cache
def rules() -> Mapping[str, Figure]:
    """How each gate and each skill in its family is judged, as the probes say."""
    probes = (
        Existence(items=2, held_out=False),
        Refusal(items=2, held_out=False),
        Bias(items=2, held_out=False),
    )
    found = {
        name: figure
        for probe in probes
        for name, figure in run_probe(probe, lambda sample: "").figures.items()
    }
    skills = {
        need.figure
        for gate in DEFAULT_GATES
        for need in found[gate].requires
        if not need.at_base_only
    }
    return {name: found[name] for name in [*DEFAULT_GATES, *sorted(skills)]}


@dataclass(frozen=True, kw_only=True)
class Law:
    """How a figure's items change: shares of all items, against the base, at every stage."""

    worse: float
    better: float

    def fitting(self, good: float) -> Law:
        """As often as `good`, the share of good items, allows; the drift stays."""
        most = 2 / 3  # above, the chain cannot be entered as often as it is left
        over = max(0.0, self.worse - most * good, self.better - most * (1 - good))
        return Law(worse=self.worse - over, better=max(0.0, self.better - over))


def steady(discordance: float) -> Law:
    """So many items differ, and no mean moves."""
    return Law(worse=discordance / 2, better=discordance / 2)


def drifting(drift: float, discordance: float) -> Law:
    """A harmful `drift`. A discordance below it cannot be: then every change is for the worse."""
    discordance = max(discordance, drift)
    return Law(worse=(discordance + drift) / 2, better=(discordance - drift) / 2)


@dataclass(frozen=True, kw_only=True)
class Items:
    """The items of one figure, in whole clusters of one size, and how they change."""

    name: str
    clusters: int
    size: int
    law: Law

    @property
    def good(self) -> float:
        """Chance of being good at the base."""
        return GOOD.get(self.name, GOOD_GATE)

    def states(self, rng: np.random.Generator, runs: int, stages: int) -> np.ndarray:
        """Whether each cluster is good: [runs, stages + 1, clusters]; stage 0 is the base."""
        law = self.law.fitting(self.good)
        found = np.empty((runs, stages + 1, self.clusters), dtype=bool)
        base = found[:, 0] = rng.random((runs, self.clusters), dtype=np.float32) < self.good
        often = np.where(base, law.worse / self.good, law.better / (1 - self.good))
        enter, differs = often / (2 * (1 - often)), np.zeros_like(base)
        for stage in range(1, stages + 1):
            chance = often if stage == 1 else np.where(differs, 0.5, enter)
            differs = rng.random(base.shape, dtype=np.float32) < chance
            found[:, stage] = base ^ differs
        return found

    @functools.cached_property
    def ids(self) -> list[str]:
        return [f"{self.name}-{i}" for i in range(self.clusters * self.size)]

    @functools.cached_property
    def cluster_of(self) -> dict[str, str]:
        return {item: f"{self.name}/{i // self.size}" for i, item in enumerate(self.ids)}

    @functools.cached_property
    def positive(self) -> np.ndarray:
        """Items whose true answer is yes, by turns; for F1."""
        return np.arange(self.clusters * self.size) % 2 == 0

    def outcomes(self, clusters: np.ndarray) -> dict[str, dict[str, float]]:
        """Values by item, and for F1 also weights. `clusters` says which are good."""
        good = np.repeat(clusters, self.size)
        if self.name != F1:
            value = good if rules()[self.name].harm == "down" else ~good
            return {self.name: dict(zip(self.ids, value.astype(float).tolist(), strict=True))}
        said = good == self.positive  # says yes where that is right, or where no would be
        hits = 2.0 * (said & self.positive)
        below = said.astype(float) + self.positive
        return {
            F1: dict(zip(self.ids, hits.tolist(), strict=True)),
            F1 + WEIGHT: dict(zip(self.ids, below.tolist(), strict=True)),
        }

    def p_harm(self, states: np.ndarray) -> np.ndarray:
        """One-sided p of harm against base and previous stage, [runs, stages, 2].

        What `statistics.paired` says, up to its rounding, of all runs at once. It says where a
        verdict can be REGRESSED at all, so that only there a verdict is asked for.
        """
        now, found = states[:, 1:], []
        for anchor in (states[:, :1], states[:, :-1]):
            worse, better = anchor & ~now, ~anchor & now
            if self.name != F1:
                found.append(_mcnemar(worse.sum(-1), better.sum(-1)))
                continue
            # Clusters of two kinds: the truth of their first item is yes, or no.
            kinds = [slice(0, None, 2), slice(1, None, 2)] if self.size % 2 else [slice(None)]
            counts = [(worse[..., k].sum(-1), better[..., k].sum(-1)) for k in kinds]
            pooled = self._pooled(now, anchor)
            sizes = [self._step(kind.start or 0, pooled) for kind in kinds]
            found.append(_two_sizes(counts, sizes))
        return np.stack(found, axis=-1)

    def _step(self, cluster: int, pooled: np.ndarray) -> np.ndarray:
        """What one cluster that turns good adds to F1's permutation statistic."""
        own = self.positive[cluster * self.size : (cluster + 1) * self.size]
        return own.sum() * (2 - pooled) + (~own).sum() * pooled

    def _pooled(self, now: np.ndarray, anchor: np.ndarray) -> np.ndarray:
        """F1 over both sides, [runs, stages]."""
        positives = self.positive.reshape(self.clusters, self.size).sum(axis=1)
        negatives = self.size - positives
        above = np.zeros(now.shape[:-1])
        below = np.zeros(now.shape[:-1])
        for good in (now, anchor):
            right = good @ positives
            above += 2 * right
            below += right + ~good @ negatives + positives.sum()
        pooled: np.ndarray = above / below
        return pooled


def _mcnemar(worse: np.ndarray, better: np.ndarray) -> np.ndarray:
    """`statistics.mcnemar` of arrays."""
    total = worse + better
    return np.where(worse > 0, bdtrc(np.maximum(worse - 1, 0), np.maximum(total, 1), 0.5), 1.0)


def _two_sizes(counts: list[tuple[np.ndarray, np.ndarray]], sizes: list[np.ndarray]) -> np.ndarray:
    """P(Σ ±size ≥ what was seen) for changes of two sizes, each its own number of times."""
    if len(counts) == 1:
        return _mcnemar(*counts[0])
    (worse, better), (worse_too, better_too) = counts
    total, total_too = worse + better, worse_too + better_too
    seen = (worse - better) * sizes[0] + (worse_too - better_too) * sizes[1]
    # k of the first kind for the worse leaves so many of the second that must be.
    k = np.arange(int(total.max(initial=0)) + 1)
    n = total[..., None]
    with np.errstate(invalid="ignore"):
        chance = np.where(
            k <= n,
            np.exp(
                gammaln(n + 1) - gammaln(k + 1) - gammaln(np.maximum(n - k, 0) + 1) - n * np.log(2)
            ),
            0.0,
        )
    left = (seen[..., None] - (2 * k - n) * sizes[0][..., None]) / sizes[1][..., None]
    least = np.ceil((left + total_too[..., None]) / 2 - 1e-9).astype(int)
    most = total_too[..., None]
    tail = np.where(least <= 0, 1.0, np.where(least > most, 0.0, _tail(least, np.maximum(most, 1))))
    return np.minimum(1.0, (chance * tail).sum(-1))


def _tail(least: np.ndarray, n: np.ndarray) -> np.ndarray:
    """P(at least `least` of `n` fair tosses)."""
    return bdtrc(np.clip(least - 1, 0, n), n, 0.5)


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """Some figures' items, as models at different stages would be scored on them."""

    figures: tuple[Items, ...]
    alone: bool = False
    """Judge figures without what they require."""

    @functools.cached_property
    def _rules(self) -> dict[str, Figure]:
        own = {items.name: rules()[items.name] for items in self.figures}
        if self.alone:
            own = {n: dataclasses.replace(figure, requires=()) for n, figure in own.items()}
        return own

    @functools.cached_property
    def _clusters(self) -> dict[str, str]:
        return {i: c for items in self.figures for i, c in items.cluster_of.items()}

    def states(self, rng: np.random.Generator, *, runs: int, stages: int) -> dict[str, np.ndarray]:
        """Figure → [runs, stages + 1, clusters]."""
        return {items.name: items.states(rng, runs, stages) for items in self.figures}

    def p_harm(self, states: Mapping[str, np.ndarray]) -> np.ndarray:
        """[runs, stages, 2, figures]."""
        found = [items.p_harm(states[items.name]) for items in self.figures]
        return np.stack(found, axis=-1)

    def scores(self, states: Mapping[str, np.ndarray]) -> ProbeScores:
        """What one model is scored; `states` has one row of clusters a figure."""
        outcomes = {name: {name: value} for name, value in CONTROLS.items()}
        for items in self.figures:
            outcomes |= items.outcomes(states[items.name])
        return ProbeScores(figures=self._rules, outcomes=outcomes, clusters=self._clusters)
