"""Users' records with video, audio and 3D: found, placed in reading order, or refused by line."""

from __future__ import annotations

import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from streams.loading import StreamError, load_stream
from streams.sample import Audio, Image, Points, Text, Video


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten of each, numbered: `images/0.png`, `videos/0.gif`, `audio/0.wav`, `points/0.npy`."""
    root = tmp_path / "mine"
    for name in ("images", "videos", "audio", "points"):
        (root / name).mkdir(parents=True)
    for number in range(10):
        shade = Pillow.new("RGB", (8, 8), (number, 0, 0))
        shade.save(root / "images" / f"{number}.png")
        shade.save(
            root / "videos" / f"{number}.gif",
            save_all=True,
            append_images=[Pillow.new("RGB", (8, 8), "blue")],
        )
        with wave.open(str(root / "audio" / f"{number}.wav"), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes(np.full(80, 100 * number, "<i2").tobytes())
        np.save(root / "points" / f"{number}.npy", np.full((4, 3), number, np.float32))
    return root


def record(id: Any, question: str, answer: str = "a bell", **media: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": id, **media, "conversations": turns}


def write(folder: Path, *train: Any) -> Path:
    test = record("t", "<image>?", "last", image="9.png")
    for name, records in (("train", train), ("test", (test,))):
        lines = [json.dumps(one) + "\n" for one in records]
        (folder / f"{name}.jsonl").write_text("".join(lines), "utf-8")
    return folder


def test_media_stand_where_their_placeholders_do(folder: Path) -> None:
    text = "<audio>\nThen <video>, then <audio><points>\nand <image>\nWhat?"
    names = {"audio": ["1.wav", "2.wav"], "video": "3.gif", "points": "4.npy", "image": "5.png"}
    (task,) = load_stream(write(folder, record("a", text, **names))).tasks
    parts = task.train[0].messages[0].parts
    kinds = [type(part) for part in parts]
    assert kinds == [Audio, Text, Video, Text, Audio, Points, Text, Image, Text]
    sources = [part.source for part in parts if not isinstance(part, Text)]
    wanted = ("audio/1.wav", "videos/3.gif", "audio/2.wav", "points/4.npy", "images/5.png")
    assert sources == [(folder / name).resolve() for name in wanted]
    assert task.train[0].question == "Then , then and What?"
    assert task.train[0].media == tuple(part for part in parts if not isinstance(part, Text))


def test_each_kind_is_looked_up_in_its_own_folder_first(folder: Path) -> None:
    for name in ("images", "videos"):
        Pillow.new("L", (4, 4)).save(
            folder / name / "same.gif", save_all=True, append_images=[Pillow.new("L", (4, 4), 9)]
        )
    frames = folder / "shots" / "a"
    frames.mkdir(parents=True)
    Pillow.new("RGB", (4, 4)).save(frames / "1.png")
    write(
        folder,
        record("a", "<image><video>", image="same.gif", video="same.gif"),
        record("b", "Hello?", videos=None),
        record("c", "<video>", videos=["shots/a"]),
    )
    both, neither, shots = load_stream(folder).tasks[0].train
    assert [medium.source.parent.name for medium in both.media] == ["images", "videos"]  # type: ignore[union-attr]
    assert neither.media == ()
    assert [medium.source for medium in shots.media] == [frames.resolve()]


def test_records_that_share_a_recording_stay_on_one_side(folder: Path) -> None:
    records = [record(i, "<audio>?", audio=f"{i % 10}.wav") for i in range(40)]
    (folder / "sounds.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    (task,) = load_stream(folder).tasks
    sides = [{str(s.media[0].source) for s in part} for part in (task.train, task.test)]
    assert not sides[0] & sides[1]
    assert (len(sides[0]), len(sides[1]), len(task.test)) == (8, 2, 8)


def test_the_same_question_about_the_same_recording_in_train_and_test_is_refused(
    folder: Path,
) -> None:
    twin = record("a", "<audio>?", audio="1.wav")
    for name in ("train", "test"):
        (folder / f"{name}.jsonl").write_text(json.dumps(twin))
    with pytest.raises(StreamError, match="is also in train"):
        load_stream(folder)
    (folder / "test.jsonl").write_text(json.dumps(record("b", "<audio>?", audio="2.wav")))
    assert load_stream(folder).tasks[0].test


def test_captions_of_recordings_are_pairs(folder: Path) -> None:
    write(folder, record("a", "Describe it.\n<audio>", audio="1.wav"))
    (task,) = load_stream({"name": "pairs", "folder": str(folder)}).tasks
    (heard,) = task.train[0].messages[0].parts
    assert isinstance(heard, Audio)
    write(folder, record("a", "Describe it."))
    with pytest.raises(StreamError, match="has no image or other medium; a pair has one"):
        load_stream({"name": "pairs", "folder": str(folder)})


def test_every_fault_names_file_record_and_line(folder: Path) -> None:
    (folder / "audio" / "notes.wav").write_text("no sound")
    np.save(folder / "points" / "flat.npy", np.zeros((4, 2), np.float32))
    (folder / "videos" / "out.gif").symlink_to(folder.parent)
    cases: list[tuple[Any, str]] = [
        (record("x", "<audio>", audio="gone.wav"), "audio: there is no 'gone.wav' in"),
        (record("x", "<audio>", audio="notes.wav"), "is not a WAV file of plain PCM"),
        (record("x", "<audio>", audio="images/0.png"), "is not a WAV file of plain PCM"),
        (record("x", "<audio>", audio="../x.wav"), "leaves its folder"),
        (record("x", "<video>", video="out.gif"), "leaves its folder"),
        (record("x", "<video>", video="images/0.png"), "is a still picture; name it as image"),
        (record("x", "<video>", video="0.mkv"), "video: there is no '0.mkv'"),
        (record("x", "<video>", video="0.wav"), "0.wav: is no video in a known form"),
        (record("x", "<video>", video="."), "has no number; a folder of frames holds"),
        (record("x", "<points>", points="flat.npy"), "not [4, 2] of float32"),
        (record("x", "<points>", points="images/0.png"), "is no .npy file"),
        (record("x", "<image>", image="audio"), "image: there is no 'audio' in"),
        (record("x", "<points>", points=["0.npy", 3]), "points: must be a path or a list"),
        (record("x", "?", audio="0.wav"), "0 <audio> placeholders for 1 audios"),
        (record("x", "<points>"), "1 <points> placeholders for 0 points"),
        (record("x", "<audio><audio>", audio="0.wav"), "2 <audio> placeholders for 1 audios"),
        (record("x", "<image>", video="0.gif"), "0 <video> placeholders for 1 videos; did you mean "
                                                "<video>?"),
        (record("x", "?", "<audio>"), "turn 2: <audio> in a turn that is not from human"),
        (record("x", "<audio>", audio="0.wav", audios="0.wav"), "has both audio and audios"),
        (record("x", "<video>", vidoe="0.gif"), "vidoe: no such field; did you mean video?"),
        (record("x", "?", rejected="<points>"), "rejected: must be an answer of text alone"),
    ]  # fmt: skip
    for broken, reason in cases:
        write(folder, record("sound", "Hello?"), broken)
        with pytest.raises(StreamError) as caught:
            load_stream(folder)
        message = str(caught.value)
        assert "train.jsonl, record 2 (line 2)" in message, reason
        assert reason in message


def test_a_broken_recording_may_wait_for_training(folder: Path) -> None:
    (folder / "audio" / "notes.wav").write_text("no sound")
    write(folder, record("x", "<audio>", audio="notes.wav"))
    spec = {"name": str(folder), "check_images": False}
    assert load_stream(spec).tasks[0].train
