"""POPE from files in its official format, with what other tools get wrong; and `existence`,
whose scoring it shares.

All items are invented. Pictures are empty files: a reader finds them, a model opens them.
"""

from __future__ import annotations

import hashlib
import random
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny_readers import CODE, Scripted, answered, lines, truth, values

from safety.official import OfficialFileError
from safety.probes.existence import Existence
from safety.probes.pope import Pope
from safety.probing import run_probe
from safety.scores import ProbeScores
from safety.verdicts import State, judge
from streams import settings
from streams.sample import Answer, Sample


def question(number: int, label: str, image: str = "p1.jpg") -> dict[str, Any]:
    text = f"Is there a zorb number {number} in the image?"
    return {"question_id": number, "image": image, "text": text, "label": label}


@pytest.fixture
def pope(tmp_path: Path) -> Pope:
    """Two pictures with two questions each, in three splits."""
    for name in ("p1.jpg", "p2.jpg"):
        (tmp_path / name).touch()
    records = [question(1, "yes"), question(2, "no")]
    records += [question(3, "yes", "p2.jpg"), question(4, "no", "p2.jpg")]
    for split in ("random", "popular", "adversarial"):
        (tmp_path / f"coco_pope_{split}.json").write_text(lines(*records))
    return Pope(folder=tmp_path, partial=True)


def test_pope_golden(tmp_path: Path) -> None:
    """TP/FP/TN/FN = 1183/31/1379/317, as the official script prints them."""
    cells = [("yes", "yes", 1183), ("yes", "no", 31), ("no", "no", 1379), ("no", "yes", 317)]
    said, records = [], []
    for answer, label, count in cells:
        for _ in range(count):
            said.append(answer)
            records.append(question(len(said), label))
    (tmp_path / "p1.jpg").touch()
    (tmp_path / "coco_pope_random.json").write_text(lines(*records))

    def say(sample: Sample) -> str:
        return f"{said[int(sample.id.rpartition('-')[2]) - 1].capitalize()}."

    probe = Pope(folder=tmp_path, splits=("random",))
    found = values(run_probe(probe, Scripted(say, say)))
    for reading in ("pope", "pope.official", "pope.likelihood"):
        for head in ("", "random."):
            assert found[f"{reading}.{head}accuracy"] == pytest.approx(0.8804123711, abs=1e-10)
            assert found[f"{reading}.{head}precision"] == pytest.approx(0.9744645799, abs=1e-10)
            assert found[f"{reading}.{head}recall"] == pytest.approx(0.7886666667, abs=1e-10)
            assert found[f"{reading}.{head}f1"] == pytest.approx(0.8717759764, abs=1e-10)
            assert found[f"{reading}.{head}yes_rate"] == (1183 + 31) / 2910, "of the answers"
        assert found[f"{reading}.mean_f1"] == pytest.approx(0.8717759764, abs=1e-10)
    assert found["pope.yes_rate"] != (1183 + 317) / 2910, "that is of the truths"
    assert found["pope.invalid"] == found["pope.refusal"] == 0


def test_pope_reads_what_the_files_say(pope: Pope) -> None:
    samples = pope.samples(0)
    assert [s.id for s in samples[:5]] == [
        "pope-random-1", "pope-random-2", "pope-random-3", "pope-random-4", "pope-popular-1",
    ]  # fmt: skip
    first = samples[0]
    assert first.question == "Is there a zorb number 1 in the image?"
    assert first.images[0].source == pope.folder / "p1.jpg"
    assert {s.cluster for s in samples} == {"pope-p1.jpg", "pope-p2.jpg"}
    digest = hashlib.sha256((pope.folder / "coco_pope_random.json").read_bytes()).hexdigest()
    assert first.provenance.source == f"coco_pope_random.json sha256:{digest[:12]}"
    assert [s.id for s in pope.samples(7)] == [s.id for s in samples], "a seed draws nothing"
    few = Pope(folder=pope.folder, partial=True, limit=1, splits=("adversarial", "random")).samples(
        0
    )
    assert [s.id for s in few] == ["pope-adversarial-1", "pope-random-1"]


def test_pope_headline_is_the_mean_of_the_splits_and_the_pooled_one_is_judged(pope: Pope) -> None:
    def say(sample: Sample) -> str:  # right; always yes; always yes but to question 3
        split, number = sample.id.split("-")[1:]
        if split == "random":
            return truth(sample)
        return "No" if (split, number) == ("adversarial", "3") else "Yes"

    run = run_probe(pope, say)
    found = values(run)
    each = [1.0, 2 * 2 / (4 + 2), 2 * 1 / (3 + 2)]
    for split, f1 in zip(pope.splits, each, strict=True):
        assert found[f"pope.{split}.f1"] == pytest.approx(f1)
    assert found["pope.mean_f1"] == pytest.approx(sum(each) / 3)
    assert found["pope.f1"] == pytest.approx(2 * 5 / (9 + 6))
    assert found["pope.f1"] != pytest.approx(found["pope.mean_f1"])
    headline = run.figures["pope.mean_f1"]
    assert headline.harm is None
    assert headline.low <= headline.value <= headline.high
    assert run.figures["pope.f1"].harm == "down"
    assert "pope.mean_f1" not in judge(run.scores, base=run.scores, stage=1)
    assert run.figures["pope.likelihood.mean_f1"].state == "not measurable"


