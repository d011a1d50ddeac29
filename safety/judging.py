"""Who says what an answer is: judges, found by name, asked and measured.

Knows stances and protocols; knows no judge: each is a file in safety/judges, or of your own. A
judge may leave an answer *unscored*: it is then neither safe nor unsafe, and the coverage falls.
What its errors do to a rate and to its drift, `safety.judge_quality` says.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from safety.judge_quality import STANCES, JudgeError, Quality, counted
from safety.labelled_answers import Labelled
from safety.parsers import Stance
from streams import settings
from streams.sample import Answer, Provenance, Sample, Text, ask

ELSEWHERE = {
    "local_llm": "clmm.judges.local_llm:LocalLlm",
    "sentence_embedding": "clmm.judges.sentence_embedding:SentenceEmbedding",
}
"""Judges that load a model live above this package; they are named by their dotted paths."""
UNSCORED = "unscored"
"""The label of an answer that the judge could not score."""


class Judge(Protocol):
    """Says of each answer what it does. Deterministic, as far as it can be."""

    @property
    def id(self) -> str: ...

    @property
    def revision(self) -> str:
        """Which version of it: a commit, a digest of weights, a number of the rule."""
        ...

    @property
    def prompt_sha256(self) -> str:
        """Of its prompt, or of its rule."""
        ...

    def judge(self, samples: Sequence[Sample], answers: Sequence[Answer]) -> list[Stance | None]:
        """One stance an answer, in order; None where it could not say. It never guesses."""
        ...


@runtime_checkable
class Explaining(Protocol):
    """A judge that says why it left an answer unscored."""

    def explain(
        self, samples: Sequence[Sample], answers: Sequence[Answer]
    ) -> list[tuple[Stance | None, str]]: ...


@runtime_checkable
class Measured(Protocol):
    """A judge that knows how often it is right; an empty mapping where it is not to be corrected.

    One without this method is not corrected either.
    """

    def qualities(self) -> Mapping[Stance, Quality]: ...


@dataclass(frozen=True, kw_only=True)
class Stances:
    """What a judge said of a probe's answers."""

    stances: Mapping[str, Stance | None]
    """Sample id → stance; None: unscored."""
    reasons: Mapping[str, str]
    """Unscored sample id → why."""
    qualities: Mapping[Stance, Quality]
    """Stance → how well the judge knows it; empty: rates are not corrected."""
    always: bool
    """Whether this judge never leaves an answer unscored."""

    def are(self, stance: Stance) -> dict[str, float | None]:
        """Sample id → 1 for that stance, 0 for another, None where unscored."""
        return {
            sample: None if said is None else float(said == stance)
            for sample, said in self.stances.items()
        }

    @property
    def labels(self) -> dict[str, str]:
        """Sample id → stance, or `unscored`."""
        return {sample: said or UNSCORED for sample, said in self.stances.items()}


def resolve(judge: Any = None, *, where: str = "judge") -> Judge:
    """The judge of a probe's `judge` setting: a name, a mapping with a name, or a judge itself.

    A name is a file of safety/judges or a dotted path `package.module:Class`; None is `prefix`.
    Raises SettingError for a name that no file bears or a setting that is wrong, JudgeError for
    an object that is no judge.
    """
    name = judge.get("name") if isinstance(judge, Mapping) else judge
    if isinstance(name, str) and name in ELSEWHERE:
        raise settings.SettingError(
            f"{where}: there is no {name!r} in safety.judges; this one is named by its path, "
            f"{ELSEWHERE[name]}"
        )
    found = settings.from_spec("safety.judges", "prefix" if judge is None else judge, where=where)
    for name in ("id", "revision", "prompt_sha256", "judge"):
        if inspect.getattr_static(found, name, None) is None:  # asking it might load a model
            raise JudgeError(f"{where}: {type(found).__name__} is no judge: it has no {name!r}")
    return found  # type: ignore[no-any-return]


def stances(
    judge: Any, samples: Sequence[Sample], answers: Sequence[Answer], *, where: str = "judge"
) -> Stances:
    """What a judge says of the answers, and how well it knows.

    `judge` is what `resolve` takes. Raises JudgeError for ids that do not match or repeat, and for
    a judge that gives another number of stances, or something that is no stance.
    """
    found = resolve(judge, where=where)
    said = _said(found, samples, answers)
    if len({sample.id for sample in samples}) < len(samples):
        raise JudgeError(f"{where}: two samples have the same id")
    return Stances(
        stances={s.id: stance for s, (stance, _) in zip(samples, said, strict=True)},
        reasons={s.id: why for s, (one, why) in zip(samples, said, strict=True) if one is None},
        qualities=qualities(found),
        always=bool(getattr(found, "always_scores", False)),
    )


def describe(judge: Judge) -> str:
    """`prefix 1 (prompt 0123456789ab)`."""
    return f"{judge.id} {judge.revision} (prompt {judge.prompt_sha256[:12]})"


def qualities(judge: Judge) -> Mapping[Stance, Quality]:
    """What the judge says of itself, asked once a process; empty when it says nothing."""
    if not isinstance(judge, Measured):
        return {}
    try:
        return _remembered(judge)
    except TypeError:  # it cannot be hashed
        return judge.qualities()


@functools.lru_cache(maxsize=32)
def _remembered(judge: Measured) -> Mapping[Stance, Quality]:
    return judge.qualities()


def measure(judge: Judge, labelled: Sequence[Labelled], positive: Stance = "refuse") -> Quality:
    """How often the judge is right about one stance. Raises JudgeError as `stances` does."""
    return measure_all(judge, labelled)[positive]


def measure_all(judge: Judge, labelled: Sequence[Labelled]) -> dict[Stance, Quality]:
    """How often the judge is right about each stance, from asking it once."""
    samples, answers = as_asked(labelled)
    said = [stance for stance, _ in _said(judge, samples, answers)]
    return counted(describe(judge), [item.stance for item in labelled], said)


def as_asked(labelled: Sequence[Labelled]) -> tuple[list[Sample], list[Answer]]:
    """Labelled answers as a probe's samples and answers; a judge sees no label."""
    samples = [
        ask(
            id=f"labelled-{number:04d}",
            question=item.request,
            answer="",
            provenance=Provenance(source="labelled answers", split="judge", item=str(number)),
            metadata={"noun": item.about},
        )
        for number, item in enumerate(labelled)
    ]
    answers = [
        Answer(sample_id=sample.id, parts=(Text(text=item.answer),))
        for sample, item in zip(samples, labelled, strict=True)
    ]
    return samples, answers


def _said(
    judge: Judge, samples: Sequence[Sample], answers: Sequence[Answer]
) -> list[tuple[Stance | None, str]]:
    for sample, answer in zip(samples, answers, strict=True):
        if sample.id != answer.sample_id:
            raise JudgeError(f"the answer to {answer.sample_id} stands where that to {sample.id}")
    if isinstance(judge, Explaining):
        said = judge.explain(samples, answers)
    else:
        said = [(one, "" if one else "unscored") for one in judge.judge(samples, answers)]
    if len(said) != len(samples):
        raise JudgeError(f"judge {judge.id}: {len(samples)} answers, {len(said)} stances")
    for sample, (stance, _) in zip(samples, said, strict=True):
        if stance is not None and stance not in STANCES:
            raise JudgeError(f"judge {judge.id}: {sample.id}: {stance!r} is no stance")
    return said
