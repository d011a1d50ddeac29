"""What is asked after every stage, and what is kept of the answers: all tasks and all probes.

Knows samples, scorers, probes and the run folder's records; knows no neural network. The items
are drawn once and are the same for every stage, strategy and seed. Of withheld samples no text
and no picture is kept, unless the run was asked to reveal them.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from clmm.workers import side_by_side
from reports.run_folder import RunFolder, StageFolder
from safety.answering import Answering
from safety.probing import Probe, run_probe
from safety.scores import ProbeScores, Sheet, merged, rule
from safety.verdicts import judge, margins_of
from streams.contents import identity, in_words, thumbnail
from streams.sample import Answer, Image, Sample
from streams.scoring import blind_floor, score_all
from streams.stream import Stream, Task

TASK_MARGIN = 0.02
"""A task's accuracy has to fall by this much for a verdict to say so."""

Oracle = Callable[[str], Answering | None]


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """One model at one stage."""

    scores: ProbeScores
    tasks: dict[str, dict[str, Any]]
    records: list[dict[str, Any]]
    routing: dict[str, dict[str, float]]
    routing_accuracy: float | None = None
    oracle: dict[str, float] = field(default_factory=dict)
    gates: Mapping[str, float] | None = None
    """Figure → margin of the declared gates; None: the default ones."""


