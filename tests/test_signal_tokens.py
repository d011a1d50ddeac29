"""Signal tokens and the output side of the composed model: what trains and what comes out."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_generators
import torch
from PIL import Image as Pillow
from torch import Tensor
from transformers import AutoModelForMultimodalLM, AutoProcessor, pipeline

from clmm import components, generation_losses, signal_tokens
from clmm.configuration_mmllm import MMLLMConfig
from clmm.modeling_mmllm import MMLLMForConditionalGeneration
from clmm.modeling_outputs import MMLLMOutput, learnt_labels, train_outputs
from clmm.processing_mmllm import MMLLMProcessor, byte_tokenizer
from streams.settings import SettingError

TINY: dict[str, Any] = {
    "name": "tiny_transformer", "hidden": 16, "heads": 2, "encoder_layers": 1, "decoder_layers": 1,
    "mlp": 24, "queries": 24,
}  # fmt: skip
TEXT: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 1,
    "bos_token_id": None,
}  # fmt: skip
COUNTS = {"image": 3, "audio": 2}


def configured(tokenizer: Any, *, tied: bool = False, **more: Any) -> MMLLMConfig:
    ids = signal_tokens.add_to(tokenizer, COUNTS)
    values: dict[str, Any] = {
        "encoders": {"image": {"name": "convnext", "image_size": 24, "patch_size": 4,
                               "hidden_sizes": [8, 16], "depths": [1, 1]}},
        "input_projectors": {"image": {"name": "linear"}},
        "output_projectors": {"image": TINY, "audio": {**TINY, "queries": 1}},
        "generators": {name: tiny_generators.SPECS[name] for name in COUNTS},
        "signal_ids": ids,
        "text_config": {**TEXT, "vocab_size": len(tokenizer), "tie_word_embeddings": tied},
        "token_ids": {"image": tokenizer.convert_tokens_to_ids("<image>")},
    }  # fmt: skip
    return MMLLMConfig(**{**values, **more})


def made(
    *, tied: bool = False, **more: Any
) -> tuple[MMLLMForConditionalGeneration, MMLLMProcessor]:
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    config = configured(tokenizer, tied=tied, **more)
    model = MMLLMForConditionalGeneration(config).eval()
    for name in config.outputs:
        model.attach_generator(name, tiny_generators.built(name))
    images = config.encoder("image").preprocessor()
    tokens = {"image": config.num_tokens("image")}
    return model, MMLLMProcessor(images, tokenizer, tokens, signals=COUNTS)


def batch_of(processor: MMLLMProcessor, *texts: str, side: str = "right") -> dict[str, Tensor]:
    pixels = np.random.default_rng(0).integers(0, 255, (24, 24, 3), dtype=np.uint8)
    images = [pixels for text in texts if "<image>" in text]
    both = processor(
        text=[*texts], images=images, return_tensors="pt", padding=True, padding_side=side
    )
    return dict(both)


# Tokens


def test_one_mark_stands_for_all_signal_tokens() -> None:
    model, processor = made()
    ids = batch_of(processor, "Here [IMG] and [AUD].")["input_ids"][0].tolist()
    image, audio = model.config.signal_ids["image"], model.config.signal_ids["audio"]
    assert processor.tokenizer.convert_ids_to_tokens(image) == ["[IMG0]", "[IMG1]", "[IMG2]"]
    assert ids[5:8] == image
    assert ids[13:15] == audio
    assert processor.tokenizer.decode(ids, skip_special_tokens=True) == "Here  and ."
    with pytest.raises(ValueError, match="image: 0 signal tokens"):
        signal_tokens.add_to(processor.tokenizer, {"image": 0})


def test_later_tokens_are_forced_after_the_first_and_forbidden_elsewhere() -> None:
    forced = signal_tokens.ForcedSignals([[5, 6, 7], [8, 9]])
    last = torch.tensor([[5], [6], [7], [8], [2]])
    allowed = (forced(last, torch.zeros(5, 10)) > -torch.inf).int()  # type: ignore[arg-type]
    free = [1, 1, 1, 1, 1, 1, 0, 0, 1, 0]
    only = torch.eye(10, dtype=torch.int32)
    expected = torch.stack([only[6], only[7], torch.tensor(free), only[9], torch.tensor(free)])
    assert torch.equal(allowed, expected)


def test_spans_are_whole_and_in_reading_order() -> None:
    ids = [5, 6]
    rows, columns = signal_tokens.spans(torch.tensor([[5, 6, 1, 5, 6], [1, 1, 5, 6, 1]]), ids)
    assert rows.tolist() == [0, 0, 1]
    assert columns.tolist() == [[0, 1], [3, 4], [2, 3]]
    rows, columns = signal_tokens.spans(torch.tensor([[1, 2]]), ids)
    assert (rows.shape, columns.shape) == ((0,), (0, 2))
    for wrong in ([[6, 5]], [[5, 1, 6]], [[5]], [[1, 5], [6, 1]]):
        with pytest.raises(ValueError, match="are not whole sequences of 2"):
            signal_tokens.spans(torch.tensor(wrong), ids)


def test_cut_sequences_are_finished_and_missing_ones_put_before_the_end() -> None:
    sequences = torch.tensor([[3, 4, 2, 5], [3, 4, 1, 0], [3, 4, 5, 6]])
    whole, there = signal_tokens.completed(sequences, [[5, 6, 7]], start=1, pad=0)
    assert whole.tolist() == [[3, 4, 2, 5, 6, 7], [3, 4, 1, 0, 0, 0], [3, 4, 5, 6, 7, 0]]
    assert there.tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0]]
    whole, there = signal_tokens.completed(
        sequences, [[5, 6, 7]], start=1, pad=0, ends=[1], wanted=[5, 6, 7]
    )
    assert whole[1].tolist() == [3, 4, 5, 6, 7, 1]


# Training


def targets_of(model: MMLLMForConditionalGeneration, images: int, audios: int) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {
        "target_image": torch.rand(images, 3, 16, 16),
        "target_image_condition": model.generator("image").condition(["a red ring"] * images),
        "target_audio_condition": torch.rand(audios, 1, 16),
    }


@pytest.mark.parametrize("distance", ["mse", "l2norm", "cosine"])
def test_the_loss_has_its_parts(distance: str) -> None:
    weights = {"language_weight": 0.5, "alignment_weight": 2.0, "denoising_weight": 3.0}
    model, processor = made(generation_loss={"alignment": distance, **weights})
    batch = batch_of(processor, "<image>Draw: [IMG]", "Two: [IMG] and [IMG] with [AUD]")
    targets = targets_of(model, 3, 1)
    labels = batch["input_ids"]
    plain = model(**batch, labels=labels, output_hidden_states=True)
    torch.manual_seed(2)
    output = model(**batch, labels=labels, **targets)
    assert isinstance(output, MMLLMOutput)
    torch.testing.assert_close(output.logits, plain.logits)
    torch.testing.assert_close(output.language_loss, plain.loss)
    masked = learnt_labels(model.config, labels)
    assert masked is not None
    torch.testing.assert_close(
        output.language_loss, generation_losses.language(plain.logits, masked)
    )
    made_of = output.conditions
    assert made_of is not None
    assert {name: [*c.shape] for name, c in made_of.items()} == {
        "image": [3, 24, 16], "audio": [1, 1, 16],
    }  # fmt: skip
    rows, columns = signal_tokens.spans(labels, model.config.signal_ids["image"])
    embedded = model.get_input_embeddings()(labels)
    head = model.get_output_embeddings()
    torch.testing.assert_close(head(plain.hidden_states[-1]), plain.logits)  # the last, normed
    states = (plain.hidden_states[-1] + embedded)[rows[:, None], columns]
    torch.testing.assert_close(made_of["image"], model.output_projectors["image"](states))
    aligned = sum(
        generation_losses.alignment(made_of[n], targets[f"target_{n}_condition"], distance)  # type: ignore[arg-type]
        for n in made_of
    )
    torch.testing.assert_close(output.alignment_loss, aligned)
    torch.manual_seed(2)
    denoised = model.generator("image").loss(made_of["image"], media=targets["target_image"])
    torch.testing.assert_close(output.denoising_loss, denoised)
    torch.testing.assert_close(output.loss, 0.5 * plain.loss + 2.0 * aligned + 3.0 * denoised)


def test_only_the_first_signal_is_learnt_unless_all_are() -> None:
    model, processor = made()
    labels = batch_of(processor, "A [IMG]!")["input_ids"]
    assert learnt_labels(model.config, labels)[0].tolist() == [
        *labels[0, :3].tolist(), -100, -100, labels[0, 5].item(),
    ]  # type: ignore[index]  # fmt: skip
    model.config.generation_loss = {"signals": "all"}
    assert learnt_labels(model.config, labels) is labels


@pytest.mark.parametrize("tied", [False, True])
def test_projectors_and_signal_rows_train_and_nothing_else(tied: bool) -> None:
    model, processor = made(tied=tied)
    names = {*model.state_dict()}
    before = copy.deepcopy(model.state_dict())
    generator = copy.deepcopy(model.generator("image").state_dict())
    trained = train_outputs(model)
    ids = [i for one in model.config.signal_ids.values() for i in one]
    rows = sum(p.numel() for p in trained) - sum(
        p.numel() for p in model.output_projectors.parameters()
    )
    assert rows == len(ids) * 32 * (1 if tied else 2)
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in trained}
    batch = batch_of(processor, "Draw: [IMG]", "Sing: [AUD]")
    optimiser = torch.optim.AdamW(trained, lr=0.01, weight_decay=0.5)
    for _ in range(2):
        loss = model(**batch, labels=batch["input_ids"], **targets_of(model, 1, 1)).loss
        optimiser.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)
        assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
        optimiser.step()
    logits = model(**batch).logits
    signal_tokens.keep_rows(model.language_model)
    torch.testing.assert_close(model(**batch).logits, logits)
    after = model.state_dict()
    assert {*after} == names
    for name, value in after.items():
        if "embed_tokens" in name or "lm_head" in name:
            moved = (value != before[name]).any(-1).nonzero().flatten().tolist()
            assert moved == ids, name
        else:
            assert torch.equal(value, before[name]) != name.startswith("output_projectors"), name
    for name, value in model.generator("image").state_dict().items():
        assert torch.equal(value, generator[name])
    if tied:
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    train_outputs(model)  # and once more


def test_what_trained_before_the_rows_still_does() -> None:
    model, _ = made()
    model.requires_grad_(False)
    norm = model.language_model.model.norm.requires_grad_()
    signal_tokens.train_rows(model.language_model, model.config.signal_ids["image"])
    assert norm.weight.requires_grad
    assert not model.get_output_embeddings().weight.requires_grad
    with pytest.raises(ValueError, match="call keep_rows first"):
        signal_tokens.train_rows(model.language_model, [3])


def test_the_predicted_condition_finds_its_own_caption() -> None:
    """36 captions, a chance of 0.03; 6 pairs of a colour and a shape are never trained."""
    torch.manual_seed(0)
    colours = ("red", "green", "blue", "cyan", "white", "pink")
    shapes = ("ring", "star", "cross", "square", "circle", "moon")
    captions = [f"a {colour} {shape}" for colour in colours for shape in shapes]
    tokenizer = byte_tokenizer([" ".join(captions)] * 4, vocabulary=330)  # a word is a token
    spec = {**tiny_generators.SPECS["image"], "condition_length": 6, "vocabulary": len(tokenizer)}
    ids = signal_tokens.add_to(tokenizer, {"image": 3})
    config = MMLLMConfig(
        output_projectors={"image": {**TINY, "queries": 6}},
        generators={"image": spec},
        signal_ids=ids,
        text_config={**TEXT, "vocab_size": len(tokenizer)},
    )
    model = MMLLMForConditionalGeneration(config)
    painter: Any = config.media_generator("image")
    model.attach_generator("image", painter.build(tokenizer))
    texts = [signal_tokens.expand(f"{caption}[IMG]", {"image": 3}) for caption in captions]
    rows = torch.tensor([tokenizer(text).input_ids for text in texts])
    wanted = model.generator("image").condition(captions)
    held_out = torch.arange(0, 36, 7)
    learnt = torch.tensor([i for i in range(36) if i % 7])
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)

    def found() -> Tensor:
        with torch.no_grad():
            made_of = model(input_ids=rows, target_image_condition=wanted).conditions["image"]
        distances = torch.cdist(made_of.flatten(1), wanted.flatten(1))
        return (distances.argmin(1) == torch.arange(36)).float()

    assert found().mean() < 0.1
    for _ in range(230):
        loss = model(input_ids=rows[learnt], target_image_condition=wanted[learnt]).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    right = found()
    assert right[learnt].mean() > 0.9
    assert right[held_out].mean() >= 0.5


def test_output_projectors_are_no_other_component() -> None:
    model, _ = made()
    assert components.find(model) == {
        "encoder": ["encoders"],
        "input_projector": ["input_projectors"],
        "language_model": ["language_model"],
        "output_projector": ["output_projectors"],
    }


# Inference


def test_training_and_inference_see_the_same_states() -> None:
    model, processor = made()
    alone = batch_of(processor, "<image>Draw it: [IMG]")
    prompts = batch_of(processor, "<image>Draw it: ", "A much longer prompt than that", side="left")
    answer = torch.tensor(model.config.signal_ids["image"])

    def write(*args: Any, **kwargs: Any) -> Tensor:
        """An answer that asks for an image and is cut off after the first signal token."""
        return torch.cat([prompts["input_ids"], answer[:1].expand(2, 1)], dim=1)

    seen: list[Tensor] = []
    drawn = model.generator("image").generate
    model.generator("image").generate = lambda h, **o: seen.append(h) or drawn(h, **o)
    model.generate = write  # type: ignore[method-assign]
    media = model.generate_media(**prompts, seed=4)
    assert [[m.output for m in row] for row in media.media] == [["image"], ["image"]]
    target = torch.zeros(1, 24, 16)
    trained = model(**alone, target_image_condition=target).conditions["image"]
    torch.testing.assert_close(seen[0][:1], trained, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(media.media[0][0].media, drawn(seen[0][:1], seed=4)[0])


def test_decoding_makes_whole_sequences_or_none() -> None:
    model, processor = made()
    prompts = batch_of(processor, "Draw", "Sing a song", side="left")
    first, second = model.config.signal_ids["audio"]
    likely = [[[first], 5.0], [[second], 50.0]]
    torch.manual_seed(0)
    media = model.generate_media(
        **prompts, max_new_tokens=12, do_sample=True, steps=1, sequence_bias=likely
    )
    rows, _ = signal_tokens.spans(media.sequences, model.config.signal_ids["audio"])
    assert len(rows) > 2
    assert [len(row) for row in media.media] == [int((rows == i).sum()) for i in range(2)]
    assert all(m.media.shape == (640,) for row in media.media for m in row)
    again = model.generate(**prompts, max_new_tokens=12, generation_mode="image", seed=1)
    assert again.shape == (2, 3, 16, 16)
    with pytest.raises(ValueError, match="'video' has no signal tokens"):
        model.generate_media(**prompts, wanted="video")


def test_words_ask_for_media_where_there_are_no_signals() -> None:
    relay = {"name": "text_relay", "generator": tiny_generators.SPECS["image"]}
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    config = configured(tokenizer, generators={"image": relay}, output_projectors={}, signal_ids={})
    model = MMLLMForConditionalGeneration(config).eval()
    made_of = config.media_generator("image").build()
    made_of.generator.text.tokenizer = tokenizer
    model.attach_generator("image", made_of)
    prompt = tokenizer("Draw. ", return_tensors="pt")["input_ids"]
    said = tokenizer("Modality: [IMAGE] Prompt: a red ring", return_tensors="pt")["input_ids"]
    model.generate = lambda **_: torch.cat([prompt, said], dim=1)  # type: ignore[method-assign]
    media = model.generate_media(input_ids=prompt, tokenizer=tokenizer, seed=3).media
    expected = made_of.generate(["a red ring"], seed=3)
    torch.testing.assert_close(media[0][0].media, expected[0])
    with pytest.raises(ValueError, match="image is asked in words: give the tokenizer"):
        model.generate_media(input_ids=prompt)


# Keeping


def test_the_generator_is_no_part_of_the_model(tmp_path: Path) -> None:
    model, processor = made()
    assert not [key for key in model.state_dict() if "generator" in key or "unet" in key]
    assert not [n for n, _ in model.named_modules() if "unet" in n]
    assert copy.deepcopy(model).generator("image") is model.generator("image")
    assert model.train().generator("image").training is False
    model.generator("image").save(tmp_path / "painter")
    model.config.generators["image"]["folder"] = "painter"
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again: Any = AutoModelForMultimodalLM.from_pretrained(tmp_path).eval()
    assert {*again.state_dict()} == {*model.state_dict()}
    assert {*again.output_modalities} == {"image", "audio", "text"}
    prompts = batch_of(AutoProcessor.from_pretrained(tmp_path), "Draw: [IMG]")
    assert torch.equal(prompts["input_ids"], batch_of(processor, "Draw: [IMG]")["input_ids"])
    options = {"max_new_tokens": 2, "do_sample": False, "wanted": "image", "seed": 9}
    torch.testing.assert_close(
        again.generate_media(**prompts, **options).media[0][0].media,
        model.generate_media(**prompts, **options).media[0][0].media,
    )
    with pytest.raises(ValueError, match=r"generators\.audio: no folder to load it from"):
        again.generator("audio")
    with pytest.raises(
        ValueError, match=r"takes conditions \(24, 16\), the settings say \(1, 16\)"
    ):
        again.attach_generator("audio", tiny_generators.built("image"))


def test_the_stock_pipeline_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = made()
    for name in COUNTS:
        model.generator(name).save(tmp_path / name)
        model.config.generators[name]["folder"] = name
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    # An unsupported class is only logged.
    monkeypatch.setattr("transformers.pipelines.base.logger.error", pytest.fail)
    pipe: Any = pipeline("any-to-any", model=str(tmp_path), device="cpu")
    assert isinstance(pipe.model, MMLLMForConditionalGeneration)
    picture = Pillow.new("RGB", (30, 20), "red")
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "Draw it again."}]
    chat = [{"role": "user", "content": content}]
    said = pipe(text=chat, max_new_tokens=4, return_full_text=False)
    assert isinstance(said[0]["generated_text"], str)
    drawn = pipe(text=chat, max_new_tokens=4, generation_mode="image")[0]["generated_image"]
    assert drawn.size == (16, 16)
    heard = pipe(text=chat, max_new_tokens=4, generation_mode="audio")[0]["generated_audio"]
    assert heard.shape == (640,)
    with pytest.raises(ValueError, match="can be only one of"):
        pipe(text=chat, generation_mode="video")


# What does not fit


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"generators": {}}, r"output_projectors\.image: there is no generators\.image"),
        ({"signal_ids": {"image": [262]}}, r"generators\.audio: audio_diffusion needs signal_ids"),
        ({"signal_ids": {"image": [262], "audio": [262]}}, "2 tokens have 1 ids"),
        ({"output_projectors": {"image": TINY}}, "audio_diffusion needs output_projectors.audio"),
        (
            {"output_projectors": {"image": TINY, "audio": TINY}},
            "tiny_transformer makes 24 tokens, but audio_diffusion wants 1",
        ),
        (
            {"output_projectors": {"image": {"name": "mlp"}, "audio": {**TINY, "queries": 1}}},
            "mlp makes 3 tokens, but alignment with latent_diffusion wants 24",
        ),
        ({"generation_loss": {"allignment": "mse"}}, "did you mean alignment"),
        ({"text_config": {"model_type": "t5"}}, "t5 is an encoder and a decoder"),
    ],
)
def test_outputs_that_do_not_fit(more: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        configured(byte_tokenizer(), **more)


def test_an_mlp_fits_where_nothing_is_aligned() -> None:
    model, processor = made(
        output_projectors={"image": {"name": "mlp"}, "audio": {**TINY, "queries": 1}},
        generation_loss={"alignment_weight": 0},
    )
    batch = batch_of(processor, "Draw: [IMG]")
    output = model(**batch, target_image=torch.rand(1, 3, 16, 16))
    output.loss.backward()
    assert output.conditions["image"].shape == (1, 3, 16)
    projector = model.output_projectors["image"]
    assert all(p.grad is not None for p in projector.parameters())


def test_as_many_targets_as_spans() -> None:
    model, processor = made()
    batch = batch_of(processor, "Draw: [IMG]")
    with pytest.raises(ValueError, match="1 images are asked for in the text, but 2 targets"):
        model(**batch, **targets_of(model, 2, 0))
    embeds = model.get_input_embeddings()(batch["input_ids"])
    with pytest.raises(ValueError, match="need input_ids"):
        model(inputs_embeds=embeds, **targets_of(model, 1, 0))
