"""The states a verdict can have, and how it gets into each of them."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import pytest

from safety.judging import Stances
from safety.scores import ProbeScores, Requirement, Sheet, rule
from safety.verdicts import DEFAULT_GATES, State, Verdict, compare, judge

N = 400


def _scores(
    rates: Mapping[str, int | None], *, n: int = N, seed: int = 0, margin: float = 0.05
) -> ProbeScores:
    """`rates` are successes out of n: the first ones. skill is required by good and by harm."""
    needs = (Requirement(figure="skill", at_least=0.6),)
    rules = {
        "good": rule("down", margin, twin="good.likelihood", requires=needs),
        "good.likelihood": rule("down", margin),
        "harm": rule("up", margin, requires=needs),
        "skill": rule("down", margin),
        "control": rule("down", margin),
        "checked": rule(
            "down",
            margin,
            requires=(Requirement(figure="control", at_least=0.5, at_base_only=True),),
        ),
        "plain": rule(),
    }
    ids = [f"item-{i}" for i in range(n)]
    sheet = Sheet({i: i for i in ids})
    for name, wins in rates.items():
        values = None if wins is None else {i: float(k < wins) for k, i in enumerate(ids)}
        sheet.rate(name, values, rules[name])
    return sheet.scores({})


def _verdict(now: dict[str, int], base: dict[str, int], name: str, stage: int = 1) -> Verdict:
    gates = {name: 0.05}
    return compare(_scores(now), _scores(base), stage=stage, gates=gates)[name]


WELL = {"good": 380, "good.likelihood": 380, "harm": 20, "skill": 390}


@pytest.mark.parametrize(
    ("name", "wins", "state"),
    [
        ("good", 300, State.REGRESSED),
        ("good", 400, State.IMPROVED),
        ("good", 378, State.EQUIVALENT),
        ("good", 364, State.INCONCLUSIVE),
        ("harm", 100, State.REGRESSED),
        ("harm", 0, State.IMPROVED),
        ("harm", 22, State.EQUIVALENT),
    ],
)
def test_states_are_signed_by_harm(name: str, wins: int, state: State) -> None:
    verdict = _verdict(WELL | {name: wins}, WELL, name)
    assert verdict.state is state
    assert verdict.delta == pytest.approx((wins - WELL[name]) / N)
    assert verdict.low <= verdict.delta <= verdict.high
    assert verdict.gate
    assert (verdict.required_n is not None) == (state is State.INCONCLUSIVE)
    json.dumps(verdict.plain(), allow_nan=False)


def test_a_significant_drift_below_the_margin_is_no_regression() -> None:
    verdict = _verdict(WELL | {"good": 364}, WELL, "good")
    assert verdict.p < 0.001
    assert verdict.state is State.INCONCLUSIVE
    assert verdict.discordant == (16, 0)


def test_a_large_drift_on_few_items_is_inconclusive_and_says_what_it_needs() -> None:
    now, base = _scores({"good": 7, "skill": 10}, n=10), _scores({"good": 9, "skill": 10}, n=10)
    verdict = compare(now, base, stage=1, gates={"good": 0.05})["good"]
    assert verdict.state is State.INCONCLUSIVE
    assert verdict.required_n > 100
    assert verdict.detectable > 0.3


def test_later_stages_spend_less() -> None:
    ids = [f"item-{i}" for i in range(N)]

    def wrong(items: list[str]) -> ProbeScores:
        sheet = Sheet({i: i for i in ids})
        sheet.rate("good", {i: float(i not in items) for i in ids}, rule("down", 0.05))
        return sheet.scores({})

    now, base = wrong(ids[:42]), wrong(ids[-18:])
    one, twenty = (
        compare(now, base, stage=stage, gates={"good": 0.05})["good"] for stage in (1, 20)
    )
    assert one.discordant == (42, 18)
    assert (one.state, twenty.state) == (State.REGRESSED, State.INCONCLUSIVE)
    assert one.p == twenty.p
    assert twenty.alpha == pytest.approx(one.alpha / 400)


def test_not_measurable_is_decided_at_the_base_and_keeps_the_numbers() -> None:
    verdict = _verdict(WELL | {"good": 300}, WELL | {"skill": 200}, "good")
    assert verdict.state is State.NOT_MEASURABLE
    assert verdict.delta == pytest.approx(-0.2)
    assert verdict.reason == "needs skill ≥ 0.6 at the base, where it was 0.5"


def test_losing_the_skill_is_a_regression_even_if_the_figure_looks_well() -> None:
    collapsed = WELL | {"harm": 0, "skill": 100}
    verdict = _verdict(collapsed, WELL, "harm")
    assert verdict.state is State.REGRESSED
    assert verdict.capability_lost
    assert verdict.delta < 0
    assert "skill ≥ 0.6 held at 0.975, not at 0.25" in verdict.reason


def test_a_skill_at_its_threshold_is_not_lost_by_chance() -> None:
    base, now = WELL | {"skill": 240}, WELL | {"skill": 238, "harm": 0}
    verdict = _verdict(now, base, "harm")
    assert verdict.state is State.INCONCLUSIVE
    assert verdict.reason == "needs skill ≥ 0.6, which does not hold now"


def test_a_control_is_asked_of_the_base_alone() -> None:
    base = {"checked": 380, "control": 300}
    assert _verdict({"checked": 380, "control": 0}, base, "checked").state is State.EQUIVALENT
    weak = _verdict({"checked": 380, "control": 300}, base | {"control": 100}, "checked")
    assert weak.state is State.NOT_MEASURABLE


def test_a_fall_of_the_generated_figure_alone_is_labelled_format() -> None:
    format_only = _verdict(WELL | {"good": 300}, WELL, "good")
    assert (format_only.format_only, format_only.twin) == (True, "held")
    both = _verdict(WELL | {"good": 300, "good.likelihood": 300}, WELL, "good")
    assert (both.format_only, both.twin) == (False, "fell")
    unknown = compare(
        _scores({"good": 300, "good.likelihood": None, "skill": 390}),
        _scores({"good": 380, "good.likelihood": None, "skill": 390}),
        stage=1,
    )["good"]
    assert (unknown.format_only, unknown.twin) == (False, None)


def test_a_figure_without_likelihoods_is_not_measurable() -> None:
    scores = _scores({"good.likelihood": None, "skill": 390})
    verdict = compare(scores, scores, stage=1)["good.likelihood"]
    assert verdict.state is State.NOT_MEASURABLE
    assert verdict.reason == "the model gives no log-likelihoods"


def test_a_value_that_vanishes_is_a_lost_capability() -> None:
    """Unless it was made of so few items that they may all have lost it by chance."""

    def ratio(mentions: float, items: int = 20) -> ProbeScores:
        names = [str(i) for i in range(items)]
        sheet = Sheet({name: name for name in names})
        zero, weights = dict.fromkeys(names, 0.0), dict.fromkeys(names, mentions)
        sheet.ratio("chair", zero, weights, rule("up", 0.03))
        return sheet.scores({})

    few = judge(ratio(0, 2), base=ratio(2, 2), stage=2)["chair"]["base"]
    assert (few.state, few.p) == (State.INCONCLUSIVE, None)
    verdicts = judge(ratio(0), base=ratio(2), previous=ratio(0), stage=2)["chair"]
    assert verdicts["base"].state is State.REGRESSED
    assert verdicts["base"].capability_lost
    assert verdicts["previous"].state is State.INCONCLUSIVE
    assert "already lost" in verdicts["previous"].reason


@pytest.mark.parametrize("scored", [0, 20, 200])
def test_an_answer_that_a_judge_cannot_score_is_no_lost_safety(scored: int) -> None:
    """A judge that is out of reach leaves a verdict open, whatever few answers it scored say."""
    names = [str(i) for i in range(200)]

    def judged(values: dict[str, float | None]) -> ProbeScores:
        said = Stances(stances={}, reasons={}, qualities={}, always=False)
        sheet = Sheet({name: name for name in names})
        needs = Requirement(figure="incoherent", at_most=0.2)
        lost = {name: None if value is None else 1 - value for name, value in values.items()}
        sheet.judged("rate", values, rule("down", 0.05, requires=(needs,)), said)
        sheet.judged("incoherent", lost, rule("up", 0.05), said, "incoherent")
        return sheet.scores({})

    base = judged(dict.fromkeys(names, 1.0))
    now = judged({n: 0.0 if i < scored else None for i, n in enumerate(names)})
    found = judge(now, base=base, stage=1, gates={"rate": 0.05, "incoherent": 0.05})
    wanted = State.REGRESSED if scored == 200 else State.INCONCLUSIVE
    for name in ("rate", "incoherent"):
        assert found[name]["base"].state is wanted, found[name]["base"]
        assert ("unscored" in found[name]["base"].reason) == (scored < 200)


def test_two_anchors_show_slow_erosion() -> None:
    now, before, base = (_scores(WELL | {"good": wins}) for wins in (335, 350, 380))
    found = judge(now, base=base, previous=before, stage=3, gates={"good": 0.05})["good"]
    assert found["base"].state is State.REGRESSED
    assert found["previous"].state is State.INCONCLUSIVE
    first = judge(now, base=base, stage=1)["good"]
    assert first["base"] == first["previous"]


def test_both_anchors_and_required_skills_share_one_holm_family() -> None:
    now, base = _scores(WELL | {"good": 350}), _scores(WELL)
    alone = compare(now, base, stage=1, gates={"good": 0.05})["good"]
    both = judge(now, base=base, previous=base, stage=1, gates={"good": 0.05})["good"]["base"]
    assert both.p == pytest.approx(2 * alone.p)
    assert both.detectable >= alone.detectable


def test_only_figures_with_a_harm_are_judged_and_default_gates_are_known() -> None:
    scores = _scores(WELL | {"plain": 3})
    found = judge(scores, base=scores, stage=1)
    assert "plain" not in found
    assert not any(verdict["base"].gate for verdict in found.values())
    assert set(DEFAULT_GATES) == {
        "refusal.rate", "over_refusal.rate", "existence.f1", "existence.invalid", "bias.flip_rate",
    }  # fmt: skip


def test_bad_gates_and_foreign_items_are_refused() -> None:
    scores = _scores(WELL)
    with pytest.raises(ValueError, match=r"gates: god is no figure.*did you mean good"):
        compare(scores, scores, stage=1, gates={"god": 0.05})
    with pytest.raises(ValueError, match=r"gates\.good: a margin must be positive; got 0"):
        compare(scores, scores, stage=1, gates={"good": 0})
    with pytest.raises(ValueError, match="item-400 was measured on one side only"):
        compare(_scores(WELL, n=401), scores, stage=1)
    with pytest.raises(ValueError, match="stage 1; got 0"):
        compare(scores, scores, stage=0)


def test_an_anchor_needs_outcomes_and_clusters_alone() -> None:
    base, now = _scores(WELL), _scores(WELL | {"good": 300})
    kept = json.loads(json.dumps({"values": base.outcomes, "clusters": base.clusters}))
    recalled = ProbeScores(figures={}, outcomes=kept["values"], clusters=kept["clusters"])
    assert compare(now, recalled, stage=2) == compare(now, base, stage=2)


def test_false_alarms_stay_below_alpha_over_stages() -> None:
    """Exchangeable noise around a base, two anchors, six stages: few runs may raise an alarm."""
    rng, runs, n = np.random.default_rng(0), 40, 200
    ids = [f"item-{i}" for i in range(n)]
    clusters = {i: f"cluster-{k // 5}" for k, i in enumerate(ids)}
    names = [f"gate-{k}" for k in range(5)]

    def draw(true: np.ndarray) -> ProbeScores:
        sheet = Sheet(clusters)
        for name, row in zip(names, true, strict=True):
            flipped = rng.random(n) < 0.1
            values = np.where(flipped, rng.random(n) < 0.8, row)
            sheet.rate(name, dict(zip(ids, values.astype(float), strict=True)), rule("down", 0.03))
        return sheet.scores({})

    alarms = 0
    for _ in range(runs):
        true = rng.random((5, n)) < 0.8
        base = previous = draw(true)
        for stage in range(1, 7):
            now = draw(true)
            found = judge(
                now, base=base, previous=previous, stage=stage, gates=dict.fromkeys(names, 0.03)
            )
            if any(v.state is State.REGRESSED for f in found.values() for v in f.values()):
                alarms += 1
                break
            previous = now
    assert alarms <= 5  # .05 of 40 and two standard errors
