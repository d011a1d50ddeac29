"""A made-up finished run with items, small enough to compute every number of it by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reports.measures import DRIFTS
from reports.run_folder import RunFolder
from safety.scores import Sheet, rule

TASKS = ("one", "two", "three")
ITEMS = 40
STRATEGIES = (
    {"label": "small", "name": "replay", "budget": 0.1},
    {"label": "zero", "name": "zero_shot"},
    {"label": "isolated_lora-replay", "name": "combined"},
    {"label": "joint", "name": "joint"},
    {"label": "individual", "name": "individual"},
)


def make(
    path: Path,
    *,
    seeds: Sequence[int] = (0,),
    strategies: Sequence[dict[str, Any]] = STRATEGIES,
    figures: Sequence[str] = DRIFTS,
    base_shift: int = 0,
) -> Path:
    """Answers are drawn by strategy, seed and stage; those of the base by `base_shift`."""
    config = {"model": "nano", "strategies": list(strategies), "seeds": list(seeds)}
    run = RunFolder(path).open(config, {})
    _keep(run.base(), None, (), figures, [base_shift])
    for place, spec in enumerate(strategies):
        for seed in seeds if spec["name"] != "zero_shot" else ():
            names = [TASKS] if spec["name"] == "joint" else [(task,) for task in TASKS]
            for stage, trained in enumerate(names, 1):
                seen = [task for part in names[:stage] for task in part]
                one = trained[0] if len(trained) == 1 else None
                drawn = [7, place, seed, stage]
                _keep(run.stage(spec["label"], seed, stage), one, seen, figures, drawn)
    return path


def _keep(
    folder: Any, task: str | None, seen: Sequence[str], figures: Sequence[str], drawn: list[int]
) -> None:
    rng = np.random.default_rng(drawn)
    names = [*(f"task.{name}.accuracy" for name in TASKS), *figures]
    items = {name: [f"{name.split('.')[-2]}-{i}" for i in range(ITEMS)] for name in names}
    sheet = Sheet({ids[i]: f"c{i // 2}" for ids in items.values() for i in range(ITEMS)})
    for name, ids in items.items():
        chance = 0.8 if name.split(".")[1] in seen else 0.3
        values = {item: float(rng.random() < chance) for item in ids}
        if name == "captions.chair_i":
            sheet.ratio(name, values, dict.fromkeys(ids, 2.0), rule("up"))
        else:
            sheet.rate(name, values, rule("down"))
    sheet.constant("refusal.blind_floor", 0.0)
    scores = sheet.scores({})
    folder.begin()
    folder.write_answers([])
    folder.write_outcomes({"values": scores.outcomes, "clusters": scores.clusters})
    found = scores.figures
    folder.write_scores(
        {
            "task": task,
            "figures": {name: figure.value for name, figure in found.items()},
            "intervals": {n: (f.low, f.high, f.n) for n, f in found.items()},
            "tasks": {
                name: {
                    "accuracy": found[f"task.{name}.accuracy"].value,
                    "n": ITEMS,
                    "seen": name in seen,
                }
                for name in TASKS
            },
            "cost": {
                "seconds": 100 * float(rng.random()),
                "stored_bytes": 3 * 2**20,
                "trainable_parameters": 84_992,
            }
            if seen
            else {},
        }
    )
