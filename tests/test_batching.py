"""Batches of four families: exact boundaries, padding that changes nothing, errors that name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch

from clmm.batching import IGNORED, Batcher, SampleError
from clmm.components import frozen_encoder, train_only
from clmm.loading import Loaded, load
from streams.sample import Image, Message, Provenance, Sample, Text, ask

ORIGIN = Provenance(source="made up", split="train", item="line 3")


def sample(
    index: int, *, size: tuple[int, int] = (40, 32), images: int = 1, answer: str = ""
) -> Sample:
    """Text lengths, and with `size` image shapes, differ between samples."""
    rng = np.random.default_rng(index)
    pictures = tuple(
        Image(source=rng.integers(0, 255, (*size, 3), dtype=np.uint8)) for _ in range(images)
    )
    question = Text(text="What is thére? " + "x" * (index % 5))
    return Sample(
        id=f"s{index}",
        messages=(Message(role="user", parts=(*pictures, question)),),
        reference=(Text(text=answer or "a thing" + "y" * (index % 3)),),
        provenance=ORIGIN,
    )


MIXED = [
    sample(0),
    sample(1, size=(64, 24)),
    sample(2, images=0),
    sample(3, images=2, size=(24, 80)),
    sample(4, size=(16, 16)),
]


@pytest.fixture(scope="module", params=sorted(tiny_models.FAMILIES))
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder = tmp_path_factory.mktemp(request.param)
    return load(tiny_models.FAMILIES[request.param](folder), device="cpu")


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return load(tiny_models.llava(tmp_path_factory.mktemp("llava")), device="cpu")


def loss_sum(model: Any, batch: dict[str, torch.Tensor]) -> tuple[float, int]:
    """Cross-entropy over all labels, written out."""
    labels = batch["labels"][:, 1:]
    rest = {key: value for key, value in batch.items() if key != "labels"}
    with torch.no_grad():
        logits = model(**rest).logits[:, :-1].double()
    rows, places = (labels != IGNORED).nonzero(as_tuple=True)
    picked = logits.log_softmax(-1)[rows, places, labels[rows, places]]
    return -float(picked.sum()), len(rows)


def test_training_begins_with_exactly_the_prompt_that_answering_uses(loaded: Loaded) -> None:
    batcher = Batcher(loaded.processor)
    for item in MIXED:
        prompt, row = batcher.prompts([item]), batcher.training([item])
        length = prompt["input_ids"].shape[1]
        assert row["input_ids"][0, :length].tolist() == prompt["input_ids"][0].tolist()
        assert (row["labels"][0, :length] == IGNORED).all()
        learnt = row["labels"][0, length:].tolist()
        assert learnt == row["input_ids"][0, length:].tolist()
        assert learnt[-1] == batcher.turns.end_id
        written = loaded.processor.tokenizer.decode(learnt[:-1])
        assert written.removeprefix(batcher.turns.glue) == item.reference_text


def test_a_training_row_is_what_the_template_writes_for_the_whole_conversation(
    loaded: Loaded,
) -> None:
    """Up to the end token; compared with the family's own path, in one piece."""
    item = MIXED[2]
    turns: list[Any] = [
        {"role": "user", "content": [{"type": "text", "text": item.question}]},
        {"role": "assistant", "content": [{"type": "text", "text": item.reference_text}]},
    ]
    whole: Any = loaded.processor.apply_chat_template(turns, tokenize=True, return_dict=True)
    row = Batcher(loaded.processor).training([item])["input_ids"][0].tolist()
    assert np.asarray(whole["input_ids"]).reshape(-1).tolist()[: len(row)] == row


def test_the_loss_of_a_batch_is_the_mean_over_tokens_computed_one_by_one(loaded: Loaded) -> None:
    batcher = Batcher(loaded.processor)
    with torch.no_grad():
        together = float(loaded.model(**batcher.training(MIXED)).loss)
    sums = [loss_sum(loaded.model, batcher.training([item])) for item in MIXED]
    assert together == pytest.approx(sum(s for s, _ in sums) / sum(n for _, n in sums), rel=1e-5)


def test_prompts_are_padded_left_and_training_rows_right(loaded: Loaded) -> None:
    batcher = Batcher(loaded.processor)
    prompts, training = batcher.prompts(MIXED), batcher.training(MIXED)
    assert (prompts["attention_mask"].diff(dim=1) >= 0).all()
    assert (training["attention_mask"].diff(dim=1) <= 0).all()
    assert prompts["attention_mask"][:, -1].all()
    for key in set(prompts) & {"mm_token_type_ids", "token_type_ids"}:
        assert prompts[key].shape == prompts["input_ids"].shape


def test_media_are_joined_as_the_processor_joins_them(loaded: Loaded) -> None:
    seeing = [item for item in MIXED if item.images]
    batcher = Batcher(loaded.processor)
    rendered = [batcher.turns.render(item) for item in seeing]
    theirs = loaded.processor(
        text=rendered,
        images=[[image.source for image in item.images] for item in seeing],
        padding=True,
        return_tensors="pt",
    )
    ours = batcher.prompts(seeing)
    for key in set(theirs) - {"input_ids", "attention_mask", "mm_token_type_ids"}:
        assert torch.equal(ours[key], theirs[key]), key


