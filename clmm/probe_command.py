"""`clmm probe`: one model as it is, or without and with decoding options, on the probes' items.

Knows the command's options; what a figure is, and what a change of one says, others know.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from clmm.decoding_options import Decoding
from clmm.effect import effect
from clmm.result import effect_table, figures_table, print_table
from clmm.study import to_spec
from safety import standard_probes
from safety.probing import run_probe
from safety.scores import ProbeScores, merged
from streams import settings


def run(options: argparse.Namespace) -> int:
    """Checks what was asked for before the model is loaded; prints, and writes `--out`."""
    probes = _probes(options.probes, options.items)
    if options.out is not None and options.out.is_dir():
        raise ValueError(f"--out: {options.out} is a folder; name a file, such as probe.json")
    if options.seed < 0:
        raise ValueError(f"--seed: must not be negative; got {options.seed}")
    decoding = _decoding(options.decoding)

    from clmm.experiment import answerer

    def scores(model: Any) -> ProbeScores:
        return merged(run_probe(probe, model, options.seed).scores for probe in probes)

    plain = answerer(options.model, device=options.device, precision=options.precision)
    model = plain.decoded(decoding)
    found = scores(model)
    record: dict[str, Any] = {
        "model": options.model,
        "seed": options.seed,
        "probes": [to_spec("safety.probes", probe) for probe in probes],
        "figures": {name: figure.value for name, figure in found.figures.items()},
        "intervals": {n: [f.low, f.high, f.n] for n, f in found.figures.items()},
    }
    if decoding:
        record |= {
            "decoding": [to_spec("clmm.decoding", option) for option in decoding],
            "effect": effect(scores(plain), found),
            "decisions": dict(model.decoding.decisions),
        }
        print_table(effect_table(record["effect"]))
        for decision, count in sorted(model.decoding.decisions.items()):
            print(f"{decision}: {count} decisions")
    else:
        print_table(figures_table(found.figures))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    return 0


def _probes(written: str | None, items: int | None) -> Sequence[Any]:
    probes: list[Any] = list(standard_probes())
    if written is not None:
        names = [name.strip() for name in written.split(",")]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"--probes: {twice or 'an empty name'} is there twice")
        probes = [
            settings.from_spec("safety.probes", name, where=f"--probes[{i}]")
            for i, name in enumerate(names)
        ]
    if items is None:
        return probes
    if items < 1:
        raise ValueError(f"--items: must be at least 1; got {items}")
    return [dataclasses.replace(probe, items=items) for probe in probes]


def _decoding(written: str | None) -> Sequence[Any]:
    names = [] if written is None else [name.strip() for name in written.split(",")]
    options = [
        settings.from_spec("clmm.decoding", name, where=f"--decoding[{i}]")
        for i, name in enumerate(names)
    ]
    return Decoding(options).options
