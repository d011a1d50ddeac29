"""What a composed model is given: hostile checkpoints, wrong media, tokens that do not fit."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    CLIPVisionConfig,
)

from clmm import key_value_cache, llm, media_rows
from clmm.composition import compose, configuration
from clmm.converting import convert
from clmm.loading import ModelError, load, located
from clmm.processing_mmllm import MMLLMProcessor, byte_tokenizer
from clmm.signal_tokens import add_to
from streams import settings
from streams.settings import SettingError

LLM = {
    "model_type": "llama", "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
    "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None,
}  # fmt: skip
CLIP = {
    "name": "clip", "image_size": 16, "patch_size": 8, "hidden_size": 16, "depth": 2, "heads": 2,
    "mlp": 16,
}  # fmt: skip
WHISPER = {"name": "whisper", "seconds": 1, "hidden_size": 16, "depth": 1, "heads": 2, "mlp": 16}
T5 = {
    "model_type": "t5", "vocab_size": 40, "d_model": 32, "d_kv": 16, "d_ff": 32, "num_layers": 1,
    "num_heads": 2,
}  # fmt: skip


def given(**more: Any) -> dict[str, Any]:
    return {"llm": LLM, "encoders": {"image": CLIP}, "projectors": {"image": "mlp"}} | more


def tiny(**more: Any) -> Any:
    torch.manual_seed(0)
    return compose(**given(**more))


def ids(*rows: list[int]) -> torch.Tensor:
    return torch.tensor([*rows])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.mmllm(tmp_path_factory.mktemp("models") / "ours")


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def changed(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


OUTSIDE = "clmm_test_outside:Outside"
HOSTILE: dict[str, dict[str, Any]] = {
    "encoders.image": {"encoders": {"image": {"name": OUTSIDE}}},
    "input_projectors.image": {"input_projectors": {"image": {"name": OUTSIDE}}},
    "output_projectors.image": {"output_projectors": {"image": {"name": OUTSIDE}}},
    "generators.image": {"generators": {"image": {"name": OUTSIDE}}},
    "encoders.image.encoder": {
        "encoders": {"image": {"name": "tiles", "encoder": {"name": OUTSIDE}}}
    },
    r"input_projectors.image.projectors\[0\]": {
        "input_projectors": {
            "image": {"name": "chain", "projectors": [{"name": OUTSIDE}], "widths": []}
        }
    },
    "text_config.encoders.image": {
        "text_config": {"model_type": "mmllm", "encoders": {"image": {"name": OUTSIDE}}}
    },
    "vision_config.generators.image": {
        "model_type": "llava",
        "vision_config": {"model_type": "mmllm", "generators": {"image": {"name": OUTSIDE}}},
    },
}


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that leaves a file behind when it is imported."""
    ran = tmp_path / "ran"
    (tmp_path / "clmm_test_outside.py").write_text(f"open({str(ran)!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "clmm_test_outside", raising=False)
    return ran


@pytest.mark.parametrize("where", HOSTILE)
def test_a_checkpoint_imports_no_code_of_elsewhere(copied: Path, outside: Path, where: str) -> None:
    changed(copied / "config.json", **HOSTILE[where])
    message = rf"{where}: 'clmm_test_outside:Outside' is code outside the package, which is never"
    with pytest.raises(ModelError, match=message):
        load(copied)
    with pytest.raises(ModelError, match=message):
        located(copied)
    with pytest.raises(ModelError, match=message):
        llm.text_config({"pretrained": str(copied)})
    with pytest.raises(ModelError, match=message):
        convert(copied, copied.parent / "converted")
    assert not outside.exists()


def test_a_configuration_of_another_name_is_looked_into_as_well(
    copied: Path, outside: Path
) -> None:
    config = json.loads((copied / "config.json").read_text())
    config["encoders"] = {"image": {"name": OUTSIDE}}
    (copied / "config.4.0.0.json").write_text(json.dumps(config))
    changed(copied / "config.json", configuration_files=["config.4.0.0.json"])
    with pytest.raises(ModelError, match="code outside the package"):
        load(copied)
    assert not outside.exists()


def test_a_name_with_a_colon_elsewhere_is_no_component(copied: Path) -> None:
    changed(copied / "config.json", name="a: b")
    assert load(copied, device="cpu").model


def saved(folder: Path, **more: Any) -> Path:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(llm.text_config(LLM | more)).save_pretrained(folder)
    return folder


def rewritten(folder: Path, change: Any) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_language_model_without_a_weight_is_not_filled_up(tmp_path: Path) -> None:
    saved(tmp_path)
    rewritten(tmp_path, lambda weights: weights.pop("model.layers.0.mlp.up_proj.weight"))
    with pytest.raises(
        SettingError,
        match=r"llm\.pretrained: .*: 1 weights are missing .*: model\.layers\.0\.mlp\.up_proj",
    ):
        tiny(llm={"pretrained": str(tmp_path)})


def test_a_language_model_with_a_weight_too_many_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    rewritten(tmp_path, lambda weights: weights.update({"model.extra.weight": torch.zeros(2)}))
    with pytest.raises(SettingError, match=r"1 weights have no place .*: model\.extra\.weight$"):
        tiny(llm={"pretrained": str(tmp_path)})


def test_a_tied_head_need_not_be_there(tmp_path: Path) -> None:
    saved(tmp_path, tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    model = tiny(llm={"pretrained": str(tmp_path)})
    tables = model.get_input_embeddings(), model.get_output_embeddings()
    assert tables[0].weight is tables[1].weight
    rewritten(tmp_path, lambda weights: weights.pop("model.embed_tokens.weight"))
    with pytest.raises(SettingError, match=r"weights are missing .*: .*embed_tokens"):
        tiny(llm={"pretrained": str(tmp_path)})


def test_settings_beside_a_saved_model_are_those_of_its_kind(tmp_path: Path) -> None:
    saved(tmp_path)
    source = {"pretrained": str(tmp_path)}
    assert llm.text_config({**source, "attention_dropout": 0.5}).attention_dropout == 0.5
    for key in ("atention_dropout", "local_files_only", "trust_remote_code"):
        with pytest.raises(SettingError, match=rf"llm\.{key}: llama has no such setting; "):
            llm.text_config({**source, key: True})


@pytest.mark.parametrize(
    ("key", "model"),
    [
        ("pixel_values_videos", {}),
        ("input_features", {}),
        ("imu_values", {}),
        ("audio_features", {}),
        ("target_image", {}),
        ("target_video_condition", {}),
        ("pixel_values", {"encoders": {"audio": WHISPER}, "projectors": {"audio": "mlp"}}),
        ("image_features", {"encoders": {"audio": WHISPER}, "projectors": {"audio": "mlp"}}),
        ("input_features", {"llm": T5}),
    ],
)
def test_media_that_the_model_has_no_part_for_are_refused(key: str, model: Any) -> None:
    made = tiny(**model)
    with pytest.raises(ValueError, match=rf"^{key}: the model has no such input or output; inputs"):
        made(input_ids=ids([3, 4]), labels=ids([3, 4]), **{key: torch.zeros(1, 2)})
    made(input_ids=ids([3, 4]), labels=ids([3, 4]), **{key: None})


def test_media_of_no_input_are_refused_in_decoding_too() -> None:
    other = {"encoders": {"audio": WHISPER}, "projectors": {"audio": "mlp"}}
    for model in (tiny(**other), tiny(**other, llm=T5)):
        with pytest.raises(ValueError, match="pixel_values"):
            model.generate(
                input_ids=ids([3, 4]), pixel_values=torch.zeros(1, 3, 16, 16), max_new_tokens=2
            )


def test_what_transformers_hands_on_is_no_medium() -> None:
    model, rows = tiny(), ids([3, 4])
    first = model(input_ids=rows, use_cache=True, output_attentions=True, num_items_in_batch=2)
    again = model(input_ids=ids([5]), **{key_value_cache.NAME: key_value_cache.given(first)})
    whole = model(input_ids=ids([3, 4, 5])).logits[:, -1:]
    torch.testing.assert_close(again.logits, whole)


def test_each_row_holds_whole_media() -> None:
    model = tiny()
    token, media = model.config.token_ids["image"], torch.randn(2, 3, 16, 16)
    fits = ids([token] * 4 + [3, 4], [3, *[token] * 4, 4])
    model(input_ids=fits, pixel_values=media)
    # As many in all: the second picture's first token would stand in the first row.
    slipped = ids([token] * 5 + [3], [3, 4, *[token] * 3, 4])
    with pytest.raises(ValueError, match="row 0 has 5 image tokens, but one image becomes 4"):
        model(input_ids=slipped, pixel_values=media)
    with pytest.raises(ValueError, match="row 1 has 3 image tokens"):
        media_rows.check(slipped[:, 1:] == token, 4, "image")


def test_a_token_means_one_thing() -> None:
    two = given(
        encoders={"image": CLIP, "second": CLIP}, projectors={"image": "mlp", "second": "mlp"}
    )
    with pytest.raises(SettingError, match=r"token_ids\.second: 7 is token_ids\.image's already"):
        configuration(**two, token_ids={"image": 7, "second": 7})
    relay = {"name": "latent_diffusion", "condition_length": 2, "condition_width": 16}
    with pytest.raises(SettingError, match=r"token_ids\.image: 5 is signal_ids\.image's already"):
        configuration(
            **given(),
            generators={"image": relay},
            output_projectors={"image": {"name": "mlp"}},
            signal_ids={"image": [4, 5]},
            token_ids={"image": 5},
        )


def test_frames_are_images() -> None:
    encoders = {"audio": WHISPER, "video": {"name": "frames", "of": "audio"}}
    with pytest.raises(
        SettingError,
        match=r"encoders\.video: frames are images, but the encoder of audio encodes audio",
    ):
        configuration(**given(encoders=encoders, projectors=dict.fromkeys(encoders, "mlp")))


def test_what_is_asked_in_words_makes_what_it_is_called() -> None:
    relay = {"name": "text_relay", "generator": {"name": "latent_diffusion"}}
    assert configuration(**given(), generators={"image": relay, "mine": relay}).outputs
    with pytest.raises(
        SettingError, match=r"generators\.audio: text_relay generates image, not audio"
    ):
        configuration(**given(), generators={"audio": relay})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model_type": "bert"}, "llm: bert is an encoder alone; name a decoder"),
        (BertConfig(), "llm: bert is an encoder alone"),
        ({"model_type": "roberta"}, "llm: roberta is an encoder alone"),
        (CLIPVisionConfig(), "llm: clip_vision_model is no language model"),
    ],
)
def test_a_language_model_says_one_token_after_another(given: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        llm.text_config(given)


def test_a_decoder_of_any_kind_is_a_language_model() -> None:
    assert llm.text_config({"model_type": "bert", "is_decoder": True}).is_decoder
    for kind in ("llama", "t5", "bart", "opt", "gpt2"):
        assert llm.text_config({"model_type": kind}).model_type == kind


def test_a_processor_knows_its_signal_tokens() -> None:
    tokenizer, images = byte_tokenizer(), configuration(**given()).encoder("image").preprocessor()
    with pytest.raises(ValueError, match=r"signals\.image: the tokenizer has no \[IMG0\]; add"):
        MMLLMProcessor(images, tokenizer, {"image": 4}, signals={"image": 2})
    add_to(tokenizer, {"image": 1})
    with pytest.raises(ValueError, match=r"signals\.image: the tokenizer has no \[IMG1\]"):
        MMLLMProcessor(images, tokenizer, {"image": 4}, signals={"image": 2})
    add_to(tokenizer, {"image": 2})
    MMLLMProcessor(images, tokenizer, {"image": 4}, signals={"image": 2})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w.update(extra=torch.zeros(2)),
            "1 weights have no place in the model, first extra",
        ),
        (
            lambda w: w.update({"input_projectors.image.weight": torch.zeros(3, 3)}),
            r"first input_projectors\.image\.weight, which is \[3, 3\] and should be \[32, 32\]",
        ),
        (
            lambda w: w.update(
                {"input_projectors.image.weight": torch.zeros(32, 32, dtype=torch.int8)}
            ),
            r"input_projectors\.image\.weight is I8, no float; it is quantised",
        ),
        (
            lambda w: w.pop("input_projectors.image.bias"),
            r"missing .*input_projectors\.image\.bias",
        ),
    ],
)
def test_weights_are_those_of_the_configuration(change: Any, message: str, copied: Path) -> None:
    rewritten(copied, change)
    with pytest.raises(ModelError, match=message):
        load(copied, device="cpu")


