"""The small stream of sounds, motions and solids: its answers are true, and cannot be guessed."""

from __future__ import annotations

from collections import Counter

import numpy as np

from streams.contents import content_hash
from streams.loading import load_stream
from streams.sample import Audio, Points, Sample, Video
from streams.scoring import blind_floor
from streams.sources.senses import Senses

SMALL = Senses(train_items=80, test_items=40)
TONES, MOTIONS, SOLIDS = SMALL.tasks()


def heard(sample: Sample) -> str:
    """By the loudest frequency of each half."""
    (medium,) = sample.media
    assert isinstance(medium, Audio)
    assert isinstance(medium.source, np.ndarray)
    first, second = (np.abs(np.fft.rfft(half)).argmax() for half in np.split(medium.source, 2))
    return "rise" if second > first else "fall"


def seen(sample: Sample) -> str:
    """By where the pixels are that differ from the background, at first and at last."""
    (medium,) = sample.media
    assert isinstance(medium, Video)
    assert isinstance(medium.source, np.ndarray)
    places = [
        np.argwhere(np.abs(frame.astype(int) - frame[0, 0]).sum(axis=2) > 60).mean(axis=0)
        for frame in medium.source[[0, -1]]
    ]
    down, right = places[1] - places[0]
    if abs(down) > abs(right):
        return "down" if down > 0 else "up"
    return "right" if right > 0 else "left"


def touched(sample: Sample) -> str:
    """By distances from the middle line: their spread, and how they grow with height."""
    (medium,) = sample.media
    assert isinstance(medium, Points)
    cloud = np.asarray(medium.source, np.float64)
    cloud -= (cloud.max(axis=0) + cloud.min(axis=0)) / 2
    height = np.ptp(cloud[:, 1]) / 2
    radius = np.hypot(cloud[:, 0], cloud[:, 2]) / height
    y = cloud[:, 1] / height
    if np.std(np.hypot(radius, y)) < 0.1:
        return "sphere"
    middle = np.abs(y) < 0.8
    if np.corrcoef(y[middle], radius[middle])[0, 1] < -0.7:
        return "cone"
    return "cylinder" if np.std(radius[middle]) < 0.08 else "cube"


def test_every_answer_is_true() -> None:
    for task, sense in ((TONES, heard), (MOTIONS, seen), (SOLIDS, touched)):
        for sample in (*task.train, *task.test):
            assert sense(sample) == sample.reference_text, sample.id


def test_answers_are_balanced_and_questions_tell_nothing() -> None:
    for task, answers in ((TONES, 2), (MOTIONS, 4), (SOLIDS, 4)):
        for part in (task.train, task.test):
            counts = Counter(sample.reference_text for sample in part)
            assert set(counts.values()) == {len(part) // answers}
        # With few items a wording may go with an answer by chance.
        assert blind_floor(task) < 1.3 / answers


def test_no_item_is_in_train_and_test_and_a_seed_is_a_stream() -> None:
    again = Senses(train_items=9, test_items=3).tasks()
    other = Senses(train_items=9, test_items=3, seed=1).tasks()
    for task, same, new in zip((TONES, MOTIONS, SOLIDS), again, other, strict=True):
        train, test = ({content_hash(s.media[0]) for s in p} for p in (task.train, task.test))
        assert len(train) + len(test) == len(train | test) >= 119
        mine = [(s.id, content_hash(s.media[0]), s.question) for s in task.train[:9]]
        assert mine == [(s.id, content_hash(s.media[0]), s.question) for s in same.train]
        assert not train & {content_hash(s.media[0]) for s in new.train}


def test_media_are_small_and_of_the_kinds_they_say() -> None:
    kinds = {task.name: task.train[0].media[0].kind for task in load_stream("senses").tasks}
    assert kinds == {"tones": "audio", "motions": "video", "solids": "points"}
    for task in (TONES, MOTIONS, SOLIDS):
        source = task.train[0].media[0].source
        assert isinstance(source, np.ndarray)
        assert source.nbytes < 200_000
    only = load_stream({"name": "senses", "only": ["solids"], "train_items": 2, "test_items": 2})
    assert [task.name for task in only.tasks] == ["solids"]