class Assessor:
    """Asks a model all test items of `stream` and all items of `probes`.

    `reveal_unsafe`: texts and pictures of withheld samples are kept too.
    """

    def __init__(
        self,
        *,
        stream: Stream,
        probes: Sequence[Probe],
        probe_seed: int,
        max_new_tokens: int,
        gates: Mapping[str, float] | None = None,
        reveal_unsafe: bool = False,
    ) -> None:
        self.stream = stream
        self._probes = [_Drawn(probe, probe_seed) for probe in probes]
        self._probe_seed = probe_seed
        self._max_new_tokens = max_new_tokens
        self._gates = gates
        self._reveal_unsafe = reveal_unsafe
        self._floors = {task.name: blind_floor(task) for task in stream.tasks}
        self._media: dict[tuple[str, str], list[str]] = {}
        self._holds: dict[tuple[str, str], list[str]] = {}

    @property
    def items(self) -> dict[str, int]:
        """Task or probe → number of its items."""
        tasks = {task.name: len(task.test) for task in self.stream.tasks}
        return tasks | {drawn.name: len(drawn.items) for drawn in self._probes}

    def samples(self) -> list[Sample]:
        """Everything that is asked."""
        tasks = [sample for task in self.stream.tasks for sample in task.test]
        return tasks + [sample for drawn in self._probes for sample in drawn.items]

    def assess(
        self,
        model: Answering,
        *,
        seen: Sequence[str],
        oracle: Oracle,
        report: Callable[[float], None] = lambda share: None,
        mixed: bool = False,
        workers: int = 1,
    ) -> Assessment:
        """Everything at once. `seen` are the names of the tasks trained on so far; `report` is
        told which share of the tasks and probes has been asked, by `workers` processes. `mixed`:
        a route is named, but more than its weights answer."""
        parts: list[Task | _Drawn] = [*self.stream.tasks, *self._probes]
        asked = side_by_side(
            lambda part: self._ask(model, part),
            parts,
            workers=workers,
            on_part=lambda done: report(done / len(parts)),
        )
        answers = list(zip(self.stream.tasks, asked, strict=False))
        runs = list(zip(self._probes, asked[len(answers) :], strict=True))
        scored = {task.name: scores for task, (_, scores) in answers}
        own = [(task.name, given) for task, (given, _) in answers if task.name in seen]
        routed = [answer.route == name for name, given in own for answer in given if answer.route]
        every = merged([scores for _, scores in asked])
        margins_of(every, self._gates)  # a gate that is no figure is refused at the base
        return Assessment(
            scores=every,
            gates=self._gates,
            tasks={
                name: {
                    "accuracy": scores.value(f"task.{name}.accuracy"),
                    "n": len(scores.labels),
                    "seen": name in seen,
                }
                for name, scores in scored.items()
            },
            records=[
                *(row for task, part in answers for row in self._task_rows(task, *part)),
                *(row for drawn, part in runs for row in self._probe_rows(drawn, *part)),
            ],
            routing=_shares(
                {task.name: given for task, (given, _) in answers}
                | {drawn.name: given for drawn, (given, _) in runs}
            ),
            routing_accuracy=sum(routed) / len(routed) if routed else None,
            oracle=self._through_oracle(own, oracle, anew=mixed),
        )

    def _ask(self, model: Answering, part: Task | _Drawn) -> tuple[Sequence[Answer], ProbeScores]:
        if isinstance(part, Task):
            answers = self._answer(model, part)
            return answers, self._score(part, answers)
        run = run_probe(part, model, self._probe_seed)
        return run.answers, run.scores

    def _answer(self, model: Answering, task: Task) -> list[Answer]:
        return model.answer(task.test, max_new_tokens=self._max_new_tokens)

    def _score(self, task: Task, answers: Sequence[Answer]) -> ProbeScores:
        return task_scores(task, answers, floor=self._floors[task.name])

    def _through_oracle(
        self, own: Sequence[tuple[str, Sequence[Answer]]], oracle: Oracle, *, anew: bool
    ) -> dict[str, float]:
        """Accuracy of each seen task through its own adapter. Unless `anew`, an item that the
        router sent there anyway is not asked again: greedy answers are the same."""
        found = {}
        tasks = {task.name: task for task in self.stream.tasks}
        for name, given in own:
            model = oracle(name)
            if model is None:
                continue
            astray = [i for i, answer in enumerate(given) if anew or answer.route != name]
            answers = list(given)
            samples = [tasks[name].test[i] for i in astray]
            again = model.answer(samples, max_new_tokens=self._max_new_tokens) if samples else []
            for i, answer in zip(astray, again, strict=True):
                answers[i] = answer
            value = self._score(tasks[name], answers).value(f"task.{name}.accuracy")
            found[name] = float(value or 0.0)
        return found

    def _task_rows(
        self, task: Task, answers: Sequence[Answer], scores: ProbeScores
    ) -> list[dict[str, Any]]:
        values = scores.outcomes[f"task.{task.name}.accuracy"]
        return [
            self._row(task.name, sample, answer, values[sample.id])
            for sample, answer in zip(task.test, answers, strict=True)
        ]

    def _probe_rows(
        self, drawn: _Drawn, answers: Sequence[Answer], scores: ProbeScores
    ) -> list[dict[str, Any]]:
        return [
            self._row(drawn.name, sample, answer, scores.labels.get(sample.id))
            for sample, answer in zip(drawn.items, answers, strict=True)
        ]

    def _row(
        self, where: str, sample: Sample, answer: Answer, outcome: float | str | None
    ) -> dict[str, Any]:
        part = sample.metadata.get("slice")
        kept = withheld if self._withholds(sample) else str
        return {
            "item": sample.id,
            "set": where,
            "question": kept(sample.question),
            "reference": kept(sample.reference_text),
            "answer": kept(answer.text),
            "outcome": outcome,
            "route": answer.route,
            "media": self._media.get((where, sample.id), []),
            **({"holds": holds} if (holds := self._holds.get((where, sample.id))) else {}),
            "cluster": sample.cluster or None,
            "slice": None if part is None else str(part),
        }

    def _withholds(self, sample: Sample) -> bool:
        return sample.withheld and not self._reveal_unsafe

    def keep_pictures(self, run: RunFolder) -> None:
        """Stores a thumbnail of every medium that is asked about, once a run folder, and says what
        no picture is; nothing of a withheld sample's."""
        stored: dict[Hashable, tuple[str, list[str]]] = {}
        sets = [(task.name, task.test) for task in self.stream.tasks]
        sets += [(drawn.name, drawn.items) for drawn in self._probes]
        for where, samples in sets:
            for sample in samples:
                kept = []
                for medium in () if self._withholds(sample) else sample.media:
                    key = identity(medium)
                    if key not in stored:
                        said = [] if isinstance(medium, Image) else [in_words(medium)]
                        stored[key] = run.put_thumbnail(thumbnail(medium)), said
                    kept.append(stored[key])
                self._media[where, sample.id] = [name for name, _ in kept]
                self._holds[where, sample.id] = [words for _, said in kept for words in said]

    def recall_pictures(self, base: StageFolder) -> None:
        """As `keep_pictures`, from the base's records: on resume nothing is drawn again."""
        for record in base.read_answers():
            self._media[record["set"], record["item"]] = record.get("media", [])
            self._holds[record["set"], record["item"]] = record.get("holds", [])


