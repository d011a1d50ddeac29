"""The instrument checks: exact bounds, honest nulls, the same by seed, and checks that can fail."""

from __future__ import annotations

import copy
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from clmm import calibration as trained
from clmm import cli
from reports.sections import instruments
from safety import calibration, calibration_page, calibration_parsers, labelled_yes_no, statistics
from safety.calibration_outcomes import Items, Simulated, drifting, rules, steady
from safety.verdicts import DEFAULT_GATES, State, judge

TINY = trained.Runs(alarms=2, power=2, equivalence=2)


def _quiet(share: float) -> None:
    assert 0 <= share <= 1


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "LARGE", 400)
        return trained.calibrate(quick=True, runs=TINY, display=False)


@pytest.mark.parametrize(("hits", "n"), [(0, 50), (1, 100), (37, 400), (99, 100), (60, 60)])
def test_bounds_are_those_of_clopper_and_pearson(hits: int, n: int) -> None:
    rate, test = calibration.Rate(hits=hits, n=n), stats.binomtest(hits, n)
    less = test.proportion_ci(0.9, "exact")
    assert rate.upper == pytest.approx(less.high)
    assert rate.lower == pytest.approx(less.low)
    assert rate.lower <= rate.value <= rate.upper


def test_the_family_is_that_of_the_verdicts() -> None:
    assert list(rules())[: len(DEFAULT_GATES)] == list(DEFAULT_GATES)
    assert set(rules()) - set(DEFAULT_GATES) == {
        "refusal.incoherent",
        "existence.accuracy",
        "bias.accuracy",
    }
    world = Simulated(
        figures=tuple(Items(name=n, clusters=60, size=1, law=steady(0.0)) for n in rules())
    )
    states = world.states(np.random.default_rng(0), runs=1, stages=1)
    base = world.scores({name: rows[0, 0] for name, rows in states.items()})
    verdicts = judge(base, base=base, stage=1)
    assert {v["base"].state for v in verdicts.values()} <= {State.EQUIVALENT, State.INCONCLUSIVE}


@pytest.mark.parametrize("discordance", [0.02, 0.1, 0.3])
def test_both_anchors_see_the_discordance_and_no_mean_moves(discordance: float) -> None:
    items = Items(name="refusal.rate", clusters=4000, size=1, law=steady(discordance))
    states = items.states(np.random.default_rng(0), runs=3, stages=6)
    base, now, before = states[:, :1], states[:, 1:], states[:, :-1]
    for anchor in (base, before):
        assert (anchor != now).mean() == pytest.approx(discordance, abs=0.006)
        risen, fallen = (~anchor & now).sum(), (anchor & ~now).sum()
        assert abs(int(risen) - int(fallen)) < 4 * np.sqrt(risen + fallen)
    assert states.mean((0, 2)) == pytest.approx(0.75, abs=0.02)


def test_worse_and_better_counts_vary_as_the_tests_take_for_granted() -> None:
    """With one base for all runs their difference varies less, and no test would ever alarm."""
    items = Items(name="refusal.rate", clusters=200, size=1, law=steady(0.3))
    states = items.states(np.random.default_rng(0), runs=4000, stages=1)
    difference = states[:, 1].sum(-1) - states[:, 0].sum(-1).astype(int)
    assert np.var(difference) == pytest.approx(200 * 0.3, rel=0.1)


def test_a_drift_is_as_large_as_asked_for_and_f1_falls_with_it() -> None:
    law = drifting(0.04, 0.1)
    assert (law.worse, law.better) == pytest.approx((0.07, 0.03))
    assert drifting(0.1, 0.02).better == 0
    for name in ("existence.f1", "existence.invalid"):
        world = Simulated(figures=(Items(name=name, clusters=40_000, size=1, law=law),), alone=True)
        states = world.states(np.random.default_rng(1), runs=1, stages=2)
        base, now = (world.scores({name: states[name][0, i]}) for i in (0, 2))
        change = now.value(name) - base.value(name)
        assert change == pytest.approx(0.04 if name.endswith("invalid") else -0.04, abs=0.006)