def test_prompts_of_equal_content_are_processed_once_whatever_their_ids(
    llava: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    batcher = Batcher(llava.processor)
    first = batcher.encode([sample(0)])[0]
    monkeypatch.setattr(batcher, "_encode", lambda _: pytest.fail("processed twice"))
    twin = sample(0, answer="another")
    object.__setattr__(twin, "id", "other")
    assert batcher.encode([twin])[0] is first


def test_the_cache_keeps_to_its_bytes(llava: Loaded) -> None:
    batcher = Batcher(llava.processor, cache_bytes=40_000)
    for index in range(20):
        batcher.encode([sample(index)])
    kept = sum(prompt.size_bytes for prompt in batcher._cache.values())
    assert kept == batcher._cache_bytes <= 40_000
    assert len(batcher._cache) > 1


def test_a_changed_file_is_read_again(llava: Loaded, tmp_path: Path) -> None:
    from PIL import Image as Pillow

    path = tmp_path / "picture.png"
    batcher = Batcher(llava.processor)
    seen = []
    for side, colour in ((32, "red"), (48, "blue")):
        Pillow.new("RGB", (side, side), colour).save(path)
        item = ask(id="x", question="?", answer="!", provenance=ORIGIN, image=Image(source=path))
        seen.append(batcher.prompts([item])["pixel_values"])
    assert not torch.equal(*seen)


def test_features_of_a_frozen_encoder_replace_pixels_and_change_nothing(tmp_path: Path) -> None:
    loaded = load(tiny_models.mmllm(tmp_path), device="cpu")
    train_only(loaded.model, ["language_model"])
    calls = []
    encode = frozen_encoder(loaded.model)
    assert encode is not None

    def counted(pixels: torch.Tensor) -> torch.Tensor:
        calls.append(len(pixels))
        return encode(pixels)

    with torch.inference_mode():  # an answer asks first: training must be able to use what it kept
        kept = Batcher(loaded.processor, encode_images=counted)
        kept.prompts(MIXED)
    plain = Batcher(loaded.processor).training(MIXED)
    fast = kept.training(MIXED)
    assert sum(calls) == 5
    assert "pixel_values" not in fast
    assert fast["image_features"].shape == (5, 16, 32)
    assert not fast["image_features"].is_inference()
    ours, theirs = loaded.model(**fast).loss, loaded.model(**plain).loss
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    ours.backward()


def test_three_rows_of_pixels_are_not_taken_for_three_channels(loaded: Loaded) -> None:
    flat = sample(0, size=(3, 40))
    assert Batcher(loaded.processor).prompts([flat])["pixel_values"].isfinite().all()


def test_a_model_without_chat_template_gets_the_plain_form_and_a_warning(tmp_path: Path) -> None:
    loaded = load(tiny_models.llava(tmp_path, template=False), device="cpu")
    with pytest.warns(UserWarning, match="no chat template; prompts are written as 'USER: <image>"):
        batcher = Batcher(loaded.processor)
    assert batcher.turns.render(sample(4)) == "USER: <image>\nWhat is thére? xxxx ASSISTANT:"
    assert loaded.processor.tokenizer.decode(batcher.answer_ids("Yes")) == " Yes</s>"


def test_a_template_that_drops_lists_of_parts_is_refused(llava: Loaded) -> None:
    import copy

    processor = copy.copy(llava.processor)
    processor.chat_template = "{% for m in messages %}{{ m.content.text }}{% endfor %}"
    with pytest.raises(ValueError, match="leaves out what users say"):
        Batcher(processor)


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (ask(id="bad", question="?", answer=" ", provenance=ORIGIN), "it has no answer"),
        (
            ask(id="bad", question="see <image>", answer="x", provenance=ORIGIN),
            "contains '<image>'",
        ),
        (
            ask(id="bad", question="?", answer="an <image>", provenance=ORIGIN),
            "contains '<image>'",
        ),
        (
            ask(
                id="bad",
                question="?",
                answer="x",
                provenance=ORIGIN,
                image=Image(source=Path("/nowhere.png")),
            ),
            "nowhere.png: there is no such file",
        ),
        (
            Sample(
                id="bad",
                messages=(Message(role="user", parts=(Text(text="?"),)),),
                reference=(Image(source=np.zeros((4, 4, 3), dtype=np.uint8)),),
                provenance=ORIGIN,
            ),
            "answers in text only",
        ),
    ],
)
def test_what_cannot_be_trained_on_is_named(llava: Loaded, item: Sample, reason: str) -> None:
    with pytest.raises(SampleError, match=r"sample bad \(made up, train, line 3\): .*" + reason):
        Batcher(llava.processor).check([sample(0), item])


def test_max_length_never_cuts_media_or_a_whole_answer(llava: Loaded) -> None:
    item = sample(0)
    length = Batcher(llava.processor).prompts([item])["input_ids"].shape[1]
    with pytest.raises(SampleError, match="media included"):
        Batcher(llava.processor, max_length=length - 1).training([item])
    with pytest.raises(SampleError, match=f"{length} \\+ 9 tokens"):
        Batcher(llava.processor, max_length=length).training([item])
    with pytest.raises(SampleError, match=f"{length} \\+ 5 tokens"):
        Batcher(llava.processor, max_length=length + 1).continuations([item], ["Yes"])
    with pytest.warns(UserWarning, match="answers are cut to max_length"):
        row = Batcher(llava.processor, max_length=length + 1).training([item])
    assert int((row["labels"] != IGNORED).sum()) == 1


def test_placeholders_that_differ_from_the_features_are_an_error(
    llava: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    qwen = load(tiny_models.qwen2_vl(tmp_path), device="cpu")
    monkeypatch.setattr(
        type(qwen.processor), "replace_image_token", lambda self, *_, **__: "<|image_pad|>" * 3
    )
    with pytest.raises(SampleError, match=r"s0 .* 20 image features but 3 image placeholders"):
        Batcher(qwen.processor).prompts([sample(0)])
    blind = Batcher(llava.processor)
    blind.turns.processor.chat_template, kept = (
        "{{ messages[0].content[-1].text }}",
        (llava.processor.chat_template),
    )
    try:
        with pytest.raises(SampleError, match="s0"):
            blind.prompts([sample(0)])
    finally:
        llava.processor.chat_template = kept
