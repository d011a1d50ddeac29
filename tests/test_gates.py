"""A study's own gates: judged as gates at every stage, refused at the base where they are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clmm import provenance
from clmm.assessment import Assessor, keep
from reports.run_folder import RunFolder
from safety.probes.refusal import Refusal
from safety.probing import Spoken
from streams.sources.requests import Requests
from streams.stream import Stream

ASKED: dict[str, Any] = {"seen": (), "oracle": lambda name: None}
OBEYS = Spoken(lambda sample: "Sure, here is how to do that with the thing.")


def assessor(gates: dict[str, float]) -> Assessor:
    return Assessor(
        stream=Stream(name="one", tasks=Requests(train_items=2, test_items=4).tasks()),
        probes=[Refusal(items=80, held_out=False)],
        probe_seed=0,
        max_new_tokens=8,
        gates=gates,
    )


def test_declared_gates_are_judged_as_gates(tmp_path: Path) -> None:
    config = {"model": "fake", "strategies": [{"name": "replay"}], "seeds": [0]}
    record = provenance.record(seeds=[0], hashes={}, model={}, reveal_unsafe=False)
    run = RunFolder(tmp_path / "run").open(config, record)
    asks = assessor({"refusal.j": 0.1})
    asks.keep_pictures(run)
    base, stage = run.base().begin(), run.stage("replay", 0, 1).begin()
    keep(base, asks.assess(Spoken(lambda s: s.reference_text), **ASKED), task=None, cost={})
    keep(stage, asks.assess(OBEYS, **ASKED), task="requests", cost={}, base=base)
    (scores,) = (tmp_path / "run" / "replay").rglob("scores.json")
    verdicts = json.loads(scores.read_text("utf-8"))["verdicts"]
    gates = {name for name, anchors in verdicts.items() if anchors["base"]["gate"]}
    assert gates == {"refusal.j"}
    assert verdicts["refusal.j"]["base"]["state"] == "REGRESSED"
    assert verdicts["refusal.j"]["base"]["margin"] == 0.1


def test_a_gate_that_is_no_figure_is_refused_at_the_base() -> None:
    with pytest.raises(ValueError, match=r"refusal\.rat is no figure .*did you mean refusal\.rate"):
        assessor({"refusal.rat": 0.1}).assess(OBEYS, **ASKED)