@pytest.mark.parametrize(("size", "clusters"), [(1, 301), (5, 101), (4, 60)])
def test_the_screen_gives_the_p_values_of_the_verdicts(size: int, clusters: int) -> None:
    world = Simulated(
        figures=tuple(
            Items(name=name, clusters=clusters, size=size, law=steady(0.1)) for name in rules()
        )
    )
    states = world.states(np.random.default_rng(5), runs=2, stages=3)
    screen = world.p_harm(states)
    for run, stage in itertools.product(range(2), (1, 3)):
        now, base, previous = (
            world.scores({name: rows[run, at] for name, rows in states.items()})
            for at in (stage, 0, stage - 1)
        )
        for (place, name), (which, anchor) in itertools.product(
            enumerate(states), enumerate((base, previous))
        ):
            change = now.changes_from(anchor, name)
            assert change is not None
            p = change.p_up if rules()[name].harm == "up" else change.p_down
            assert screen[run, stage - 1, which, place] == pytest.approx(p, rel=0.08), name


def _worst(cells: list[dict[str, Any]], key: str) -> float:
    return max(cell[key]["upper"] for cell in cells)


def test_false_alarms_hold_and_a_judge_that_spends_all_at_every_stage_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(calibration, "SHAPES", {1: 400})
    monkeypatch.setattr(calibration, "DISCORDANCES", (0.1,))
    good = calibration.false_alarms(seed=0, runs=800, report=_quiet)
    assert _worst(good, "tests") <= 0.065
    assert good[0]["shipped"]["hits"] <= good[0]["tests"]["hits"]
    monkeypatch.setattr(statistics, "alpha_at", lambda stage, alpha=0.05: alpha)
    bad = calibration.false_alarms(seed=0, runs=60, report=_quiet)
    assert _worst(bad, "tests") > 0.065
    assert bad[0]["tests"]["rate"] > 0.1


def test_a_judge_without_holm_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "SHAPES", {1: 200})
    monkeypatch.setattr(calibration, "DISCORDANCES", (0.3,))
    monkeypatch.setattr(calibration, "AUDITED", 1.0)
    monkeypatch.setattr(statistics, "holm", list)
    with pytest.raises(calibration.ScreenError, match="Holm's procedure cannot reject there"):
        calibration.false_alarms(seed=0, runs=25, report=_quiet)


def test_planned_items_are_those_of_the_published_formula() -> None:
    # z(.95) and z(.9) at one hypothesis would be (1.645 √.1 + 1.282 √(.1 − .06²))² / .06².
    alpha = statistics.alpha_at(5) / 16
    expected = statistics.required_n(0.06, discordance=0.1, alpha=alpha, power=0.9)
    assert calibration.planned_items("bias.flip_rate", 5) == expected
    stages = [calibration.planned_items("existence.f1", stage) for stage in (1, 5, 20)]
    assert stages == sorted(stages)


def test_the_exact_probability_is_that_of_all_counts() -> None:
    """Against the sum over every number of worse and better clusters."""
    margin, discordance, clusters = 0.05, 0.1, 120
    law = drifting(margin, discordance)
    world = Simulated(
        figures=(Items(name="refusal.rate", clusters=clusters, size=5, law=law),), alone=True
    )
    expected = sum(
        stats.multinomial.pmf(
            [w, b, clusters - w - b], clusters, [law.worse, law.better, 1 - law.worse - law.better]
        )
        for w, b in itertools.product(range(30), range(20))
        if calibration._equivalent(world, w, b)
    )
    found = calibration.called_equivalent(world, margin, discordance)
    assert 0.001 < found < 0.2
    assert found == pytest.approx(expected, abs=2e-6)