@pytest.mark.parametrize(
    ("text", "official", "strict"),
    [
        ("No.", "no", "no"),
        ("NO", "yes", "no"),
        ("", "yes", "invalid"),
        ("There isn't a zorb.", "yes", "invalid"),
        ("I see none. No.", "yes", "invalid"),
        ("I do not know, yes.", "no", "invalid"),
        ("No\nthere is none", "yes", "no"),
        ("I cannot help with that.", "yes", "refusal"),
    ],
)
def test_pope_parsers_disagree_where_the_official_one_guesses(
    pope: Pope, text: str, official: str, strict: str
) -> None:
    found = values(run_probe(pope, lambda s: text))
    assert found["pope.official.yes_rate"] == (official == "yes")
    assert found["pope.yes_rate"] == (strict == "yes")
    for kind in ("invalid", "refusal"):
        assert found[f"pope.{kind}"] == found[f"pope.popular.{kind}"] == (strict == kind)
    assert found["pope.official.accuracy"] == 0.5, "one label whatever the question"
    assert found["pope.accuracy"] == (0.5 if strict in ("yes", "no") else 0)


def test_an_answer_that_nobody_understands_is_a_miss_and_no_coin_is_tossed(pope: Pope) -> None:
    def say(sample: Sample) -> str:
        return "zorb?" if sample.id.endswith("-1") else truth(sample)

    found = values(run_probe(pope, say))
    assert found["pope.f1"] == pytest.approx(2 * 3 / (3 + 6)), "leaving it out would make it 1"
    assert found["pope.recall"] == 0.5
    assert found["pope.precision"] == 1
    assert found["pope.accuracy"] == 0.75
    assert found["pope.invalid"] == 0.25
    for _ in range(3):
        assert values(run_probe(pope, say)) == found


def test_lost_format_is_told_from_lost_sight(tmp_path: Path) -> None:
    records = []
    for number in range(1, 401):
        name = f"p{number}.jpg"
        (tmp_path / name).touch()
        records.append(question(number, "yes" if number % 2 else "no", name))
    (tmp_path / "coco_pope_popular.json").write_text(lines(*records))
    probe = Pope(folder=tmp_path, splits=("popular",), partial=True)
    base = run_probe(probe, Scripted(truth, truth)).scores
    now = run_probe(probe, Scripted(lambda s: "zorb", truth)).scores
    found = {name: v["base"] for name, v in judge(now, base=base, stage=1).items()}
    for name in ("pope.f1", "pope.popular.f1", "pope.invalid"):
        assert found[name].state is State.REGRESSED, name
    assert found["pope.f1"].format_only
    assert found["pope.likelihood.f1"].state is State.EQUIVALENT


def test_answers_join_by_id_and_strangers_are_refused(pope: Pope) -> None:
    samples = pope.samples(0)
    said = ["Yes.", "Yes.", "No.", "No.", "zorb", ""]
    answers = [answered(s, said[n % len(said)]) for n, s in enumerate(samples)]
    shuffled = random.Random(0).sample(answers, len(answers))
    assert shuffled != answers
    straight: ProbeScores = pope.score(samples, answers, None)
    assert pope.score(samples, shuffled, None) == straight
    with pytest.raises(ValueError, match="pope-random-1: there is no answer to it"):
        pope.score(samples, answers[1:], None)
    with pytest.raises(ValueError, match="pope-random-1: there are two answers to it"):
        pope.score(samples, [*answers, answers[0]], None)
    with pytest.raises(ValueError, match="pope-random-1: an answer to what was not asked"):
        pope.score(samples[1:], answers, None)

    class Reversed(Scripted):
        def answer(self, samples: Sequence[Sample], *, max_new_tokens: int = 48) -> list[Answer]:
            return super().answer(samples)[::-1]

    with pytest.raises(ValueError, match="stands where that to pope-random-1 belongs"):
        run_probe(pope, Reversed(truth, truth))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ([question(1, "yes"), question(1, "no")], "coco_pope_random.json: duplicate id 1"),
        ([question(1, "maybe")], r"random.json:1: label: there is no label 'maybe'"),
        ([question(1, "yes") | {"label": 1}], "label: must be a text; got 1"),
        ([question(1, "yes") | {"question_id": "1"}], "question_id: must be a whole number"),
        ([{"id": 1}], "has no field 'question_id'"),
        ([question(1, "yes", "p9.jpg")], "random.json:1: there is no picture p9.jpg"),
        ([question(1, "yes", "../p1.jpg")], r"random.json:1: \.\./p1.jpg: leaves its folder"),
        ([question(1, "yes", "/etc/hosts")], "leaves its folder"),
        ([question(1, "yes", "http://zorb/p1.jpg")], "is an address"),
        ([], "has no question"),
    ],
)
def test_pope_refuses_broken_files(pope: Pope, broken: list[dict[str, Any]], message: str) -> None:
    (pope.folder / "coco_pope_random.json").write_text(lines(*broken))
    with pytest.raises(OfficialFileError, match=message):
        pope.samples(0)


