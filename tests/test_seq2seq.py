"""An encoder and a decoder as the language model: media before it, answers behind it."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_streams
import torch
from test_batching import MIXED
from transformers import T5Config, T5ForConditionalGeneration

from clmm import components, decoder_rows
from clmm.answering import Answerer
from clmm.batching import Batcher, SampleError
from clmm.configuration_mmllm import MMLLMConfig
from clmm.learner import Learner, batcher_of
from clmm.loading import Loaded, load
from clmm.modeling_mmllm import MMLLMForConditionalGeneration
from clmm.processing_mmllm import MMLLMProcessor, byte_tokenizer
from clmm.strategies.l2p import L2p
from clmm.strategies.lwf import Lwf
from clmm.strategies.sequential_full import SequentialFull
from clmm.strategies.sequential_lora import SequentialLora
from clmm.training import TrainSettings
from streams.sample import Image, Message, Sample, Text
from streams.settings import SettingError

TEXT = {
    "model_type": "t5", "vocab_size": 264, "d_model": 32, "d_ff": 48, "d_kv": 8, "num_heads": 4,
    "num_layers": 2, "num_decoder_layers": 3, "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False, "dropout_rate": 0.0, "pad_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
CLIP = {
    "name": "clip", "image_size": 32, "patch_size": 8, "hidden_size": 16, "depth": 2, "heads": 2,
    "mlp": 16,
}  # fmt: skip
CANDIDATES = [("Yes.", "No, not at all."), ("",), (), ("a",), ("b", "cc")]


def config(**more: Any) -> MMLLMConfig:
    given: dict[str, Any] = {
        "encoders": {"image": CLIP},
        "input_projectors": {"image": {"name": "linear"}},
        "text_config": TEXT,
        "token_ids": {"image": 2},
    }
    return MMLLMConfig(**(given | more))


def made() -> MMLLMForConditionalGeneration:
    torch.manual_seed(0)
    model = MMLLMForConditionalGeneration(config()).eval()
    for weight in model.parameters():
        weight.data.normal_(std=0.3)
    return model


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder = tmp_path_factory.mktemp("t5")
    model = made()
    model.save_pretrained(folder)
    images = model.config.encoder("image").preprocessor()
    MMLLMProcessor(images, byte_tokenizer(), {"image": 16}).save_pretrained(folder)
    return load(folder, device="cpu")


def inputs() -> dict[str, torch.Tensor]:
    ids = torch.tensor([[0, 0, *[2] * 16, 9, 1], [*[2] * 16, 7, 8, 9, 1]])
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "pixel_values": pixels}


def test_it_is_the_language_model_of_transformers_behind_projected_media() -> None:
    model, batch = made(), inputs()
    alone = T5ForConditionalGeneration(T5Config(**(TEXT | {"decoder_start_token_id": 0}))).eval()
    alone.load_state_dict(model.language_model.state_dict())
    embeds = alone.shared(batch["input_ids"])
    media = model.get_image_features(batch["pixel_values"]).flatten(0, 1)
    embeds = embeds.masked_scatter((batch["input_ids"] == 2).unsqueeze(-1), media)
    labels = torch.tensor([[5, 6, 1], [7, 1, -100]])
    mask = batch["attention_mask"]
    expected = alone(inputs_embeds=embeds, attention_mask=mask, labels=labels)
    found = model(**batch, labels=labels)
    torch.testing.assert_close(found.logits, expected.logits)
    torch.testing.assert_close(found.loss, expected.loss)
    for keep, places in ((1, [2]), (torch.tensor([0, 2]), [0, 2])):
        kept = model(**batch, labels=labels, logits_to_keep=keep).logits
        torch.testing.assert_close(kept, expected.logits[:, places])


def test_every_part_learns() -> None:
    model = made()
    model(**inputs(), labels=torch.tensor([[5, 6, 1], [7, 1, -100]])).loss.backward()
    unused = ("encoders.image.model.encoder.layers.1.", "encoders.image.model.post_layernorm.")
    for name, weight in model.named_parameters():
        assert (weight.grad is None) == name.startswith(unused), name


@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}]
)
def test_generation(options: dict[str, Any]) -> None:
    """With a cache and without, from inputs, from their embeddings, from an encoder's outputs."""
    model, batch = made(), inputs()
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, **options}
    expected = model.generate(**batch, **settings)
    assert expected[:, 0].eq(0).all()
    assert torch.equal(model.generate(**batch, **settings, use_cache=False), expected)
    with torch.no_grad():
        heard = model.get_encoder()(**batch)
        embeds, _ = model.embed(batch["input_ids"], batch)
    mask = batch["attention_mask"]
    for given in ({"encoder_outputs": heard}, {"inputs_embeds": embeds}):
        assert torch.equal(model.generate(**given, attention_mask=mask, **settings), expected)
    alone = [
        model.generate(**{key: value[row : row + 1] for key, value in batch.items()}, **settings)
        for row in (0, 1)
    ]
    assert torch.equal(torch.cat(alone), expected)


