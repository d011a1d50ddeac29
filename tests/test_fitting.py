"""What is refused at composition: settings that cannot be, widths, modalities, saved weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_components as tiny
import torch

from clmm import llm
from clmm.composition import compose, configuration
from streams.settings import SettingError

Spec = dict[str, Any]


def refused(message: str, **more: Any) -> None:
    given: dict[str, Any] = {
        "llm": tiny.LLM, "encoders": {"image": tiny.EYE}, "projectors": {"image": "linear"},
    }  # fmt: skip
    with pytest.raises(SettingError, match=message):
        configuration(**(given | more))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"heads": 3}, r"encoders\.image\.hidden_size: 16 is no multiple of heads 3"),
        ({"mlp": 0}, r"encoders\.image\.mlp: 0; give 1 or more"),
        ({"mlp": -1}, r"encoders\.image\.mlp: -1; give 1 or more"),
        ({"mlp": 1.5}, r"encoders\.image\.vit\.mlp: give a whole number; got 1\.5"),
        ({"patch_size": 0}, r"encoders\.image\.patch_size: 0; give 1 or more"),
        ({"image_size": 15}, r"encoders\.image: vit: image_size 15 is no multiple of 4"),
        ({"layers": []}, r"encoders\.image\.layers: names no hidden state"),
        ({"layers": [3]}, r"image\.layers: 3, but depth 2 has the hidden states 0 to 2, or -3 to"),
        ({"layers": [-4]}, r"image\.layers: -4, but depth 2 has"),
    ],
)
def test_an_encoder_that_cannot_be(spec: Spec, message: str) -> None:
    refused(message, encoders={"image": {**tiny.EYE, **spec}})


@pytest.mark.parametrize(
    ("name", "spec", "message"),
    [
        ("image", {**tiny.CLIP, "activation": "x"}, r"encoders\.image: clip cannot be as it is"),
        ("image", {**tiny.SAM, "window": -1}, r"encoders\.image\.window: -1; give 1 or more"),
        ("image", {"name": "open_clip", **tiny.VIT, "position_size": 3}, "3 is less than patch_"),
        ("image", {**tiny.VARY, "eye": tiny.WHISPER}, "whisper encodes audio, not one image"),
        ("audio", {**tiny.BEATS, "furthest": 2}, "furthest 2 is not beyond the 2 distances"),
        ("audio", {**tiny.C_FORMER, "mel_bins": 7}, r"encoders\.audio: c_former cannot be as"),
        ("points", {**tiny.POINTS, "channels": 1}, r"encoders\.points: point_bert cannot be"),
        ("audio", {**tiny.HUBERT, "seconds": float("nan")}, "seconds: nan is no number to build"),
        ("imu", {**tiny.BINDS["imu"], "heads": 3}, r"imu\.hidden_size: 8 is no multiple of heads"),
    ],
)
def test_encoders_of_all_kinds(name: str, spec: Spec, message: str) -> None:
    refused(message, encoders={name: spec}, projectors={name: "linear"})


INSTRUCTED = tiny.PROJECTORS["instruct_q_former"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "concat", "group": 0}, r"input_projectors\.image\.group: 0; give 1 or more"),
        ({"name": "split", "parts": -1}, r"input_projectors\.image\.parts: -1; give 1 or more"),
        ({"name": "mlp", "hidden": 0}, r"input_projectors\.image\.hidden: 0; give 1 or more"),
        ({"name": "expand", "tokens": 0}, r"image\.tokens: 0; give 1 or more"),
        ({"name": "ldp_v2", "grid": 5}, "a grid of 4 x 4 features is less than 5"),
        ({**tiny.PROJECTORS["q_former"], "dropout": 1.0}, r"dropout: 1\.0; give a share below 1"),
        ({**tiny.PROJECTORS["q_former"], "cross_every": -1}, r"cross_every: -1; give 1 or more"),
        ({**tiny.PROJECTORS["mq_former"], "image_features": 16}, "leaves none for the grounding"),
        ({**tiny.PROJECTORS["cross_attention"], "eps": -1.0}, r"eps: -1\.0; give more than 0"),
        # What reads more than features cannot stand inside another.
        (
            {"name": "chain", "projectors": [INSTRUCTED, {"name": "linear"}], "widths": [8]},
            "chain cannot take the 16 features of vit: .*instruct_q_former takes more than",
        ),
        ({"name": "tiles", "tiles": 4, "projector": INSTRUCTED}, "tiles cannot join vit, .*reads"),
        ({**tiny.GATED, "resampler": INSTRUCTED}, "gated_cross_attention cannot join vit, .*reads"),
        ({**tiny.GATED, "resampler": tiny.GATED}, "gated_cross_attention cannot join vit"),
    ],
)
def test_a_projector_that_cannot_join(spec: Spec, message: str) -> None:
    refused(message, projectors={"image": spec})


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"groups": 3}, r"generators\.image: latent_diffusion cannot be as it is set: .*groups"),
        ({"layers": 0}, r"generators\.image\.layers: 0; give 1 or more"),
        ({"scaling": 0.0}, r"generators\.image\.scaling: 0\.0; give more than 0"),
        ({"steps": -1}, r"generators\.image\.steps: -1; give 1 or more"),
        ({"condition_length": 3}, "24 tokens, but alignment with latent_diffusion wants 3"),
        ({"condition_width": 0}, r"condition_width: 0; give 1 or more"),
    ],
)
def test_a_generator_that_cannot_be(spec: Spec, message: str) -> None:
    _, painter = tiny.GENERATORS["latent_diffusion"]
    refused(
        message,
        generators={"image": {**painter, **spec}},
        output_projectors={"image": tiny.MAPPER},
        signals={"image": 2},
    )


def test_an_output_projector_without_layers() -> None:
    refused(
        r"output_projectors\.image\.encoder_layers: 0; give 1 or more",
        generators={"image": tiny.GENERATORS["latent_diffusion"][1]},
        output_projectors={"image": {**tiny.MAPPER, "encoder_layers": 0}},
        signals={"image": 2},
    )


def test_a_map_is_seen_by_an_image_s_encoder() -> None:
    both = {"image": "linear", "depth": "linear"}
    eyes = {"image": tiny.EYE, "depth": {"name": "vcoder"}}
    made = configuration(llm=tiny.LLM, encoders=eyes, projectors=both)
    assert made.encoder("depth").shape == made.encoder("image").shape
    refused(
        r"encoders\.depth: a map is seen as a picture, but the encoder of audio encodes audio",
        encoders={"audio": tiny.WHISPER, "depth": {"name": "vcoder", "of": "audio"}},
        projectors={"audio": "linear", "depth": "linear"},
    )
    refused(
        r"encoders\.audio: vcoder encodes image, not audio",
        encoders={"image": tiny.EYE, "audio": {"name": "vcoder"}},
        projectors={"image": "linear", "audio": "linear"},
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": -1}, r"llm\.num_hidden_layers: -1 is below 0"),
        ({"num_hidden_layers": 0}, "llama, 0 layers of width 16, has nothing in its layers"),
        ({"intermediate_size": 0}, "llama, 2 layers of width 16, (has nothing in|cannot be as it)"),
        ({"hidden_size": 15}, r"llm: llama cannot be as it is set: .*\(15\).*heads \(2\)"),
        ({"hidden_size": "x"}, "llm: llama cannot be as it is set: .*'hidden_size' expected int"),
    ],
)
def test_a_language_model_that_cannot_be(change: Spec, message: str) -> None:
    refused(message, llm={**tiny.LLM, **change})


def test_embeddings_are_as_wide_as_what_media_become() -> None:
    opt = {
        "model_type": "opt", "vocab_size": 40, "hidden_size": 16, "word_embed_proj_dim": 8,
        "ffn_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    }  # fmt: skip
    refused("opt, 1 layers of width 16, takes embeddings of width 8", llm=opt)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 1}, r"llm\.num_hidden_layers: 1, but the weights of .* are of 2"),
        ({"hidden_size": 32}, r"llm\.hidden_size: 32, but the weights of .* are of 16"),
        ({"vocab_size": 50}, r"llm\.vocab_size: 50, but the weights of .* are of 40"),
        ({"tie_word_embeddings": True}, r"tie_word_embeddings: True, but .* are of False"),
        ({"rope_theta": 5e5}, r"llm\.rope_theta: 500000\.0 changes nothing of a saved llama"),
        ({"num_hidden_layers": "x"}, "cannot be changed so: .*'num_hidden_layers' expected int"),
    ],
)
def test_saved_weights_are_of_one_shape(change: Spec, message: str, tmp_path: Path) -> None:
    saved = llm.built(llm.text_config(tiny.LLM))
    saved.save_pretrained(tmp_path)
    refused(message, llm={"pretrained": str(tmp_path), **change})
    same = {"pretrained": str(tmp_path), "num_hidden_layers": 2, "attention_dropout": 0.5}
    made = llm.text_config(same)
    assert (made.num_hidden_layers, made.attention_dropout) == (2, 0.5)


def test_a_check_draws_no_random_number() -> None:
    """What is drawn for the model afterwards is what was drawn without it."""
    torch.manual_seed(3)
    before = torch.get_rng_state()
    configuration(
        llm=tiny.LLM,
        encoders={"image": tiny.EYE, "audio": tiny.C_FORMER},
        projectors={"image": tiny.PROJECTORS["mq_former"], "audio": tiny.GATED},
        generators={"image": tiny.GENERATORS["latent_diffusion"][1]},
        output_projectors={"image": tiny.MAPPER},
        signals={"image": 2},
    )
    assert torch.equal(torch.get_rng_state(), before)


def test_on_the_meta_device_a_model_is_counted_as_before() -> None:
    given: Any = {"encoders": {"image": tiny.EYE}, "projectors": {"image": "linear"}}
    counted = compose(llm=tiny.LLM, device="meta", **given)
    assert counted.num_parameters() == compose(llm=tiny.LLM, **given).num_parameters()


@pytest.mark.parametrize(
    ("llm", "message"),
    [
        ({"num_key_value_heads": 3}, r"has 4 num_attention_heads, no multiple of its 3"),
        ({"max_position_embeddings": 8}, r"one image becomes 16 tokens, but .* has 8 positions"),
    ],
)
def test_heads_and_positions_that_would_fail_later_are_refused(
    llm: dict[str, int], message: str
) -> None:
    words = {
        "model_type": "llama", "vocab_size": 300, "hidden_size": 64, "intermediate_size": 64,
        "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4,
    }  # fmt: skip
    image = {"name": "clip", "image_size": 32, "patch_size": 8, "hidden_size": 32, "depth": 1,
             "heads": 2, "mlp": 32}  # fmt: skip
    with pytest.raises(SettingError, match=message):
        compose(llm=words | llm, encoders={"image": image}, projectors={"image": "linear"})


def test_signals_are_counted_from_one() -> None:
    with pytest.raises(SettingError, match=r"signals\.image: -3; give 1 or more"):
        compose(
            llm={"model_type": "llama"},
            encoders={},
            projectors={},
            generators={"image": "latent_diffusion"},
            output_projectors={"image": "mlp"},
            signals={"image": -3},
        )