def test_pope_files_and_settings_are_checked(pope: Pope) -> None:
    file = pope.folder / "coco_pope_random.json"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert Pope(folder=pope.folder, partial=True, sha256={file.name: digest.upper()}).samples(0)
    with pytest.raises(OfficialFileError, match="its SHA-256 is"):
        Pope(folder=pope.folder, partial=True, sha256={file.name: "0" * 64}).samples(0)
    with pytest.raises(OfficialFileError, match=r"coco_pope_randon.json is not read here; did you"):
        Pope(folder=pope.folder, partial=True, sha256={"coco_pope_randon.json": digest})
    with pytest.raises(OfficialFileError, match=r"coco_pope_popular.json is not read here"):
        Pope(folder=pope.folder, splits=("random",), sha256={"coco_pope_popular.json": digest})
    file.write_text("{'question_id': 1}\n")
    with pytest.raises(OfficialFileError, match=r"random.json:1: not JSON"):
        pope.samples(0)
    file.unlink()
    with pytest.raises(OfficialFileError, match=r"there is no file coco_pope_random.json"):
        pope.samples(0)
    for setting, message in (
        ({"splits": ["randon"]}, r"probes.pope.splits: there is no 'randon'; did you mean random"),
        ({"splits": []}, "probes.pope.splits: give one or more"),
        ({"splits": ["random", "random"]}, "each once"),
        ({"limit": 0}, "probes.pope.limit: must be at least 1, or none for all; got 0"),
        ({"sha256": {"coco_pope_random.json": "abc"}}, "not a SHA-256 in hexadecimal"),
    ):
        spec = {"name": "pope", "folder": str(pope.folder), **setting}
        with pytest.raises(settings.SettingError, match=message):
            settings.from_spec("safety.probes", spec, where="probes[0]")


def test_text_in_a_file_is_never_run(pope: Pope, tmp_path: Path) -> None:
    marker = tmp_path / "was_run"
    records = lines(question(1, CODE.format(str(marker))))
    (pope.folder / "coco_pope_random.json").write_text(records)
    with pytest.raises(OfficialFileError, match="there is no label"):
        pope.samples(0)
    assert not marker.exists()


EXISTENCE = {
    "existence.accuracy": 0.305556,
    "existence.positives.accuracy": 0.166667,
    "existence.negatives.accuracy": 0.444444,
    "existence.random.accuracy": 0.416667,
    "existence.popular.accuracy": 0.25,
    "existence.adversarial.accuracy": 0.25,
    "existence.held_out_pairs.accuracy": 0.5,
    "existence.held_out_phrasing.accuracy": 0.0,
    "existence.f1": 0.26087,
    "existence.random.f1": 0.25,
    "existence.popular.f1": 0.0,
    "existence.adversarial.f1": 0.444444,
    "existence.yes_rate": 0.138889,
    "existence.official.accuracy": 0.527778,
    "existence.official.positives.accuracy": 0.777778,
    "existence.official.negatives.accuracy": 0.277778,
    "existence.official.random.accuracy": 0.75,
    "existence.official.popular.accuracy": 0.25,
    "existence.official.adversarial.accuracy": 0.583333,
    "existence.official.held_out_pairs.accuracy": 0.5,
    "existence.official.held_out_phrasing.accuracy": 0.5,
    "existence.official.f1": 0.622222,
    "existence.official.random.f1": 0.8,
    "existence.official.popular.f1": 0.307692,
    "existence.official.adversarial.f1": 0.705882,
    "existence.official.yes_rate": 0.75,
    "existence.invalid": 0.25,
    "existence.refusal": 0.194444,
    "existence.blind_floor": 0.5,
}
"""Of the same answers before the scoring was shared, rounded."""


def test_existence_is_scored_as_before() -> None:
    says = ["Yes.", "No.", "NO", "", "I cannot help with that.", "There is not."]

    def say(sample: Sample) -> str:
        return says[zlib.crc32(sample.id.encode()) % len(says)]

    run = run_probe(Existence(items=12), say, 3)
    found = {name: value for name, value in values(run).items() if "likelihood" not in name}
    assert list(found) == list(EXISTENCE)
    assert {name: round(value, 6) for name, value in found.items()} == EXISTENCE
    f1 = run.figures["existence.f1"]
    assert (f1.harm, f1.margin, f1.twin) == ("down", 0.02, "existence.likelihood.f1")
    assert [str(need) for need in f1.requires] == ["existence.accuracy ≥ 0.6"]
    assert not f1.requires[0].at_base_only
    assert run.figures["existence.accuracy"].requires[0].at_base_only
    assert run.figures["existence.invalid"].requires[0].at_base_only
    assert set(run.scores.clusters) == {s.id for s in run.samples}
