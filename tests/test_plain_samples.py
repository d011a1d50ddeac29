"""Plain samples: captions and interleaved documents, without a chat template, to pre-train on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import tiny_models
import tiny_streams
import torch

from clmm.answering import Answerer
from clmm.batching import IGNORED, Batcher, SampleError
from clmm.benchmark import Examples
from clmm.learner import Learner
from clmm.loading import Loaded, load
from clmm.strategies.sequential_lora import SequentialLora
from clmm.trainer import TokenLogits
from clmm.training import TrainSettings
from streams.sample import Image, Message, Part, Provenance, Sample, Text
from streams.stream import Stream, Task

IMAGES = [tiny_streams.sample("colour", "train", i).images[0] for i in range(3)]
BORDERS = {
    "llava": ("<image>", "<image>"),
    "qwen2_vl": ("<|vision_start|>", "<|vision_end|>"),
    "idefics3": ("<fake_token_around_image>", "<fake_token_around_image>"),
    "mmllm": ("<image>", "<image>"),
}
"""What an image begins and ends with."""
families = pytest.mark.parametrize("family", BORDERS)


@cache
def tiny(family: str) -> tuple[Loaded, Batcher]:
    if family == "llava":
        loaded = tiny_streams.loaded()
    else:
        loaded = load(tiny_models.FAMILIES[family](Path(mkdtemp()) / family), device="cpu")
    return loaded, Batcher(loaded.processor)


def plain(given: tuple[Part, ...], reference: tuple[Part, ...], id: str = "page") -> Sample:
    return Sample(
        id=id,
        messages=(Message(role="user", parts=given),),
        reference=reference,
        provenance=Provenance(source="tiny", split="train", item=id),
        plain=True,
    )


def text(words: str) -> Text:
    return Text(text=words)


def caption(words: str = "A red square.", image: Image = IMAGES[0], id: str = "page") -> Sample:
    return plain((image,), (text(words),), id)


DOCUMENT = plain(
    (IMAGES[0], text("Once")),
    (text(" upon "), IMAGES[1], text("a time"), IMAGES[2], text("there was.")),
)
BEGINS_WITH_TEXT = plain((), (text("Look: "), IMAGES[0], text("a square.")))


def learnt(family: str, sample: Sample) -> tuple[str, str]:
    """A row's text, and that of its supervised tokens."""
    loaded, batcher = tiny(family)
    batch, decode = batcher.training([sample]), loaded.processor.tokenizer.decode
    labels = batch["labels"][0]
    return decode(batch["input_ids"][0]), decode(labels[labels != IGNORED])


def end(family: str) -> str:
    loaded, batcher = tiny(family)
    return str(loaded.processor.tokenizer.convert_ids_to_tokens(batcher.turns.end_id))


# Captions


@families
def test_a_caption_has_no_template(family: str) -> None:
    row, supervised = learnt(family, caption())
    first, last = BORDERS[family]
    start = "<s>" if family == "llava" else ""  # as Llama's tokenizer does of itself
    assert supervised == "A red square." + end(family)
    assert row.startswith(start + first)
    assert row.endswith(last + supervised)
    assert not any(word in row.lower() for word in ("user", "assistant", "im_start"))


@families
def test_a_text_alone_is_learnt_from_its_first_token(family: str) -> None:
    row, supervised = learnt(family, plain((), (text("Only words."),)))
    assert supervised == "Only words." + end(family)
    # Something has to stand before it; where no start token is, the end of what came before.
    assert row == ("<s>" if family == "llava" else end(family)) + supervised
    row, supervised = learnt(family, plain((text("Once"),), (text(" more."),)))
    assert (row.removeprefix("<s>"), supervised) == (
        "Once more." + end(family),
        " more." + end(family),
    )


@families
def test_plain_samples_are_answered_and_scored_as_they_are_learnt(family: str) -> None:
    loaded, batcher = tiny(family)
    answerer = Answerer(loaded.model, batcher)
    samples = [caption(), plain((), (text("Only words."),), "words"), BEGINS_WITH_TEXT]
    assert len(answerer.answer(samples, max_new_tokens=2)) == 3
    found = answerer.log_likelihood(samples[:2], [["A red square."], ["Only words."]])
    rows = Examples(samples[:2], batcher)
    with torch.no_grad():
        logs = TokenLogits(loaded.model)(rows).log_softmax(dim=1)
    each = logs[torch.arange(rows.tokens), rows.targets]
    expected = [[each[rows.places[0] == row].sum().item()] for row in range(2)]
    assert found[0] == pytest.approx(expected[0], abs=1e-3)
    assert found[1] == pytest.approx(expected[1], abs=1e-3)


# Documents


@families
def test_a_document_is_learnt_in_its_words_alone(family: str) -> None:
    row, supervised = learnt(family, DOCUMENT)
    # Idefics3's processor writes line breaks between the tiles of an image.
    assert supervised.replace("\n", "") == " upon a timethere was." + end(family)
    loaded, batcher = tiny(family)
    batch, token = batcher.training([DOCUMENT]), loaded.processor.image_token_id
    assert not (batch["labels"] == token).any()
    assert int((batch["input_ids"] == token).sum()) % 3 == 0
    first, last = BORDERS[family]
    for words in ("Once upon " + first, last + "a time" + first, last + "there was."):
        assert words in row


