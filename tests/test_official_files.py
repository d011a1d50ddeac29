"""Files of published probes as an attacker or a broken copy would have them; withheld ones mute.

The secret stands for a harmful text: no error may quote it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_readers_bias import bbq_item, write_metadata
from test_readers_hallucination import question
from test_readers_stereotypes import HEADER, cat, crows, pair, write_pairs, write_stereoset
from tiny_readers import lines
from tiny_unsafe_sets import safebench_files, table

from safety import official
from safety.official import OfficialFileError, read
from safety.probes import bbq, crows_pairs, mm_safetybench, xstest
from safety.probes.amber import Amber
from safety.probes.bbq import Bbq
from safety.probes.crows_pairs import CrowsPairs
from safety.probes.figstep import Figstep
from safety.probes.mm_safetybench import MmSafetybench
from safety.probes.pope import Pope
from safety.probes.xstest import Xstest
from streams.sample import Message, Provenance, Sample, Text, ask

SECRET = "brindlewick marzipan"


def written(folder: Path, text: str, name: str = "x.csv", **more: Any) -> official.Document:
    (folder / name).write_text(text, "utf-8", newline="")
    return read(folder, name, **more)


# ---------------------------------------------------------------- files


def test_only_a_line_feed_ends_a_json_line(tmp_path: Path) -> None:
    texts = ["one\u2028two", "one\u0085two", "one\x0ctwo"]
    rows = "\r\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts)
    records = written(tmp_path, rows).lines()
    assert [record.get("text", str) for record in records] == texts
    assert records[2].place == "x.csv:3"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('a,b\n1,2\n3,"never closed\n5,6\n', "x.csv:3: not a table: .*unexpected end of data"),
        (f"a,b\n1,{'z' * 131_073}\n", "x.csv:2: not a table: .*field limit"),
        ("a,b\r1,2\r", "x.csv:1: not a table: .*new-line character"),
        ('a,b\n"1"x,2\n', "x.csv:2: not a table"),
        ("a,b,a\n1,2,3\n", "x.csv: two columns are named 'a'"),
    ],
)
def test_a_broken_table_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(OfficialFileError, match=message):
        written(tmp_path, text).table()


def test_what_is_no_regular_file_or_too_large_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "folder.csv").mkdir()
    for name in ("pipe.csv", "folder.csv"):
        with pytest.raises(OfficialFileError, match=rf"{name}: is no regular file"):
            read(tmp_path, name)
    monkeypatch.setattr(official, "MOST_BYTES", 1_000)
    assert written(tmp_path, "z" * 1_000).text
    with pytest.raises(OfficialFileError, match=r"has 1,001 bytes; at most 1,000 are read"):
        written(tmp_path, "z" * 1_001)


# ---------------------------------------------------------------- withheld files


def _errors(document: official.Document) -> list[str]:
    calls: list[Callable[[], Any]] = [
        lambda: document.record({SECRET: 1}, "here").get("text", str),
        lambda: document.record({"text": SECRET}, "here").get("text", int),
        lambda: document.record({"text": [SECRET]}, "here").get("text", str),
        lambda: document.record({"text": SECRET}, "here").one_of("text", ("yes", "no")),
        lambda: document.record(SECRET, "here"),
        document.items,
        document.json,
        document.table,
    ]
    found = []
    for call in calls:
        with pytest.raises(OfficialFileError) as error:
            call()
        found.append(str(error.value))
    return found


def test_errors_of_a_withheld_file_show_kinds_and_lengths(tmp_path: Path) -> None:
    text = f'{{"{SECRET}": 1, "{SECRET}": 2}}\n{SECRET}, {SECRET}, 3\n'
    shown = _errors(written(tmp_path, text, "x.jsonl"))
    assert any(SECRET in message for message in shown)
    mute = _errors(written(tmp_path, text, "x.jsonl", withheld=True))
    assert SECRET not in "".join(mute)
    assert mute[1] == "here: text: must be a whole number; got a text of 20 characters"
    assert mute[2].endswith("got a list of 1")
    assert "known: no, yes" in mute[3]
    assert "is there twice" in mute[5]
    for header in (f"a,{SECRET}\n1\n", f"{SECRET},{SECRET}\n1,2\n"):
        with pytest.raises(OfficialFileError) as error:
            written(tmp_path, header, withheld=True).table()
        assert SECRET not in str(error.value)


def _bbq(**more: Any) -> Callable[[Path], Any]:
    def make(folder: Path) -> Any:
        (folder / "Headwear.jsonl").write_text(json.dumps(bbq_item(0) | more))
        return Bbq(folder=folder, categories=("Headwear",))

    return make


def _bbq_target(folder: Path) -> Any:
    write_metadata(folder, [(0, SECRET)])
    return _bbq()(folder)


def _bbq_key(folder: Path) -> Any:
    write_metadata(folder, [(SECRET, 0)])
    return _bbq()(folder)


def _without_header(folder: Path) -> Any:
    crows(folder)
    path = folder / crows_pairs.FILE
    rows = path.read_text().replace("The zorbs", SECRET).split("\n")[1:]
    path.write_text("\n".join(rows))
    return CrowsPairs(folder=folder)


def _xstest(folder: Path) -> Any:
    name = "xstest_prompts.csv"
    table(folder / name, xstest.RELEASES[name], [[SECRET, "x", "homonyms", "safe", "", ""]])
    return Xstest(folder=folder, partial=True)


def _figstep(folder: Path) -> Any:
    path = safebench_files(folder) / "safebench.csv"
    path.write_text(path.read_text().replace("ForbidQI", SECRET))
    return Figstep(folder=folder, images=folder / "png", partial=True)


def _mm_safetybench(folder: Path) -> Any:
    (folder / "processed_questions").mkdir()
    (folder / "processed_questions" / "01-K.json").write_text(json.dumps({SECRET: {}}))
    return MmSafetybench(folder=folder, scenarios=("01",), partial=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_bbq(category=SECRET), r"bbq-Headwear-0\): category: is another one"),
        (_bbq(question_index=SECRET), "question_index: is not a short label"),
        (_bbq(question_polarity=SECRET), "question_polarity: there is no label a text of 20"),
        (_bbq(example_id=10**12), "example_id: is not a short label"),
        (_bbq_target, "target_loc: must be 0, 1, 2 or NA"),
        (_bbq_key, "example_id: is not a short label"),
        (lambda f: write_stereoset(f, [cat(0, id=SECRET)], []), "id: is not a short label"),
        (lambda f: write_pairs(f, [pair(0, **{"": SECRET})]), "is not a short label"),
        (lambda f: write_pairs(f, [pair(0, anon_writer=SECRET)]), "anon_writer: is not a short"),
        (lambda f: write_pairs(f, [pair(0, SECRET)]), "stereo_antistereo: there is no label a t"),
        (_without_header, r"csv:2: has no field ''$"),
        (_xstest, "id: is not a short label"),
        (_figstep, "dataset: is not a short label"),
        (_mm_safetybench, "missing id 0"),
    ],
)
def test_no_error_of_a_withheld_set_quotes_a_text(
    tmp_path: Path, make: Callable[[Path], Any], message: str
) -> None:
    assert HEADER[0] == ""
    with pytest.raises(OfficialFileError, match=message) as error:
        make(tmp_path).samples(0)
    assert SECRET not in str(error.value)


def test_a_bbq_category_is_no_path() -> None:
    for name in ("../Age", "a/b", "a\\b", "/etc/hosts", ""):
        with pytest.raises(ValueError, match="must be a plain name"):
            Bbq(folder=Path(), categories=(name,))
    assert Bbq(folder=Path(), categories=bbq.CATEGORIES)


def test_no_repr_of_a_withheld_samples_parts_quotes_them() -> None:
    made = {
        hidden: ask(
            id="a",
            question=SECRET,
            answer=SECRET,
            provenance=Provenance(source="s", split="t", item="1"),
            metadata={"sentences": (SECRET,), "slice": "x"},
            withheld=hidden,
        )
        for hidden in (True, False)
    }
    hidden, shown = made[True], made[False]
    parts = (hidden, hidden.messages, hidden.messages[0].parts, hidden.reference, hidden.metadata)
    assert SECRET not in repr(parts)
    assert "Text(withheld, 20 characters)" in repr(hidden.messages)
    assert "sentences" in repr(hidden.metadata)
    assert SECRET in repr(shown.messages)
    assert SECRET in repr(shown.metadata)
    # What is marked is the same to code.
    assert (hidden.question, hidden.reference_text) == (SECRET, SECRET)
    assert hidden.messages == shown.messages
    assert hidden.metadata == shown.metadata
    assert hash(hidden.messages[0].parts[0]) == hash(Text(text=SECRET))
    rejected = Sample(
        id="b",
        messages=(Message(role="user", parts=(Text(text="q"),)),),
        reference=(),
        rejected=(Text(text=SECRET),),
        provenance=hidden.provenance,
        withheld=True,
    )
    assert SECRET not in repr(rejected.rejected)


# ---------------------------------------------------------------- ids and counts


def _pope(folder: Path, numbers: list[int], split: str = "random", **more: Any) -> Pope:
    (folder / "p1.jpg").touch()
    records = [question(n, "yes") for n in numbers]
    (folder / f"coco_pope_{split}.json").write_text(lines(*records))
    return Pope(folder=folder, splits=(split,), **more)


def test_pope_ids_count_up_from_0_or_1(tmp_path: Path) -> None:
    for first in (0, 1):
        probe = _pope(tmp_path, list(range(first, first + 5)), partial=True, limit=2)
        assert [s.id for s in probe.samples(0)] == [f"pope-random-{first + i}" for i in (0, 1)]
    for numbers, message in (
        ([1, 2, 4], "coco_pope_random.json: missing id 3"),
        ([0, 1, 3], "missing id 2"),
        ([2, 3], "missing id 1"),
        ([-1, 0, 1], "missing id 2"),
    ):
        with pytest.raises(OfficialFileError, match=message):
            _pope(tmp_path, numbers, partial=True, limit=1).samples(0)


@pytest.mark.parametrize(
    ("split", "count", "whole"),
    [
        ("random", 3000, True),
        ("random", 2910, True),
        ("popular", 3000, True),
        ("popular", 2910, False),
        ("adversarial", 2999, False),
    ],
)
def test_a_published_pope_file_is_whole(
    tmp_path: Path, split: str, count: int, whole: bool
) -> None:
    probe = _pope(tmp_path, list(range(1, count + 1)), split, limit=1)
    if whole:
        assert len(probe.samples(0)) == 1
        return
    message = rf"holds {count:,} items where the published file has 3,000; .*partial: true"
    with pytest.raises(OfficialFileError, match=message):
        probe.samples(0)


@pytest.mark.parametrize("name", list(xstest.WHOLE))
def test_a_published_xstest_table_is_whole_and_has_its_ids(tmp_path: Path, name: str) -> None:
    begins, count = xstest.WHOLE[name]
    columns = xstest.RELEASES[name]

    def rows(first: int, last: int) -> list[list[str]]:
        cells = {"prompt": "How do I kill time?", "type": "homonyms", "label": "safe"}
        ids = [f"{begins}{n}" for n in range(first, last + 1)]
        own = "id_v2" if "id_v2" in columns else "id"
        return [[i if c == own else cells.get(c, "") for c in columns] for i in ids]

    table(tmp_path / name, columns, rows(1, count))
    assert len(Xstest(folder=tmp_path, file=name, limit=3).samples(0)) == 3
    table(tmp_path / name, columns, rows(2, count + 1))
    with pytest.raises(OfficialFileError, match=f"missing id {begins}1$"):
        Xstest(folder=tmp_path, file=name).samples(0)
    table(tmp_path / name, columns, rows(2, count))
    with pytest.raises(OfficialFileError, match=f"holds {count - 1} items .* has {count}"):
        Xstest(folder=tmp_path, file=name).samples(0)
    assert Xstest(folder=tmp_path, file=name, partial=True).samples(0)


def test_other_files_that_are_cut_are_refused_too(tmp_path: Path) -> None:
    assert sum(mm_safetybench.COUNTS.values()) == 1680
    safebench_files(tmp_path)
    with pytest.raises(OfficialFileError, match="holds 6 items where the published file has 500"):
        Figstep(folder=tmp_path, images=tmp_path / "png").samples(0)
    (tmp_path / "processed_questions").mkdir()
    (tmp_path / "processed_questions" / "02-K.json").write_text(json.dumps({"0": {}}))
    with pytest.raises(OfficialFileError, match=r"02-K\.json: holds 1 items .* has 163"):
        MmSafetybench(folder=tmp_path, scenarios=("02",)).samples(0)
    (tmp_path / "query_all.json").write_text("[]")
    (tmp_path / "annotations.json").write_text("[]")
    with pytest.raises(OfficialFileError, match=r"annotations\.json: holds 0 items .* has 15,220"):
        Amber(folder=tmp_path).samples(0)
