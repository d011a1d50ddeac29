"""What models are pre-trained on: drawn domains, users' pairs and documents, all plain."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from streams import world
from streams.contents import content_hash
from streams.loading import StreamError, load_stream
from streams.media import open_image
from streams.sample import Image, Sample, Text
from streams.scoring import blind_floor
from streams.settings import SettingError
from streams.sources.visual_domains import VisualDomains
from streams.stream import Task

NAMES = ["handwriting", "light_shapes", "outlines", "textures"]
DOMAINS = VisualDomains(train_items=120, test_items=48).tasks()


def content(sample: Sample) -> tuple[Any, ...]:
    return (sample.id, content_hash(sample.images[0]), sample.reference_text, sample.provenance)


# Visual domains


def test_four_domains_that_differ_at_a_glance() -> None:
    tasks = load_stream("visual_domains").tasks
    assert [task.name for task in tasks] == NAMES
    assert {(len(task.train), len(task.test)) for task in tasks} == {(2000, 200)}
    shades = {
        task.name: np.mean([open_image(s.images[0]).mean() for s in task.test[:20]])
        for task in tasks
    }
    assert shades["outlines"] > shades["light_shapes"] - 40 > shades["handwriting"]


@pytest.mark.parametrize("task", DOMAINS, ids=lambda task: task.name)
def test_a_domain_is_plain_and_its_pictures_are_its_own(task: Task) -> None:
    for split, part in (("train", task.train), ("test", task.test)):
        for sample in part:
            assert sample.plain
            (image,) = sample.messages[0].parts
            assert isinstance(image, Image)
            assert open_image(image).shape[2] == 3
            assert sample.scorer == "exact"
            words = sample.reference_text.split()
            assert words[0] in ("a", "an")
            assert len(words) in (3, 5)
            assert sample.reference_text.islower()
            assert (sample.provenance.split, sample.provenance.licence != "unknown") == (
                split,
                True,
            )
    hashes = [{content_hash(s.images[0]) for s in part} for part in (task.train, task.test)]
    assert not hashes[0] & hashes[1]
    assert not {s.cluster for s in task.train} & {s.cluster for s in task.test}
    assert len({s.id for s in (*task.train, *task.test)}) == 168
    assert blind_floor(task) < 0.1
    assert len(Counter(s.reference_text for s in task.train)) >= 22


def test_captions_are_true() -> None:
    """What can be checked from pixels: the ink's colour, and how many patterns there are."""
    handwriting, _, outlines, textures = DOMAINS
    for sample in handwriting.test:
        ink = world.COLOURS[sample.reference_text.split()[1]]
        pixels = open_image(sample.images[0]).reshape(-1, 3).astype(int)
        nearest = np.abs(pixels[:, None] - np.array(list(world.COLOURS.values()))).sum(axis=2)
        assert nearest[:, list(world.COLOURS.values()).index(ink)].min() < 60
    for sample in outlines.test:
        dark = open_image(sample.images[0]).mean(axis=2) < 120
        assert dark[:, :36].any()
        assert dark[:, 36:].any()
    kinds = Counter(s.reference_text.split()[1] for s in textures.test)
    assert kinds == {"plain": 12, "striped": 12, "dotted": 12, "checked": 12}
    shades = [np.rint(np.array(colour) * 0.3) for colour in world.COLOURS.values()]
    for sample in textures.test:
        pixels = open_image(sample.images[0])
        dark = max(int((pixels == shade).all(axis=2).sum()) for shade in shades)
        assert (dark > 20) == ("plain" not in sample.reference_text), sample.id


def test_no_caption_names_a_held_out_pair() -> None:
    held_out = {f"{colour} {shape}" for colour, shape in world.HELD_OUT_PAIRS}
    captions = {s.reference_text for task in DOMAINS for s in (*task.train, *task.test)}
    assert not [caption for caption in captions for name in held_out if name in caption]


