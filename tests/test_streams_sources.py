"""The sources that come with the package: separate, stable, balanced, and not to be had blindly."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streams import catalog, phrasings, world
from streams.contents import content_hash
from streams.loading import load_stream
from streams.media import open_image
from streams.sample import Sample
from streams.scoring import blind_floor, yes_or_no
from streams.settings import SettingError
from streams.sources._drawn import Split, side
from streams.sources._handwriting import handwriting, pool
from streams.sources.counting import Counting
from streams.sources.digits import Digits
from streams.sources.easy_vqa import EasyVqa
from streams.sources.parity import Parity
from streams.sources.position import Position, region
from streams.sources.scenes import Scenes
from streams.stream import Task

SPLITS: tuple[Split, Split] = ("train", "test")
SMALL: dict[str, Any] = {"train_items": 240, "test_items": 60}
DEFAULT = load_stream({"name": "default", **SMALL})
EVERY = (
    *DEFAULT.tasks,
    *EasyVqa(questions="yes_no", **SMALL).tasks(),
    *EasyVqa(**SMALL).tasks(),
    *Scenes(**SMALL).tasks(),
)


def content(sample: Sample) -> tuple[Any, ...]:
    """What a sample holds, comparably."""
    messages = [(message.role, message.text) for message in sample.messages]
    hashes = [content_hash(image) for image in sample.images]
    return (sample.id, messages, hashes, sample.reference_text, sample.scorer, sample.provenance)


def test_the_default_stream_has_five_tasks_of_alternating_forms() -> None:
    tasks = load_stream("default").tasks
    names = ["digits", "position", "easy_vqa_color", "parity", "counting"]
    assert [task.name for task in tasks] == names
    assert all(len(task.test) >= 300 for task in tasks)
    forms = [
        "sentence" if " " in s.reference_text else "yes_no" if s.scorer == "yes_no" else "short"
        for s in (task.test[0] for task in tasks)
    ]
    assert set(forms) == {"sentence", "yes_no", "short"}
    assert forms == ["short", "sentence", "short", "yes_no", "short"]


def test_loading_the_default_stream_is_fast() -> None:
    load_stream("default")
    start = time.process_time()
    load_stream("default")
    assert time.process_time() - start < 2


@pytest.mark.parametrize("task", EVERY, ids=lambda task: task.name)
def test_train_and_test_share_no_picture_and_every_id_is_unique(task: Task) -> None:
    train, test = ({content_hash(s.images[0]) for s in part} for part in (task.train, task.test))
    assert not train & test
    ids = [sample.id for sample in (*task.train, *task.test)]
    assert len(set(ids)) == len(ids)
    assert not {s.cluster for s in task.train} & {s.cluster for s in task.test}


@pytest.mark.parametrize("task", EVERY, ids=lambda task: task.name)
def test_samples_are_complete(task: Task) -> None:
    for split, part in (("train", task.train), ("test", task.test)):
        for sample in part[:20]:
            assert sample.provenance.split == split
            assert sample.provenance.licence not in ("", "unknown")
            assert sample.question
            assert sample.reference_text
            assert open_image(sample.images[0]).dtype == np.uint8
            if sample.scorer == "yes_no":
                assert yes_or_no(sample.reference_text)


def test_no_task_trains_on_what_another_tests() -> None:
    """Digits and parity draw the same handwriting in two styles, so pixels cannot tell."""
    first, second = Digits().tasks()[0], Parity(seed=5).tasks()[0]
    tested = {sample.cluster for task in (first, second) for sample in task.test}
    trained = {sample.cluster for task in (first, second) for sample in task.train}
    assert not tested & trained
    pictures, labels = handwriting()
    rows = {split: np.concatenate(pool(split)).astype(int) for split in SPLITS}
    sides = [{pictures[row].tobytes() for row in rows[split]} for split in SPLITS]
    assert not sides[0] & sides[1]
    assert sorted([*rows["train"], *rows["test"]]) == list(range(len(labels)))


def test_the_handwriting_is_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    images, target = load_digits(return_X_y=True)
    pictures, labels = handwriting()
    assert np.array_equal(pictures.reshape(-1, 64) * 16, images)
    assert np.array_equal(labels, target)


@pytest.mark.parametrize("source", [Digits, Parity, EasyVqa, Counting, Position, Scenes])
def test_the_same_seed_gives_the_same_stream_and_another_another(source: Any) -> None:
    def contents(seed: int) -> list[tuple[Any, ...]]:
        tasks = source(train_items=40, test_items=20, seed=seed).tasks()
        return [content(s) for task in tasks for part in (task.train, task.test) for s in part]

    assert contents(3) == contents(3)
    assert contents(3) != contents(4)


@pytest.mark.parametrize("source", [Counting, Position, Digits, EasyVqa])
def test_a_longer_task_begins_like_a_shorter_one(source: Any) -> None:
    short, long = (source(train_items=n, test_items=10).tasks()[0].train for n in (10, 30))
    assert [content(s) for s in short] == [content(s) for s in long[:10]]


@pytest.mark.parametrize(
    ("task", "most"),
    [
        (Digits().tasks()[0], 0.15),
        (Parity().tasks()[0], 0.55),
        (Counting(train_items=600).tasks()[0], 0.25),
        (Position(train_items=600).tasks()[0], 0.35),
        (EasyVqa(questions="short").tasks()[0], 0.35),
        (EasyVqa(questions="color").tasks()[0], 0.15),
        (EasyVqa(questions="yes_no").tasks()[0], 0.5),
    ],
    ids=lambda value: value.name if isinstance(value, Task) else str(value),
)
def test_one_must_look(task: Task, most: float) -> None:
    assert blind_floor(task) <= most


def test_answers_are_balanced() -> None:
    tasks = {task.name: task for task in DEFAULT.tasks}
    for name, kinds in (("digits", 10), ("parity", 2), ("counting", 5)):
        counts = Counter(sample.reference_text for sample in tasks[name].test)
        assert set(counts.values()) == {60 // kinds}, name


def test_nothing_held_out_leaks_into_the_scenes() -> None:
    """Neither attribute pairs nor phrasings of the probes occur in any scene task."""
    held_out = {f"{colour} {shape}" for colour, shape in world.HELD_OUT_PAIRS}
    texts = [
        sample.question + sample.reference_text
        for task in (*Scenes(**SMALL).tasks(), *Position(**SMALL).tasks())
        for sample in (*task.train, *task.test)
    ]
    assert not [text for text in texts for name in held_out if name in text]
    asked = {s.question for s in Scenes(**SMALL).tasks()[1].train}
    assert asked <= set(phrasings.CAPTION)


def test_existence_tells_the_truth() -> None:
    existence, captions = Scenes(**SMALL).tasks()
    assert Counter(s.reference_text for s in existence.test) == {"Yes.": 30, "No.": 30}
    assert all(s.reference_text.endswith(".") for s in captions.test)


def test_a_scene_has_one_side_whatever_the_order_of_its_things() -> None:
    scene = world.random_scene(np.random.default_rng(0), count=4)
    turned = world.Scene(things=scene.things[::-1], background=scene.background)
    assert side(scene) == side(turned)
    scenes = [world.random_scene(np.random.default_rng(i)) for i in range(400)]
    assert 40 < sum(side(scene) == "test" for scene in scenes) < 120


def test_regions_are_well_defined() -> None:
    assert region(world.Thing("ring", "red", 16, 20, 20)) == "upper left"
    assert region(world.Thing("ring", "red", 16, 60, 50)) == "lower right"
    assert region(world.Thing("ring", "red", 16, 44, 20)) is None
    assert region(world.Thing("ring", "red", 16, 20, 30)) is None


def test_drawn_samples_are_a_sequence() -> None:
    train = Counting(**SMALL).tasks()[0].train
    assert train[0] is train[0]
    assert train[-1].id == train[239].id
    assert [s.id for s in train[2:4]] == [train[2].id, train[3].id]
    with pytest.raises(IndexError):
        train[240]


def test_easy_vqa_keeps_paths_and_its_own_split() -> None:
    for split, part in zip(("train", "test"), _parts(EasyVqa(**SMALL).tasks()[0]), strict=True):
        for sample in part:
            path = sample.images[0].source
            assert isinstance(path, Path)
            assert path.is_file()
            assert path.parts[-3] == split
    plain = EasyVqa(questions="yes_no", negations=False, **SMALL).tasks()[0]
    assert not [s for s in plain.train if {"not", "no"} & set(s.question.split())]


def _parts(task: Task) -> tuple[Any, Any]:
    return task.train, task.test


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "default", "test_items": 400}, r"digits\.test_items: got 400.*360"),
        ({"name": "parity", "train_items": 10**6}, r"parity\.train_items: got 1000000"),
        ({"name": "easy_vqa", "test_items": 10**6}, r"easy_vqa\.test_items: got 1000000"),
        ({"name": "counting", "most_things": 9}, r"stream\.counting\.most_things.*9"),
        ({"name": "digits", "train_items": 0}, r"stream\.digits\.train_items"),
        ({"name": "digits", "seed": -1}, r"stream\.digits\.seed"),
        ({"name": "digits", "train_item": 3}, r"did you mean train_items"),
    ],
)
def test_settings_out_of_reach_are_refused(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        load_stream(spec)


def test_every_source_is_listed_with_one_line() -> None:
    lines = catalog.listing("streams.sources")
    assert {"default", "digits", "llava_json", "scenes"} <= set(lines)
    assert all(line.endswith((".", '"')) for line in lines.values())
