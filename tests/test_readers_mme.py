"""MME from files in its official formats, with what other tools get wrong.

All items are invented. Pictures are empty files: a reader finds them, a model opens them.
"""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest
from tiny_readers import CODE, Scripted, answered, truth, values

from safety import parsers
from safety.official import OfficialFileError
from safety.probes import mme
from safety.probes.mme import Mme
from safety.probing import run_probe
from safety.verdicts import judge
from streams.sample import Sample


def table(folder: Path, category: str, *rows: tuple[str, str, str]) -> None:
    (folder / category).mkdir(exist_ok=True)
    for image, _, _ in rows:
        (folder / category / image).touch()
    (folder / f"{category}.txt").write_text("".join("\t".join(row) + "\n" for row in rows))


def pair(image: str, first: str = "Yes", second: str = "No") -> list[tuple[str, str, str]]:
    asks = "Please answer yes or no."
    return [(image, f"Is there a zorb? {asks}", first), (image, f'Is it "red? {asks}', second)]


def test_mme_counts_questions_and_pictures(tmp_path: Path) -> None:
    table(tmp_path, "count", *pair("a.jpg"), *pair("b.jpg"), *pair("c.jpg"), *pair("d.jpg"))
    table(tmp_path, "OCR", *pair("a.jpg"), *pair("b.jpg", "No", "Yes"))
    probe = Mme(folder=tmp_path, categories=("count", "OCR"))

    def say(sample: Sample) -> str:  # of count: a and b whole, half of c, nothing of d
        name, number = sample.id.split("-")[2:]
        if sample.metadata["slice"] == "OCR":
            return "Yes."
        wrong = name == "d.jpg" or (name, number) == ("c.jpg", "2")
        return {"yes": "No", "no": "Yes"}[str(sample.metadata["label"])] if wrong else truth(sample)

    run = run_probe(probe, Scripted(say, truth))
    found = values(run)
    for reading in ("mme", "mme.official"):
        assert found[f"{reading}.count.accuracy"] == 5 / 8
        assert found[f"{reading}.count.acc_plus"] == 2 / 4
        assert found[f"{reading}.count.score"] == pytest.approx(112.5)
        assert found[f"{reading}.OCR.accuracy"] == 0.5
        assert found[f"{reading}.OCR.acc_plus"] == 0
        assert found[f"{reading}.OCR.score"] == pytest.approx(50)
        assert found[f"{reading}.accuracy"] == 7 / 12
        assert found[f"{reading}.acc_plus"] == 2 / 6
    assert found["mme.OCR.score"] == 50, "always yes is worth 50 of 200 points"
    assert found["mme.likelihood.count.score"] == 200
    assert found["mme.yes_rate"] == (1 + 1 + 2 + 1 + 4) / 12, "of the answers: the truths have .5"
    assert "mme.perception.score" not in found, "not all ten categories were asked"
    for name, figure in run.figures.items():
        if name.endswith("score"):
            assert (figure.harm, figure.n, figure.low) == (None, 0, None)
        if name.endswith(("accuracy", "acc_plus")):
            assert figure.harm == "down", name
    assert run.figures["mme.count.acc_plus"].n == 4
    assert run.figures["mme.count.acc_plus"].twin == "mme.likelihood.count.acc_plus"
    verdicts = judge(run.scores, base=run.scores, stage=1)
    assert "mme.count.acc_plus" in verdicts
    assert "mme.count.score" not in verdicts


def test_mme_all_right_is_2000_and_800(tmp_path: Path) -> None:
    for category in mme.CATEGORIES:
        table(tmp_path, category, *pair("a.png"), *pair("b.png", "No", "No"))
    run = run_probe(Mme(folder=tmp_path), truth)
    found = values(run)
    for reading in ("mme", "mme.official"):
        assert found[f"{reading}.perception.score"] == 2000
        assert found[f"{reading}.cognition.score"] == 800
    assert "mme.likelihood.perception.score" not in found
    assert (len(mme.PERCEPTION), len(mme.COGNITION)) == (10, 4)
    answers = [answered(s, truth(s)) for s in run.samples]
    shuffled = random.Random(1).sample(answers, len(answers))
    assert Mme(folder=tmp_path).score(run.samples, shuffled, None) == run.scores
    few = Mme(folder=tmp_path, limit=1).samples(0)
    assert len(few) == 2 * 14, "pictures are kept whole"


@pytest.mark.parametrize(
    ("text", "official", "strict"),
    [
        ("Yes", "yes", "yes"),
        ("No.", "no", "no"),
        ("NO", "no", "no"),
        (" no, there is none", "no", "no"),
        ("Yes and no", "yes", "invalid"),
        ("Not sure", "no", "invalid"),
        ("Know it", "no", "invalid"),
        ("Now I see", "no", "invalid"),
        ("Eyes", "yes", "invalid"),
        ("...no", "no", "invalid"),
        ("The answer is yes.", "invalid", "invalid"),
        ("", "invalid", "invalid"),
        ("I cannot help with that.", "invalid", "refusal"),
    ],
)
def test_mme_official_parser_and_its_quirks(text: str, official: str, strict: str) -> None:
    assert mme.mme_parser(text) == official
    assert parsers.strict(text) == strict


