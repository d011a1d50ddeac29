"""What trains in a stage of pre-training, instruction tuning or preference tuning, as a table.

Knows parameter names and counts, of any model whose components can be found; trains nothing. A
pattern that matches nothing is an error. What a stage adds is `clmm/stage_additions.py`'s.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from clmm import components, stage_additions
from clmm.components import Row
from clmm.stage_additions import kind_of, plain
from clmm.stage_settings import LoraSettings, Stage
from streams.catalog import nearest
from streams.settings import SettingError

__all__ = ["LoraSettings", "Stage", "StageTable", "apply", "finish", "matching", "table"]
_COMPONENTS = (*components.COMPONENTS, components.OUTPUT)
NORMS = "norms"
"""`language_model.norms`: the weights of all norms of a component (LayerNorm tuning, Zhao et al.
2023, arXiv 2312.11420, where nothing else of the language model trains)."""


@dataclass(frozen=True, kw_only=True)
class StageTable:
    """What is frozen and what trains in one stage, by component."""

    stage: str
    rows: tuple[Row, ...]
    patterns: Mapping[str, int]
    """Pattern → parameters it matches, those without effect left out; also `lora`, `signal_rows`,
    `prefix` and `objective`, where a stage has them."""

    @property
    def total(self) -> int:
        return sum(row.total for row in self.rows)

    @property
    def trainable(self) -> int:
        return sum(row.trainable for row in self.rows)

    def record(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "stage": self.stage,
            "components": {
                row.component: {
                    "total": row.total,
                    "trainable": row.trainable,
                    "frozen": row.total - row.trainable,
                }
                for row in self.rows
            },
            "total": self.total,
            "trainable": self.trainable,
            "patterns": dict(self.patterns),
        }

    def save(self, path: Path, **more: Any) -> None:
        """As JSON, with `more` beside; written whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(self.record() | more, indent=1) + "\n", "utf-8")
        partial.replace(path)

    def print(self) -> None:
        from clmm.result import plain_table, print_table

        table = plain_table(self.stage, "total", "frozen", "trainable", "share")
        for row in self.rows:
            table.add_row(row.component, *_cells(row.total, row.trainable))
        table.add_row("all", *_cells(self.total, self.trainable))
        print_table(table)


def table(model: nn.Module, stage: Stage) -> StageTable:
    """What the stage would freeze and train in this model, which stays as it is.

    Raises SettingError for a pattern that matches nothing, and for what this model cannot have.
    """
    owners = components.component_of(model)
    trained, patterns = _chosen(model, stage)
    added = stage_additions.sizes(model, stage)
    patterns |= {kind: size for kind, (_, size) in added.items()}
    totals = dict.fromkeys((*_COMPONENTS, "other"), 0)
    trains = dict(totals)
    there = set()
    for name, parameter in model.named_parameters():
        kind = kind_of(name)
        there.add(kind)
        totals[owners[name]] += parameter.numel()
        if kind in added if kind else plain(name) in trained:
            trains[owners[name]] += parameter.numel()
    for kind, (component, size) in added.items():
        if kind not in there:
            totals[component] += size
            trains[component] += size
    rows = [Row(component=c, total=totals[c], trainable=trains[c]) for c in totals if totals[c]]
    return StageTable(stage=stage.name, rows=tuple(rows), patterns=patterns)


def apply(model: nn.Module, stage: Stage) -> StageTable:
    """Freezes and unfreezes the model's parameters for the stage; adds its adapters and rows.

    What has no effect stays frozen where its component trains. Adapters of a stage before train on
    where this stage's are of the same rank on the same layers, and stay frozen where it has none;
    so do the signal tokens' rows and a prefix. Raises SettingError for a pattern that matches
    nothing, and for adapters that differ from those that are there. `finish` ends it.
    """
    found = table(model, stage)
    trained, _ = _chosen(model, stage)
    stage_additions.add(model, stage)
    on = stage_additions.sizes(model, stage)
    for name, parameter in model.named_parameters():
        kind = kind_of(name)
        parameter.requires_grad_(kind in on if kind else plain(name) in trained)
    return found


