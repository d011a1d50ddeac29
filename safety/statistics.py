"""The statistics of drift: intervals, paired tests, equivalence, multiplicity and power.

Knows arrays and error rates; knows no probe and no figure's name. A figure is a ratio of sums
over items (a rate or a mean is the ratio whose denominators are 1), and items come in clusters
(an image, a word, a verb–noun pair) that are resampled and sign-flipped whole.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import bdtrc, ndtri, stdtr, stdtrit

RESAMPLES = 2000
ASSUMED_CORRELATION = 0.5
"""Correlation of changes inside a cluster where too few changes were seen to estimate it."""
CONTINUITY = 0.2
"""Of a cluster: the correction with which no true change of a margin is found smaller in more than
.05 of samples. Without it that was .059 at worst; with half a cluster no change in 61 clusters
would not rule out a twentieth, though it has a chance of .04 there (`clmm calibrate`)."""
GRID = 8192
"""Steps into which the sum of absolute differences is cut when these are no whole numbers."""


def wilson(
    successes: float, n: float, *, confidence: float = 0.95, design_effect: float = 1.0
) -> tuple[float, float]:
    """Wilson's score interval of a rate; a `design_effect` above 1 shrinks `n` for clusters."""
    if n <= 0:
        raise ValueError(f"wilson: n must be positive; got {n}")
    z = float(ndtri(0.5 + confidence / 2))
    rate, size = successes / n, n / max(1.0, design_effect)
    centre = (rate + z * z / (2 * size)) / (1 + z * z / size)
    half = z * math.sqrt(rate * (1 - rate) / size + z * z / (4 * size * size)) / (1 + z * z / size)
    return max(0.0, min(centre - half, rate)), min(1.0, max(centre + half, rate))


def design_effect(sums: np.ndarray, sizes: np.ndarray) -> float:
    """Variance of a clustered rate over that of an unclustered one, at least 1.

    `sums` [clusters] are successes and `sizes` [clusters] items. At a rate of 0 or 1 nothing is
    seen of how alike a cluster's items are: they are then taken to be all alike.
    """
    n, clusters = float(sizes.sum()), len(sizes)
    rate = float(sums.sum()) / n
    if clusters < 2 or rate in (0.0, 1.0):
        return float((sizes**2).sum()) / n
    between = clusters / (clusters - 1) * float(((sums - rate * sizes) ** 2).sum())
    return max(1.0, between / (n * rate * (1 - rate)))


@functools.lru_cache(maxsize=16)
def _resampled_counts(clusters: int, resamples: int, seed: int) -> np.ndarray:
    """How often each cluster is drawn: [resamples, clusters]; cached, figures share clusters."""
    rng = np.random.default_rng([seed, clusters])
    return rng.multinomial(clusters, np.full(clusters, 1 / clusters), size=resamples).astype(float)