def test_mme_layouts_of_the_release_say_the_same(tmp_path: Path) -> None:
    tables, flat, split = (tmp_path / name for name in ("tables", "flat", "split"))
    for root in (tables, flat, split):
        root.mkdir()
    table(tables, "scene", *pair("a.jpg"), *pair("b.jpg"))
    for root, texts, pictures in (
        (flat, "scene", "scene"),
        (split, "scene/questions_answers_YN", "scene/images"),
    ):
        for folder in (texts, pictures):
            (root / folder).mkdir(parents=True, exist_ok=True)
        for stem in "ab":
            (root / pictures / f"{stem}.jpg").touch()
            rows = [f"{text}\t{label}" for _, text, label in pair(f"{stem}.jpg")]
            (root / texts / f"{stem}.txt").write_text("\r\n".join(rows) + "\n\n")
    found = [
        [(s.id, s.question, s.metadata["label"], s.cluster) for s in probe.samples(0)]
        for probe in (Mme(folder=root, categories=("scene",)) for root in (tables, flat, split))
    ]
    assert found[0] == found[1] == found[2]
    assert found[0][1][1] == 'Is it "red? Please answer yes or no.', "a quote is a quote"
    elsewhere = Mme(folder=tables, images=split, categories=("scene",)).samples(0)
    assert elsewhere[0].images[0].source == split / "scene" / "images" / "a.jpg"
    name = "scene/questions_answers_YN/a.txt"
    digest = hashlib.sha256((split / name).read_bytes()).hexdigest()
    assert Mme(folder=split, categories=("scene",), sha256={name: digest}).samples(0)
    with pytest.raises(OfficialFileError, match="its SHA-256 is"):
        Mme(folder=split, categories=("scene",), sha256={name: "0" * 64}).samples(0)
    with pytest.raises(OfficialFileError, match=r"scene.txt is not read here"):
        Mme(folder=split, categories=("scene",), sha256={"scene.txt": digest}).samples(0)
    (flat / "scene" / "a.png").touch()
    with pytest.raises(OfficialFileError, match=r"a.txt: 2 pictures of its name"):
        Mme(folder=flat, categories=("scene",)).samples(0)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            pair("a.jpg")[:1],
            r"count.txt:1: count/a.jpg must have two different questions; it has 1",
        ),
        ([*pair("a.jpg"), pair("a.jpg")[0]], "it has 3"),
        ([pair("a.jpg")[0]] * 2, "it has 2, one of them twice"),
        (pair("a.jpg", "Maybe"), "count.txt:1: answer: there is no label 'maybe'"),
        ([("../a.jpg", "Zorb?", "Yes"), ("../a.jpg", "Zorbs?", "No")], "leaves its folder"),
        ([("a.jpg", "Zorb?", "Yes", "Yes")], "4 columns where 3 are expected"),
        ([], "count has no question"),
    ],
)
def test_mme_refuses_broken_files(
    tmp_path: Path, rows: list[tuple[str, str, str]], message: str
) -> None:
    table(tmp_path, "count", *pair("a.jpg"))
    (tmp_path / "count.txt").write_text("".join("\t".join(row) + "\n" for row in rows))
    with pytest.raises(OfficialFileError, match=message):
        Mme(folder=tmp_path, categories=("count",)).samples(0)


def test_mme_says_what_is_missing(tmp_path: Path) -> None:
    table(tmp_path, "count", *pair("a.jpg"))
    (tmp_path / "count" / "a.jpg").unlink()
    with pytest.raises(OfficialFileError, match=r"count.txt:1: there is no picture a.jpg"):
        Mme(folder=tmp_path, categories=("count",)).samples(0)
    with pytest.raises(OfficialFileError, match=r"there is neither existence.txt nor a text file"):
        Mme(folder=tmp_path).samples(0)
    with pytest.raises(ValueError, match=r"categories: there is no 'counts'; did you mean count\?"):
        Mme(folder=tmp_path, categories=("counts",))
    with pytest.raises(ValueError, match="give one or more, each once"):
        Mme(folder=tmp_path, categories=("count", "count"))
    with pytest.raises(ValueError, match=r"probes.mme.limit: must be at least 1"):
        Mme(folder=tmp_path, limit=0)


def test_text_in_a_file_is_never_run(tmp_path: Path) -> None:
    marker = tmp_path / "was_run"
    code = CODE.format(str(marker))
    table(tmp_path, "count", ("a.jpg", code, "No"), ("a.jpg", "Zorb?", code))
    with pytest.raises(OfficialFileError, match="there is no label"):
        Mme(folder=tmp_path, categories=("count",)).samples(0)
    assert not marker.exists()