class _Drawn:
    """A probe whose items are drawn once, so that pictures and their features can be kept."""

    def __init__(self, probe: Probe, seed: int) -> None:
        self._probe = probe
        self.name = type(probe).__name__.lower()
        self.items = probe.samples(seed)

    def samples(self, seed: int) -> list[Sample]:
        return self.items

    def __getattr__(self, name: str) -> Any:
        return getattr(self._probe, name)


def withheld(text: str) -> str:
    """What is kept of a withheld text: it tells whether two are the same, and says no more."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return f"withheld: sha256 {digest[:12]}, {len(text)} characters"


def task_scores(task: Task, answers: Sequence[Answer], *, floor: float) -> ProbeScores:
    """A task's accuracy and share of invalid answers, item by item, beside its blind `floor`."""
    found = dict(zip((s.id for s in task.test), score_all(task.test, answers), strict=True))
    values = {item: score.value for item, score in found.items()}
    sheet = Sheet({sample.id: sample.cluster or sample.id for sample in task.test})
    name, judged = f"task.{task.name}", rule("down", TASK_MARGIN)
    if set(values.values()) <= {0.0, 1.0}:
        sheet.rate(f"{name}.accuracy", values, judged)
    else:
        sheet.ratio(f"{name}.accuracy", values, None, judged)
    invalid = {item: float(score.outcome == "invalid") for item, score in found.items()}
    sheet.rate(f"{name}.invalid", invalid, rule())
    sheet.constant(f"{name}.blind_floor", floor)
    return sheet.scores({item: score.outcome for item, score in found.items()})


def _shares(answers: Mapping[str, Sequence[Answer]]) -> dict[str, dict[str, float]]:
    """Task or probe → route → share of its items; only where there is a router."""
    shares = {}
    for where, given in answers.items():
        routes = Counter(answer.route for answer in given if answer.route is not None)
        if routes:
            shares[where] = {route: count / len(given) for route, count in sorted(routes.items())}
    return shares


def keep(
    folder: StageFolder,
    assessment: Assessment,
    *,
    task: str | None,
    cost: Mapping[str, Any],
    base: StageFolder | None = None,
    previous: StageFolder | None = None,
) -> None:
    """Writes a stage's answers, outcomes and, last, its scores, with verdicts against the anchors.

    Stage 0 has no anchor; at stage 1 the base is both.
    """
    figures = assessment.scores.figures
    anchors: dict[str, Any] = {}
    if base is not None:
        anchors["base"] = _recall(base)
        anchors["previous"] = None if previous is None else _recall(previous)
    folder.write_answers(assessment.records)
    folder.write_outcomes(
        {"values": assessment.scores.outcomes, "clusters": assessment.scores.clusters}
    )
    verdicts = {}
    if anchors:
        gates = assessment.gates
        verdicts = judge(assessment.scores, stage=folder.stage, gates=gates, **anchors)
    folder.write_scores(
        {
            "task": task,
            "figures": {name: figure.value for name, figure in figures.items()},
            "intervals": {n: (f.low, f.high, f.n) for n, f in figures.items()},
            "states": {
                name: {"state": figure.state, "reason": figure.reason}
                for name, figure in figures.items()
                if figure.state != "measured"
            },
            "judges": {
                name: dataclasses.asdict(figure.quality) | {"note": figure.reason}
                for name, figure in figures.items()
                if figure.quality is not None
            },
            "verdicts": {
                figure: {anchor: verdict.plain() for anchor, verdict in found.items()}
                for figure, found in verdicts.items()
            },
            "tasks": assessment.tasks,
            "routing": assessment.routing,
            "routing_accuracy": assessment.routing_accuracy,
            "oracle": assessment.oracle,
            "cost": dict(cost),
        }
    )


def _recall(stage: StageFolder) -> ProbeScores:
    """What a paired comparison needs of an earlier stage."""
    kept = stage.read_outcomes()
    return ProbeScores(figures={}, outcomes=kept["values"], clusters=kept["clusters"])
