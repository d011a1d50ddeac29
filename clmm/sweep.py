"""A grid of studies as a list of commands, one a line, for xargs, a SLURM array, Ray or a shell.

A grid file names a study, what to vary, and where the runs go:

    study: default
    grid:
      seeds: [[0], [1]]
      train.learning_rate: [1e-3, 5e-3]
    out: runs/sweep

`clmm sweep grid.yaml` prints `clmm run default 'seeds=[0]' train.learning_rate=0.001 --out …` for
each combination, the last key fastest. It starts nothing itself:

    clmm sweep grid.yaml | xargs -d '\\n' -P 2 -I{} sh -c '{}'
    eval "$(clmm sweep grid.yaml | sed -n "${SLURM_ARRAY_TASK_ID}p")"

Every combination is checked before anything is printed. A run folder whose stages are all done is
left out, with a note on stderr, so the same command goes on where it stopped; give an array job a
list that was written once. Knows settings and run folders; loads no model.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from clmm.study import DEFAULT_STUDY, Study, read
from clmm.study_yaml import parse
from reports import records
from reports.run_folder import HARMLESS, RunFolder
from streams import settings
from streams.loading import load_stream
from streams.settings import SettingError

LONGEST = 40
"""Characters of a value in a folder's name; a longer one is cut and hashed."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What a grid file says."""

    grid: dict[str, Any]
    """Setting, dotted as on the command line → the values that it takes."""
    study: str = DEFAULT_STUDY
    """The study that every run changes: a file, looked up beside the grid first, or `default`."""
    out: str | None = None
    """Folder of the run folders; left out, runs/ and the grid file's name."""


def sweep(path: str | Path) -> list[str]:
    """The commands of all combinations that are not done yet; notes the others on stderr.

    Raises SettingError, before any note, for a grid or a study that cannot be used.
    """
    path = Path(path)
    grid = _read(path)
    beside = path.parent / grid.study
    source = str(beside) if beside.is_file() else grid.study
    read(source)  # a study that cannot be read is not a combination's fault
    out = Path(grid.out) if grid.out else Path("runs") / path.stem
    runs: dict[Path, tuple[list[str], Study]] = {}
    for values in itertools.product(*grid.grid.values()):
        point = dict(zip(grid.grid, values, strict=True))
        overrides = [f"{key}={_written(key, value, path)}" for key, value in point.items()]
        try:
            study = read(source, overrides).study()
        except SettingError as error:
            reason = str(error).removeprefix("command line: ")
            raise SettingError(f"{path}: {' '.join(overrides)}: {reason}") from None
        folder = out / ",".join(_slug(override) for override in overrides)
        if folder in runs:
            raise SettingError(
                f"{path}: grid: {shlex.join(overrides)} and {shlex.join(runs[folder][0])} are the "
                f"same, or would share the folder {folder}"
            )
        runs[folder] = (overrides, study)
    tasks = cache(task_names)
    done = {f for f, (_, study) in runs.items() if finished(RunFolder(f), study, tasks)}
    for folder in runs:
        if folder in done:
            print(f"clmm: {folder} is done", file=sys.stderr)
    return [
        shlex.join(["clmm", "run", source, *overrides, "--out", str(folder)])
        for folder, (overrides, _) in runs.items()
        if folder not in done
    ]


def task_names(stream: str) -> list[str]:
    """The tasks of a stream that is given as JSON."""
    return [task.name for task in load_stream(json.loads(stream)).tasks]


def finished(
    run: RunFolder, study: Study, tasks: Callable[[str], Sequence[str]] = task_names
) -> bool:
    """Whether the folder holds this study and all its stages are done.

    A folder of another study counts as unfinished: `clmm run` refuses it and says what differs.
    """
    if not run.exists:
        return False
    here, now = (
        {key: value for key, value in config.items() if key not in HARMLESS}
        for config in (run.config(), records.plain(study.plain()))
    )
    if here != now or not run.base().done:
        return False
    names = tasks(json.dumps(now["stream"]))
    return all(
        run.stage(label, seed, stage).done
        for label, strategy in zip(study.labels, study.strategies, strict=True)
        for seed in study.seeds
        for stage in range(1, len(strategy.stages(names)) + 1)
    )


def _read(path: Path) -> Grid:
    if not path.is_file():
        raise SettingError(f"{path}: there is no such grid file")
    try:
        values, _ = parse(path.read_text("utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise SettingError(f"{path}: not a text file in UTF-8: {error.reason}") from None
    if not isinstance(values, dict):
        raise SettingError(f"{path}: a grid file is a mapping with a grid; got {values!r}")
    try:
        grid = settings.build(Grid, values, where="")
    except SettingError as error:
        raise SettingError(f"{path}: {str(error).removeprefix('.')}") from None
    if not grid.grid:
        raise SettingError(f"{path}: grid: names no setting to vary")
    for key, listed in grid.grid.items():
        if not isinstance(listed, list) or not listed:
            inner = (
                f", and write {key}.{next(iter(listed))}"
                if isinstance(listed, dict) and listed
                else ""
            )
            raise SettingError(f"{path}: grid.{key}: give a list of values{inner}; got {listed!r}")
    return grid


def _written(key: str, value: Any, path: Path) -> str:
    """The value as text that the command line reads as the same value."""
    if isinstance(value, str) and _same(value, value):
        return value
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    except (TypeError, ValueError):
        text = ""
    if not _same(text, value):
        raise SettingError(f"{path}: grid.{key}: cannot be written on a command line: {value!r}")
    return text


def _same(text: str, value: Any) -> bool:
    try:
        return bool(parse(text, "")[0] == value)
    except SettingError:
        return False


def _slug(override: str) -> str:
    """`seeds=[0,1]` → `seeds=0-1`: readable, and safe in a path and in a shell."""
    key, _, value = override.partition("=")
    plain = re.sub(r"[\[\]{}\"' ]", "", value)
    if len(plain) > LONGEST or "{" in value:
        digest = hashlib.sha256(value.encode()).hexdigest()[:8]
        plain = f"{plain[:LONGEST]}-{digest}"
    return re.sub(r"[^\w.+=-]+", "-", f"{key}={plain}", flags=re.ASCII)