def finish(model: nn.Module) -> None:
    """Ends all stages so far: the model is one of its class again, to save or to go on with.

    Adapters are merged into their layers, rows are written back, what an objective added is gone;
    names are those of before, and all is frozen. The merge rounds where weights are in half
    precision. Until then `save_pretrained` is refused.
    """
    stage_additions.remove(model)
    model.requires_grad_(False)


def matching(model: nn.Module, patterns: Iterable[str], *, where: str) -> dict[str, list[str]]:
    """Pattern → the parameters it names; SettingError, with the nearest name, where it has none."""
    names = [name for name, _ in model.named_parameters() if not kind_of(name)]
    owners = components.component_of(model)
    norms = _norms(model)
    hits = {}
    for pattern in patterns:
        component, _, last = pattern.rpartition(".")
        if pattern in _COMPONENTS:
            hits[pattern] = [name for name in names if owners[name] == pattern]
        elif component in _COMPONENTS and last == NORMS:
            hits[pattern] = [n for n in names if owners[n] == component and n in norms]
        else:
            globs = (pattern, f"{pattern}.*")
            hits[pattern] = [
                n for n in names if any(fnmatch.fnmatchcase(plain(n), glob) for glob in globs)
            ]
        if not hits[pattern]:
            near = nearest(pattern, _namable(model, owners, pattern))
            raise SettingError(f"{where}: {pattern!r} matches no parameter{near}")
    return hits


def _chosen(model: nn.Module, stage: Stage) -> tuple[set[str], dict[str, int]]:
    """Plain names of the parameters that train, and how many each pattern matches."""
    where = f"stage {stage.name}: "
    train = matching(model, stage.train, where=f"{where}train")
    frozen = matching(model, stage.freeze, where=f"{where}freeze")
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    # They would be counted as trained and never get a gradient, or move by weight decay alone.
    idle = stage_additions.unused(model)
    effective = {
        p: [n for n in names if not plain(n).startswith(idle)] for p, names in train.items()
    }
    for pattern, names in effective.items():
        if not names:
            raise SettingError(
                f"{where}train: {pattern!r} matches only parameters that no output depends on"
            )
    counts = {pattern: sum(sizes[n] for n in names) for pattern, names in effective.items()}
    taken_out = {name for names in frozen.values() for name in names}
    chosen = {n for names in effective.values() for n in names} - taken_out
    reached = stage_additions.trains(model, stage)
    if reached is not None and (beyond := sorted(chosen - reached)):
        raise SettingError(
            f"{where}train: {beyond[0]} and {len(beyond) - 1} others are none that the objective "
            f"{stage.objective!r} depends on"
        )
    return {plain(name) for name in chosen}, counts


def _norms(model: nn.Module) -> set[str]:
    """Names of the parameters of norms, whatever their classes are called besides."""
    return {
        f"{outer}.{name}"
        for outer, module in model.named_modules()
        if "norm" in type(module).__name__.lower()
        for name, _ in module.named_parameters(recurse=False)
    }


def _namable(model: nn.Module, owners: Mapping[str, str], pattern: str) -> list[str]:
    """What a pattern may have meant: components with parameters, and modules no deeper than it."""
    depth = max(2, pattern.count("."))
    modules = [
        plain(name)
        for name, module in model.named_modules()
        if name.count(".") <= depth and next(module.parameters(), None) is not None
    ]
    return [*dict.fromkeys([*owners.values(), *filter(None, modules)])]


def _cells(total: int, trainable: int) -> tuple[str, ...]:
    share = f"{trainable / total:.2%}" if total else "–"
    return f"{total:,}", f"{total - trainable:,}", f"{trainable:,}", share
