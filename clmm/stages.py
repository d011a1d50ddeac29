"""What trains in a stage of pre-training, instruction tuning or preference tuning, as a table.

Knows parameter names and counts, of any model whose components can be found; trains nothing. A
pattern that matches nothing is an error.
"""

from __future__ import annotations

import fnmatch
import json
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from clmm import components, signal_tokens
from clmm.components import Row
from clmm.configuration_mmllm import MMLLMConfig
from clmm.encoding import unused_of
from clmm.stage_settings import LoraSettings, Stage
from streams.catalog import nearest
from streams.settings import SettingError

_LANGUAGE_MODEL = "language_model"
_WRAPPED = re.compile(r"\.base_layer|\.base(?=(\.(weight|bias))?$)")
_COMPONENTS = (*components.COMPONENTS, components.OUTPUT)


@dataclass(frozen=True, kw_only=True)
class StageTable:
    """What is frozen and what trains in one stage, by component."""

    stage: str
    rows: tuple[Row, ...]
    patterns: Mapping[str, int]
    """Pattern → parameters it matches; also `lora` and `signal_rows`, where a stage has them."""

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

    def save(self, path: Path) -> None:
        """As JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.record(), indent=1) + "\n", "utf-8")

    def print(self) -> None:
        from clmm.result import plain_table, print_table

        table = plain_table(self.stage, "total", "frozen", "trainable", "share")
        for row in self.rows:
            table.add_row(row.component, *_cells(row.total, row.trainable))
        table.add_row("all", *_cells(self.total, self.trainable))
        print_table(table)


def table(model: nn.Module, stage: Stage) -> StageTable:
    """What the stage would freeze and train in this model, which stays as it is.

    Raises SettingError for a pattern that matches nothing.
    """
    owners = components.component_of(model)
    trained, patterns = _chosen(model, stage)
    sizes = {"lora": _lora_size(model, stage), "signal_rows": _rows_size(model, stage)}
    patterns |= {kind: size for kind, size in sizes.items() if size}
    totals = dict.fromkeys((*_COMPONENTS, "other"), 0)
    trains = dict(totals)
    for name, parameter in model.named_parameters():
        kind = _added(name)
        totals[owners[name]] += parameter.numel()
        if sizes[kind] if kind else _plain(name) in trained:
            trains[owners[name]] += parameter.numel()
    there = {_added(name) for name in owners}
    new = sum(size for kind, size in sizes.items() if kind not in there)
    totals[_LANGUAGE_MODEL] += new
    trains[_LANGUAGE_MODEL] += new
    rows = [Row(component=c, total=totals[c], trainable=trains[c]) for c in totals if totals[c]]
    return StageTable(stage=stage.name, rows=tuple(rows), patterns=patterns)


def apply(model: nn.Module, stage: Stage) -> StageTable:
    """Freezes and unfreezes the model's parameters for the stage; adds its adapters and rows.

    What no feature of an encoder depends on stays frozen where the encoder trains.
    Adapters of a stage before train on where this stage's are of the same rank on the same layers,
    and stay frozen where it has none; so do the signal tokens' rows. Raises SettingError for a
    pattern that matches nothing, and for adapters that differ from those that are there.
    """
    found = table(model, stage)
    trained, _ = _chosen(model, stage)
    if stage.lora is not None:
        _add_adapters(model, stage.lora)
    if stage.signal_rows and not any(
        _added(n) == "signal_rows" for n, _ in model.named_parameters()
    ):
        signal_tokens.train_rows(_language_model(model), _signal_ids(model, stage))
    on = {"lora": stage.lora is not None, "signal_rows": stage.signal_rows}
    for name, parameter in model.named_parameters():
        kind = _added(name)
        parameter.requires_grad_(on[kind] if kind else _plain(name) in trained)
    return found


def matching(model: nn.Module, patterns: Iterable[str], *, where: str) -> dict[str, list[str]]:
    """Pattern → the parameters it names; SettingError, with the nearest name, where it has none."""
    names = [name for name, _ in model.named_parameters() if not _added(name)]
    owners = components.component_of(model)
    hits = {}
    for pattern in patterns:
        if pattern in _COMPONENTS:
            hits[pattern] = [name for name in names if owners[name] == pattern]
        else:
            globs = (pattern, f"{pattern}.*")
            hits[pattern] = [
                n for n in names if any(fnmatch.fnmatchcase(_plain(n), glob) for glob in globs)
            ]
        if not hits[pattern]:
            near = nearest(pattern, _namable(model, owners, pattern))
            raise SettingError(f"{where}: {pattern!r} matches no parameter{near}")
    return hits


def lora_targets(model: nn.Module, lora: LoraSettings) -> list[str]:
    """Full names of the linear layers that get adapters; SettingError for an unmatched target."""
    last = {
        name: _plain(name).rsplit(".", 1)[-1]
        for name in components.language_linears(model)
        if not _added(name + ".")
    }
    # A head whose rows were made parameters of their own has another name.
    names = [name for name in last if last[name] not in components.HEADS]
    chosen: set[str] = set()
    for target in lora.targets or ("*",):
        hits = [n for n in names if last[n] == target or fnmatch.fnmatchcase(_plain(n), target)]
        if not hits:
            near = nearest(target, sorted({last[name] for name in names}))
            raise SettingError(f"lora.targets: no linear layer is named {target!r}{near}")
        chosen |= set(hits)
    return sorted(chosen)


def _chosen(model: nn.Module, stage: Stage) -> tuple[set[str], dict[str, int]]:
    """Plain names of the parameters that train, and how many each pattern matches."""
    where = f"stage {stage.name}: "
    train = matching(model, stage.train, where=f"{where}train")
    frozen = matching(model, stage.freeze, where=f"{where}freeze")
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    counts = {pattern: sum(sizes[n] for n in names) for pattern, names in train.items()}
    # They would be counted as trained and never get a gradient.
    idle = _unused(model)
    taken_out = {name for names in frozen.values() for name in names}
    taken_out |= {name for name in sizes if idle and _plain(name).startswith(idle)}
    chosen = {n for names in train.values() for n in names} - taken_out
    return {_plain(name) for name in chosen}, counts


def _unused(model: Any) -> tuple[str, ...]:
    """Prefixes of the encoders' parameters that no feature depends on, in a composed model."""
    config = getattr(model, "config", None)
    if not isinstance(config, MMLLMConfig):
        return ()
    return tuple(
        f"encoders.{name}.{prefix}"
        for name in config.inputs
        if config.encoder_owner(name) == name
        for prefix in unused_of(config.encoder(name))
    )