def test_a_greedy_token_is_the_best_of_a_pass() -> None:
    model, batch = made(), inputs()
    found = model.generate(**batch, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    with torch.no_grad():
        logits = model(**batch, decoder_input_ids=found[:, :-1]).logits
    logits[..., 1] = -torch.inf  # the end, which was put off
    assert torch.equal(logits.argmax(-1), found[:, 1:])


def test_saved_and_loaded(loaded: Loaded) -> None:
    batch = inputs() | {"labels": torch.tensor([[5, 6, 1], [7, 1, -100]])}
    torch.testing.assert_close(loaded.model(**batch).loss, made()(**batch).loss)
    owners = set(components.component_of(loaded.model).values())
    assert owners == {"encoder", "input_projector", "language_model"}


def test_the_cache_has_the_decoder_s_layers() -> None:
    assert config().get_text_config(decoder=True).num_hidden_layers == 3
    assert config().get_text_config().num_hidden_layers == 2
    bart = {
        "model_type": "bart", "vocab_size": 264, "d_model": 32, "encoder_layers": 1,
        "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    }  # fmt: skip
    made = config(text_config=bart)
    assert made.get_text_config(decoder=True).num_hidden_layers == 2
    assert made.text_config.decoder_start_token_id == 2


def test_what_is_not_defined_is_refused() -> None:
    inside = {"name": "gated_cross_attention", "every": 1, "heads": 2}
    with pytest.raises(
        SettingError, match=r"gated_cross_attention works inside a decoder alone; t5"
    ):
        config(input_projectors={"image": inside})
    with pytest.raises(SettingError, match=r"generators: t5 is an encoder and a decoder"):
        config(generators={"image": {"name": "text_relay", "of": "image"}})


def test_prompts_go_to_the_encoder_and_answers_to_the_decoder(loaded: Loaded) -> None:
    batcher = batcher_of(loaded)
    assert batcher.decoder_start == 0
    batch = batcher.training(MIXED)
    prompts = batcher.encode(MIXED)
    for row, (item, prompt) in enumerate(zip(MIXED, prompts, strict=True)):
        ids = batcher.answer_ids(item.reference_text, item.plain)
        assert batch["attention_mask"][row].sum() == len(prompt.ids)
        assert batch["input_ids"][row, : len(prompt.ids)].tolist() == prompt.ids.tolist()
        assert batch["labels"][row, : len(ids)].tolist() == [*ids]
        assert batch["labels"][row, len(ids) :].eq(-100).all()
        assert batch["decoder_input_ids"][row, : len(ids)].tolist() == [0, *ids[:-1]]
    shifted = loaded.model.language_model._shift_right(batch["labels"])
    assert torch.equal(batch["decoder_input_ids"], shifted)


def test_answers_are_what_generate_writes(loaded: Loaded) -> None:
    answerer = Answerer(loaded.model, batcher_of(loaded))
    together = answerer.answer(MIXED, max_new_tokens=5)
    for item, answer in zip(MIXED, together, strict=True):
        assert answerer.answer([item], max_new_tokens=5)[0].text == answer.text
        batch = batcher_of(loaded).prompts([item])
        written = loaded.model.generate(
            **batch, max_new_tokens=5, do_sample=False, suppress_tokens=[2]
        )
        text = loaded.processor.tokenizer.decode(written[0, 1:], skip_special_tokens=True)
        assert answer.text == text.strip()
    drawn = answerer.draw(MIXED[:2], count=3, temperature=1.0, max_new_tokens=4)
    assert [len(row) for row in drawn] == [3, 3]
    answerer.check(MIXED)


def test_log_likelihoods_are_sums_over_the_decoder_s_tokens(loaded: Loaded) -> None:
    batcher = batcher_of(loaded)
    scores = Answerer(loaded.model, batcher).log_likelihood(MIXED, CANDIDATES)
    for item, texts, row in zip(MIXED, CANDIDATES, scores, strict=True):
        for text, score in zip(texts, row, strict=True):
            prompt = batcher.prompts([item])
            ids = torch.tensor([[0, *batcher.answer_ids(text, item.plain)]])
            with torch.no_grad():
                logits = loaded.model(**prompt | {"decoder_input_ids": ids[:, :-1]}).logits
            chances = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])
            assert score == pytest.approx(float(chances.sum()), abs=1e-4)
    one = batcher.training(MIXED[:1])
    tokens = int((one["labels"] != -100).sum())
    [[score]] = Answerer(loaded.model, batcher).log_likelihood(
        MIXED[:1], [[MIXED[0].reference_text]]
    )
    assert float(loaded.model(**one).loss) == pytest.approx(-score / tokens, rel=1e-5)


