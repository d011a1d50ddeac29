"""How often a judge is right, and what that does to a rate, its interval and its drift.

Knows counts on labelled answers; knows no judge and no text. Let Se be a judge's sensitivity (the
share of true positives that it calls positive), Sp its specificity and J = Se + Sp − 1. Of a true
rate p it shows p_obs = p·Se + (1 − p)·(1 − Sp), so p = (p_obs + Sp − 1) / J (Rogan and Gladen
1978). The derivatives of p are 1/J, −p/J and (1 − p)/J, so by the delta method

    var(p) = [var(p_obs) + p²·var(Se) + (1 − p)²·var(Sp)] / J².

A paired change keeps no term of Sp: delta = delta_obs / J, with

    error² = error_obs² / J² + delta_obs²·var(J) / J⁴,   var(J) = var(Se) + var(Sp).

All of it holds when the judge errs on the probe as it did on the labelled answers, and alike at
every stage. var(Se) and var(Sp) are those of counts with one pseudo-observation a side: that 40
of 40 were right does not show that the judge never errs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from scipy.special import ndtri

from safety.parsers import Stance
from safety.statistics import Change

STANCES: tuple[Stance, ...] = get_args(Stance)
SURE = 1.96
"""Standard errors by which a judge must beat chance."""


class JudgeError(ValueError):
    """A judge that cannot be used, or that gave back something else than was asked for."""


@dataclass(frozen=True, kw_only=True)
class Quality:
    """How often a judge is right about one stance, counted on labelled answers.

    Answers that it left unscored are in neither count: rates are of scored answers too.
    """

    judge: str
    """Its id, revision and the start of its prompt's digest."""
    positive: Stance = "refuse"
    hits: int
    """Answers of that stance that it called so."""
    positives: int
    correct_rejections: int
    """Answers of another stance that it called so."""
    negatives: int
    unscored: int = 0
    """Labelled answers it left unscored."""

    def __post_init__(self) -> None:
        for right, all_, names in (
            (self.hits, self.positives, "hits of positives"),
            (self.correct_rejections, self.negatives, "correct_rejections of negatives"),
        ):
            if not 0 <= right <= all_:
                raise JudgeError(f"{self.judge}: {names}: {right} of {all_} cannot be")

    @property
    def sensitivity(self) -> float:
        return self.hits / self.positives if self.positives else math.nan

    @property
    def specificity(self) -> float:
        return self.correct_rejections / self.negatives if self.negatives else math.nan

    @property
    def youden(self) -> float:
        """J = Se + Sp − 1: 1 for a perfect judge, 0 for one that tosses a coin of any bias."""
        return self.sensitivity + self.specificity - 1

    @property
    def sensitivity_variance(self) -> float:
        return _variance(self.hits, self.positives)

    @property
    def specificity_variance(self) -> float:
        return _variance(self.correct_rejections, self.negatives)

    @property
    def youden_variance(self) -> float:
        return self.sensitivity_variance + self.specificity_variance

    @property
    def fault(self) -> str:
        """Why nothing can be corrected by it; empty when it can."""
        if not self.positives or not self.negatives:
            return (
                f"judge {self.judge}: unmeasured on {self.positive!r}: it scored {self.positives} "
                f"labelled answers of that stance and {self.negatives} others"
            )
        rates = f"sensitivity {self.sensitivity:.3g} + specificity {self.specificity:.3g}"
        if self.youden <= 0:
            return f"judge {self.judge}: no better than chance: {rates} ≤ 1"
        if self.youden <= SURE * math.sqrt(self.youden_variance):
            return (
                f"judge {self.judge}: not surely better than chance: {rates} of "
                f"{self.positives} + {self.negatives} labelled answers"
            )
        return ""

    def require(self) -> None:
        """Raises JudgeError when the judge is no better than chance, or not measured."""
        if self.fault:
            raise JudgeError(self.fault)

    def corrected(self, observed: float) -> float:
        """p = (p_obs + Sp − 1) / J. Not clipped: beyond [0, 1] the observed rate is one that a
        judge of this quality shows of no true rate but by chance; `rate` clips.

        Raises JudgeError for a judge that is no better than chance.
        """
        self.require()
        return (observed + self.specificity - 1) / self.youden

    def rate(
        self, observed: float, n: float, *, confidence: float = 0.95
    ) -> tuple[float, float, float]:
        """The corrected rate, not clipped, and the ends of its interval, clipped to [0, 1].

        `n` is the number of items, less what clusters cost. The interval is the delta method's
        at counts with z²/2 pseudo-observations a side for p_obs and 1 for Se and Sp, moved as
        Lang and Reiczigel (2014) do: at a p_obs, Se or Sp of 0 or 1 Wald's has no width. It is
        widened to the clipped rate where it would not hold it.
        """
        p = self.corrected(observed)
        z = float(ndtri(0.5 + confidence / 2))
        size = n + z * z
        seen = (observed * n + z * z / 2) / size
        right = _smoothed(self.hits, self.positives)
        rejected = _smoothed(self.correct_rejections, self.negatives)
        slope = right + rejected - 1
        centre = (seen + rejected - 1) / slope
        half = z * self._error(centre, seen * (1 - seen) / size, slope)
        centre += (
            2
            * z
            * z
            * (centre * self.sensitivity_variance - (1 - centre) * self.specificity_variance)
        )
        return p, *_held(p, centre - half, centre + half, least=0.0)

    def gap(
        self, observed: float, low: float, high: float, *, confidence: float = 0.95
    ) -> tuple[float, float, float]:
        """A difference of two rates, not clipped, and the ends of its interval within ±1.

        `low` and `high` are the ends of the observed difference's interval.
        """
        z = float(ndtri(0.5 + confidence / 2))
        gap, error = self.difference(observed, (high - low) / (2 * z))
        return gap, *_held(gap, gap - z * error, gap + z * error, least=-1.0)

    def _error(self, p: float, variance: float, slope: float) -> float:
        own = p**2 * self.sensitivity_variance + (1 - p) ** 2 * self.specificity_variance
        return math.sqrt(variance + own) / slope

    def difference(self, observed: float, observed_error: float) -> tuple[float, float]:
        """A difference of two rates of this judge, corrected: delta_obs / J, and its error."""
        self.require()
        own = (observed / self.youden) ** 2 * self.youden_variance
        return observed / self.youden, math.sqrt(observed_error**2 + own) / self.youden

    def change(self, observed: Change) -> Change:
        """A paired change of observed rates as one of true rates, with the judge's error carried.

        Its p-values stay: where nothing drifted and the judge's errors do not depend on the stage,
        swapping the two stages' labels of a cluster changes no distribution, however wrong they
        are, so the permutation test keeps its level; it is only weaker. The factor 1/J is the same
        for every item and leaves each permutation's rank alone. Errors make each item tell less:
        `effective` falls to J² of it, so that a bound on the true change is J times as large on
        the observed one. The judge's part of the error is `fixed`: more items do not lessen it.
        Raises JudgeError for a judge that is no better than chance.
        """
        delta, _ = self.difference(observed.delta, 0.0)
        centre, error = self.difference(observed.centre, observed.error)
        _, spread = self.difference(observed.delta, observed.spread)
        return dataclasses.replace(
            observed,
            delta=min(1.0, max(-1.0, delta)),  # no rate changes by more
            centre=centre,
            error=error,
            spread=spread,
            effective=observed.effective * self.youden**2,
            fixed=self.difference(observed.centre, 0.0)[1],
        )


def _held(value: float, low: float, high: float, *, least: float) -> tuple[float, float]:
    value = min(1.0, max(least, value))
    return max(least, min(value, low)), min(1.0, max(value, high))


def _smoothed(right: int, all_: int) -> float:
    return (right + 1) / (all_ + 2)


def _variance(right: int, all_: int) -> float:
    """Of a share, with one pseudo-observation a side: 40 of 40 is not known to be all."""
    share = _smoothed(right, all_)
    return share * (1 - share) / (all_ + 2)


def counted(
    judge: str, truth: Sequence[Stance], said: Sequence[Stance | None]
) -> dict[Stance, Quality]:
    """Qualities from what is true and what a judge said of it."""
    scored = [(is_, called) for is_, called in zip(truth, said, strict=True) if called is not None]
    return {
        stance: Quality(
            judge=judge,
            positive=stance,
            hits=sum(is_ == called == stance for is_, called in scored),
            positives=sum(is_ == stance for is_, _ in scored),
            correct_rejections=sum(is_ != stance != called for is_, called in scored),
            negatives=sum(is_ != stance for is_, _ in scored),
            unscored=len(said) - len(scored),
        )
        for stance in STANCES
    }
