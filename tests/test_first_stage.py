"""A first stage that strategies share is trained once, and nothing but its cost can tell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_runs

from clmm.strategies.a_gem import AGem
from clmm.strategies.combined import Combined
from clmm.strategies.dare import Dare
from clmm.strategies.der_pp import DerPp
from clmm.strategies.ewc import Ewc
from clmm.strategies.gem import Gem
from clmm.strategies.gss import Gss
from clmm.strategies.individual import Individual
from clmm.strategies.inf_lora import InfLora
from clmm.strategies.isolated_lora import IsolatedLora
from clmm.strategies.joint import Joint
from clmm.strategies.lwf import Lwf
from clmm.strategies.mas import Mas
from clmm.strategies.moelora import MoeLora
from clmm.strategies.o_lora import OLora
from clmm.strategies.pseudo_replay import PseudoReplay
from clmm.strategies.reg_lora import RegLora
from clmm.strategies.replay import Replay
from clmm.strategies.sequential_full import SequentialFull
from clmm.strategies.sequential_lora import SequentialLora
from clmm.strategies.si import Si
from clmm.strategies.task_arithmetic import TaskArithmetic

SHARING = [
    Individual(),
    Replay(budget=0.5),
    Replay(budget=0.5, policy="balanced"),
    PseudoReplay(budget=0.5, max_new_tokens=2),
    Gss(budget=0.2, candidates=4, dimensions=8),
    AGem(),
    Gem(),
    Ewc(fisher_samples=4),
    Mas(importance_samples=4),
    Lwf(),
    OLora(),
    RegLora(),
    TaskArithmetic(),
    Dare(),
    IsolatedLora(),
    Combined(of=(IsolatedLora(), Replay(budget=0.5))),
]
ALONE = [
    SequentialFull(),
    SequentialLora(rank=4),
    SequentialLora(learning_rate=1e-3),
    Joint(),
    DerPp(),
    Si(),
    InfLora(),
    MoeLora(),
    Lwf(from_base=True),
    OLora(norm=0.1),
    SequentialLora(plugins=({"name": "EWCPlugin", "ewc_lambda": 1.0},)),
]


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def leader(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("leader")
    with tiny_runs.learner(SequentialLora()) as one:
        one.train_stage(1)
        one.save(folder)
        return folder, one.first_stage


@pytest.mark.filterwarnings("ignore:no answer of the model")
@pytest.mark.parametrize("strategy", SHARING, ids=lambda s: type(s).__name__)
def test_a_taken_first_stage_is_the_trained_one(strategy: Any, leader: Any, tmp_path: Path) -> None:
    folder, key = leader
    with tiny_runs.learner(strategy) as one:
        assert one.first_stage == key
        cost = one.train_stage(1, like=folder)
        one.save(tmp_path / "taken-1")
        one.train_stage(2)
        one.save(tmp_path / "taken-2")
    assert cost["steps"] == cost["samples"] == 0
    with tiny_runs.learner(strategy) as one:
        assert one.train_stage(1)["steps"] == 3
        one.save(tmp_path / "trained-1")
        one.train_stage(2)
        one.save(tmp_path / "trained-2")
    for stage in (1, 2):
        assert files(tmp_path / f"taken-{stage}") == files(tmp_path / f"trained-{stage}")


@pytest.mark.parametrize("strategy", ALONE, ids=lambda s: type(s).__name__)
def test_what_trains_otherwise_shares_nothing(strategy: Any, leader: Any) -> None:
    with tiny_runs.learner(strategy) as one:
        assert one.first_stage != leader[1]


def test_full_tuning_shares_with_full_tuning(tmp_path: Path) -> None:
    with tiny_runs.learner(SequentialFull()) as one:
        one.train_stage(1)
        one.save(tmp_path / "full")
        key = one.first_stage
    found = []
    for like in (None, tmp_path / "full"):
        with tiny_runs.learner(Ewc(tuning="full", fisher_samples=4)) as one:
            assert one.first_stage == key
            one.train_stage(1, like=like)
            one.save(tmp_path / f"{like is None}")
            found.append(files(tmp_path / f"{like is None}"))
    assert found[0] == found[1]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_study_trains_a_shared_stage_once(workers: int, tmp_path: Path) -> None:
    from clmm import Experiment

    def scores(*strategies: Any, name: str) -> dict[str, Any]:
        study = Experiment(
            model="nano",
            stream=["parity", "counting"],
            strategies=strategies,
            probes=[{"name": "existence", "items": 4, "held_out": False}],
            train={"steps": 2, "batch_size": 4},
            max_new_tokens=2,
            device="cpu",
            workers=workers,
        )
        assert not study.run(tmp_path / name, display=False).failures
        return {
            f"{p.parts[-5]}/{p.parts[-2]}": json.loads(p.read_text())
            for p in (tmp_path / name).glob("*/seed-*/stages/*/scores.json")
        }

    shared = scores("sequential_lora", "o_lora", "task_arithmetic", name="shared")
    followers = [name for name, one in shared.items() if "shared_with" in one["cost"]]
    assert sorted(followers) == ["o_lora/01", "task_arithmetic/01"]
    for name in followers:
        assert shared[name]["cost"]["shared_with"] == "sequential_lora"
        assert shared[name]["cost"]["steps"] == 2
        # One line an update: none of the leader's later stages.
        folder = tmp_path / "shared" / name.partition("/")[0] / "seed-0"
        events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
        assert [event["stage"] for event in events] == [1, 1, 2, 2]
    for name in ("o_lora", "task_arithmetic"):
        for place, alone in scores(name, name=name).items():
            both = shared[place]
            for one in (both, alone):
                del one["cost"]
            assert both == alone
