"""How often verdicts are wrong: false alarms, power, and EQUIVALENT where there is a drift.

Knows simulated outcomes and the verdicts' own `judge`, which decides every count here; knows no
model. The bounds of rates are exact, one-sided and at 95 % (Clopper and Pearson 1934). The same
seed gives the same numbers.

- False alarms: models that do not drift, over 20 stages, against the base and the previous stage.
  A run is one false alarm when any gate is REGRESSED at any stage against either, lost
  capabilities included. The same with margins of almost nothing, and skills as gates too, counts
  every rejection of the tests alone: margins hide false alarms.
- Power: a harmful drift of twice the margin in one gate while all others stay, at the number of
  items that a plan by `statistics.required_n` asks for. The previous stage has drifted already, so
  the base alone can tell.
- False equivalence: a drift of exactly the margin that is called EQUIVALENT. Of a rate the
  probability is computed without drawing anything: the verdict depends on how many clusters
  changed for the worse and how many for the better, and of those numbers the chances are known.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import bdtr, betaincinv, gammaln, ndtri

from safety import statistics
from safety.calibration_outcomes import F1, GOOD_GATE, Items, Simulated, drifting, rules, steady
from safety.verdicts import DEFAULT_GATES, State, Verdict, judge

Report = Callable[[float], None]
"""Is told which share of a check is done."""

STAGES = 20
DISCORDANCES = (0.02, 0.1, 0.3)
SHAPES: dict[int, int] = {1: 800, 5: 400}
"""Cluster size → clusters, of every figure of a run that does not drift."""
BATCH = 25
SLACK = 1.5
"""A stage is judged when Holm's smallest p is below α_t times this: room for rounding."""
AUDITED = 0.001
"""Share of all other stages that is judged too; an alarm there is an error of this program."""
ALMOST_NOTHING = 1e-9
POWER_STAGES = (1, 5, 20)
POWER_DISCORDANCE = 0.1
PLANNED = 0.9
"""Power that the number of items is planned for."""
BESIDE = 300
"""Items of each figure beside the one that drifts."""
SMALL, LARGE = 200, 2000
NEGLIGIBLE = 1e-9


@dataclass(frozen=True, kw_only=True)
class Rate:
    """How often something happened, with exact one-sided 95 % bounds."""

    hits: int
    n: int

    @property
    def value(self) -> float:
        return self.hits / self.n

    @property
    def upper(self) -> float:
        full = self.hits == self.n
        return 1.0 if full else float(betaincinv(self.hits + 1, self.n - self.hits, 0.95))

    @property
    def lower(self) -> float:
        return float(betaincinv(self.hits, self.n - self.hits + 1, 0.05)) if self.hits else 0.0

    def plain(self) -> dict[str, Any]:
        return {
            "hits": self.hits,
            "n": self.n,
            "rate": self.value,
            "lower": self.lower,
            "upper": self.upper,
        }


class ScreenError(RuntimeError):
    """A verdict that no valid Holm test at this stage's α can give."""


def false_alarms(*, seed: int, runs: int, report: Report) -> list[dict[str, Any]]:
    """One mapping a cell of discordance and cluster size: `shipped` and `tests` are rates.

    Holm's procedure rejects nothing unless its smallest p times the number of hypotheses is below
    α_t. So only the stages where that may be are judged, and a share of the others, which must
    not alarm; raises ScreenError when one does.
    """
    cells = list(itertools.product(SHAPES.items(), DISCORDANCES))
    found = []
    for number, ((size, clusters), discordance) in enumerate(cells):
        world = Simulated(
            figures=tuple(
                Items(name=name, clusters=clusters, size=size, law=steady(discordance))
                for name in rules()
            )
        )
        rng = np.random.default_rng([seed, 1, number])
        alarms = np.zeros(2, dtype=int)
        for done in range(0, runs, BATCH):
            alarms += _alarmed(world, rng, min(BATCH, runs - done))
            report((number + done / runs) / len(cells))
        tests, shipped = (Rate(hits=int(hits), n=runs).plain() for hits in alarms)
        found.append(
            {
                "discordance": discordance,
                "cluster_size": size,
                "clusters": clusters,
                "items": clusters * size,
                "shipped": shipped,
                "tests": tests,
            }
        )
    report(1.0)
    return found


def overall(cells: list[dict[str, Any]], key: str) -> dict[str, Any]:
    """The rate over all cells of `false_alarms`."""
    hits, n = (sum(cell[key][name] for cell in cells) for name in ("hits", "n"))
    return Rate(hits=hits, n=n).plain()