def test_domains_are_stable_and_lazy() -> None:
    def contents(seed: int, items: int) -> list[tuple[Any, ...]]:
        tasks = VisualDomains(train_items=items, test_items=8, seed=seed).tasks()
        return [content(s) for task in tasks for s in (*task.train[:6], *task.test[:4])]

    assert contents(1, 8) == contents(1, 40)
    assert contents(1, 8) != contents(2, 8)
    tasks = load_stream("visual_domains").tasks
    assert all(made is None for task in tasks for made in task.train._made)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"domains": []}, r"visual_domains\.domains: name each once"),
        ({"domains": ["outlines", "outlines"]}, r"visual_domains\.domains: name each once"),
        ({"domains": ["outline"]}, r"visual_domains\.domains"),
        ({"test_items": 361}, r"visual_domains\.test_items: got 361"),
        ({"train_items": 2600}, r"visual_domains\.train_items: got 2600"),
    ],
)
def test_bad_domains_are_refused(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        load_stream({"name": "visual_domains", **spec})


# Users' files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "mine"
    (root / "images").mkdir(parents=True)
    for index in range(10):
        pixels = np.full((8, 8, 3), index, dtype=np.uint8)
        Pillow.fromarray(pixels).save(root / "images" / f"{index}.png")
    return root


def pair(id: int, caption: str = "a plain grey picture", **more: Any) -> dict[str, Any]:
    turns = [
        {"from": "human", "value": "Render a summary.\n<image>"},
        {"from": "gpt", "value": caption},
    ]
    return {"id": str(id), "image": f"{id}.png", "conversations": turns, **more}


def fault(spec: dict[str, Any]) -> str:
    with pytest.raises(StreamError) as caught:
        load_stream(spec)
    return str(caught.value)


def test_pairs_drop_what_the_human_says(folder: Path) -> None:
    (folder / "chat.json").write_text(json.dumps([pair(i) for i in range(10)]))
    (task,) = load_stream({"name": "pairs", "folder": folder}).tasks
    assert (len(task.train), len(task.test)) == (8, 2)
    sample = task.train[0]
    (image,) = sample.messages[0].parts
    assert isinstance(image, Image)
    assert (sample.plain, sample.question) == (True, "")
    assert (sample.reference_text, sample.scorer) == ("a plain grey picture", "rouge_l")


def test_faults_of_pairs_are_named_together(folder: Path) -> None:
    talk = pair(1)
    talk["conversations"] *= 2
    talk["conversations"][2] = {"from": "human", "value": "More?"}
    text = {**pair(2), "image": None}
    text["conversations"] = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    (folder / "chat.json").write_text(json.dumps([pair(0), talk, text]))
    message = fault({"name": "pairs", "folder": folder})
    assert "record 2 (line 1): has 4 turns; a pair has one of human and one of gpt" in message
    assert "record 3 (line 1): has no image" in message


def documents(folder: Path, *records: Any, file: str = "train") -> dict[str, Any]:
    text = "".join(json.dumps(record) + "\n" for record in records)
    (folder / f"{file}.jsonl").write_text(text)
    return {"name": "documents", "folder": folder}


def test_documents_keep_images_among_text(folder: Path) -> None:
    spec = documents(
        folder,
        {"images": ["0.png", "1.png", None, None, "2.png", None], "metadata": "kept out",
         "texts": [None, None, "Two.", "Grey.", None, "Another."]},
        {"images": [None, "3.png"], "texts": ["Begins with text.", None]},
    )  # fmt: skip
    documents(folder, {"images": ["4.png", None], "texts": [None, "Last."]}, file="test")
    (task,) = load_stream(spec).tasks
    first, second = task.train
    assert [type(part) for part in first.messages[0].parts] == [Image, Image]
    assert [type(part) for part in first.reference] == [Text, Image, Text]
    assert first.reference[0] == Text(text="Two.\n\nGrey.")
    assert first.reference_text == "Two.\n\nGrey.Another."
    assert (second.plain, second.messages[0].parts) == (True, ())
    assert [type(part) for part in second.reference] == [Text, Image]
    assert first.id != second.id
    assert first.provenance.item == "mine: train.jsonl, record 1 (line 1), turn 2"


def test_documents_that_share_a_picture_stay_on_one_side(folder: Path) -> None:
    records = [
        {"images": [f"{i}.png", None, f"{i + 1}.png"], "texts": [None, f"Text {i}.", None]}
        for i in range(0, 3)
    ]
    records += [{"images": [f"{i}.png", None], "texts": [None, "Alone."]} for i in range(5, 10)]
    spec = documents(folder, *records, file="web")
    (task,) = load_stream({**spec, "test_share": 0.4}).tasks

    def shown(samples: Any) -> set[str]:
        parts = [part for s in samples for part in (*s.messages[0].parts, *s.reference)]
        return {str(part.source) for part in parts if isinstance(part, Image)}

    assert shown(task.train)
    assert shown(task.test)
    assert not shown(task.train) & shown(task.test)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (3, "a document must be an object, not 3"),
        ({"images": ["0.png"]}, "texts: must be a list of texts and null, not None"),
        ({"images": [None, 2], "texts": ["a", None]}, "images: must be a list"),
        ({"images": ["0.png"], "texts": [None, "a"]}, "has 1 images and 2 texts"),
        ({"images": ["0.png"], "texts": ["a"]}, "place 1 holds both an image and a text"),
        ({"images": [None], "texts": [None]}, "place 1 holds neither an image nor a text"),
        ({"images": ["0.png"], "texts": [None]}, "has no text, so there is nothing to learn"),
        ({"images": ["x.png", None], "texts": [None, "a"]}, "there is no 'x.png' in"),
        ({"images": ["https://x.org/a.png", None], "texts": [None, "a"]}, "is an address"),
        ({"images": ["0.png", None], "text": [None, "a"]}, "did you mean texts?"),
    ],
)
def test_faults_of_documents(folder: Path, record: Any, reason: str) -> None:
    good = {"images": ["1.png", None], "texts": [None, "Fine."]}
    message = fault(documents(folder, good, record))
    assert "train.jsonl, record 2 (line 2): " in message
    assert reason in message