def test_a_saved_composition_that_cannot_be_says_why(copied: Path) -> None:
    encoders = json.loads((copied / "config.json").read_text())["encoders"]
    encoders["image"]["heads"] = 3
    changed(copied / "config.json", encoders=encoders)
    with pytest.raises(ModelError, match=r"copy: encoders\.image\.hidden_size: 32 is no multiple"):
        load(copied, device="cpu")


def test_processor_and_model_count_alike(copied: Path) -> None:
    assert load(copied, device="cpu").processor.num_tokens == {"image": 16}
    changed(copied / "processor_config.json", num_tokens={"image": 9})
    with pytest.raises(
        ModelError, match="the processor makes 9 tokens of one image, the model 16; config"
    ):
        load(copied, device="cpu")
    changed(copied / "processor_config.json", num_tokens={"image": 16})
    token = json.loads((copied / "config.json").read_text())["token_ids"]["image"]
    changed(copied / "config.json", token_ids={"image": token + 1})
    with pytest.raises(
        ModelError, match=rf"placeholder of one image has the id {token}, the model's {token + 1};"
    ):
        load(copied, device="cpu")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"encoders": {"image": {**CLIP, "depth": 0}}}, r"encoders\.image\.depth: 0; give 1"),
        ({"encoders": {"image": {**CLIP, "heads": -2}}}, r"encoders\.image\.heads: -2; give 1"),
        ({"encoders": {"image": {**CLIP, "image_size": 0}}}, r"encoders\.image\.image_size: 0;"),
        (
            {"encoders": {"image": {"name": "tiles", "encoder": {**CLIP, "depth": 0}}}},
            r"encoders\.image\.encoder\.depth: 0; give 1 or more",
        ),
        (
            {"projectors": {"image": {"name": "cross_attention", "queries": 0}}},
            r"input_projectors\.image\.queries: 0; give 1 or more",
        ),
        (
            {
                "projectors": {
                    "image": {
                        "name": "chain",
                        "projectors": [{"name": "q_former", "queries": -1}, {"name": "linear"}],
                        "widths": [8],
                    }
                }
            },
            r"input_projectors\.image\.projectors\.queries: -1; give 1 or more",
        ),
    ],
)
def test_sizes_are_above_nothing(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        configuration(**given(**changed))


@pytest.mark.parametrize("name", ["clip", "open_clip", "vit", "eva_clip"])
def test_an_image_of_two_sides_has_patches_of_both(name: str) -> None:
    encoder: Any = settings.from_spec("clmm.encoders", {**CLIP, "name": name}, where="image")
    extra = encoder.num_tokens((3, 16, 16)) - 2 * 2
    assert encoder.num_tokens((3, 16, 32)) == encoder.num_tokens((3, 32, 16)) == 2 * 4 + extra
    with pytest.raises(ValueError, match=f"{name}: image_size 12 is no multiple of 8"):
        encoder.num_tokens((3, 12, 16))
