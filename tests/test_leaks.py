"""The leak guard: copies and near copies between sets are found, and nothing else is."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from streams import leaks
from streams.loading import load_stream
from streams.media import MediaError
from streams.sample import (
    Audio,
    Image,
    Medium,
    Message,
    Provenance,
    Sample,
    Text,
    Video,
    ask,
)
from streams.stream import Stream, Task


def photo(seed: int, side: int = 64) -> np.ndarray:
    """A smooth picture, as photographs are."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    smooth = Pillow.fromarray(noise).resize((side, side), Pillow.Resampling.BICUBIC)
    return np.array(smooth)


def sample(
    id: str,
    image: np.ndarray | Path | None = None,
    question: str = "What is it?",
    answer: str = "a ring",
) -> Sample:
    return ask(
        id=id,
        question=question,
        answer=answer,
        image=None if image is None else Image(source=image),
        provenance=Provenance(source="mine", split="train", item=f"row {id}"),
    )


def between(first: list[Sample], second: list[Sample]) -> list[leaks.Leak]:
    return leaks.between({"train": first}, {"test": second})


def kinds(first: list[Sample], second: list[Sample]) -> list[tuple[str, str, str]]:
    return [(leak.kind, leak.first.sample, leak.second.sample) for leak in between(first, second)]