@pytest.mark.parametrize("strategy", [SequentialLora(), SequentialFull(), Lwf()])
def test_strategies_train_it(strategy: Any, loaded: Loaded) -> None:
    stream = tiny_streams.stream("colour", "yes", train=16)
    settings = TrainSettings(steps=8, batch_size=8, learning_rate=1e-2)
    before = tiny_streams.weights(loaded.model)
    events: list[Any] = []
    with Learner(strategy, loaded, stream, settings, seed=0) as learner:
        learner.train_stage(1, events.append)
        learner.train_stage(2)
        assert len(learner.answering().answer(stream.tasks[0].test, max_new_tokens=4)) == 8
    assert events[-1]["loss"] < events[0]["loss"]
    loaded.model.load_state_dict(before)


def test_the_first_loss_is_the_model_s_own(loaded: Loaded) -> None:
    stream = tiny_streams.stream("colour", train=8)
    settings = TrainSettings(steps=1, batch_size=8, learning_rate=1e-6)
    events: list[Any] = []
    with Learner(SequentialLora(), loaded, stream, settings, seed=0) as learner:
        learner.train_stage(1, events.append)
    batch = Batcher(loaded.processor, decoder_start=0).training(stream.tasks[0].train)
    with torch.no_grad():
        expected = float(loaded.model.eval()(**batch).loss)
    assert events[0]["loss"] == pytest.approx(expected, rel=1e-4)


def test_what_cannot_be_learnt_so_is_refused(loaded: Loaded) -> None:
    stream = tiny_streams.stream("colour", train=8)
    with pytest.raises(
        SettingError, match=r"l2p: .* hands its prompts to an encoder, before which"
    ):
        Learner(L2p(), loaded, stream, TrainSettings(steps=1, batch_size=8), seed=0)
    picture = stream.tasks[0].train[0].images[0]
    whole = Sample(
        id="one",
        messages=(Message(role="user", parts=(Text(text="A"),)),),
        reference=(Image(source=picture.source), Text(text="B")),
        provenance=stream.tasks[0].train[0].provenance,
        plain=True,
    )
    with pytest.raises(SampleError, match=r"sample one .* this model answers in text only"):
        batcher_of(loaded).training([whole])


def test_a_decoder_without_a_start_is_refused() -> None:
    model = made()
    for holder in (model.config.text_config, model.generation_config):
        holder.decoder_start_token_id = None
    with pytest.raises(ValueError, match="has no decoder_start_token_id"):
        decoder_rows.start_of(model)


def test_a_preset_composes() -> None:
    from clmm.composition import compose

    model = compose(
        llm="flan-t5-xl", encoders={"image": "eva_clip"}, projectors={"image": "q_former"},
        device="meta",
    )  # fmt: skip
    assert decoder_rows.start_of(model) == 0
