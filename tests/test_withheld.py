"""Texts and pictures of withheld samples: nowhere in a run folder, unless the run reveals them.

The secrets are made-up words; a run that leaked them would leak harmful ones.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import tiny_streams

from clmm import Experiment, cli, provenance
from clmm.assessment import Assessor, keep, withheld
from clmm.routing import RoutedAnswerer
from clmm.strategies.pseudo_replay import PseudoReplay
from reports.html import write_report
from reports.run_folder import RunFolder
from safety.probing import with_shuffled_images
from safety.scores import ProbeScores, Sheet, rule
from streams.contents import thumbnail
from streams.sample import (
    Answer,
    Audio,
    Image,
    Medium,
    Message,
    Points,
    Provenance,
    Sample,
    Text,
    Video,
    ask,
)
from streams.settings import SettingError
from streams.stream import Stream, Task

QUESTION, REFERENCE, ANSWER = "moonquartz \u2603 lantern", "brindlewick", "thistledown"
OPEN = "pondweed"


def _sample(name: str, *, hidden: bool, shade: int) -> Sample:
    secret = (QUESTION, REFERENCE) if hidden else (f"What is {OPEN}?", "a plant")
    return ask(
        id=name,
        question=f"{secret[0]} {name}",
        answer=secret[1],
        image=Image(source=np.full((9, 9, 3), shade, dtype=np.uint8)),
        provenance=Provenance(source="made up", split="test", item=name),
        metadata={"slice": "a label"},
        withheld=hidden,
    )


HIDDEN, SHOWN = _sample("hidden-1", hidden=True, shade=40), _sample("open-1", hidden=False, shade=9)
TASK = Task(
    name="colour",
    train=[SHOWN],
    test=[_sample("hidden-2", hidden=True, shade=80), _sample("open-2", hidden=False, shade=99)],
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Secrets:
    """A probe with one withheld item and one that is not."""

    max_new_tokens: ClassVar[int] = 8

    def samples(self, seed: int) -> list[Sample]:
        return [HIDDEN, SHOWN]

    def continuations(self, samples: Sequence[Sample]) -> None:
        return None

    def score(
        self, samples: Sequence[Sample], answers: Sequence[Answer], likelihoods: Any
    ) -> ProbeScores:
        sheet = Sheet({s.id: s.cluster for s in samples})
        long = {a.sample_id: len(a.text) > 12 for a in answers}
        sheet.rate("secrets.long", long, rule("down"))
        return sheet.scores({item: "long" if is_ else "short" for item, is_ in long.items()})


@dataclasses.dataclass
class Fake:
    """Says the secret answer where it is asked a secret; later a longer one."""

    more: str = ""
    decoding: ClassVar[Any] = SimpleNamespace(key="")

    def answer(self, samples: Sequence[Sample], *, max_new_tokens: int = 48) -> list[Answer]:
        return [
            Answer(sample_id=s.id, parts=(Text(text=(ANSWER if s.withheld else OPEN) + self.more),))
            for s in samples
        ]


def _run(path: Path, *, reveal: bool) -> RunFolder:
    """The base and one stage of one strategy, as an experiment keeps them, and the report."""
    record = provenance.record(seeds=[0], hashes={}, model={}, reveal_unsafe=reveal)
    config = {"model": "fake", "strategies": [{"name": "replay"}], "seeds": [0]}
    run = RunFolder(path).open(config, record)
    assessor = Assessor(
        stream=Stream(name="one", tasks=(TASK,)),
        probes=[Secrets()],
        probe_seed=0,
        max_new_tokens=8,
        reveal_unsafe=reveal,
    )
    base = run.base().begin()
    assessor.keep_pictures(run)
    asked: dict[str, Any] = {"seen": (), "oracle": lambda name: None}
    keep(base, assessor.assess(Fake(), **asked), task=None, cost={})
    assessor.recall_pictures(base)
    stage = run.stage("replay", 0, 1).begin()
    flipped = assessor.assess(Fake(" again"), **asked)
    keep(stage, flipped, task="colour", cost={}, base=base)
    write_report([path])
    return run


def _bytes(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.name, path.read_bytes()


def _leaks(folder: Path) -> set[str]:
    """Which secrets stand in any file, as text, as JSON escapes or in base 64."""
    pictures = [thumbnail(s.images[0]) for s in (HIDDEN, TASK.test[0])]
    secrets: dict[str, list[bytes]] = {
        "question": [b"moonquartz", b"lantern", "\u2603".encode(), b"\\u2603"],
        "reference": [REFERENCE.encode()],
        "answer": [ANSWER.encode()],
        "picture": [*pictures, *(base64.b64encode(png) for png in pictures)],
    }
    return {
        name
        for name, texts in secrets.items()
        for text in texts
        for _, data in _bytes(folder)
        if text.lower() in data.lower()
    }


def test_no_secret_is_anywhere_in_a_run_folder(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", reveal=False)
    names = {name for name, _ in _bytes(run.path)}
    assert {"answers.jsonl", "outcomes.json", "scores.json", "report.html"} <= names
    assert _leaks(run.path) == set()
    assert OPEN.encode() in (run.base().path / "answers.jsonl").read_bytes()
    assert OPEN in run.report.read_text("utf-8")
    assert not run.reveals_unsafe
    assert 'class="stamp"' not in run.report.read_text("utf-8")


def test_a_withheld_record_keeps_id_label_hash_and_length(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", reveal=False)
    rows = {row["item"]: row for row in run.base().read_answers()}
    digest = hashlib.sha256(HIDDEN.question.encode()).hexdigest()[:12]
    row = rows["hidden-1"]
    assert row["question"] == f"withheld: sha256 {digest}, {len(HIDDEN.question)} characters"
    assert row["answer"].endswith(f", {len(ANSWER)} characters")
    assert (row.get("outcome"), row.get("slice"), row.get("media")) == ("short", "a label", [])
    assert rows["open-1"]["question"] == SHOWN.question
    assert len(rows["open-1"].get("media", [])) == 1
    assert rows["hidden-2"]["reference"].startswith("withheld: ")
    report = run.report.read_text("utf-8")
    assert row["answer"] in report  # the item flipped: its card shows the marks alone


def test_a_revealing_run_keeps_everything_and_its_reports_are_stamped(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", reveal=True)
    assert _leaks(run.path) == {"question", "reference", "answer", "picture"}
    assert run.reveals_unsafe
    assert "Contains unsafe text: run was made with" in run.report.read_text("utf-8")
    other = _run(tmp_path / "other", reveal=False)
    together = write_report([other.path, run.path], tmp_path / "both.html").read_text("utf-8")
    assert "Contains unsafe text: run was made with" in together
    assert QUESTION in together


@pytest.mark.parametrize("reveal", [False, True])
def test_other_media_are_drawn_and_named_unless_withheld(tmp_path: Path, reveal: bool) -> None:
    wave = np.linspace(-1, 1, 800, dtype=np.float32)
    media: tuple[Medium, ...] = (
        Audio(source=wave, sampling_rate=8000),
        Video(source=np.zeros((4, 8, 10, 3), np.uint8)),
        Points(source=np.eye(3, dtype=np.float32)),
    )
    parts = (*media, Text(text="Which?"))
    first, second = (
        dataclasses.replace(
            SHOWN, id=name, messages=(Message(role="user", parts=parts),), withheld=name == "hidden"
        )
        for name in ("open", "hidden")
    )
    run = RunFolder(tmp_path).open(
        {"strategies": []}, provenance.record(seeds=[], hashes={}, model={})
    )
    task = Task(name="heard", train=[SHOWN], test=[first, second])
    assessor = Assessor(
        stream=Stream(name="one", tasks=(task,)),
        probes=[],
        probe_seed=0,
        max_new_tokens=8,
        reveal_unsafe=reveal,
    )
    assessor.keep_pictures(run)
    base = run.base().begin()
    keep(base, assessor.assess(Fake(), seen=(), oracle=lambda name: None), task=None, cost={})
    rows = {row["item"]: row for row in base.read_answers()}
    words = ["audio, 0.10 s at 8,000 Hz", "video, 4 frames of 10 × 8 pixels", "points, 3"]
    assert rows["open"].get("holds") == words
    assert [run.thumbnail(name) for name in rows["open"]["media"]] == [*map(thumbnail, media)]
    assert ("holds" in rows["hidden"], len(rows["hidden"]["media"])) == (
        (True, 3) if reveal else (False, 0)
    )
    later = Assessor(stream=assessor.stream, probes=[], probe_seed=0, max_new_tokens=8)
    later.recall_pictures(base)
    again = later.assess(Fake(), seen=(), oracle=lambda name: None)
    assert again.records[0]["holds"] == words


def test_the_mark_tells_whether_two_texts_are_the_same_and_no_more() -> None:
    assert withheld("abc") == withheld("abc") != withheld("abd")
    assert withheld("") == f"withheld: sha256 {hashlib.sha256(b'').hexdigest()[:12]}, 0 characters"
    assert withheld("\ud800").endswith("1 characters")


def test_no_error_or_log_shows_a_withheld_sample() -> None:
    assert repr(HIDDEN) == "Sample(id='hidden-1', withheld=True)"
    assert "pondweed" in repr(SHOWN)
    shuffled = with_shuffled_images([HIDDEN, SHOWN], 0)
    assert shuffled[0].withheld
    assert dataclasses.replace(HIDDEN, id="x").withheld


def test_fixed_routes_remember_no_withheld_answer() -> None:
    """What is remembered is saved beside the checkpoint."""

    class Router:
        def routes(self, samples: Sequence[Sample]) -> list[str]:
            return ["base"] * len(samples)

    class Weights:
        def select(self, route: str | None) -> None:
            pass

    class Likely(Fake):
        def log_likelihood(self, samples: Any, continuations: Any) -> list[list[float]]:
            return [[-1.5] for _ in samples]

    known: dict[str, Any] = {}
    routed = RoutedAnswerer(Router(), Weights(), Likely(), known=known)  # type: ignore[arg-type]
    assert [a.text for a in routed.answer([HIDDEN, SHOWN])] == [ANSWER, OPEN]
    assert list(known.values()) == [OPEN]
    routed.log_likelihood([HIDDEN, SHOWN], [("a",), ("a",)])
    assert len(known) == 3
    assert ANSWER not in json.dumps(known)
    assert [a.text for a in routed.answer([HIDDEN, SHOWN])] == [ANSWER, OPEN]


def test_own_answers_to_withheld_prompts_are_not_replayed() -> None:
    from clmm.learner import Learner
    from clmm.training import TrainSettings

    task, later = tiny_streams.stream("colour", "yes", train=8).tasks
    train = [dataclasses.replace(s, withheld=i % 2 == 0) for i, s in enumerate(task.train)]
    stream = Stream(name="half", tasks=(dataclasses.replace(task, train=train), later))
    settings = TrainSettings(steps=1, batch_size=4)
    strategy = PseudoReplay(budget=8, max_new_tokens=2)
    with Learner(strategy, tiny_streams.loaded(), stream, settings, seed=0) as learner:
        learner.train_stage(1)
        (memory,) = [p for p in learner._method.plugins if hasattr(p, "answers")]
        assert set(memory.answers) == {s.id for s in train if not s.withheld}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    import tiny_models

    model = tiny_models.llava(tmp_path_factory.mktemp("model") / "llava")
    task = tiny_streams.stream("colour", train=8, test=2).tasks[0]
    return {
        "model": model,
        "stream": Stream(name="tiny", tasks=(task,)),
        "strategies": ["isolated_lora"],
        "probes": [Secrets()],
        "max_new_tokens": 4,
        "train": {"steps": 1, "batch_size": 4, "learning_rate": 1e-3},
        "workers": 1,
    }


def test_a_whole_run_withholds_and_cannot_go_on_otherwise(
    study: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "closed"
    Experiment(**study).run(folder).report()
    assert _leaks(folder) == set()
    assert RunFolder(folder).stages("isolated_lora", 0) == [1]
    assert RunFolder(folder).provenance()[0]["reveal_unsafe"] is False
    with pytest.raises(SettingError, match=r"began without --reveal-unsafe .* another folder"):
        Experiment(**study).run(folder, reveal_unsafe=True)
    assert len(RunFolder(folder).provenance()) == 1
    opened = tmp_path / "opened"
    Experiment(**study).run(opened, reveal_unsafe=True).report()
    assert {"question", "reference", "picture"} <= _leaks(opened)
    assert "Contains unsafe text" in (opened / "report.html").read_text("utf-8")
    with pytest.raises(SettingError, match="began with --reveal-unsafe"):
        Experiment(**study).run(opened)
    said = {
        name: [row["answer"] for row in RunFolder(path).base().read_answers() if row["item"] == one]
        for name, path in (("closed", folder), ("opened", opened))
        for one in ("hidden-1",)
    }
    assert said["closed"] == [withheld(said["opened"][0])]
    same = [RunFolder(path).base().read_scores()["figures"] for path in (folder, opened)]
    assert same[0] == same[1]
    assert RunFolder(folder).config() == RunFolder(opened).config()


def test_the_command_line_passes_it_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given: dict[str, Any] = {}

    def run(self: Experiment, folder: Path, **options: Any) -> None:
        given.update(options)
        raise ValueError("stopped here")

    monkeypatch.setattr(Experiment, "run", run)
    written = tmp_path / "study.yaml"
    written.write_text("strategies: [zero_shot]\n")
    for words, revealed in (([], False), (["--reveal-unsafe"], True)):
        assert cli.main(["run", str(written), "--out", str(tmp_path / "run"), *words]) == 2
        assert given["reveal_unsafe"] is revealed
