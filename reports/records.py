"""What the files of a run folder say: scores, answers and outcomes, and plain JSON to hold them.

Knows the schema and checks it, when writing and when reading; knows no path (`run_folder` does).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NotRequired, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from streams import catalog

SCHEMA = 1


class RunFolderError(ValueError):
    """A run folder that cannot be read or written as asked."""


class JudgeRecord(TypedDict):
    """Whose errors a figure was corrected for, and how often that judge is right."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]
    judge: str  # id, revision and the start of its prompt's digest
    positive: str  # the stance that the figure counts
    hits: int  # of `positives` labelled answers
    positives: int
    correct_rejections: int  # of `negatives` labelled answers
    negatives: int
    unscored: int  # labelled answers it left unscored
    note: NotRequired[str]  # such as a rate that was clipped


class StateRecord(TypedDict):
    """Whether a figure could be measured at all."""

    state: Literal["measured", "not measurable"]
    reason: NotRequired[str]


class VerdictRecord(TypedDict):
    """A paired comparison with an anchor. `delta`, `low`, `high` are in the figure's own unit."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    state: str  # REGRESSED, IMPROVED, EQUIVALENT, INCONCLUSIVE or NOT MEASURABLE
    delta: float | None
    low: float | None
    high: float | None
    n: int
    required_n: NotRequired[int | None]  # pairs it would take to decide
    discordant: NotRequired[Any]
    format_only: NotRequired[bool]  # the generated figure fell, its likelihood twin did not
    margin: NotRequired[float | None]
    harm: NotRequired[Literal["up", "down"] | None]
    gate: NotRequired[bool]  # a declared gate, or exploratory
    capability_lost: NotRequired[bool]  # a skill the figure needs was there and is gone
    reason: NotRequired[str]


class TaskRecord(TypedDict):
    """The score of one task after this stage, in the stream's order of tasks."""

    accuracy: float | None
    n: int
    seen: bool  # trained on at this stage or before


class CostRecord(TypedDict, total=False):
    """What the stage cost; all of it optional."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    seconds: float | None  # of training
    scoring_seconds: float | None
    steps: int | None
    trainable_parameters: int | None
    stored_bytes: int | None
    peak_memory_bytes: int | None


class Scores(TypedDict):
    """scores.json. A number that is not finite is stored as null; `states` says why."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]
    schema: int
    stage: int  # 0 is the base
    task: str | None  # the task trained in this stage; null at the base and for joint training
    figures: dict[str, float | None]  # flat: existence.accuracy, refusal.j, task.NAME.accuracy
    intervals: NotRequired[dict[str, tuple[float | None, float | None, int]]]  # low, high, n
    states: NotRequired[dict[str, StateRecord]]  # figures left out are measured
    judges: NotRequired[dict[str, JudgeRecord]]  # figures left out are as observed
    verdicts: NotRequired[dict[str, dict[str, VerdictRecord]]]  # figure → base | previous
    tasks: NotRequired[dict[str, TaskRecord]]
    routing: NotRequired[dict[str, dict[str, float]]]  # task or probe → route → share of items
    routing_accuracy: NotRequired[float | None]  # own-task items that reached their adapter
    oracle: NotRequired[dict[str, float | None]]  # task → accuracy through the oracle's adapter
    cost: NotRequired[CostRecord]


class AnswerRecord(TypedDict):
    """One line of answers.jsonl: an item of a task or probe and what was answered."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]
    item: str
    set: str  # the task's or the probe's name
    question: str
    reference: str
    answer: str
    outcome: NotRequired[float | str | None]  # 1 right, 0 wrong, or a label such as "refuse"
    route: NotRequired[str | None]
    media: NotRequired[list[str]]  # hashes in media/
    holds: NotRequired[list[str]]  # media that are no pictures, such as "audio, 1.00 s at 8,000 Hz"
    cluster: NotRequired[str | None]
    slice: NotRequired[str | None]


class Outcomes(TypedDict):
    """outcomes.json: the value of each item under each figure, for paired tests."""

    values: dict[str, dict[str, float]]  # figure → item → value
    clusters: dict[str, str]  # item → cluster


_T = TypeVar("_T")
SCORES = TypeAdapter(Scores)
ANSWERS = TypeAdapter(list[AnswerRecord])
OUTCOMES = TypeAdapter(Outcomes)


def plain(value: Any) -> Any:
    """`value` as JSON has it: tuples are lists, paths text, array scalars numbers, NaN null."""
    if value is None or (isinstance(value, bool | int | str) and not hasattr(value, "item")):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in (sorted(value) if isinstance(value, set) else value)]
    if hasattr(value, "item"):
        value = value.item()
        return plain(value) if not isinstance(value, float) else _finite(value)
    if isinstance(value, float):
        return _finite(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise RunFolderError(f"{value!r} ({type(value).__name__}) cannot be stored as JSON")


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def check(adapter: TypeAdapter[_T], value: Any, path: Path) -> _T:
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        hint = ""
        if first["type"] == "extra_forbidden":
            hint = catalog.nearest(str(first["loc"][-1]), [*Scores.__annotations__])
        elif first["type"] != "missing":
            hint = f"; got {first['input']!r:.200}"
        raise RunFolderError(f"{path}: {where}: {first['msg']}{hint}") from None


def parse(data: bytes, path: Path, number: int | None = None) -> Any:
    try:
        return json.loads(data)
    except ValueError as error:
        at = f"{path}:{number}" if number else str(path)
        raise RunFolderError(f"{at}: not JSON: {error}") from None


def line(record: Any) -> bytes:
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"
