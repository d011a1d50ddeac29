"""Published streams from files in their official layouts."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from streams import catalog
from streams.loading import StreamError, load_stream
from streams.scoring import references
from streams.settings import SettingError

COIN = ["ScienceQA", "TextVQA", "ImageNet", "GQA", "VizWiz", "Grounding", "VQAv2", "OCR-VQA"]
UCIT = ["ImageNet-R", "ArxivQA", "VizWiz", "IconQA", "CLEVR", "Flickr30k"]
DCL = {"remote-sensing": "RS", "medical": "Med", "driving": "AD", "science": "Sci",
       "finance": "Fin"}  # fmt: skip
TRACE = [
    "C-STANCE",
    "FOMC",
    "MeetingBank",
    "Py150",
    "ScienceQA",
    "NumGLUE-cm",
    "NumGLUE-ds",
    "20Minuten",
]


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(np.zeros((4, 4, 3), dtype=np.uint8)).save(path)


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1), "utf-8")


def taught(name: str, answer: str = "no") -> dict[str, Any]:
    """A record of a training file; the ids of these files are not to be trusted."""
    turns = [
        {"from": "human", "value": "<image>\nIs it open?"},
        {"from": "gpt", "value": answer},
    ]
    return {"id": "same", "image": name, "conversations": turns}


def asked(name: str, answer: Any = "no", **more: Any) -> dict[str, Any]:
    """A record of a test file."""
    return {"question_id": 7, "image": name, "text": "Is it shut?", "answer": answer, **more}


@pytest.fixture
def coin(tmp_path: Path) -> Path:
    root = tmp_path / "coin"
    for task in COIN:
        place = root / "Instructions_Original" / task.replace("-", "")
        name = f"./{task}/images/0.jpg"
        picture(root / "cl_dataset" / name)
        write(place / "train.json", [taught(name), taught(name, "yes")])
        test = "val.json" if task in ("TextVQA", "VizWiz", "VQAv2") else "test.json"
        record = asked(name)
        if task == "Grounding":
            del record["answer"]
            record |= {"answer_bbox": "[0.1, 0.2, 0.5, 0.6]", "size": [640, 480]}
        write(place / test, [record])
    return root


@pytest.fixture
def ucit(tmp_path: Path) -> Path:
    root = tmp_path / "ucit"
    for task in UCIT:
        place, name = root / "instructions" / task, f"./{task}/train/0.jpg"
        picture(root / "datasets" / name)
        train = {"ArxivQA": "train_4w", "CLEVR": "train_4w", "Flickr30k": "train_brief_4w"}
        write(place / f"{train.get(task, 'train')}.json", [taught(name, "a ring on a table")])
        records = [asked(name), asked(name, 3)]
        if task in ("VizWiz", "Flickr30k"):
            for record in records:
                del record["answer"]
            captions = [(1, "a ring"), (2, "two rings"), (1, "one ring"), (2, "rings")]
            notes = [{"id": i, "image_id": n, "caption": c} for i, (n, c) in enumerate(captions)]
            write(place / "val_coco_type_3000.json", {"images": [], "annotations": notes})
        write(place / "test_3000.json", records)
    return root


@pytest.fixture
def dcl(tmp_path: Path) -> Path:
    root = tmp_path / "dcl"
    for place in DCL.values():
        picture(root / place / "images" / "0.png")
        write(root / place / "train.json", [taught("images/0.png")])
        write(root / place / "test.json", [asked("images/0.png", "Yes")])
    return root


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    root = tmp_path / "trace"
    for task in TRACE:
        for split, count in (("train", 40), ("eval", 1), ("test", 20)):
            records = [{"prompt": f"{split} {i}\nStance:", "answer": "A"} for i in range(count)]
            write(root / task / f"{split}.json", records)
    return root


def fault(spec: Any) -> str:
    with pytest.raises(StreamError) as caught:
        load_stream(spec)
    return str(caught.value)


# Layouts


def test_coin(coin: Path) -> None:
    stream = load_stream({"name": "coin", "folder": str(coin)})
    tasks = {task.name: task for task in stream.tasks}
    assert list(tasks) == COIN
    first, second = tasks["GQA"].train
    assert first.images[0].source == (coin / "cl_dataset/GQA/images/0.jpg").resolve()
    assert (first.question, first.reference_text, second.reference_text) == (
        "Is it open?", "no", "yes")  # fmt: skip
    assert first.id != second.id
    assert first.cluster == second.cluster
    (test,) = tasks["GQA"].test
    assert (test.question, len(test.images), test.reference_text) == ("Is it shut?", 1, "no")
    assert test.provenance.source == "CoIN"
    assert test.provenance.item == "GQA: test.json, record 1 (line 2), turn 2"
    assert tasks["Grounding"].test[0].reference_text == "[0.1, 0.2, 0.5, 0.6]"
    assert "overlap" in tasks["Grounding"].description
    scorers = {name: {sample.scorer for sample in task.test} for name, task in tasks.items()}
    assert {name: found for name, found in scorers.items() if found != {"exact"}} == {
        "ScienceQA": {"first_letter"}, "TextVQA": {"vqa"}, "ImageNet": {"contains"},
        "Grounding": {"iou"},
    }  # fmt: skip


def test_what_ten_people_answered_counts(coin: Path) -> None:
    spec = {"name": "coin", "folder": coin, "only": ["TextVQA"]}
    (task,) = load_stream(spec).tasks
    assert "against one answer, without TextVQA_0.5.1_val.json" in task.description
    assert references(task.test[0]) == ("no",)
    people = ["no"] * 2 + ["yes"] * 8
    notes = coin / "cl_dataset" / "TextVQA" / "TextVQA_0.5.1_val.json"
    write(notes, {"data": [{"question_id": 7, "answers": people}]})
    (task,) = load_stream(spec).tasks
    assert "without" not in task.description
    assert references(task.test[0]) == tuple(people)
    assert task.train[0].metadata == {}
    write(notes, {"data": [{"question_id": 7}]})
    assert "expected data, a list of question_id and answers" in fault(spec)


def test_a_reference_without_a_box_is_refused(coin: Path) -> None:
    place = coin / "Instructions_Original" / "Grounding"
    record = asked("./Grounding/images/0.jpg")
    write(place / "test.json", [{**record, "answer_bbox": "[0.1, 0.2]"}])
    message = fault({"name": "coin", "folder": coin, "only": ["Grounding"]})
    assert "'[0.1, 0.2]' holds no box" in message


def test_coin_prefers_the_split_that_has_answers(coin: Path) -> None:
    place = coin / "Instructions_Original" / "TextVQA"
    write(place / "test.json", [asked("./TextVQA/images/0.jpg", "hidden")])
    (task,) = load_stream({"name": "coin", "folder": coin, "only": ["TextVQA"]}).tasks
    assert task.test[0].reference_text == "no"


def test_a_question_without_a_picture_is_text_alone(coin: Path) -> None:
    records = [asked(""), {**taught(""), "image": None}]
    records[1]["conversations"][0]["value"] = "Is it text?"
    write(coin / "Instructions_Original/ScienceQA/test.json", records)
    (task,) = load_stream({"name": "coin", "folder": coin, "only": ["ScienceQA"]}).tasks
    assert [(s.question, s.images) for s in task.test] == [("Is it shut?", ()), ("Is it text?", ())]
    assert task.test[0].cluster != task.test[1].cluster


def test_another_instruction_folder_with_its_pictures_elsewhere(coin: Path) -> None:
    moved = (coin / "Instructions_Original").rename(coin.parent / "Instructions_Type2")
    spec = {"name": "coin", "folder": moved}
    assert "there is no './ScienceQA/images/0.jpg' in" in fault(spec)
    assert len(load_stream({**spec, "image_folder": coin / "cl_dataset"}).tasks) == 8
    assert "image_folder: there is no folder" in fault({**spec, "image_folder": "nowhere"})


def test_ucit_with_captions_beside_it(ucit: Path) -> None:
    tasks = {task.name: task for task in load_stream({"name": "ucit", "folder": ucit}).tasks}
    assert list(tasks) == UCIT
    scorers = {name: {s.scorer for s in (*t.train, *t.test)} for name, t in tasks.items()}
    assert {name for name, found in scorers.items() if found == {"rouge_l"}} == {
        "VizWiz", "Flickr30k"}  # fmt: skip
    flickr = tasks["Flickr30k"].test
    assert [s.reference_text for s in flickr] == ["a ring", "two rings"]
    assert [references(s) for s in flickr] == [("a ring", "one ring"), ("two rings", "rings")]
    assert [s.reference_text for s in tasks["CLEVR"].test] == ["no", "3"]


def test_a_drawn_caption_is_that_of_its_own_record(ucit: Path) -> None:
    spec = {"name": "ucit", "folder": ucit, "only": ["VizWiz"], "test_items": 1}
    found = [load_stream({**spec, "seed": s}).tasks[0].test[0] for s in range(9)]
    pairs = {(s.id, s.reference_text) for s in found}
    assert pairs == {("VizWiz/test/1/1", "a ring"), ("VizWiz/test/2/1", "two rings")}


def test_ucit_as_mcitlib_lays_it_out(ucit: Path) -> None:
    names = {"CLEVR": "CLEVR-Math"}
    for task in UCIT:
        place = (ucit / "instructions" / task).rename(ucit / names.get(task, task))
        next(place.glob("train*.json")).rename(place / "train.json")
        (place / "test_3000.json").rename(place / "test.json")
    (ucit / "instructions").rmdir()
    assert [t.name for t in load_stream({"name": "ucit", "folder": ucit}).tasks] == UCIT


def test_dcl(dcl: Path) -> None:
    (dcl / "Domain_data").mkdir()
    for place in DCL.values():
        (dcl / place).rename(dcl / "Domain_data" / place)
    tasks = load_stream({"name": "dcl", "folder": dcl, "check_images": True}).tasks
    assert [task.name for task in tasks] == list(DCL)
    assert tasks[0].train[0].images[0].source == (dcl / "Domain_data/RS/images/0.png").resolve()
    assert tasks[0].train[0].images[0].source != tasks[1].train[0].images[0].source
    scorers = [task.test[0].scorer for task in tasks]
    assert scorers == ["contains", "contains", "contains", "exact", "exact"]


def test_trace_is_text_and_its_prompts_stay_as_they_are(trace: Path) -> None:
    tasks = load_stream({"name": "trace", "folder": trace}).tasks
    assert [task.name for task in tasks] == TRACE
    assert tasks[1].train[3].question == "train 3\nStance:"
    assert {len(task.train) for task in tasks} == {40}
    scorers = [task.test[0].scorer for task in tasks]
    assert Counter(scorers) == {"exact": 4, "first_letter": 1, "rouge_l": 3}


# Choices


def test_tasks_and_items_are_chosen(trace: Path) -> None:
    spec = {"name": "trace", "folder": trace, "only": ["FOMC", "C-STANCE"]}
    few, more, other = (
        load_stream({**spec, "train_items": n, "test_items": 5, "seed": seed}).tasks
        for n, seed in ((10, 0), (20, 0), (10, 1))
    )
    assert [task.name for task in few] == ["FOMC", "C-STANCE"]
    small, large = ([s.question for s in tasks[0].train] for tasks in (few, more))
    assert (len(small), len(large), len(few[0].test)) == (10, 20, 5)
    assert set(small) < set(large)
    assert small != [s.question for s in other[0].train]
    assert small == sorted(small, key=lambda text: int(text.split()[1]))
    assert small != [s.question for s in few[1].train]
    assert len(load_stream({**spec, "train_items": 99}).tasks[0].train) == 40


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"only": ["FOM"]}, r"trace\.only: there is no task 'FOM'; did you mean FOMC\?"),
        ({"only": []}, r"trace\.only: name each task once, at least one"),
        ({"only": ["FOMC", "FOMC"]}, r"trace\.only: name each task once"),
        ({"train_items": 0}, r"trace\.train_items"),
        ({"image_folder": "x"}, r"image_folder: no such setting"),
    ],
)
def test_bad_choices_are_refused(tmp_path: Path, spec: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        load_stream({"name": "trace", "folder": tmp_path, **spec})


# Faults


def test_missing_files_are_named_together_with_what_was_expected(dcl: Path) -> None:
    (dcl / "Med" / "train.json").unlink()
    (dcl / "Fin" / "test.json").rename(dcl / "Fin" / "tset.json")
    message = fault({"name": "dcl", "folder": dcl})
    assert "task medical: there is no train file; expected train.json in Med or" in message
    assert "task finance: there is no test file; expected test.json in Fin or" in message
    assert "no such folder" in fault({"name": "dcl", "folder": dcl / "nowhere"})


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        ([taught("images/0.png"), 3], "record 2 (line 16): a record must be an object"),
        ([{"text": "What?"}], "answer: must be a text, not None; a record has text and answer"),
        ([asked("images/0.png", ["no"])], "answer: must be a text, not ['no']"),
        ([asked("images/0.png", True)], "answer: must be a text, not True"),
        ([asked("images/0.png", " ")], "the answer is empty"),
        ([{"question": "What?"}], "text: must be a text, not None"),
        ([asked("images/1.png")], "image: there is no 'images/1.png' in"),
        ([asked("../../secret.png")], "leaves its folder"),
        ([{**taught("images/0.png"), "conversations": []}], "conversations: must be a list"),
        ({"data": []}, "must hold a list"),
        ([], "holds no record"),
    ],
)
def test_faults_name_file_record_and_reason(dcl: Path, records: Any, reason: str) -> None:
    file = dcl / "AD" / "test.json"
    write(file, records)
    message = fault({"name": "dcl", "folder": dcl})
    assert f"{file} cannot be used" in message
    assert reason in message
    if isinstance(records, list) and records:
        assert f"test.json, record {len(records)} (line" in message


def test_faults_of_captions_and_pictures(ucit: Path) -> None:
    spec = {"name": "ucit", "folder": ucit, "only": ["VizWiz"]}
    (ucit / "datasets/VizWiz/train/0.jpg").write_bytes(b"no picture")
    assert load_stream(spec)
    assert "not an image in a known format" in fault({**spec, "check_images": True})
    captions = ucit / "instructions/VizWiz/val_coco_type_3000.json"
    write(captions, [1])
    assert "expected annotations, a list of image_id and caption" in fault(spec)
    captions.unlink()
    assert "answer: must be a text, not None" in fault(spec)


def test_every_named_stream_is_listed() -> None:
    lines = catalog.listing("streams.sources")
    for name in ("coin", "ucit", "dcl", "trace"):
        assert len(lines[name]) > 20
