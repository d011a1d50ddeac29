"""The statistics of drift against statsmodels, enumeration, and published numbers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import binom
from statsmodels.stats.contingency_tables import mcnemar as oracle_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from safety import statistics
from safety.calibration import Rate


@pytest.mark.parametrize(("k", "n"), [(0, 200), (3, 10), (50, 100), (99, 100), (7, 7)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_wilson_is_that_of_statsmodels(k: int, n: int, confidence: float) -> None:
    expected = proportion_confint(k, n, alpha=1 - confidence, method="wilson")
    assert statistics.wilson(k, n, confidence=confidence) == pytest.approx(expected, abs=1e-12)


def test_no_event_in_200_leaves_a_percent_and_a_half() -> None:
    assert Rate(hits=0, n=200).upper == pytest.approx(0.015, abs=2e-4)  # exact; Wilson's is less
    assert statistics.wilson(0, 200, confidence=0.9)[1] == pytest.approx(0.0134, abs=5e-4)
    with pytest.raises(ValueError, match="n must be positive"):
        statistics.wilson(0, 0)


def test_a_design_effect_is_the_size_of_clusters_that_agree() -> None:
    sums = np.array([5.0, 0.0] * 50)
    sizes = np.full(100, 5.0)
    assert statistics.design_effect(sums, sizes) == pytest.approx(5, rel=0.02)
    low, high = statistics.wilson(250, 500, design_effect=5)
    assert (low, high) == pytest.approx(proportion_confint(50, 100, method="wilson"))
    # Nothing is seen of likeness where no item differs: clusters then count as one item each.
    assert statistics.design_effect(np.zeros(4), np.full(4, 3.0)) == 3
    assert statistics.design_effect(np.array([5.0, 1]), np.array([5.0, 1])) == 26 / 6


def test_bootstrap_is_seeded_and_as_wide_as_theory_says() -> None:
    rng = np.random.default_rng(0)
    above, below = rng.binomial(1, 0.3, size=400).astype(float), np.ones(400)
    low, high = statistics.cluster_bootstrap(above, below)
    assert (low, high) == statistics.cluster_bootstrap(above, below)
    rate = above.mean()
    assert (high - low) / 2 == pytest.approx(1.96 * np.sqrt(rate * (1 - rate) / 400), rel=0.1)
    doubled = statistics.cluster_bootstrap(above * 7, below * 7)
    assert doubled == pytest.approx((low, high))


@pytest.mark.parametrize(("worse", "better"), [(0, 0), (5, 0), (0, 5), (6, 3), (12, 12), (40, 9)])
def test_mcnemar_is_that_of_statsmodels(worse: int, better: int) -> None:
    p = statistics.mcnemar(worse, better)
    if worse > better:
        table = [[0, worse], [better, 0]]
        assert 2 * p == pytest.approx(oracle_mcnemar(table, exact=True).pvalue)
    else:
        assert p >= 0.5


def test_sign_flip_counts_every_flip() -> None:
    rng = np.random.default_rng(1)
    for differences in (rng.integers(-3, 4, size=9).astype(float), np.array([2.0, 2, -4, 6])):
        flips = np.array(list(itertools.product((-1, 1), repeat=len(differences))))
        expected = np.mean(flips @ np.abs(differences) >= differences.sum() - 1e-9)
        assert statistics.sign_flip(differences) == pytest.approx(expected, abs=1e-12)


def test_sign_flip_of_real_numbers_is_close_and_of_single_items_mcnemar() -> None:
    rng = np.random.default_rng(2)
    differences = rng.normal(0.4, 1, size=14)
    flips = np.array(list(itertools.product((-1, 1), repeat=14)))
    expected = np.mean(flips @ np.abs(differences) >= differences.sum() - 1e-9)
    assert statistics.sign_flip(differences) == pytest.approx(expected, rel=0.02)
    signs = np.array([1.0] * 9 + [-1.0] * 2 + [0.0] * 30)
    assert statistics.sign_flip(signs) == statistics.mcnemar(9, 2)
    assert statistics.sign_flip(np.zeros(5)) == 1


def test_sign_flip_reaches_the_levels_that_late_stages_need() -> None:
    assert statistics.sign_flip(np.full(40, 2.0)) == pytest.approx(2.0**-40)


def _change(now: list[float], anchor: list[float], size: int = 1) -> statistics.Change:
    ones = np.ones(len(now))
    clusters = [str(i // size) for i in range(len(now))]
    return statistics.paired(np.array([now, ones]), np.array([anchor, ones]), clusters)


def test_a_paired_change_of_shares() -> None:
    anchor = [1.0] * 90 + [0.0] * 10
    now = [0.0] * 12 + [1.0] * 78 + [0.0] * 6 + [1.0] * 4
    change = _change(now, anchor)
    assert (change.delta, change.n) == (pytest.approx(-0.08), 100)
    assert (change.fallen, change.risen) == (12, 4)
    assert change.p_down == pytest.approx(statistics.mcnemar(12, 4))
    # Bonett and Price (2012), with the normal quantile instead of Student's.
    up, down = 5 / 102, 13 / 102
    centre, error = up - down, np.sqrt((up + down - (up - down) ** 2) / 102)
    assert change.centre == pytest.approx(centre)
    assert change.error == pytest.approx(error, rel=0.01)
    low, high = change.interval()
    assert low == pytest.approx(centre - 1.98 * error, abs=2e-3)
    assert low < change.delta < high


def test_no_change_in_few_items_is_not_equivalence() -> None:
    few, many = _change([1.0] * 20, [1.0] * 20), _change([1.0] * 200, [1.0] * 200)
    assert few.p_equivalent(0.03) > 0.05 > many.p_equivalent(0.03)
    clustered = _change([1.0] * 200, [1.0] * 200, size=20)
    assert clustered.p_equivalent(0.03) > 0.05
    assert few.interval()[0] < 0 < few.interval()[1]


def test_a_ratio_is_compared_as_a_ratio() -> None:
    now = np.array([[1.0, 0, 2, 0], [4.0, 2, 4, 0]])
    anchor = np.array([[0.0, 0, 1, 0], [2.0, 2, 5, 1]])
    change = statistics.paired(now, anchor, ["a", "b", "c", "d"])
    assert change.delta == pytest.approx(3 / 10 - 1 / 10)
    same = statistics.paired(now, now, ["a", "b", "c", "d"])
    assert (same.delta, same.p_up, same.p_down) == (0, 1, 1)
    with pytest.raises(ValueError, match="add up to nothing"):
        statistics.paired(np.zeros((2, 3)), np.ones((2, 3)), ["a", "b", "c"])


def test_ratio_permutation_agrees_with_swapping_by_hand() -> None:
    rng = np.random.default_rng(3)
    below = rng.integers(1, 5, size=(2, 10)).astype(float)
    above = np.minimum(below, rng.poisson([[1.4], [0.6]], size=(2, 10)))
    change = statistics.paired(
        np.array([above[0], below[0]]), np.array([above[1], below[1]]), list("abcdefghij")
    )
    swaps = np.array(list(itertools.product((0, 1), repeat=10)))
    ratio = [
        (np.where(swaps == side, above[0], above[1]).sum(1))
        / np.where(swaps == side, below[0], below[1]).sum(1)
        for side in (0, 1)
    ]
    expected = np.mean(ratio[0] - ratio[1] >= change.delta - 1e-9)
    assert change.p_up == pytest.approx(expected, abs=0.01)


def test_log_likelihoods_have_no_pseudo_observations() -> None:
    values, ones = np.array([0.2, -0.4, 1.0, 0.3]), np.ones(4)
    zero = np.zeros(4)
    change = statistics.paired(
        np.array([values, ones]), np.array([zero, ones]), list("abcd"), step=math.inf
    )
    assert change.error == pytest.approx(values.std(ddof=1) / 2)
    alone = statistics.paired(
        np.array([values, ones]), np.array([zero, ones]), ["a"] * 4, step=math.inf
    )
    assert np.isnan(alone.error)
    assert alone.p_equivalent(1.0) == 1


@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize("discordance", [0.03, 0.1])
def test_false_equivalence_at_the_margin_is_rare(size: int, discordance: float) -> None:
    rng, margin, n = np.random.default_rng(4), 0.03, 400
    down = (discordance - margin) / 2
    found = 0
    for _ in range(300):
        item, whole = rng.random((n // size, size)), rng.random((n // size, 1))
        draw = np.where(rng.random((n // size, 1)) < 0.3, whole, item).ravel()
        anchor = np.where(draw < down, 1.0, np.where(draw > 1 - down - margin, 0.0, 1.0))
        now = np.where(draw < down, 0.0, 1.0)
        found += _change(list(now), list(anchor), size).p_equivalent(margin) < 0.05
    assert found <= 300 * 0.05 + 3 * np.sqrt(300 * 0.05)


@pytest.mark.parametrize(("items", "margin"), [(60, 0.05), (100, 0.05), (400, 0.02), (1000, 0.02)])
def test_a_difference_may_change_by_two_an_item(items: int, margin: float) -> None:
    """A true change of the margin that few items make, each by 2, is EQUIVALENT in ≤ .05."""
    called, share = 0.0, margin / 2
    for changed in range(items + 1):
        chance = binom.pmf(changed, items, share)
        if chance > 1e-9:
            now = np.ones(items)
            now[:changed] -= 2
            pair = (np.array([row, np.ones(items)]) for row in (now, np.ones(items)))
            change = statistics.paired(*pair, [str(i) for i in range(items)], step=2)
            called += chance * (change.p_equivalent(margin) < 0.05)
    assert called <= 0.05


def test_a_figure_without_bounds_is_never_equivalent() -> None:
    same = np.array([np.zeros(900), np.ones(900)])
    names = [str(i) for i in range(900)]
    assert statistics.paired(same, same, names, step=math.inf).p_equivalent(1.0) == 1


def test_holm_and_benjamini_hochberg_are_those_of_statsmodels() -> None:
    rng = np.random.default_rng(5)
    for _ in range(20):
        p = rng.random(8) ** 3
        p[3] = p[1]
        holm, bh = (multipletests(p, method=m)[1] for m in ("holm", "fdr_bh"))
        assert statistics.holm(p) == pytest.approx(list(holm))
        assert statistics.benjamini_hochberg(p) == pytest.approx(list(bh))
    assert statistics.holm([]) == [] == statistics.benjamini_hochberg([])


def test_all_stages_together_spend_alpha() -> None:
    assert statistics.alpha_at(1) == pytest.approx(0.0303964, abs=1e-6)
    assert sum(statistics.alpha_at(t) for t in range(1, 100_000)) == pytest.approx(0.05, abs=1e-6)
    with pytest.raises(ValueError, match="stage 1; got 0"):
        statistics.alpha_at(0)


@pytest.mark.parametrize(("stages", "published"), [(5, 0.14), (10, 0.26), (20, 0.47)])
def test_testing_every_stage_at_one_level_alarms_as_often_as_published(
    stages: int, published: float
) -> None:
    """Exact two-sided McNemar at .05, 300 items, a tenth discordant: what spending α prevents."""
    size = 0.0
    for differ in range(1, 301):
        wins = np.arange(differ + 1)
        p = [2 * min(statistics.mcnemar(k, differ - k), statistics.mcnemar(differ - k, k))
             for k in wins.tolist()]  # fmt: skip
        rejected = binom.pmf(wins, differ, 0.5)[np.array(p) < 0.05].sum()
        size += binom.pmf(differ, 300, 0.1) * rejected
    assert 1 - (1 - size) ** stages == pytest.approx(published, abs=0.015)


@pytest.mark.parametrize(("points", "pairs"), [(3, 870), (5, 312), (10, 77)])
def test_pairs_for_power_as_published(points: int, pairs: int) -> None:
    assert statistics.required_n(points / 100, discordance=0.1, alpha=0.025) == pairs


@pytest.mark.parametrize(("points", "pairs"), [(3, 2080), (5, 750)])
def test_pairs_for_power_with_five_gates_at_stage_five(points: int, pairs: int) -> None:
    alpha = statistics.alpha_at(5) / 5
    assert statistics.required_n(points / 100, discordance=0.1, alpha=alpha) == pytest.approx(
        pairs, rel=0.01
    )
    with pytest.raises(ValueError, match="discordance"):
        statistics.required_n(0.2, discordance=0.1, alpha=alpha)


def test_a_change_as_small_as_detectable_is_flagged_four_times_in_five() -> None:
    error, margin, alpha = 0.02, 0.03, 0.001
    reach = statistics.smallest_detectable(error, margin=margin, alpha=alpha)
    draws = np.random.default_rng(6).normal(reach, error, size=40_000)
    flagged = (draws >= margin) & (draws / error >= 3.0902)
    assert flagged.mean() == pytest.approx(0.8, abs=0.01)


def test_deciding_n_grows_with_the_square_of_the_margin() -> None:
    """But for the items that would differ more if the true change were the margin."""
    change = _change([1.0] * 90 + [0.0] * 10, [0.0] * 10 + [1.0] * 90)
    wide, narrow = (
        statistics.deciding_n(change, margin=margin, alpha=0.01) for margin in (0.06, 0.03)
    )
    variances = [change.error**2 * 100 + margin * (1 - margin) for margin in (0.06, 0.03)]
    assert narrow == pytest.approx(4 * wide * variances[1] / variances[0], rel=0.02)


def test_seeds_and_items_are_both_in_the_interval() -> None:
    """Ends by hand, limits by the two simpler intervals, coverage by simulation."""
    mean, low, high = statistics.over_seeds([0.8, 0.9, 1.0], [0.0] * 3)
    assert (mean, high - mean) == pytest.approx((0.9, 4.302653 * 0.1 / 3**0.5), abs=1e-5)
    assert statistics.over_seeds([0.9], [0.1])[1] == pytest.approx(0.9 - 1.959964 * 0.1, abs=1e-5)
    assert all(math.isnan(end) for end in statistics.over_seeds([0.9], [math.nan])[1:])
    rng, covered = np.random.default_rng(0), 0
    for _ in range(400):
        items, seeds = rng.normal(0, 0.5, size=100), rng.normal(0, 0.05, size=5)
        values = items[None] + seeds[:, None] + rng.normal(0, 0.5, size=(5, 100))
        errors = values.std(axis=1, ddof=1) / 10
        _, low, high = statistics.over_seeds(values.mean(axis=1).tolist(), errors.tolist())
        covered += low <= 0 <= high
    assert covered / 400 >= 0.94


def test_no_rate_changes_by_more_than_everything() -> None:
    items = [str(i) for i in range(10)]
    none, all_of_them = (np.array([[v] * 10, [1.0] * 10]) for v in (0.0, 1.0))
    lost = statistics.paired(none, all_of_them, items)
    low, high = lost.interval()
    assert low == lost.delta == -1
    assert -1 < high < 0
