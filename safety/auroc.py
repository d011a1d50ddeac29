"""The area under the ROC curve, and pseudo-values with which its change is a paired mean.

Knows scores and two classes; knows no probe.
"""

from __future__ import annotations

import numpy as np


def _placements(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Each item's share of the other class that it is ranked rightly against, a tie as 1/2."""
    if np.isnan(scores).any() or positive.all() or not positive.any():
        raise ValueError("auroc: needs scores that are numbers, of items of both classes")
    shares = np.empty(len(scores))
    for own, sign in ((positive, 1.0), (~positive, -1.0)):
        others = np.sort(sign * scores[~own])
        below, upto = (np.searchsorted(others, sign * scores[own], s) for s in ("left", "right"))
        shares[own] = (below + upto) / (2 * len(others))
    return shares


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """P(a positive's score is above a negative's), a tie as 1/2: Mann–Whitney's U over all pairs.

    Both arrays are [items]. Raises ValueError for a NaN, or items of one class only.
    """
    return float(_placements(scores, positive)[positive].mean())


def auroc_values(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Pseudo-values, [items], whose plain mean is the AUROC and whose variance is DeLong's.

    u_i = A + (N / n_c)(V_i − A), with V_i the placement of item i among the other class and n_c
    the size of its own (DeLong, DeLong and Clarke-Pearson 1988). Summed by cluster they give the
    clustered variance of Obuchowski (1997). The paired mean difference of two models' values is
    their difference of AUROCs with its covariance; the sign-flip test on them is approximate,
    because flipping one item moves the placements of others. Single values leave [0, 1].
    """
    shares = _placements(scores, positive)
    area = shares[positive].mean()
    sizes = np.where(positive, positive.sum(), (~positive).sum())
    values: np.ndarray = area + len(scores) / sizes * (shares - area)
    return values
