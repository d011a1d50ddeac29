"""Compositions by name: what fits is a model that works, what does not is refused with both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

import clmm
from clmm import components, llm
from clmm.composition import compose, compose_file, configuration
from streams.settings import SettingError

LLM = {
    "model_type": "llama", "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
}  # fmt: skip
CLIP = {
    "name": "clip", "image_size": 16, "patch_size": 8, "hidden_size": 16, "depth": 2, "heads": 2,
    "mlp": 16,
}  # fmt: skip


def tiny(**more: Any) -> Any:
    given = {"llm": LLM, "encoders": {"image": CLIP}, "projectors": {"image": "mlp"}}
    return compose(**(given | more))


def refused(**more: Any) -> Any:
    given = {"llm": LLM, "encoders": {"image": CLIP}, "projectors": {"image": "mlp"}}
    return configuration(**(given | more))


def test_the_package_offers_it() -> None:
    assert clmm.compose is compose


def test_a_composition_learns() -> None:
    model = tiny()
    token = model.config.token_ids["image"]
    assert token == 40
    assert model.config.text_config.vocab_size == 41
    ids = torch.tensor([[token] * 4 + [3, 4]])
    model(input_ids=ids, pixel_values=torch.randn(1, 3, 16, 16), labels=ids).loss.backward()
    assert all(p.grad is not None for p in model.input_projectors.parameters())


def test_without_memory_a_published_size_is_counted() -> None:
    model = compose(
        llm="vicuna-13b",
        encoders={"image": "clip"},
        projectors={"image": "linear"},
        device="meta",
    )
    rows = {row.component: row.total for row in components.table(model)}
    assert rows["encoder"] == 303_179_776
    assert rows["input_projector"] == 1024 * 5120 + 5120
    assert rows["language_model"] == 13_015_864_320 + 2 * 5120
    assert all(p.is_meta for p in model.parameters())


def test_a_placeholder_may_be_given() -> None:
    model = tiny(token_ids={"image": 39})
    assert model.config.token_ids == {"image": 39}
    assert model.config.text_config.vocab_size == 40
    with pytest.raises(
        SettingError, match=r"token_ids\.image: 40 is outside of the vocabulary of 40"
    ):
        refused(token_ids={"image": 40})
    with pytest.raises(SettingError, match=r"token_ids\.imge: .*did you mean image\?"):
        refused(token_ids={"imge": 3})


def test_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "llm: {preset: mobilellama-1.4b, num_hidden_layers: 2}\n"
        "encoders: {image: clip}\nprojectors: {image: {name: linear, bias: false}}\n"
    )
    model = compose_file(file, device="meta")
    assert model.config.text_config.num_hidden_layers == 2
    assert model.config.text_config.hidden_size == 2048
    file.write_text("llm: vicuna-7b\nencoder: {image: clip}\n")
    with pytest.raises(
        SettingError, match=r"mine\.yaml: encoder: no such .*did you mean encoders\?"
    ):
        compose_file(file, device="meta")
    file.write_text("llm: vicuna-7b\nencoders: {image: clip}\n")
    with pytest.raises(SettingError, match=r"mine\.yaml: projectors: this setting is required"):
        compose_file(file, device="meta")


def test_a_language_model_that_is_there(tmp_path: Path) -> None:
    torch.manual_seed(0)
    saved = AutoModelForCausalLM.from_config(llm.text_config(LLM))
    saved.save_pretrained(tmp_path)
    model = tiny(llm={"pretrained": str(tmp_path)})
    theirs, ours = saved.state_dict(), model.language_model.state_dict()
    assert theirs.keys() == ours.keys()
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name][: len(weight)], weight)
    assert len(ours["lm_head.weight"]) == 41
    with pytest.raises(SettingError, match=r"llm\.pretrained: '.*' is neither a folder"):
        refused(llm={"pretrained": str(tmp_path / "nothing")})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"llm": "vicuna-7"}, r"llm: there is no 'vicuna-7'; did you mean vicuna-7b\?"),
        ({"llm": {**LLM, "hiden_size": 8}}, r"llm\.hiden_size: llama has no such setting; did you"),
        ({"llm": {"model_type": "lama"}}, r"llm\.model_type: transformers has no 'lama'; did you"),
        ({"llm": {"hidden_size": 8}}, r"llm: give one of preset, model_type and pretrained"),
        ({"llm": 7}, r"llm: give a name, or a mapping with model_type; got 7"),
        ({"encoders": "clip"}, r"encoders: give a mapping, such as .*; got 'clip'"),
        ({"encoders": {"image": 3}}, r"encoders\.image: give a name, or a mapping with it; got 3"),
        (
            {"encoders": {"image": "clp"}},
            r"encoders\.image: there is no 'clp'; did you mean clip\?",
        ),
        ({"projectors": {"image": "mlpp"}}, r"there is no 'mlpp'; did you mean mlp\?"),
        (
            {"encoders": {"audio": CLIP}, "projectors": {"audio": "mlp"}},
            r"encoders\.audio: clip encodes image, not audio; call it image",
        ),
        (
            {"projectors": {"image": {"name": "concat", "group": 3}}},
            r"concat cannot take the 4 features of clip: .*4 features are no multiple of group 3",
        ),
        (
            {"projectors": {"image": {"name": "cross_attention", "queries": 4, "heads": 5}}},
            r"projectors\.image: cross_attention cannot join clip, 4 features of width 16, to "
            r"llama, 2 layers of width 32: .*output width 32 is no multiple of 4 and of heads 5",
        ),
        (
            {"projectors": {"image": {"name": "gated_cross_attention", "every": 4}}},
            r"gated_cross_attention cannot join clip, 4 features of width 16, to llama, 2 layers "
            r"of width 32: .*every 4 of 2 layers",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        refused(**changed)


UNET = {
    "name": "latent_diffusion", "image_size": 16, "channels": [8, 16], "attention": [True, False],
    "layers": 1, "heads": 2, "groups": 4, "vae_channels": [8, 8], "vae_layers": 1,
    "condition_width": 16, "text_layers": 0,
}  # fmt: skip
MAPPER = {"name": "tiny_transformer", "hidden": 16, "heads": 2, "encoder_layers": 1,
          "decoder_layers": 1, "mlp": 32}  # fmt: skip
OUT: dict[str, Any] = {
    "output_projectors": {"image": MAPPER},
    "generators": {"image": UNET},
    "signals": {"image": 2},
}


def test_errors_speak_of_projectors_as_the_file_does() -> None:
    with pytest.raises(SettingError, match=r"^projectors\.image: concat cannot take the"):
        refused(projectors={"image": {"name": "concat", "group": 7}})


def test_an_output_gets_signal_tokens_behind_the_placeholders() -> None:
    config = refused(**OUT)
    assert config.token_ids == {"image": 40}
    assert config.signal_ids == {"image": [41, 42]}
    assert config.text_config.vocab_size == 43
    given = refused(**OUT, signal_ids={"image": [3, 4]})
    assert given.signal_ids == {"image": [3, 4]}
    assert given.text_config.vocab_size == 41
    weighed = refused(**OUT, generation_loss={"alignment": "cosine"})
    assert weighed.loss.alignment == "cosine"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"signals": {}}, r"generators\.image: latent_diffusion needs signal_ids\.image"),
        ({"signals": {"imge": 2}}, r"signals\.imge: .*did you mean image\?"),
        ({"signal_ids": {"image": [3]}}, r"signals\.image: 2, but signal_ids has 1"),
        ({"signal_ids": {"image": [3, 99]}}, r"signal_ids\.image: 99 is outside of the vocabulary"),
        (
            {"output_projectors": {"image": {**MAPPER, "hidden": 8, "exit": False}}},
            r"output_projectors\.image: tiny_transformer cannot join llama, 2 layers of width "
            r"32, to latent_diffusion, width 16: .*width 8 must be the condition's 16",
        ),
        (
            {"output_projectors": {"image": {**MAPPER, "queries": 5}}},
            r"tiny_transformer makes 5 tokens, but alignment with latent_diffusion wants 77",
        ),
        (
            {key: {"audio": value["image"]} for key, value in OUT.items()},
            r"generators\.audio: latent_diffusion generates image, not audio; call it image",
        ),
    ],
)
def test_outputs_that_do_not_fit_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        refused(**(OUT | changed))


def test_an_input_of_another_name_takes_any_modality() -> None:
    model = tiny(
        encoders={"image": CLIP, "second": CLIP}, projectors={"image": "mlp", "second": "linear"}
    )
    assert model.config.token_ids == {"image": 40, "second": 41}


@pytest.mark.parametrize("name", llm.presets())
def test_architectures_are_of_their_published_size(name: str) -> None:
    found = llm.preset(name)
    config = llm.text_config(name)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(config)
    assert sum(p.numel() for p in model.parameters()) == found.parameters
    assert found.summary.endswith(".")
    assert found.source