def test_the_hash_says_where_it_gets_brighter() -> None:
    ramp = np.repeat(np.arange(9, dtype=np.uint8)[None, :] * 20, 8, axis=0)
    picture = np.repeat(ramp[:, :, None], 3, axis=2)
    assert leaks.dhash(Image(source=picture)) == 2**64 - 1
    assert leaks.dhash(Image(source=picture[:, ::-1].copy())) == 0
    picture[0, 8] = 0  # the top right field: one bit, the eighth from the left
    assert leaks.dhash(Image(source=picture)) == 2**64 - 1 - 2**56
    large = picture.repeat(7, axis=0).repeat(5, axis=1)
    assert leaks.dhash(Image(source=large)) == 2**64 - 1 - 2**56
    for shade in (0, 77, 255):
        assert leaks.dhash(Image(source=np.full((50, 31, 3), shade, dtype=np.uint8))) == 0


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (8, 9), (200, 5), (7, 13)])
def test_the_hash_of_any_shape_is_that_of_plain_averages(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    greys = pixels @ np.array([0.299, 0.587, 0.114])
    rows, columns = ([n * i // count for i in range(count + 1)] for n, count in
                     ((shape[0], 8), (shape[1], 9)))  # fmt: skip

    def field(row: int, column: int) -> float:
        top, left = rows[row], columns[column]
        bottom, right = max(rows[row + 1], top + 1), max(columns[column + 1], left + 1)
        return float(greys[top:bottom, left:right].mean())

    bits = [field(i, j + 1) - field(i, j) > 0.01 for i in range(8) for j in range(8)]
    assert leaks.dhash(Image(source=pixels)) == int("".join("01"[bit] for bit in bits), 2)


def test_the_same_prompt_is_an_exact_leak_whatever_holds_its_pixels(tmp_path: Path) -> None:
    picture = photo(0)
    path = tmp_path / "a.png"
    Pillow.fromarray(picture).save(path)
    train = [sample("far", photo(1)), sample("copy", path, answer="A ring."), sample("text")]
    found = between(train, [sample("x", picture), sample("y"), sample("z", photo(2))])
    assert [(f.kind, f.first.sample, f.second.sample) for f in found] == [
        ("exact", "copy", "x"),
        ("exact", "text", "y"),
    ]
    assert (found[0].distance, found[0].same_answer, found[0].others) == (0, True, 0)
    assert str(found[0]) == "exact, 0 bits: test: x (row x) is in train: copy (row copy)"


def test_a_resized_and_compressed_copy_is_near(tmp_path: Path) -> None:
    picture = photo(3, side=200)
    path = tmp_path / "small.jpg"
    Pillow.fromarray(picture).resize((90, 130)).save(path, quality=60)
    brighter = np.clip(picture.astype(int) + 15, 0, 255).astype(np.uint8)
    others = [sample(str(i), photo(i)) for i in range(4, 40)]
    train = [*others, sample("mine", picture, question="what is it")]
    for changed in (path, brighter):
        (leak,) = between(train, [sample("x", changed, answer="a star")])
        assert (leak.kind, leak.first.sample, leak.same_answer) == ("near", "mine", False)
        assert leak.distance <= leaks.NEAR
        assert "another answer" in str(leak)


def test_another_question_or_picture_or_their_number_is_no_leak() -> None:
    a, b = photo(0), photo(1)
    train = [sample("a", a)]
    assert not kinds(train, [sample("x", a, question="Where is it?")])
    assert not kinds(train, [sample("x", b)])
    assert not kinds(train, [sample("x")])
    assert kinds(train, [sample("x", a, question="What is it")]) == [("near", "a", "x")]


def test_every_picture_of_a_sample_counts() -> None:
    def pair(id: str, *pictures: np.ndarray) -> Sample:
        one = sample(id, pictures[0])
        message = one.messages[0]
        more = tuple(Image(source=picture) for picture in pictures[1:])
        turned = message.__class__(role="user", parts=(*message.parts, *more))
        return Sample(id=id, messages=(turned,), reference=one.reference, provenance=one.provenance)

    a, b, c = (photo(i) for i in range(3))
    train = [pair("ab", a, b)]
    assert kinds(train, [pair("x", a, b)]) == [("exact", "ab", "x")]
    assert not kinds(train, [pair("x", b, a)])
    assert not kinds(train, [pair("x", a, c)])


def test_the_closest_is_named_and_the_others_are_counted() -> None:
    picture = photo(5)
    shifted = np.roll(picture, 1, axis=1)
    train = [sample("shifted", shifted), sample("other", picture, answer="b"),
             sample("same", picture)]  # fmt: skip
    (leak,) = between(train, [sample("x", picture)])
    assert (leak.kind, leak.first.sample) == ("exact", "same")
    assert leak.others == 1 + (
        leaks.dhash(Image(source=shifted)) == leaks.dhash(Image(source=picture))
    )


def test_a_stream_is_checked_across_its_tasks() -> None:
    tasks = tuple(
        Task(
            name=name, train=[sample(f"{name}1", photo(seed))], test=[sample(f"{name}2", photo(t))]
        )
        for name, seed, t in (("a", 1, 2), ("b", 2, 3))
    )
    (leak,) = leaks.check(Stream(name="mine", tasks=tasks))
    assert (leak.first.set, leak.second.set) == ("b train", "a test")


def test_the_default_stream_has_no_exact_leak() -> None:
    stream = load_stream({"name": "default", "train_items": 200, "test_items": 60})
    found = leaks.check(stream)
    assert not [leak for leak in found if leak.kind == "exact"]
    assert all(leak.first.set.split()[0] == leak.second.set.split()[0] for leak in found)


def test_a_broken_picture_is_named(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"gone\.png: there is no such file"):
        between([sample("a", tmp_path / "gone.png")], [])


def test_ten_thousand_samples_take_seconds() -> None:
    """Processor time, not the clock's. One question for all is the worst case."""
    pictures = [photo(i, side=32) for i in range(10_000)]
    train = [sample(str(i), picture) for i, picture in enumerate(pictures[:9000])]
    test = [sample(str(i), picture) for i, picture in enumerate(pictures[9000:])]
    started = time.process_time()
    between(train, [*test, sample("leak", pictures[17])])
    assert time.process_time() - started < 10


def test_other_media_must_be_the_same_bit_for_bit(tmp_path: Path) -> None:
    wave = np.random.default_rng(0).uniform(-1, 1, 400).astype(np.float32)
    other = wave.copy()
    other[0] = 0
    film = np.zeros((3, 8, 8, 3), np.uint8)
    file = tmp_path / "film.npy"
    np.save(file, film)

    def asked(id: str, *media: Medium) -> Sample:
        parts = (*media, Text(text="What is it?"))
        return replace(sample(id), messages=(Message(role="user", parts=parts),))

    sound, changed = (Audio(source=one, sampling_rate=8000) for one in (wave, other))
    train = [asked("sound", sound), asked("film", Video(source=film)), asked("none")]
    assert kinds(train, [asked("a", Audio(source=wave.copy(), sampling_rate=8000))]) == [
        ("exact", "sound", "a")
    ]
    assert kinds(train, [asked("b", Video(source=file))]) == [("exact", "film", "b")]
    assert not kinds(train, [asked("c", changed), asked("d", sound, Video(source=film))])
    assert not kinds(train, [asked("e", replace(sound, sampling_rate=9000))])
    # Beside the same recording pictures are compared as ever.
    shown = photo(1)
    brighter = (shown * 0.9 + 20).astype(np.uint8)
    train = [asked("both", sound, Image(source=shown))]
    assert kinds(train, [asked("f", sound, Image(source=brighter))]) == [("near", "both", "f")]
    assert not kinds(train, [asked("g", changed, Image(source=brighter))])
