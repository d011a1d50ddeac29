"""`clmm probe`: one model as it is, or without and with decoding options, on the probes' items.

Knows the command's options; what a figure is, and what a change of one says, others know.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import yaml

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
        specs = _listed(written, "--probes")
        probes = [
            settings.from_spec("safety.probes", spec, where=f"--probes[{i}]")
            for i, spec in enumerate(specs)
        ]
    if items is None:
        return probes
    if items < 1:
        raise ValueError(f"--items: must be at least 1; got {items}")
    # A reader of official files has a limit in its place.
    counts = ["items" if hasattr(probe, "items") else "limit" for probe in probes]
    return [
        dataclasses.replace(probe, **{count: items})
        for probe, count in zip(probes, counts, strict=True)
    ]


def _listed(written: str, where: str) -> list[Any]:
    """`a, b` or `a, {name: b, …}`; no name twice."""
    try:
        specs: list[Any] = yaml.safe_load(f"[{written}]") or [""]
    except yaml.YAMLError:
        raise ValueError(
            f"{where}: give names, or mappings such as {{name: pope, folder: POPE}}; got {written}"
        ) from None
    if twice := next((spec for spec in specs if specs.count(spec) > 1), None):
        raise ValueError(f"{where}: {twice} is there twice")
    return specs


def _decoding(written: str | None) -> Sequence[Any]:
    specs = [] if written is None else _listed(written, "--decoding")
    options = [
        settings.from_spec("clmm.decoding", spec, where=f"--decoding[{i}]")
        for i, spec in enumerate(specs)
    ]
    return Decoding(options).options
