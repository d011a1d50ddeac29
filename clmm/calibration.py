"""The instrument checks: `clmm calibrate`. Simulations, and trainings of nano that are kept.

Knows which trainings show whether the instruments work, where their results are kept, and what the
command writes. How verdicts are simulated is `safety.calibration`'s, how the results read is
`safety.calibration_page`'s.

- A/A: nano is trained on with its own mixture, in several seeds. There is nothing new to learn, so
  few gates should be REGRESSED; those that are, are false alarms or true wear of any training.
- Dose-response: nano is trained on figures whose hats tell the job with a known strength. The bias
  that the probe `association` finds must rise with it and be about zero where there is none.
- Shuffled pictures: nano is asked of other pictures than it is shown. What it then gets right it
  does not see.

Trained results are kept under the SHA-256 of all that decides them: nano's weights, the settings,
the versions of the libraries and the source of every file that takes part.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clmm import provenance
from clmm.progress import Display
from reports.run_folder import write_whole
from safety import calibration, calibration_parsers, statistics
from safety.verdicts import DEFAULT_GATES, State
from streams.settings import SettingError

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = Path(__file__).resolve().parent / "nano" / "weights"
DECIDING = ("streams", "safety", "clmm")
"""Packages whose files may decide a trained result."""
NANO = "nano"
AA, DOSE, SHUFFLED = "aa", "dose", "shuffled"
BIAS = "association.likelihood.difference"
"""A signed difference of probabilities, in [−1, 1]."""
PLAIN = "sequential_lora"
"""The strategy that trains, with the settings that it has in the default study."""


@dataclass(frozen=True, kw_only=True)
class Runs:
    """How often each simulation is repeated."""

    alarms: int = 5000
    """Runs of 20 stages, a cell."""
    power: int = 600
    """Comparisons, a gate and stage."""
    equivalence: int = 5000
    """Comparisons of F1, a cell; rates need none."""


QUICK = Runs(alarms=1500, power=100, equivalence=250)


@dataclass(frozen=True, kw_only=True)
class Trainings:
    """What is trained, always nano. All else is as in the default study."""

    seeds: int = 20
    """Trainings on nano's own mixture."""
    dose_seeds: int = 3
    correlations: tuple[float, ...] = (0.0, 0.5, 0.9)
    hidden: float = 0.5
    """Share of figures whose tool is out of sight."""
    figures: int = 2000
    """Figures to train on."""
    test_figures: int = 300
    association_items: int = 200
    existence_items: int = 200
    """Questions a split about shuffled pictures."""
    probe_items: int | None = None
    """Items of every probe of the mixture's trainings; None: as in the default study."""
    lessons: int = 480
    steps: int | None = None
    """Updates of every training; None: as in the default study."""