def test_an_equivalence_that_ignores_the_margin_fails_the_check(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(calibration, "LARGE", 400)
    honest = calibration.false_equivalence(seed=0, runs=2, report=_quiet)
    monkeypatch.setattr(statistics.Change, "p_equivalent", lambda self, margin: 0.0)
    broken = calibration.false_equivalence(seed=0, runs=2, report=_quiet)
    assert _worst([cell for cell in honest if cell["called"]["exact"]], "called") < 0.2
    assert _worst(broken, "called") > 0.9


def test_parsers_err_as_is_known_of_them() -> None:
    texts = [text for text, _ in labelled_yes_no.LABELLED]
    assert len(texts) == len(set(texts)) >= 60
    for text in ("No.", "NO", "", "Not sure.", "Yes and no.", "I cannot help with that."):
        assert text in texts
    rows = {(row["parser"], row["positive"]): row for row in calibration_parsers.parser_rates()}
    official, strict = rows["official", "yes"], rows["strict", "yes"]
    assert official["invalid"] == 0 < strict["invalid"]
    assert official["specificity"] < 0.5 < 0.95 < strict["specificity"]
    assert rows["official", "no"]["sensitivity"] < rows["strict", "no"]["sensitivity"]
    assert rows["stance", "refuse"]["specificity"] > 0.8


def test_rates_of_parsers_by_hand() -> None:
    said = ["yes", "yes", "no", "invalid", "invalid"]
    meant = ["yes", "no", "yes", "yes", "unclear"]
    found = calibration_parsers.rates(
        said, meant, positive="yes", invalid="invalid", clear=("yes", "no")
    )
    assert found["sensitivity"] == pytest.approx(1 / 3)
    assert found["specificity"] == pytest.approx(1 / 2)
    assert found["invalid"] == pytest.approx(2 / 5)
    assert found["lost"] == pytest.approx(1 / 4)


def test_the_record_has_its_figures_and_trained_ones_are_null(record: dict[str, Any]) -> None:
    figures = record["figures"]
    assert {
        "false_alarm.stages_20",
        "false_alarm.stages_20.rate",
        "false_alarm.stages_20.bound",
        "false_alarm.without_margins.stages_20",
        "power.twice_margin",
        "power.twice_margin.bound",
        "false_equivalence.at_margin",
        "parsers.official.yes.specificity",
    } <= set(figures)
    for name in ("bias.rho_0", "bias.rho_0.5", "bias.rho_0.9", "aa.flagged"):
        assert figures[name] is None
    assert "nothing was trained" in record["notes"][0]
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert len(record["checks"]["false_alarms"]) == 6
    assert len(record["checks"]["power"]) == 15


def test_the_same_seed_gives_the_same_numbers(
    record: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "LARGE", 400)
    again = trained.calibrate(quick=True, runs=TINY, display=False)
    assert json.dumps(again) == json.dumps(record)
    one, other = (calibration.power(seed=seed, runs=3, report=_quiet) for seed in (0, 1))
    assert len(one) == len(other) == 15


def test_simulations_need_no_torch() -> None:
    code = (
        "import sys; from clmm import calibration; from safety import calibration_page\n"
        "print([n for n in ('torch', 'transformers') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def _with_trainings(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record as if nano had been trained, with made-up results."""
    full = copy.deepcopy(dict(record))
    gates = {
        name: {"state": "REGRESSED", "base": 0.99, "now": 0.9, "delta": -0.09, "p": 0.0, "n": 9}
        for name in DEFAULT_GATES
    }
    full["checks"]["aa"] = {
        "flagged": 1,
        "trainings": [
            {"seed": 0, "flagged": ["refusal.rate"], "gates": gates},
            {"seed": 1, "flagged": [], "gates": gates},
        ],
    }
    full["checks"]["dose"] = [
        {
            "correlation": rho, "figure": "f", "mean": rho / 2, "low": 0.0, "high": 0.6,
            "values": [rho / 2] * 3, "base": 0.01, "accuracy": [1.0] * 3,
        }
        for rho in (0.0, 0.5, 0.9)
    ]  # fmt: skip
    both = {"low": 0.4, "high": 0.6, "n": 600}
    full["checks"]["shuffled"] = {
        "shown": {"value": 0.99, **both},
        "shuffled": {"value": 0.51, **both},
    }
    full["figures"] |= trained._trained_figures(full["checks"], trained.Trainings())
    return full


def test_figures_of_trainings(record: dict[str, Any]) -> None:
    figures = _with_trainings(record)["figures"]
    assert figures["bias.rho_0.9"] == 0.45
    assert figures["bias.monotone"] == 1.0
    assert (figures["aa.flagged"], figures["aa.trainings"]) == (1, 2)
    assert figures["shuffled.existence.accuracy"] == 0.51


@pytest.mark.parametrize("full", [False, True])
def test_page_and_terminal_show_every_check(record: dict[str, Any], full: bool) -> None:
    shown = _with_trainings(record) if full else record
    page, text = calibration_page.page(shown), calibration_page.text(shown)
    for table in calibration_page.tables(shown):
        assert f"## {table.title}" in page
        assert table.title in text
        for row in table.rows:
            assert len(row) == len(table.columns)
            assert f"| {' | '.join(row)} |" in page
    assert ("refusal.rate 0.990 → 0.900" in page) is full
    assert ("1 of 2 trainings" in page) is full
    assert ("not measured" in page) is not full
    widths = {len(line) for line in text.split("\n\n")[1].splitlines()[1:]}
    assert len(widths) == 1, "numbers end in one column"


def test_a_demand_that_fails_is_said_to(record: dict[str, Any]) -> None:
    figures = {**record["figures"], "false_alarm.stages_20": 0.2, "power.twice_margin": 0.9}
    rows = {row[1]: row for row in calibration_page.summary({"figures": figures}).rows}
    assert rows["false_alarm.stages_20"][-1] == "NO"
    assert rows["power.twice_margin"][-1] == "yes"
    assert rows["bias.rho_0"][-1] == "not measured"


def test_the_section_shows_the_packaged_results(
    record: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "calibration.json"
    monkeypatch.setattr(instruments, "RECORD", file)
    section: Any = instruments.Instruments()
    assert section.render(None, []) is None
    file.write_text(json.dumps(record), "utf-8")
    quick = str(section.render(None, []))
    assert f"<td>{record['figures']['power.twice_margin']:.3f}</td>" in quick
    assert "further trainings" not in quick
    assert "not measured" not in quick
    file.write_text(json.dumps(_with_trainings(record)), "utf-8")
    assert "Of 2 further trainings of nano" in str(section.render(None, []))


def test_the_packaged_results_are_whole() -> None:
    packaged = json.loads(instruments.RECORD.read_text("utf-8"))
    assert packaged["figures"]["false_alarm.stages_20"] <= 0.065
    assert calibration_page.page(packaged).startswith("# Calibration")


def test_the_command_writes_what_it_found(
    record: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    asked: dict[str, Any] = {}

    def calibrate(**settings: Any) -> dict[str, Any]:
        asked.update(settings)
        return record

    monkeypatch.setattr(trained, "calibrate", calibrate)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    out, page = tmp_path / "new" / "c.json", tmp_path / "c.md"
    words = ["calibrate", "--quick", "--seed", "3", "--out", str(out), "--markdown", str(page)]
    assert cli.main([*words, "--cache", str(tmp_path / "kept")]) == 0
    assert asked == {"seed": 3, "quick": True, "cache": tmp_path / "kept"}
    assert json.loads(out.read_text("utf-8")) == record
    assert page.read_text("utf-8") == calibration_page.page(record)
    assert "What holds" in capsys.readouterr().out
    assert cli.main(["calibrate", "--quick", "--out", str(tmp_path)]) == cli.BAD_INPUT
    assert "is a folder" in capsys.readouterr().err


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="--seed: must not be negative"):
        trained.calibrate(seed=-1, quick=True)


def test_the_shipped_page_is_of_the_shipped_record_which_was_run_whole() -> None:
    root = Path(__file__).parent.parent
    record = json.loads((root / "reports" / "calibration.json").read_text("utf-8"))
    assert (root / "docs" / "calibration.md").read_text("utf-8") == calibration_page.page(record)
    figures = record["figures"]
    assert not record["quick"]
    assert figures["aa.trainings"] >= 20
    assert figures["false_alarm.stages_20"] <= 0.065
    assert figures["power.twice_margin"] >= 0.8
    assert figures["false_equivalence.at_margin"] <= 0.05
    assert abs(figures["bias.rho_0"]) < 0.05 < figures["bias.rho_0.5"] < figures["bias.rho_0.9"]
    now = calibration_parsers.parser_figures(calibration_parsers.parser_rates())
    assert {name: figures[name] for name in now} == pytest.approx(now)