@families
def test_a_document_may_begin_with_text(family: str) -> None:
    _, supervised = learnt(family, BEGINS_WITH_TEXT)
    assert supervised.replace("\n", "") == "Look: a square." + end(family)
    loaded, batcher = tiny(family)
    rows = Examples([BEGINS_WITH_TEXT, caption(), DOCUMENT], batcher)
    # Behind a start token the first letter is learnt too; else nothing predicts it.
    words = tiny(family)[0].processor.tokenizer.decode(rows.targets[rows.places[0] == 0])
    assert words.startswith("Look" if family == "llava" else "ook")
    logits = TokenLogits(loaded.model)(rows)
    assert torch.nn.functional.cross_entropy(logits, rows.targets).isfinite()


def test_rows_do_not_depend_on_their_batch() -> None:
    _, batcher = tiny("qwen2_vl")
    chat = tiny_streams.sample("colour", "train", 0)
    samples = [DOCUMENT, chat, caption(), BEGINS_WITH_TEXT]
    together = batcher.training(samples)
    for row, sample in enumerate(samples):
        alone = batcher.training([sample])
        for key in ("input_ids", "labels"):
            width = alone[key].shape[1]
            assert torch.equal(together[key][row, :width], alone[key][0])
        assert (together["labels"][row, width:] == IGNORED).all()


# Limits


def test_a_long_caption_is_cut_and_a_long_document_refused() -> None:
    loaded, whole = tiny("llava")
    length = whole.training([caption()])["input_ids"].shape[1]
    short = Batcher(loaded.processor, max_length=length - 4)
    with pytest.warns(UserWarning, match=f"answers are cut to max_length={length - 4}"):
        batch = short.training([caption()])
    assert batch["input_ids"].shape[1] == length - 4
    assert torch.equal(batch["input_ids"][0], whole.training([caption()])["input_ids"][0, :-4])
    length = whole.training([DOCUMENT])["input_ids"].shape[1]
    assert Batcher(loaded.processor, max_length=length).training([DOCUMENT])
    for bound in (length - 1, length // 2):
        with pytest.raises(SampleError, match=r"sample page .*max_length"):
            Batcher(loaded.processor, max_length=bound).training([DOCUMENT])


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (replace(DOCUMENT, plain=False), "sample page .* its reference holds media"),
        (plain((text("Once"),), (IMAGES[0],)), "sample page .* it has no text"),
        (plain((IMAGES[0],), (text(" "),)), "sample page .* it has no answer"),
        (plain((text("an <image>"),), (text("one"),)), "sample page .* stands for an image"),
        (plain((), (text("<image>"), IMAGES[0])), "sample page .* stands for an image"),
    ],
)
def test_what_cannot_be_learnt_is_refused_by_name(sample: Sample, message: str) -> None:
    with pytest.raises(SampleError, match=message):
        tiny("llava")[1].training([sample])


def test_plain_text_has_no_turns() -> None:
    turns = tuple(Message(role=role, parts=(text("a"),)) for role in ("user", "assistant", "user"))
    with pytest.raises(ValueError, match="sample page: plain text has no turns, but it has 3"):
        replace(caption(), messages=turns)


# The cache


def test_a_plain_and_a_chat_prompt_are_not_the_same_entry() -> None:
    _, batcher = tiny("llava")
    chat = replace(caption(), plain=False)
    for first, second in ((caption(), chat), (chat, caption())):
        fresh = Batcher(batcher.processor)
        a, b = fresh.encode([first])[0], fresh.encode([second])[0]
        assert not (len(a.ids) == len(b.ids) and (a.ids == b.ids).all())
        again = fresh.encode([second, first])
        assert (again[0] is b, again[1] is a) == (True, True)


# Training


def pages(seed: int, count: int = 24) -> list[Sample]:
    kinds: list[Callable[[Any, str, str], Sample]] = [
        lambda image, words, id: caption(words, image, id),
        lambda image, words, id: plain((), (text("Here: "), image, text(words)), id),
        lambda image, words, id: plain((), (text(words),), id),
    ]
    found = []
    for i in range(count):
        drawn = tiny_streams.sample("colour", "train", seed + i)
        words = f"a {drawn.reference_text} square"
        found.append(kinds[i % 3](drawn.images[0], words, f"{seed}-{i}"))
    return found


@pytest.mark.parametrize("family", ["llava", "mmllm"])
def test_continual_pre_training_lowers_the_loss(family: str) -> None:
    names = ("first", "second")
    stream = Stream(
        name="pages",
        tasks=tuple(
            Task(name=name, train=pages(100 * n), test=pages(1000 * (n + 1), 3))
            for n, name in enumerate(names)
        ),
    )
    settings = TrainSettings(steps=15, batch_size=6, learning_rate=2e-2)
    losses: dict[int, list[float]] = {1: [], 2: []}
    with Learner(SequentialLora(), tiny(family)[0], stream, settings, seed=0) as learner:
        for stage in losses:
            learner.train_stage(stage, lambda event: losses[event["stage"]].append(event["loss"]))
        answers = learner.answering().answer(stream.tasks[0].test, max_new_tokens=4)
    assert len(answers) == 3
    # Much for a random head that stays as it is: its logits are small.
    assert max(losses[1][-1], losses[2][0], losses[2][-1]) < losses[1][0] - 0.15
