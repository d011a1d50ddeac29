"""Streams from names, folders and lists; users' own data, whole and broken."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from streams.loading import StreamError, load_stream
from streams.sample import Image, Text
from streams.settings import SettingError
from streams.sources.digits import Digits
from streams.sources.llava_json import LlavaJson
from streams.stream import Stream

SMALL = {"train_items": 20, "test_items": 10}


def picture(path: Path, shade: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(np.full((8, 8, 3), shade, dtype=np.uint8)).save(path)
    return path


def turn(role: str, value: str) -> dict[str, str]:
    return {"from": role, "value": value}


def record(
    id: Any, image: Any = None, question: str = "", answer: str = "a ring"
) -> dict[str, Any]:
    question = question or ("<image>\nWhat is it?" if image else "What is a ring?")
    found: dict[str, Any] = {
        "id": id,
        "conversations": [turn("human", question), turn("gpt", answer)],
    }
    return found if image is None else {**found, "image": image}


def write(file: Path, records: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(one) + "\n" for one in records), "utf-8")
    else:
        file.write_text(json.dumps(records, indent=1), "utf-8")
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "mine"
    for index in range(10):
        picture(root / "images" / f"{index}.png", index)
    return root


def both(folder: Path, train: Any, test: Any = None) -> Path:
    write(folder / "train.json", train)
    write(folder / "test.json", [record("t", "9.png", answer="last")] if test is None else test)
    return folder


def fault(folder: Path) -> str:
    with pytest.raises(StreamError) as caught:
        load_stream(str(folder))
    return str(caught.value)


# Layouts


def test_train_and_test_files_are_one_task(folder: Path) -> None:
    both(folder, [record("a", "0.png"), record(7)])
    stream = load_stream(str(folder))
    (task,) = stream.tasks
    assert (stream.name, task.name) == ("mine", "mine")
    image, text = task.train[0].messages[0].parts
    assert isinstance(image, Image)
    assert image.source == (folder / "images" / "0.png").resolve()
    assert text == Text(text="What is it?")
    assert task.train[1].images == ()
    assert [s.id for s in task.train] == ["mine/train.json/a/1", "mine/train.json/7/1"]
    assert task.train[1].provenance.item == "mine: train.json, record 2 (line 16), turn 2"
    assert task.test[0].provenance.split == "test"


def test_sub_folders_are_tasks_in_the_order_of_their_names(folder: Path) -> None:
    for name in ("2-maps", "1-charts v1.5"):
        picture(folder / name / "images" / "own.png")
        write(folder / name / "train.jsonl", [record("a", "own.png"), record("b", "0.png")])
        write(folder / name / "test.jsonl", [record("c", "1.png")])
    tasks = load_stream(folder).tasks
    assert [task.name for task in tasks] == ["1-charts-v1-5", "2-maps"]
    assert (
        tasks[0].train[0].images[0].source
        == (folder / "1-charts v1.5" / "images" / "own.png").resolve()
    )


def test_single_files_are_tasks_with_held_out_images(folder: Path) -> None:
    records = [record(i, f"{i % 10}.png", answer="word " * 5) for i in range(40)]
    write(folder / "charts.json", records)
    write(folder / "maps.json", [record(i, None, f"{i // 2} rings?") for i in range(20)])
    (folder / "._charts.json").write_text("left by a Mac")
    charts, maps = load_stream(str(folder)).tasks
    sides = [{str(s.images[0].source) for s in part} for part in (charts.train, charts.test)]
    assert not sides[0] & sides[1]
    assert (len(sides[0]), len(sides[1]), len(charts.test)) == (8, 2, 8)
    assert (len(maps.train), len(maps.test)) == (16, 4)
    assert "20%" in charts.description
    assert charts.test[0].scorer == "rouge_l"


def test_the_held_out_images_do_not_depend_on_where_the_folder_lies(folder: Path) -> None:
    write(folder / "charts.json", [record(i, f"{i % 10}.png") for i in range(40)])
    moved = folder.parent / "deep" / "elsewhere"
    shutil.copytree(folder, moved)
    first, second = (load_stream(path).tasks[0] for path in (folder, moved))
    assert [s.id for s in first.test] == [s.id for s in second.test]


def test_records_that_share_an_image_stay_together(folder: Path) -> None:
    chain = [
        record(i, [f"{i}.png", f"{i + 1}.png"], "<image><image>Same?", "no") for i in range(0, 4)
    ]
    write(folder / "pairs.json", [*chain, *(record(i, f"{i}.png") for i in range(5, 10))])
    (task,) = load_stream({"name": "llava_json", "folder": str(folder), "test_share": 0.5}).tasks
    sides = [{str(i.source) for s in part for i in s.images} for part in (task.train, task.test)]
    assert not sides[0] & sides[1]


def test_images_may_be_named_from_the_folder_or_from_images(folder: Path) -> None:
    both(folder, [record("a", "0.png"), record("b", "images/1.png")])
    assert len(load_stream(folder).tasks[0].train) == 2


def test_an_image_folder_that_the_user_names_may_lie_elsewhere(folder: Path) -> None:
    elsewhere = folder.rename(folder.parent / "pictures") / "images"
    both(folder, [record("a", "0.png")])
    spec = {"name": str(folder), "image_folder": str(elsewhere), "licence": "CC0"}
    (task,) = load_stream(spec).tasks
    assert task.train[0].provenance.licence == "CC0"
    with pytest.raises(StreamError, match="image_folder: there is no folder"):
        load_stream({**spec, "image_folder": "nowhere"})


def test_several_turns_become_one_sample_an_answer(folder: Path) -> None:
    talk = [
        turn("system", "Be brief."),
        turn("human", "Look.\n<image>\nWhat is it?"), turn("gpt", "a ring"),
        turn("human", "And <image> this?"), turn("gpt", "a star"),
    ]  # fmt: skip
    both(folder, [{"id": "a", "image": ["0.png", "1.png"], "conversations": talk}])
    first, second = load_stream(folder).tasks[0].train
    assert [m.role for m in second.messages] == ["system", "user", "assistant", "user"]
    assert (first.reference_text, second.reference_text) == ("a ring", "a star")
    assert [len(s.images) for s in (first, second)] == [1, 2]
    kinds = [type(part).__name__ for part in first.messages[1].parts]
    assert kinds == ["Text", "Image", "Text"]
    assert first.question == "Look.What is it?"
    assert first.cluster == second.cluster
    assert first.id != second.id


@pytest.mark.parametrize(
    ("answers", "scorer"),
    [
        (("yes", "No."), "yes_no"),
        (("yes", "blue"), "exact"),
        (("yes", "it is a ring"), "rouge_l"),
        (("yes it is", "no"), "exact"),
    ],
)
def test_the_scorer_suits_the_answers(folder: Path, answers: tuple[str, str], scorer: str) -> None:
    both(
        folder, [record("a", "0.png", answer=answers[0])], [record("b", "1.png", answer=answers[1])]
    )
    assert {s.scorer for s in load_stream(folder).tasks[0].train} == {scorer}
    chosen = load_stream({"name": str(folder), "scorer": "rouge_l"})
    assert chosen.tasks[0].test[0].scorer == "rouge_l"
    if scorer != "yes_no":
        with pytest.raises(StreamError, match="not every answer of task mine is yes or no"):
            load_stream({"name": str(folder), "scorer": "yes_no"})


# What is wrong with a folder


def test_every_fault_of_a_record_names_file_record_and_line(folder: Path) -> None:
    talk = [turn("human", "Hello?"), turn("gpt", "Hi."), turn("human", "And?")]
    (folder / "notes.png").write_text("no image")
    outside = picture(folder.parent / "secret.png")
    (folder / "images" / "link.png").symlink_to(outside)
    cases: list[tuple[Any, str]] = [
        ("text", "a record must be an object"),
        ({"id": "x"}, "conversations: must be a list"),
        (record(None), "id: must be a text"),
        (record(True), "id: must be a text"),
        (record("x", "gone.png"), "there is no 'gone.png' in"),
        (record("x", "notes.png"), "not an image in a known format"),
        (record("x", "n" * 5000), "record 1"),
        (record("x", "../../secret.png"), "leaves its folder"),
        (record("x", str(outside)), "leaves its folder"),
        (record("x", "link.png"), "leaves its folder"),
        (record("x", "https://example.org/a.png"), "address"),
        (record("x", 3), "image: must be a path"),
        ({**record("x", "0.png"), "images": ["0.png"]}, "both image and images"),
        (record("x", "0.png", "What?"), "0 <image> placeholders for 1 images"),
        (record("x", None, "<image> What?"), "1 <image> placeholders for 0 images"),
        (record("x", "0.png", "<image><image> What?"), "2 <image> placeholders for 1 images"),
        (record("x", answer="<image>"), "in a turn that is not from human"),
        (record("x", answer="  "), "the answer is empty"),
        (record("x", question=" "), "the question is empty"),
        ({"id": "x", "conversations": []}, "conversations: must be a list"),
        ({"id": "x", "conversations": talk}, "has no answer: its last turn"),
        ({"id": "x", "conversations": talk[::-1][:1] * 2}, "the question before it has no answer"),
        ({"id": "x", "conversations": talk[1:2]}, "human and gpt must alternate"),
        ({"id": "x", "conversations": [turn("user", "Hi")]}, "'user'; did you mean human?"),
        ({"id": "x", "conversations": [turn("humna", "Hi")]}, "'humna'; did you mean human?"),
        ({"id": "x", "conversations": [{"from": "human"}]}, "must have a from and a value"),
    ]  # fmt: skip
    for broken, reason in cases:
        both(folder, [broken, record("sound")])
        message = fault(folder)
        assert "train.json, record 1 (line 2)" in message, message
        assert reason in message, message


def test_duplicate_ids_name_both_records(folder: Path) -> None:
    both(folder, [record("a"), record("b"), record("a")])
    message = fault(folder)
    assert "record 3 (line 28): id 'a' is already that of train.json, record 1 (line 2)" in message


def test_five_problems_are_shown_and_the_others_counted(folder: Path) -> None:
    both(folder, [record(i, "gone.png") for i in range(9)], [record("t", "gone.png")])
    message = fault(folder)
    assert message.count("gone.png") == 5
    assert "… and 5 more" in message


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "must hold a list"),
        ("{}\n{}", "name it .jsonl"),
        ("[]", "holds no record"),
        ("[1,\n2", "line 2, column 2: is not valid JSON"),
        ('[{"id": }]', "line 1, column 9: is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("[1] 2", "Extra data"),
        ("[1,]", "is not valid JSON"),
        ('[{"id": ' + "9" * 5000 + "}]", "train.json"),
        (b"[\xff\xfe]", "cannot be read as UTF-8"),
    ],
    ids=range(10),
)
def test_files_that_are_not_json(folder: Path, text: str | bytes, reason: str) -> None:
    both(folder, [record("a")])
    (folder / "train.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert reason in fault(folder)


def test_a_broken_line_of_jsonl_is_named_and_the_others_still_read(folder: Path) -> None:
    lines = [json.dumps(record("a")), "", '{"id": "b", ]', json.dumps(record("c", "gone.png"))]
    folder.joinpath("train.jsonl").write_bytes(("\ufeff" + "\r\n".join(lines)).encode())
    write(folder / "test.json", [record("t")])
    message = fault(folder)
    assert "train.jsonl, record 2 (line 3): line 3, column" in message
    assert "train.jsonl, record 3 (line 4): image: there is no 'gone.png'" in message


def test_an_item_in_train_and_test_is_a_leak(folder: Path) -> None:
    both(folder, [record("a", "0.png")], [record("b", "0.png")])
    assert "test.json, record 1 (line 2), turn 2: is also in train" in fault(folder)


def test_a_truncated_image_is_found_at_load_unless_told_not_to(folder: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)
    path = folder / "images" / "cut.jpg"
    Pillow.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    both(folder, [record("a", "cut.jpg")])
    assert "train.json, record 1 (line 2)" in fault(folder)
    assert load_stream({"name": str(folder), "check_images": False})


def test_links_out_of_the_folder_need_the_users_word(folder: Path) -> None:
    outside = (folder / "images").rename(folder.parent / "outside")
    (folder / "images").symlink_to(outside)
    both(folder, [record("a", "0.png")])
    assert "if you trust it, name it as image_folder" in fault(folder)
    assert load_stream({"name": str(folder), "image_folder": str(outside)})
    os.unlink(folder / "images")


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ([], "holds no task"),
        (["train.json", "train.jsonl", "test.json"], "holds both train.json and train.jsonl"),
        (["a/train.json", "a/test.json", "b.json"], "both task folders"),
        (["a b/train.json", "a.b/train.json"], "two tasks would be named 'a-b'"),
        (["one.json"], "too few to hold some out"),
    ],
)
def test_unclear_folders_are_refused(folder: Path, files: list[str], reason: str) -> None:
    for index, name in enumerate(files):
        write(folder / name, [record("a", f"{index}.png")])
    assert reason in fault(folder)


# Specs


def test_specs_of_every_kind() -> None:
    digits = {"name": "digits", **SMALL}
    parity = {"name": "parity", **SMALL}
    assert load_stream(digits).name == "digits"
    joined = load_stream([digits, parity])
    assert joined.name == "digits+parity"
    assert [task.name for task in joined.tasks] == ["digits", "parity"]
    assert load_stream(joined) is joined
    assert load_stream([joined, {"name": "counting", **SMALL}]).name == "digits+parity+counting"
    source = load_stream(Digits(train_items=20, test_items=10))
    assert [s.id for s in source.tasks[0].train] == [s.id for s in joined.tasks[0].train]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digitz", "stream: there is neither a stream nor a folder 'digitz'; did you mean digits?"),
        ("./nowhere", "stream: './nowhere' does not exist"),
        ([], "the list of streams is empty"),
        (["digits", "nope"], r"stream\[1\]: there is neither"),
        (3, "is not a stream"),
        ({"folder": "x"}, "give a name"),
        ({"name": "llava_json"}, r"llava_json\.folder: this setting is required"),
        ({"name": "llava_json", "folder": "nowhere"}, "no such folder"),
        ("no.such.module:Source", "cannot import"),
        ([{"name": "digits", **SMALL}, {"name": "digits", **SMALL}], "two tasks are named digits"),
    ],
)
def test_specs_that_name_nothing(spec: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        load_stream(spec)


def test_a_task_without_items_is_refused() -> None:
    class Empty:
        def tasks(self) -> Any:
            return (Digits(**SMALL).tasks()[0].__class__(name="none", train=(), test=()),)

    with pytest.raises(StreamError, match="task none has no train item"):
        load_stream(Empty())
    assert issubclass(StreamError, SettingError)
    assert isinstance(load_stream("digits"), Stream)


def test_the_reader_is_a_source_of_its_own(folder: Path) -> None:
    both(folder, [record("a", "0.png")])
    assert LlavaJson(folder=folder).tasks()[0].name == "mine"


def test_data_beside_train_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text("[]", "utf-8")
    (tmp_path / "tset.json").write_text("[]", "utf-8")
    with pytest.raises(StreamError, match=r"tset\.json: only train and test files .*mean test"):
        load_stream(str(tmp_path))