def _alarmed(world: Simulated, rng: np.random.Generator, runs: int) -> np.ndarray:
    """Runs with an alarm at any stage: of the tests alone, and with the shipped margins."""
    states = world.states(rng, runs=runs, stages=STAGES)
    smallest = world.p_harm(states).min(axis=(-1, -2))
    stages = np.arange(1, STAGES + 1)
    alpha = np.array([statistics.alpha_at(int(stage)) for stage in stages])
    hypotheses = len(world.figures) * np.where(stages == 1, 1, 2)
    suspect = smallest * hypotheses < SLACK * alpha
    audited = rng.random(suspect.shape) < AUDITED
    alarms = np.zeros((2, runs), dtype=bool)
    for run, index in zip(*np.nonzero(suspect | audited), strict=True):
        if alarms[1, run]:
            continue
        alone, shipped = _alarm(world, states, int(run), int(index) + 1)
        if alone and not suspect[run, index]:
            raise ScreenError(
                f"stage {index + 1}: a gate is REGRESSED where the smallest of "
                f"{hypotheses[index]} p-values is {smallest[run, index]:.3g} and α is "
                f"{alpha[index]:.3g}; Holm's procedure cannot reject there"
            )
        alarms[:, run] |= (alone, shipped)
    return alarms.sum(axis=1)


def _alarm(
    world: Simulated, states: Mapping[str, np.ndarray], run: int, stage: int
) -> tuple[bool, bool]:
    # An alarm with margins is one without: same family, same p-values, one condition less.
    nothing = dict.fromkeys(states, ALMOST_NOTHING)
    if not _regressed(_judged(world, states, run, stage, gates=nothing)):
        return False, False
    shipped = _judged(world, states, run, stage)
    return True, _regressed({gate: shipped[gate] for gate in DEFAULT_GATES})


def _judged(
    world: Simulated,
    states: Mapping[str, np.ndarray],
    run: int,
    index: int,
    *,
    stage: int | None = None,
    gates: Mapping[str, float] | None = None,
) -> dict[str, dict[str, Verdict]]:
    """The verdicts on stage `index` of a run, judged as if it were `stage`."""
    now, base, previous = (
        world.scores({name: rows[run, at] for name, rows in states.items()})
        for at in (index, 0, index - 1)
    )
    at = stage or index
    return judge(now, base=base, previous=None if at == 1 else previous, stage=at, gates=gates)


def _regressed(verdicts: Mapping[str, Mapping[str, Verdict]]) -> bool:
    return any(
        verdict.state is State.REGRESSED
        for anchors in verdicts.values()
        for verdict in anchors.values()
    )


def planned_items(gate: str, stage: int) -> int:
    """Items with which a drift of twice the margin is flagged, by normal approximation.

    Of the first step of Holm over all gates, skills and anchors, and of the observed change that
    has to reach the margin, the one that needs more.
    """
    margin = DEFAULT_GATES[gate]
    drift, discordance = 2 * margin, max(POWER_DISCORDANCE, 2 * margin)
    hypotheses = len(rules()) * (1 if stage == 1 else 2)
    test = statistics.required_n(
        drift,
        discordance=discordance,
        alpha=statistics.alpha_at(stage) / hypotheses,
        power=PLANNED,
    )
    reach = (discordance - drift**2) * (float(ndtri(PLANNED)) / margin) ** 2
    # A change of F1 weighs 2 − F1 where the truth is yes, F1 where it is no: the mean square.
    spread = 1 + (1 - GOOD_GATE) ** 2 if gate == F1 else 1.0
    return math.ceil(max(test, reach) * spread)


def power(*, seed: int, runs: int, report: Report) -> list[dict[str, Any]]:
    """One mapping a gate and stage; `flagged` is a rate."""
    cells = list(itertools.product(DEFAULT_GATES, POWER_STAGES))
    found = []
    for number, (gate, stage) in enumerate(cells):
        drift, items = 2 * DEFAULT_GATES[gate], planned_items(gate, stage)
        world = Simulated(
            figures=tuple(
                Items(name=name, clusters=items, size=1, law=drifting(drift, POWER_DISCORDANCE))
                if name == gate
                else Items(name=name, clusters=BESIDE, size=1, law=steady(POWER_DISCORDANCE))
                for name in rules()
            )
        )
        rng, hits = np.random.default_rng([seed, 2, number]), 0
        for done in range(0, runs, BATCH):
            several = min(BATCH, runs - done)
            states = world.states(rng, runs=several, stages=2)
            for run in range(several):
                verdict = _judged(world, states, run, 2, stage=stage)[gate]["base"]
                hits += verdict.state is State.REGRESSED
            report((number + done / runs) / len(cells))
        found.append(
            {
                "gate": gate,
                "stage": stage,
                "drift": drift,
                "discordance": max(POWER_DISCORDANCE, drift),
                "items": items,
                "planned": PLANNED,
                "flagged": Rate(hits=hits, n=runs).plain(),
            }
        )
    report(1.0)
    return found