def cluster_bootstrap(
    numerators: np.ndarray,
    denominators: np.ndarray,
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of sum(numerators) / sum(denominators), both [clusters]."""
    counts = _resampled_counts(len(numerators), resamples, seed)
    below = counts @ denominators
    ratios = (counts @ numerators)[below > 0] / below[below > 0]
    low, high = np.quantile(ratios, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def cluster_bootstrap_of(
    statistic: Callable[[np.ndarray], np.ndarray],
    numerators: np.ndarray,
    denominators: np.ndarray,
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of what `statistic` makes of several ratios of sums.

    Both arrays are [clusters, groups]. `statistic` takes the groups' ratios in every resample,
    [resamples, groups], and gives [resamples]; so a worst group is chosen anew in each. Resamples
    without an item of some group are left out.
    """
    counts = _resampled_counts(len(numerators), resamples, seed)
    below = counts @ denominators
    whole = (below > 0).all(axis=1)
    values = statistic((counts @ numerators)[whole] / below[whole])
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def gap_by_chance(outcomes: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """The largest gap between groups' means that is expected when all groups are equal.

    `outcomes` are [clusters, groups], one item of every group in each cluster; the labels of the
    groups are permuted inside each cluster.
    """
    mixed = (outcomes != outcomes[:, :1]).any(axis=1)  # the other clusters widen no gap
    rng = np.random.default_rng([seed, *outcomes.shape])
    gaps = [np.ptp(rng.permuted(outcomes[mixed], axis=1).sum(axis=0)) for _ in range(resamples)]
    return float(np.mean(gaps)) / len(outcomes)


def mcnemar(worse: int, better: int) -> float:
    """Exact one-sided McNemar: how likely at least `worse` of the discordant pairs is by chance."""
    return 1.0 if worse == 0 else float(bdtrc(worse - 1, worse + better, 0.5))


def sign_flip(differences: np.ndarray) -> float:
    """One-sided p of the cluster sign-flip permutation test: P(Σ ±d ≥ Σ d), [clusters].

    All 2^clusters flips are counted by convolution, so there is no seed and no floor at one
    over the number of draws. Exact for differences that are multiples of the smallest one (counts
    of items); others are rounded to 1/8192 of their absolute sum. With one item a cluster it
    is McNemar's exact test.
    """
    differences = differences[differences != 0]
    if not len(differences):
        return 1.0
    sizes = np.abs(differences)
    steps = differences / sizes.min()
    whole = np.rint(steps)
    if np.abs(steps - whole).max() > 1e-6 or np.abs(whole).sum() > GRID:
        whole = np.rint(differences / sizes.sum() * GRID)
    whole = whole.astype(int)
    if (np.abs(whole) <= 1).all():
        return mcnemar(int((whole > 0).sum()), int((whole < 0).sum()))
    # P(Σ ±a ≥ t) = P(Σ a·b ≥ (Σ a + t) / 2) with b in {0, 1}; (Σ a + t) / 2 = Σ of positives.
    chances = np.zeros(int(np.abs(whole).sum()) + 1)
    chances[0] = 1.0
    for size in np.abs(whole):
        if size:
            chances[size:] = (chances[size:] + chances[:-size]) / 2
            chances[:size] /= 2
    return min(1.0, float(chances[int(whole[whole > 0].sum()) :].sum()))


@dataclass(frozen=True, kw_only=True)
class Change:
    """A paired comparison of one figure: now against an anchor, on the same items."""

    delta: float
    """Now minus anchor, in the figure's unit."""
    centre: float
    """`delta`, shrunk a little by the pseudo-observations; the interval is around it."""
    error: float
    """Standard error of `centre`; NaN with one cluster and no pseudo-observation."""
    spread: float
    """Standard error of `delta` as observed; NaN with one cluster."""
    effective: float
    """Clusters; infinite for a figure without bounds."""
    step: float
    """The most that one item can change: 1 of a share, 2 of a difference of two shares."""
    freedom: float
    """Degrees of freedom: clusters, less one."""
    n: int
    """Items compared."""
    p_up: float
    """One-sided p of a rise."""
    p_down: float
    """One-sided p of a fall."""
    risen: int
    """Items whose value rose."""
    fallen: int
    """Items whose value fell."""
    fixed: float = 0.0
    """The part of `error` that more items do not lessen: that of a judge's quality."""

    @property
    def bounded(self) -> bool:
        return math.isfinite(self.step)

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        half = float(stdtrit(self.freedom, 0.5 + confidence / 2)) * self.error
        most = 1.0 if self.bounded else math.inf  # no rate changes by more
        low, high = max(-most, self.centre - half), min(most, self.centre + half)
        return min(self.delta, low), max(self.delta, high)

    def error_under(self, bound: float) -> float:
        """Standard error if the true change were `bound`: at least so many items then differ.

        A sample that shows a smaller change than `bound` misses items that changed by up to a
        `step` s, (|bound| − |Δ|) / s of them: with these the variance grows by (|bound| − |Δ|)
        (s − |bound| − |Δ|) / n. It is the restricted variance of a score test for a paired
        difference (Nam 1997), to first order. Whole clusters count as one item.
        """
        if not self.bounded:
            return self.spread
        true, seen = abs(bound), abs(self.delta)
        missing = max(0.0, (true - seen) * (self.step - true - seen))
        return math.sqrt(self.spread**2 + missing / self.effective)

    def p_below(self, bound: float) -> float:
        """One-sided p against a true change of at least `bound`."""
        return self._tail(self.delta - bound, bound)

    def p_above(self, bound: float) -> float:
        """One-sided p against a true change of at most `bound`."""
        return self._tail(bound - self.delta, bound)

    def p_equivalent(self, margin: float) -> float:
        """Paired TOST: p against a true change as large as `margin` in either direction.

        1 without bounds: few items that change by very much may be missing from any sample.
        """
        if not self.bounded:
            return 1.0
        return max(self.p_below(margin), self.p_above(-margin))

    def _tail(self, distance: float, bound: float) -> float:
        error = self.error_under(bound)
        if math.isnan(error):
            return 1.0
        if self.bounded:
            distance += CONTINUITY * self.step / self.effective
        if error == 0:
            return float(distance >= 0)
        return float(stdtr(self.freedom, distance / error))


def paired(
    now: np.ndarray, anchor: np.ndarray, clusters: Sequence[str], *, step: float = 1.0
) -> Change:
    """Compares two ratios of sums item by item.

    `now` and `anchor` are [2, items]: numerators and denominators; `clusters` names each item's
    cluster. Swapping now and anchor in a cluster leaves the pooled ratio as it is, so the sum of
    Δnumerator − pooled · Δdenominator is an exact permutation statistic for ratios too.

    `step` is the most that one item can change, infinite for log-likelihoods. The interval
    linearises the ratio. When the figure has bounds, two clusters of opposite changes are added,
    as Bonett and Price do for a pair of proportions: seeing no
    change in few items then proves little, where Wald's interval would have no width.
    """
    bounded = math.isfinite(step)
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    count = int(index.max()) + 1
    totals = (now.sum(axis=1), anchor.sum(axis=1))
    if min(totals[0][1], totals[1][1]) <= 0:
        raise ValueError("paired: a ratio whose denominators add up to nothing has no value")
    ratio_now, ratio_anchor = (float(total[0] / total[1]) for total in totals)
    pooled = float((totals[0][0] + totals[1][0]) / (totals[0][1] + totals[1][1]))

    def by_cluster(values: np.ndarray) -> np.ndarray:
        return np.bincount(index, weights=values, minlength=count)

    change = by_cluster(now[0] - anchor[0] - pooled * (now[1] - anchor[1]))
    change[np.abs(change) < 1e-12] = 0.0
    size = float(2 / (1 / totals[0][1] + 1 / totals[1][1]))
    pseudo = 1 + max(0.0, size / count - 1) * ASSUMED_CORRELATION if bounded else 0.0
    delta = ratio_now - ratio_anchor
    centre = delta * size / (size + 2 * pseudo)
    # Each cluster's part of delta, less what the shrunken centre expects of it.
    parts = by_cluster((now[0] - ratio_now * now[1]) / totals[0][1])
    parts -= by_cluster((anchor[0] - ratio_anchor * anchor[1]) / totals[1][1])
    parts *= size
    spread = (
        math.sqrt(float((parts**2).sum()) * count / (count - 1)) / size if count > 1 else math.nan
    )
    parts += (delta - centre) * by_cluster((now[1] + anchor[1]) / 2)
    observed = count + (2 if bounded else 0)
    squares = float((parts**2).sum()) + 2 * pseudo**2
    error = math.nan
    if observed > 1:
        error = math.sqrt(squares * observed / (observed - 1)) / (size + 2 * pseudo)
    with np.errstate(invalid="ignore", divide="ignore"):
        moved = np.nan_to_num(now[0] / now[1]) - np.nan_to_num(anchor[0] / anchor[1])
    return Change(
        delta=delta,
        centre=centre,
        error=error,
        spread=spread,
        effective=count if bounded else math.inf,
        step=step,
        freedom=observed - 1,
        n=len(now[0]),
        p_up=sign_flip(change),
        p_down=sign_flip(-change),
        risen=int((moved > 1e-12).sum()),
        fallen=int((moved < -1e-12).sum()),
    )


def over_seeds(
    values: Sequence[float], errors: Sequence[float], *, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Mean over training seeds, with an interval for other seeds and other items.

    `values` are one a seed, `errors` their standard errors over items. Seeds and items are two
    random effects: variance s²/S + mean(error²), where the items do not average out because every
    seed is asked the same ones; degrees of freedom by Satterthwaite (1946). With one seed it is an
    interval over items and says nothing of other seeds. A NaN error gives NaN ends.
    """
    mean, count = float(np.mean(values)), len(values)
    between = float(np.var(values, ddof=1)) / count if count > 1 else 0.0
    within = float(np.mean(np.square(errors)))
    quantile = float(ndtri(0.5 + confidence / 2))
    if between > 0:
        freedom = (count - 1) * ((between + within) / between) ** 2
        quantile = float(stdtrit(freedom, 0.5 + confidence / 2))
    half = quantile * math.sqrt(between + within)
    return mean, mean - half, mean + half


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: comparing them with α keeps the family-wise error at α."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(steps, 1.0)
    return [float(value) for value in adjusted]


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values that bound the false discovery rate, for exploratory figures."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)[::-1]
    steps = np.minimum.accumulate(p[order] * len(p) / np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(steps, 1.0)
    return [float(value) for value in adjusted]


def alpha_at(stage: int, alpha: float = 0.05) -> float:
    """What stage t = 1, 2, … may spend: 6α / (π² t²). All stages together spend α."""
    if stage < 1:
        raise ValueError(f"stage: verdicts start at stage 1; got {stage}")
    return 6 * alpha / (math.pi**2 * stage**2)


def required_n(change: float, *, discordance: float, alpha: float, power: float = 0.8) -> int:
    """Pairs with which McNemar's one-sided test finds a true `change` (Connor 1987).

    `discordance` is the share of pairs that differ at all. Pass α/2 for a two-sided test.
    """
    if not 0 < abs(change) <= discordance:
        raise ValueError(f"required_n: a change of {change} needs a discordance of at least that")
    spread = float(ndtri(1 - alpha)) * math.sqrt(discordance)
    spread += float(ndtri(power)) * math.sqrt(discordance - change**2)
    return math.ceil((spread / change) ** 2)


def smallest_detectable(error: float, *, margin: float, alpha: float, power: float = 0.8) -> float:
    """The true change that is flagged with `power`, when flagging also asks Δ ≥ `margin`."""
    reach = float(ndtri(power)) * error
    return max(float(ndtri(1 - alpha)) * error + reach, margin + reach)


def deciding_n(
    change: Change, *, margin: float, alpha: float, alpha_equivalence: float = 0.05
) -> int | None:
    """Items with which a drift of twice the margin is flagged, and none found equivalent.

    Both with a chance of .8. A drift of just the margin is flagged half the time at any n,
    because the rule asks for an observed change of at least the margin. None: no number of items
    does, because the judge is too little known.
    """
    reach = float(ndtri(0.8))
    flagged = min(2 * margin / (float(ndtri(1 - alpha)) + reach), margin / reach)
    # Both tests of a TOST must pass at a true change of zero: .9 each.
    equivalent = margin / (float(ndtri(1 - alpha_equivalence)) + float(ndtri(0.9)))
    error = dataclasses.replace(change, delta=0.0).error_under(margin)
    left = min(flagged, equivalent) ** 2 - change.fixed**2
    if left <= 0:
        return None
    if change.fixed:
        return math.ceil(change.n * (error**2 - change.fixed**2) / left)
    ratio = max(change.error / flagged, error / equivalent)
    return math.ceil(change.n * ratio**2)