def default_cache() -> Path:
    """$XDG_CACHE_HOME/clmm, or ~/.cache/clmm."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if home else Path.home() / ".cache") / "clmm"


def calibrate(
    *,
    seed: int = 0,
    quick: bool = False,
    cache: Path | None = None,
    runs: Runs | None = None,
    trainings: Trainings | None = None,
    display: bool | None = None,
) -> dict[str, Any]:
    """All checks as one mapping of plain values, with a flat `figures`.

    `quick` repeats simulations less often and leaves out what is trained, whose figures are then
    None. `seed` draws the simulations.
    """
    if seed < 0:
        raise SettingError(f"--seed: must not be negative; got {seed}")
    runs = runs or (QUICK if quick else Runs())
    checks = _simulated(seed, runs, display)
    figures: dict[str, float | None] = dict(
        calibration.verdict_figures(
            checks["false_alarms"], checks["power"], checks["false_equivalence"]
        )
    )
    figures |= calibration_parsers.parser_figures(checks["parsers"])
    trainings, notes = trainings or Trainings(), []
    parts: dict[str, Any] = {AA: None, DOSE: None, SHUFFLED: None}
    if quick:
        notes.append(
            "Quick: simulations are repeated less often, and nothing was trained, so the figures "
            "of nano's trainings are missing. Leave out --quick for them."
        )
    else:
        parts = trained(trainings, cache or default_cache(), display)
    figures |= _trained_figures(parts, trainings)
    return {
        "seed": seed,
        "quick": quick,
        "runs": dataclasses.asdict(runs),
        "versions": {"python": platform.python_version(), **provenance.versions()},
        "notes": notes,
        "figures": figures,
        "checks": {**checks, **parts},
    }


def _simulated(seed: int, runs: Runs, display: bool | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with Display({}, shown=display is not False) as screen:

        def report(name: str) -> Callable[[float], None]:
            note = "simulating"
            screen.share(name, 0.0, note)
            return lambda share: screen.share(name, share, note)

        found["false_alarms"] = calibration.false_alarms(
            seed=seed, runs=runs.alarms, report=report("false alarms")
        )
        found["power"] = calibration.power(seed=seed, runs=runs.power, report=report("power"))
        found["false_equivalence"] = calibration.false_equivalence(
            seed=seed, runs=runs.equivalence, report=report("false equivalence")
        )
    found["parsers"] = calibration_parsers.parser_rates()
    return found


def trained(trainings: Trainings, cache: Path, display: bool | None) -> dict[str, Any]:
    """The three checks of trained models; what is in `cache` already is not trained again."""
    settings = _default_settings(trainings)
    probes = settings.pop("probes")
    mixture = {"name": "clmm.nano.mixture:Mixture", "lessons": trainings.lessons}
    aa = {**settings, "stream": mixture, "probes": probes, "seeds": list(range(trainings.seeds))}
    association = {"items": trainings.association_items, "held_out": False}
    parts: dict[str, Any] = {
        AA: _kept(AA, aa, cache, lambda folder: _aa(_scores(aa, folder, display))),
        DOSE: [],
    }
    for rho in trainings.correlations:
        dose = {
            **settings,
            "stream": {
                "name": "jobs",
                "correlation": rho,
                "hidden": trainings.hidden,
                "train_items": trainings.figures,
                "test_items": trainings.test_figures,
            },
            "probes": [{"name": "association", **association}],
            "seeds": list(range(trainings.dose_seeds)),
        }
        work = functools.partial(_dose_of, dose, display)
        parts[DOSE].append({"correlation": rho, **_kept(DOSE, dose, cache, work)})
    items = trainings.existence_items
    parts[SHUFFLED] = _kept(
        SHUFFLED, {"model": NANO, "items": items}, cache, lambda folder: _shuffled(items)
    )
    return parts


def _default_settings(trainings: Trainings) -> dict[str, Any]:
    """Model, one strategy, training and probes as the default study has them."""
    from clmm.study import DEFAULT_STUDY, read

    values = read(DEFAULT_STUDY).values
    train, probes = dict(values["train"]), [dict(probe) for probe in values["probes"]]
    if trainings.steps is not None:
        train["steps"] = trainings.steps
    if trainings.probe_items is not None:
        probes = [{**probe, "items": trainings.probe_items} for probe in probes]
    return {
        "model": NANO,
        "strategies": [spec for spec in values["strategies"] if spec["name"] == PLAIN],
        "train": train,
        "probes": probes,
        "answer_batch_size": values["answer_batch_size"],
        "max_new_tokens": values["max_new_tokens"],
        "device": "cpu",  # where all machines have the same, and runs go side by side
    }


def _kept(
    name: str, settings: dict[str, Any], cache: Path, make: Callable[[Path], dict[str, Any]]
) -> dict[str, Any]:
    """The result of `make`, or the one that was kept. What was cut short goes on in its folder."""
    decides = {
        "part": name,
        "settings": settings,
        "weights": _folder_digest(WEIGHTS),
        "versions": {**provenance.versions(), "clmm-lab": ""},  # its files are hashed
        "machine": platform.machine(),
        "source": source_digest(_roots(settings)),
    }
    key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
    file, folder = cache / f"calibration-{name}-{key}.json", cache / f"calibration-{name}-{key}"
    if file.is_file():
        found: dict[str, Any] = json.loads(file.read_text("utf-8"))["result"]
        return found
    folder.mkdir(parents=True, exist_ok=True)
    result = json.loads(json.dumps(make(folder)))
    text = json.dumps({"key": key, **decides, "result": result}, indent=1)
    write_whole(file, text.encode())
    shutil.rmtree(folder)
    return dict(result)


def _folder_digest(folder: Path) -> str:
    """Of all that a model is loaded from: weights, configuration, tokenizer."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*")):
        if file.suffix in (".safetensors", ".json", ".jinja") and file.name != "skills.json":
            digest.update(f"{file.name}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def _roots(settings: dict[str, Any]) -> list[str]:
    """Modules that begin the work; what they import takes part too."""
    roots = ["clmm.experiment", "clmm.trainer", "clmm.benchmark", "clmm.projectors.mlp"]
    roots.append("safety.probes.existence")
    for package, key in (("clmm.strategies", "strategies"), ("safety.probes", "probes")):
        roots += [f"{package}.{spec['name']}" for spec in settings.get(key, ())]
    stream = settings.get("stream", {}).get("name", "")
    module = stream.partition(":")[0]
    return roots + ([module if ":" in stream else f"streams.sources.{module}"] if stream else [])


def source_digest(roots: Iterable[str]) -> str:
    """Of this file, of the `roots` and of all files of DECIDING that they import in turn."""
    files: dict[str, bytes] = {}
    waiting = [*roots]
    while waiting:
        name = waiting.pop()
        path = ROOT.joinpath(*name.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if name in files or name.split(".")[0] not in DECIDING or not path.is_file():
            continue
        files[name] = path.read_bytes()
        for node in ast.walk(ast.parse(files[name])):
            if isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                waiting += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    files[__name__] = Path(__file__).read_bytes()
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name}\0".encode() + hashlib.sha256(files[name]).digest())
    return digest.hexdigest()


def _scores(study: dict[str, Any], folder: Path, display: bool | None) -> list[list[Any]]:
    """Scores of the base and of the one stage, for each seed. Two runs at a time on two cores."""
    from clmm.experiment import Experiment

    result = Experiment(**study).run(folder / "run", display=display)
    if result.failures:
        first = result.failures[0]
        raise RuntimeError(f"{first.name}: {first.message}")
    (lanes,) = result.scores.values()
    return [scores for _, scores in sorted(lanes.items())]


def _aa(lanes: list[list[Any]]) -> dict[str, Any]:
    """Which gates are REGRESSED against the base, in each training."""
    rows = []
    for seed, (base, stage) in enumerate(lanes):
        gates = {name: stage["verdicts"][name]["base"] for name in DEFAULT_GATES}
        rows.append(
            {
                "seed": seed,
                "flagged": [n for n, v in gates.items() if v["state"] == State.REGRESSED],
                "gates": {
                    name: {
                        "state": verdict["state"],
                        "base": base["figures"][name],
                        "now": stage["figures"][name],
                        "delta": verdict["delta"],
                        "p": verdict["p"],
                        "n": verdict["n"],
                    }
                    for name, verdict in gates.items()
                },
            }
        )
    return {"trainings": rows, "flagged": sum(bool(row["flagged"]) for row in rows)}


def _dose_of(study: dict[str, Any], display: bool | None, folder: Path) -> dict[str, Any]:
    """The bias of each seed, and their mean with an interval over seeds and items."""
    lanes, figure = _scores(study, folder, display), BIAS
    values, errors = [], []
    for _, stage in lanes:
        if stage["figures"].get(figure) is None:
            reason = stage.get("states", {}).get(figure, {}).get("reason", "it is not there")
            raise RuntimeError(f"{figure}: {reason}")
        low, high, _ = stage["intervals"][figure]
        values.append(stage["figures"][figure])
        errors.append((high - low) / (2 * 1.959964))
    mean, low, high = statistics.over_seeds(values, errors)
    return {
        "figure": figure,
        "base": lanes[0][0]["figures"][figure],
        "values": values,
        "mean": mean,
        "low": max(-1.0, low),
        "high": min(1.0, high),
        "accuracy": [stage["tasks"]["jobs"]["accuracy"] for _, stage in lanes],
    }


def _shuffled(items: int) -> dict[str, Any]:
    """Accuracy with the right pictures and with another item's."""
    from clmm.experiment import answerer
    from safety.probes.existence import Existence
    from safety.probing import run_probe

    found, probe = {}, Existence(items=items, held_out=False)
    answering = answerer(NANO, device="cpu")
    for name, shuffle in (("shown", False), ("shuffled", True)):
        figure = run_probe(probe, answering, shuffle_images=shuffle).figures["existence.accuracy"]
        found[name] = {"value": figure.value, "low": figure.low, "high": figure.high, "n": figure.n}
    return found


def _trained_figures(parts: dict[str, Any], trainings: Trainings) -> dict[str, float | None]:
    """The flat figures of what is trained; None where it was not."""
    doses = {dose["correlation"]: dose for dose in parts[DOSE] or ()}
    figures: dict[str, float | None] = {}
    for rho in trainings.correlations:
        dose = doses.get(rho)
        figures[f"bias.rho_{rho:g}"] = None if dose is None else dose["mean"]
    means = [doses[rho]["mean"] for rho in sorted(doses)]
    figures["bias.monotone"] = None if not doses else float(bool((np.diff(means) > 0).all()))
    aa, shuffled = parts[AA], parts[SHUFFLED]
    figures["aa.flagged"] = None if aa is None else aa["flagged"]
    figures["aa.trainings"] = None if aa is None else len(aa["trainings"])
    figures["shuffled.existence.accuracy"] = (
        None if shuffled is None else shuffled["shuffled"]["value"]
    )
    return figures
