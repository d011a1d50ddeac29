"""What a pass of a composed model takes, and what it refuses instead of dropping or resizing it."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_components as tiny
import torch

from clmm.composition import compose

T5 = {
    "model_type": "t5", "vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1,
    "num_heads": 2,
}  # fmt: skip
INSTRUCTED = tiny.PROJECTORS["instruct_q_former"]
KINDS = {"linear": {"name": "linear"}, "gated": tiny.GATED, "instructed": INSTRUCTED}


def made(projector: Any = "linear", **more: Any) -> Any:
    torch.manual_seed(0)
    given: dict[str, Any] = {
        "llm": tiny.LLM, "encoders": {"image": tiny.EYE}, "projectors": {"image": projector},
    }  # fmt: skip
    model = compose(**(given | more))
    for key, weight in model.named_parameters():
        if ".alpha_" in key:  # gates, which are closed at first
            torch.nn.init.constant_(weight, 0.5)
    return model


def pictures(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def picture(model: Any) -> list[int]:
    """The placeholders of one."""
    return [model.config.token_ids["image"]] * model.config.num_tokens("image")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"pixel_values": torch.zeros(2, 3, 20, 20)}, r"\(2, 3, 20, 20\); .*\('media', 3, 16, 16"),
        (
            {"pixel_values": torch.zeros(2, 1, 16, 16)},
            r"pixel_values: torch\.float32 of \(2, 1, 16",
        ),
        (
            {"pixel_values": torch.zeros(3, 16, 16)},
            r"pixel_values: torch\.float32 of \(3, 16, 16\)",
        ),
        (
            {"pixel_values": torch.zeros(2, 3, 16, 16, dtype=torch.uint8)},
            r"pixel_values: torch\.uint8 of .*the model takes floats",
        ),
        ({"image_features": torch.zeros(2, 16, 8)}, r"\(2, 16, 8\); .*\('media', 16, 16\)"),
        ({"image_features": torch.zeros(2, 9, 16)}, r"\(2, 9, 16\); .*\('media', 16, 16\)"),
        (
            {"pixel_values": pictures(2), "image_features": torch.zeros(2, 16, 16)},
            "give pixel_values or image_features, one of them",
        ),
        ({"pixel_values": pictures(1)}, "image tokens in the text, but|placeholders .* for 1"),
        ({"pixel_values": pictures(3)}, "image tokens in the text, but|placeholders .* for 3"),
        ({"pixel_values": pictures(0)}, "image tokens in the text, but no image"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_media_are_as_the_encoder_takes_them(kind: str, given: Any, message: str) -> None:
    model = made(KINDS[kind])
    rows = torch.tensor([[5, *picture(model), 6], [7, *picture(model), 8]])
    words = (
        {"qformer_input_ids": torch.ones(2, 2, dtype=torch.long)} if kind == "instructed" else {}
    )
    with pytest.raises(ValueError, match=message):
        model(input_ids=rows, **given, **words)


@pytest.mark.parametrize("kind", KINDS)
def test_both_media_may_be_one_row_s(kind: str) -> None:
    model = made(KINDS[kind])
    one = picture(model)
    words, ones = {}, {}
    if kind == "instructed":
        words = {"qformer_input_ids": torch.tensor([[1, 2], [3, 4]])}
        ones = {"qformer_input_ids": torch.tensor([[1, 2]])}
    rows = torch.tensor([[5, *one, 6, *one, 7], [9] * (2 * len(one) + 3)])
    both = model(input_ids=rows, pixel_values=pictures(2), **words).logits
    alone = model(input_ids=rows[:1], pixel_values=pictures(2), **ones).logits
    plain = model(input_ids=rows[1:]).logits
    torch.testing.assert_close(both, torch.cat([alone, plain]), rtol=1e-4, atol=1e-5)
    # Pictures are in reading order, and another order is another input.
    other = model(input_ids=rows, pixel_values=pictures(2).flip(0), **words).logits
    assert not torch.allclose(other[0], both[0])
    torch.testing.assert_close(other[1], both[1])


def test_no_token_is_no_input() -> None:
    for shape in ((0, 3), (1, 0)):
        with pytest.raises(ValueError, match="there is no token: give input_ids"):
            made()(input_ids=torch.zeros(shape, dtype=torch.long))
    # An empty pile of pictures is none.
    made()(input_ids=torch.tensor([[5, 6]]), pixel_values=pictures(0))


def test_instructions_are_one_a_row() -> None:
    model = made(INSTRUCTED)
    rows = torch.tensor([[5, *picture(model)], [7, *picture(model)]])
    ids = torch.ones(2, 3, dtype=torch.long)
    for words, message in (
        ({"qformer_input_ids": ids[:1]}, r"instructions are .*\(1, 3\)}, but the text has 2 rows"),
        (
            {"qformer_input_ids": ids, "qformer_attention_mask": ids[:, :2]},
            r"'qformer_attention_mask': \(2, 2\)}",
        ),
        (
            {"qformer_input_ids": torch.ones(2, 10, dtype=torch.long)},
            "an instruction of 10 tokens, but text_length is 9",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            model(input_ids=rows, pixel_values=pictures(2), **words)
    plain = made()
    rows = torch.tensor([[5, *picture(plain)]])
    with pytest.raises(ValueError, match="qformer_input_ids: no input projector reads an instr"):
        plain(input_ids=rows, pixel_values=pictures(1), qformer_input_ids=ids[:1])


@pytest.mark.parametrize("llm", [tiny.LLM, T5])
def test_media_beside_embeddings_are_refused(llm: Any) -> None:
    model = made(llm=llm)
    embeds = torch.randn(1, 4, 16)
    for given in ({"pixel_values": pictures(1)}, {"image_features": torch.zeros(1, 16, 16)}):
        (key,) = given
        with pytest.raises(ValueError, match=f"^{key}: media enter where input_ids have"):
            model(inputs_embeds=embeds, labels=torch.ones(1, 4, dtype=torch.long), **given)
    if llm is T5:
        with pytest.raises(ValueError, match="media enter where input_ids have their tokens"):
            model.generate(inputs_embeds=embeds, pixel_values=pictures(1), max_new_tokens=1)
        with pytest.raises(ValueError, match="give labels or decoder_input_ids"):
            model(inputs_embeds=embeds)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_return_sequences": 3}])
def test_an_answer_says_no_placeholder(kind: str, options: Any) -> None:
    model = made(KINDS[kind])
    token = model.config.token_ids["image"]
    with torch.no_grad():  # it would like to say nothing else
        model.language_model.lm_head.weight.mul_(0.01)
        model.language_model.lm_head.weight[token] = 10 * model.language_model.lm_head.weight[5]
    rows = torch.tensor([[5, *picture(model), 6, 9], [0, 0, 7, *picture(model)]])
    words = (
        {"qformer_input_ids": torch.ones(2, 2, dtype=torch.long)} if kind == "instructed" else {}
    )
    torch.manual_seed(0)
    answers = model.generate(
        input_ids=rows, attention_mask=(rows != 0).long(), pixel_values=pictures(2),
        max_new_tokens=6, do_sample="num_return_sequences" in options, **options, **words,
    )  # fmt: skip
    assert not bool((answers[:, rows.shape[1] :] == token).any())


def test_targets_are_as_the_generator_makes_them() -> None:
    name, spec = tiny.GENERATORS["latent_diffusion"]
    painter = {"image": {**spec, "text_layers": 0}}
    model = made(
        generators=painter, output_projectors={name: tiny.MAPPER}, signals={name: 2}
    )  # fmt: skip
    settings: Any = model.config.media_generator("image")
    model.attach_generator("image", settings.build())
    rows = torch.tensor([[5, *model.config.signal_ids["image"]]])
    model(input_ids=rows, target_image=torch.rand(1, 3, 16, 16)).loss.backward()
    for given, message in (
        ({"target_image": torch.rand(1, 3, 24, 24)}, r"\(3, 24, 24\), and \(3, 16, 16\) is made"),
        ({"target_image": torch.rand(1, 1, 16, 16)}, r"\(1, 16, 16\), and \(3, 16, 16\) is made"),
        ({"target_image": 255 * torch.ones(1, 3, 16, 16)}, r"255 to 255, not floats in \[0, 1\]"),
        ({"target_image": -torch.ones(1, 3, 16, 16)}, r"from -1 to -1, not floats in \[0, 1\]"),
        ({"target_image": torch.full((1, 3, 16, 16), torch.nan)}, r"not floats in \[0, 1\]"),
        (
            {"target_image": torch.ones(1, 3, 16, 16, dtype=torch.uint8)},
            r"torch\.uint8 .*not floats in",
        ),
        ({"target_image_latents": torch.rand(1, 4, 3, 3)}, r"latents are \(4, 3, 3\), and \(4, 8"),
    ):
        with pytest.raises(ValueError, match=rf"^target_image: latent_diffusion: .*{message}"):
            model(input_ids=rows, **given)
    relayed = made(generators={"image": tiny.GENERATORS["text_relay"][1]})
    with pytest.raises(ValueError, match="target_image: text_relay is asked in words"):
        relayed(input_ids=rows[:, :1], target_image=torch.rand(1, 3, 16, 16), labels=rows[:, :1])


def test_sounds_are_as_long_as_they_are_made() -> None:
    model = made(
        generators={"audio": tiny.GENERATORS["audio_diffusion"][1]},
        output_projectors={"audio": {**tiny.MAPPER, "queries": 1}},
        signals={"audio": 2},
    )
    settings: Any = model.config.media_generator("audio")
    model.attach_generator("audio", settings.build())
    rows = torch.tensor([[5, *model.config.signal_ids["audio"]]])
    model(input_ids=rows, target_audio=2 * torch.rand(1, 640) - 1).loss.backward()
    for wave, message in (
        (torch.zeros(1, 700), r"\(700,\), and 160 × 4 samples are made"),
        (torch.full((1, 640), 2.0), r"not floats in \[-1, 1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            model(input_ids=rows, target_audio=wave)