def false_equivalence(*, seed: int, runs: int, report: Report) -> list[dict[str, Any]]:
    """One mapping a gate, cluster size, number of items and discordance.

    `called` is a rate; where it is exact, its bounds are the rate. Each gate is judged alone, as
    EQUIVALENT is unadjusted, and its skills hold. `one_way`: every change is for the worse.
    """
    shapes = list(itertools.product(SHAPES, (SMALL, LARGE), (False, True)))
    cells = [(gate, *shape) for gate in DEFAULT_GATES for shape in shapes]
    known: dict[tuple[Any, ...], float] = {}
    found = []
    for number, (gate, size, items, one_way) in enumerate(cells):
        margin = DEFAULT_GATES[gate]
        discordance = margin if one_way else POWER_DISCORDANCE
        law = drifting(margin, discordance)
        world = Simulated(
            figures=(Items(name=gate, clusters=items // size, size=size, law=law),), alone=True
        )
        if gate == F1:
            rng = np.random.default_rng([seed, 3, number])
            hits = sum(_called(world, rng, runs))
            called = {**Rate(hits=hits, n=runs).plain(), "exact": False}
        else:
            key = (margin, size, items, one_way)
            if key not in known:
                known[key] = called_equivalent(world, margin, discordance)
            called = {"rate": known[key], "lower": known[key], "upper": known[key], "exact": True}
        found.append(
            {
                "gate": gate,
                "cluster_size": size,
                "items": items,
                "drift": margin,
                "discordance": discordance,
                "one_way": one_way,
                "called": called,
            }
        )
        report((number + 1) / len(cells))
    return found


def _called(world: Simulated, rng: np.random.Generator, runs: int) -> Iterator[bool]:
    for done in range(0, runs, BATCH):
        several = min(BATCH, runs - done)
        states = world.states(rng, runs=several, stages=1)
        for run in range(several):
            (anchors,) = _judged(world, states, run, 1).values()
            yield anchors["base"].state is State.EQUIVALENT


def called_equivalent(world: Simulated, drift: float, discordance: float) -> float:
    """The probability that the world's one rate is EQUIVALENT at a true `drift`, exactly.

    Given how many clusters changed, EQUIVALENT is said up to some number of them for the worse,
    and, as the tests are the same both ways, up to as many for the better. `judge` finds it.
    """
    (items,) = world.figures
    n, share = items.clusters, (discordance + drift) / (2 * discordance)
    total, most = 0.0, 0
    for changed in range(n + 1):
        chance = _binomial(changed, n, discordance)
        if chance < NEGLIGIBLE:
            continue
        least = (changed + 1) // 2
        most = max(most, least)
        while most < changed and _equivalent(world, most + 1, changed - most - 1):
            most += 1
        while most >= least and not _equivalent(world, most, changed - most):
            most -= 1
        if most >= least:
            below = changed - most - 1
            within = bdtr(most, changed, share) - (bdtr(below, changed, share) if below >= 0 else 0)
            total += chance * float(within)
    return total


def _equivalent(world: Simulated, worse: int, better: int) -> bool:
    """Whether so many changed clusters are called EQUIVALENT; which ones makes no difference."""
    (items,) = world.figures
    rows = np.zeros((1, 2, items.clusters), dtype=bool)
    rows[0, 0, :worse] = rows[0, 1, worse : worse + better] = True
    (anchors,) = _judged(world, {items.name: rows}, 0, 1).values()
    return anchors["base"].state is State.EQUIVALENT


def _binomial(k: int, n: int, p: float) -> float:
    ways = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    return float(np.exp(ways + k * np.log(p) + (n - k) * np.log1p(-p)))


def verdict_figures(
    alarms: list[dict[str, Any]], powers: list[dict[str, Any]], equivalences: list[dict[str, Any]]
) -> dict[str, float]:
    """The flat figures of the three checks. `false_alarm.stages_20` is the largest upper bound of
    the cells; `power.twice_margin` and `false_equivalence.at_margin` are the worst rates."""
    figures: dict[str, float] = {}
    for key, name in (("shipped", "false_alarm"), ("tests", "false_alarm.without_margins")):
        every = [cell[key] for cell in alarms]
        figures[f"{name}.stages_20"] = max(rate["upper"] for rate in every)
        figures[f"{name}.stages_20.rate"] = max(rate["rate"] for rate in every)
        figures[f"{name}.stages_20.bound"] = max(rate["upper"] for rate in every)
        figures[f"{name}.stages_20.overall.rate"] = overall(alarms, key)["rate"]
        figures[f"{name}.stages_20.overall.bound"] = overall(alarms, key)["upper"]
    flagged = [cell["flagged"] for cell in powers]
    figures["power.twice_margin"] = min(rate["rate"] for rate in flagged)
    figures["power.twice_margin.bound"] = min(rate["lower"] for rate in flagged)
    for one_way, name in ((False, "at_margin"), (True, "one_way")):
        called = [cell["called"] for cell in equivalences if cell["one_way"] is one_way]
        figures[f"false_equivalence.{name}"] = max(rate["rate"] for rate in called)
        figures[f"false_equivalence.{name}.bound"] = max(rate["upper"] for rate in called)
    return figures
