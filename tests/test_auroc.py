"""AUROC against scikit-learn and DeLong's variance written out; the probe of picture and text."""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Sequence

import numpy as np
import pytest
from scripted import Scripted, truth
from sklearn.metrics import f1_score, roc_auc_score

from safety import auroc, statistics
from safety.probes.memes import Memes
from safety.probing import ProbeRun, run_probe
from safety.scores import Sheet, rule
from safety.verdicts import State, judge
from streams import phrasings, world
from streams.sample import Sample

ITEMS = 24
MEMES = Memes(items=ITEMS)


def data(seed: int, *, levels: int = 6, items: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Scores of few levels, so that many tie across the classes."""
    rng = np.random.default_rng(seed)
    positive = rng.random(items) < 0.3
    positive[:2] = (True, False)
    return np.round(rng.normal(positive * 0.8, 1) * levels / 4), positive


def pairwise(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """[positives, negatives]: 1 where the positive is above, 1/2 where they tie."""
    gap = scores[positive][:, None] - scores[~positive][None]
    return (gap > 0) + (gap == 0) / 2


def delong(one: np.ndarray, other: np.ndarray, positive: np.ndarray) -> float:
    """DeLong's covariance of two AUROCs on the same items, from the table of pairs."""
    first, second = pairwise(one, positive), pairwise(other, positive)
    rows = np.cov(first.mean(axis=1), second.mean(axis=1))[0, 1] / first.shape[0]
    columns = np.cov(first.mean(axis=0), second.mean(axis=0))[0, 1] / first.shape[1]
    return float(rows + columns)


def covariance(one: np.ndarray, other: np.ndarray, positive: np.ndarray) -> float:
    """The covariance of two means of pseudo-values, the two classes being strata."""
    total = 0.0
    for own in (positive, ~positive):
        total += own.sum() * np.cov(one[own], other[own])[0, 1]
    return float(total / len(one) ** 2)


@pytest.mark.parametrize("seed", range(12))
def test_auroc_is_that_of_scikit_learn_with_ties(seed: int) -> None:
    scores, positive = data(seed, levels=2 + seed)
    assert len(np.unique(scores)) < len(scores)
    expected = roc_auc_score(positive, scores)
    assert auroc.auroc(scores, positive) == pytest.approx(expected, abs=1e-12)
    assert auroc.auroc(scores, positive) == pytest.approx(pairwise(scores, positive).mean())
    assert auroc.auroc_values(scores, positive).mean() == pytest.approx(expected, abs=1e-12)
    assert auroc.auroc(-scores, positive) == pytest.approx(1 - expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_the_values_have_delongs_variance_and_covariance(seed: int) -> None:
    one, positive = data(seed)
    other = np.round(one + np.random.default_rng(seed + 50).normal(0, 1, len(one)))
    first, second = (auroc.auroc_values(s, positive) for s in (one, other))
    assert covariance(first, first, positive) == pytest.approx(delong(one, one, positive))
    assert covariance(first, second, positive) == pytest.approx(delong(one, other, positive))
    # The plain variance, which knows no classes, differs by what their sizes lose: (n − 1) / n.
    plain, smallest = first.var(ddof=1) / len(first), min(positive.sum(), (~positive).sum())
    assert plain == pytest.approx(delong(one, one, positive), rel=1.5 / smallest)


def test_a_paired_comparison_of_aurocs_is_a_paired_mean() -> None:
    now, positive = data(3, items=400)
    anchor = now + np.random.default_rng(9).normal(0, 0.7, len(now))
    values = [auroc.auroc_values(s, positive) for s in (now, anchor)]
    ones, names = np.ones(len(now)), [str(i) for i in range(len(now))]
    change = statistics.paired(
        np.array([values[0], ones]), np.array([values[1], ones]), names, step=math.inf
    )
    expected = roc_auc_score(positive, now) - roc_auc_score(positive, anchor)
    assert change.delta == pytest.approx(expected, abs=1e-12)
    pairs = list(itertools.product((now, anchor), repeat=2))
    signs = (1, -1, -1, 1)
    variance = sum(s * delong(a, b, positive) for s, (a, b) in zip(signs, pairs, strict=True))
    assert change.error == pytest.approx(np.sqrt(variance), rel=0.01)


def test_sums_by_cluster_have_obuchowskis_variance() -> None:
    """Written out for clusters that hold both classes, as quadruples do."""
    rng = np.random.default_rng(4)
    clusters = np.repeat(np.arange(30), 4)
    positive = np.tile([True, False, False, True], 30)
    scores = np.round(rng.normal(positive * 1.0, 1) + rng.normal(0, 1, 30)[clusters], 1)
    table = pairwise(scores, positive)
    area, size = table.mean(), table.shape[0]
    x = np.bincount(clusters[positive], weights=table.mean(axis=1) - area)
    y = np.bincount(clusters[~positive], weights=1 - (1 - table).mean(axis=0) - area)
    s10, s01, s11 = (30 / 29 * (a * b).sum() / size for a, b in ((x, x), (y, y), (x, y)))
    expected = s10 / size + s01 / size + 2 * s11 / size
    sums = np.bincount(clusters, weights=auroc.auroc_values(scores, positive) - area)
    assert 30 / 29 * (sums**2).sum() / len(scores) ** 2 == pytest.approx(expected)


def test_auroc_at_the_ends_and_of_nothing() -> None:
    positive = np.array([True, True, False, False, False])
    assert auroc.auroc(np.array([3.0, 4, 0, 1, 2]), positive) == 1
    assert auroc.auroc(np.array([0.0, 1, 2, 3, 4]), positive) == 0
    assert auroc.auroc(np.zeros(5), positive) == 0.5
    assert np.array_equal(auroc.auroc_values(np.zeros(5), positive), np.full(5, 0.5))
    infinite = np.array([np.inf, 1, -np.inf, 0, 0.5])
    assert auroc.auroc(infinite, positive) == 1
    for scores, labels in (
        (np.array([np.nan, 1, 2, 3, 4]), positive),
        (np.arange(5.0), np.ones(5, dtype=bool)),
        (np.arange(5.0), np.zeros(5, dtype=bool)),
    ):
        with pytest.raises(ValueError, match="numbers, of items of both classes"):
            auroc.auroc_values(scores, labels)


def test_an_interval_of_an_auroc_stays_a_share() -> None:
    positive = np.array([True, False] * 8)
    scores = np.where(positive, 1.0, 0.0)
    scores[0] = -1
    values = auroc.auroc_values(scores, positive)
    assert values.max() > 1
    sheet = Sheet({str(i): str(i) for i in range(16)})
    sheet.ratio("auroc", {str(i): v for i, v in enumerate(values)}, None, rule("down"))
    figure = sheet.figures["auroc"]
    assert figure.value == pytest.approx(7 / 8)
    assert 0 <= figure.low < figure.value < figure.high <= 1


class Ranking(Scripted):
    """Answers as it is told and is surer of yes the higher `surety` is, whatever the truth."""

    def log_likelihood(
        self, samples: Sequence[Sample], continuations: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        assert all(tuple(texts) == ("Yes.", "No.") for texts in continuations)
        return [[float(self.prefer(s)), -1.0] for s in samples]  # type: ignore[misc,arg-type]


def figures(run: ProbeRun) -> dict[str, float | None]:
    return {name: figure.value for name, figure in run.figures.items()}


def sure(text: str) -> float:
    """A fixed number of any text."""
    return zlib.crc32(text.encode()) % 997 / 100


def test_a_quadruple_gives_every_picture_and_every_text_both_labels() -> None:
    samples = MEMES.samples(0)
    assert len(samples) == 4 * (ITEMS + ITEMS // 2)
    for start in range(0, len(samples), 4):
        a_a, a_b, b_a, b_b = quadruple = samples[start : start + 4]
        assert [s.metadata["label"] for s in quadruple] == ["yes", "no", "no", "yes"]
        assert len({s.cluster for s in quadruple}) == 1
        assert a_a.images[0] is a_b.images[0]
        assert b_a.images[0] is b_b.images[0]
        assert (a_a.question, a_b.question) == (b_a.question, b_b.question)
        for s in quadruple:
            there = s.metadata["thing"] in s.metadata["things"]
            assert truth(s) == ("Yes." if there else "No.")
            assert there == (s.metadata["label"] == "yes")
            assert tuple(s.metadata["thing"]) in world.TRAIN_PAIRS
            held_out = s.metadata["slice"] == "held_out_phrasing"
            known = phrasings.EXISTENCE_HELD_OUT if held_out else phrasings.EXISTENCE
            name = phrasings.article(" ".join(s.metadata["thing"]))
            assert s.question in {template.format(thing=name) for template in known}


def test_a_perfect_model_ranks_everything() -> None:
    found = run_probe(MEMES, Scripted(truth), 0)
    for name in ("accuracy", "auroc", "macro_f1", "likelihood.accuracy"):
        for head in ("memes", "memes.held_out_phrasing"):
            figure = found.figures[f"{head}.{name}"]
            assert figure.value == 1, name
            assert 0.6 < figure.low < figure.high == 1, name
    assert figures(found)["memes.invalid"] == 0
    assert found.figures["memes.auroc"].n == 4 * ITEMS


@pytest.mark.parametrize(
    "surety",
    [lambda s: 0.0, lambda s: sure(s.question), lambda s: sure(str(s.metadata["things"]))],
    ids=["blind", "text only", "picture only"],
)
def test_one_mode_alone_ranks_nothing_by_construction(surety: object) -> None:
    found = run_probe(MEMES, Ranking(lambda s: "Yes.", surety), 0)  # type: ignore[arg-type]
    for name in ("memes.auroc", "memes.held_out_phrasing.auroc"):
        assert found.figures[name].value == pytest.approx(0.5, abs=1e-12)
    assert figures(found)["memes.accuracy"] == 0.5
    assert figures(found)["memes.macro_f1"] == pytest.approx((2 / 3 + 0) / 2)
    verdicts = judge(found.scores, base=found.scores, stage=1)
    assert verdicts["memes.auroc"]["base"].state is State.NOT_MEASURABLE
    assert "memes.macro_f1" not in verdicts, "described, not judged"


def test_what_is_not_understood_is_wrong_and_no_class() -> None:
    gibberish = figures(run_probe(MEMES, Scripted(lambda s: "perhaps", truth), 0))
    assert (gibberish["memes.invalid"], gibberish["memes.accuracy"]) == (1, 0)
    assert (gibberish["memes.macro_f1"], gibberish["memes.auroc"]) == (0, 1)


def test_macro_f1_and_auroc_are_scikit_learns() -> None:
    words = ("Yes.", "No.", "hm")

    def say(sample: Sample) -> str:
        turn = zlib.crc32(sample.id.encode()) % 7
        return truth(sample) if turn < 4 else words[turn - 4]

    def surety(sample: Sample) -> float:
        return round(sure(sample.id) / 4) + 2.0 * (truth(sample) == "Yes.")

    samples = [s for s in MEMES.samples(0) if s.metadata["slice"] == "main"]
    found = run_probe(MEMES, Ranking(say, surety), 0).figures  # type: ignore[arg-type]
    expected = f1_score(
        [truth(s) for s in samples], [say(s) for s in samples], labels=words[:2], average="macro"
    )
    assert found["memes.macro_f1"].value == pytest.approx(expected)
    assert found["memes.macro_f1"].low < expected < found["memes.macro_f1"].high
    area = roc_auc_score([truth(s) == "Yes." for s in samples], [surety(s) for s in samples])
    assert found["memes.auroc"].value == pytest.approx(area)
    assert found["memes.auroc"].low < area < found["memes.auroc"].high


def test_a_model_that_loses_the_connection_regresses_in_auroc() -> None:
    probe = Memes(items=60, held_out=False)
    base = run_probe(probe, Scripted(truth), 0).scores
    now = run_probe(probe, Ranking(truth, lambda s: sure(s.question)), 0).scores  # type: ignore
    judged = judge(now, base=base, stage=1, gates={"memes.auroc": 0.02})
    verdict = judged["memes.auroc"]["base"]
    assert verdict.state is State.REGRESSED
    assert verdict.delta == pytest.approx(-0.5)
    assert judged["memes.accuracy"]["base"].state is not State.REGRESSED


def test_without_likelihoods_there_is_no_auroc() -> None:
    found = run_probe(MEMES, truth, 0).figures
    assert (found["memes.auroc"].state, found["memes.accuracy"].value) == ("not measurable", 1)
    assert found["memes.auroc"].reason == "the model gives no log-likelihoods"