def _add_adapters(model: nn.Module, lora: LoraSettings) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    targets = [_plain(name) for name in lora_targets(model, lora)]
    layers = {n: p for n, p in model.named_parameters() if ".lora_A." in n}
    if layers:
        adapted = sorted(name.split(".lora_A.")[0] for name in layers)
        rank = len(next(iter(layers.values())))
        if (adapted, rank) != (targets, lora.rank):
            raise SettingError(
                f"lora: the model has adapters of rank {rank} on {len(adapted)} layers, and the "
                f"stage wants rank {lora.rank} on {len(targets)}; merge them first"
            )
        return
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.rank if lora.alpha is None else lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=targets,
    )
    meta = any(parameter.is_meta for parameter in model.parameters())
    with warnings.catch_warnings():
        # About weights that are tied to layers without adapters.
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings.*")
        inject_adapter_in_model(config, model, low_cpu_mem_usage=meta)


def _namable(model: nn.Module, owners: Mapping[str, str], pattern: str) -> list[str]:
    """What a pattern may have meant: components with parameters, and modules no deeper than it."""
    depth = max(2, pattern.count("."))
    modules = [_plain(name) for name, _ in model.named_modules() if name.count(".") <= depth]
    return [*dict.fromkeys([*owners.values(), *filter(None, modules)])]


def _lora_size(model: nn.Module, stage: Stage) -> int:
    if stage.lora is None:
        return 0
    layers: list[Any] = [model.get_submodule(name) for name in lora_targets(model, stage.lora)]
    return sum(stage.lora.rank * (x.in_features + x.out_features) for x in layers)


def _rows_size(model: nn.Module, stage: Stage) -> int:
    if not stage.signal_rows:
        return 0
    language_model = _language_model(model)
    tables = (language_model.get_input_embeddings(), language_model.get_output_embeddings())
    weights = {id(table.weight): table.weight for table in tables if table is not None}
    return len(_signal_ids(model, stage)) * sum(w.shape[1] for w in weights.values())


def _signal_ids(model: Any, stage: Stage) -> list[int]:
    ids = [i for one in getattr(model.config, "signal_ids", {}).values() for i in one]
    if not ids:
        raise SettingError(f"stage {stage.name}: signal_rows: the model has no signal tokens")
    return ids


def _language_model(model: nn.Module) -> Any:
    return model.get_submodule(components.find(model)[_LANGUAGE_MODEL][0])


def _added(name: str) -> str | None:
    """Which addition to the model's own parameters one is: an adapter's, or a signal token's."""
    if ".lora_" in name:
        return "lora"
    return "signal_rows" if name.endswith(".rows") else None


def _plain(name: str) -> str:
    """As it was named before its layer was wrapped, by peft or for rows of its own."""
    return _WRAPPED.sub("", name)


def _cells(total: int, trainable: int) -> tuple[str, ...]:
    share = f"{trainable / total:.2%}" if total else "–"
    return f"{total:,}", f"{total - trainable:,}", f"{trainable:,}", share
