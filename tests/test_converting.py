"""Published checkpoints become compositions whole, or are refused by the name of what is wrong."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import tiny_oracles
import torch
from safetensors.torch import load_file, save_file
from test_batching import MIXED
from transformers import AutoModelForMultimodalLM, AutoProcessor

from clmm import cli, components, converting
from clmm.answering import Answerer
from clmm.converting import ConversionError, conversion_of, convert, renamed
from clmm.learner import batcher_of
from clmm.loading import load
from clmm.modeling_mmllm import MMLLMForConditionalGeneration
from streams import catalog
from streams.settings import SettingError

Tensors = dict[str, torch.Tensor]
HEAD = "language_model.lm_head.weight"
DOWN = "language_model.model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_oracles.llava(tmp_path_factory.mktemp("llava") / "published")


def changed(published: Path, folder: Path, change: Callable[[Tensors], Any]) -> Path:
    """The same checkpoint with other tensors."""
    shutil.copytree(published, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def reconfigured(published: Path, folder: Path, **more: Any) -> Path:
    shutil.copytree(published, folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    for name, value in more.items():
        place = config
        *path, last = name.split(".")
        for key in path:
            place = place[key]
        place[last] = value
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return folder


@pytest.mark.parametrize("name", tiny_oracles.ORACLES)
def test_every_tensor_is_there_once(name: str, tmp_path: Path) -> None:
    published = tiny_oracles.ORACLES[name](tmp_path / "published")
    made = convert(published, tmp_path / "ours")
    model, report = AutoModelForMultimodalLM.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert isinstance(model, MMLLMForConditionalGeneration)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    before = load_file(published / "model.safetensors")
    after = load_file(tmp_path / "ours" / "model.safetensors")
    assert made.tensors == len(after)
    assert made.left_out == ()
    # Values are those of the checkpoint, all of them, and of each as many.
    assert sum(t.numel() for t in after.values()) == sum(t.numel() for t in before.values())
    total = sum(t.double().sum() for t in after.values())
    torch.testing.assert_close(total, sum(t.double().sum() for t in before.values()))
    assert made.parameters == sum(p.numel() for p in model.parameters())
    rows = {row.component: row.total for row in components.table(model)}
    assert rows.get("other", 0) == 0
    assert all(rows[component] for component in components.COMPONENTS)


def test_the_unused_layer_is_kept(published: Path, tmp_path: Path) -> None:
    convert(published, tmp_path / "ours")
    ours = load_file(tmp_path / "ours" / "model.safetensors")
    assert any(name.startswith("encoders.image.model.encoder.layers.2.") for name in ours)
    assert "encoders.image.model.post_layernorm.weight" in ours


def test_a_folder_without_a_processor_is_told_what_it_lacks(
    published: Path, tmp_path: Path
) -> None:
    AutoModelForMultimodalLM.from_pretrained(published).save_pretrained(tmp_path / "alone")
    with pytest.raises(SettingError, match=r"preprocessor_config\.json and a tokenizer, beside"):
        convert(tmp_path / "alone", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_shards_one_by_one(published: Path, tmp_path: Path) -> None:
    model = AutoModelForMultimodalLM.from_pretrained(published)
    model.save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    for file in published.glob("*"):
        if file.suffix in (".json", ".jinja") and file.name != "config.json":
            shutil.copy(file, tmp_path / "shards")
    assert len([*(tmp_path / "shards").glob("*.safetensors")]) > 2
    convert(tmp_path / "shards", tmp_path / "ours")
    convert(published, tmp_path / "whole")
    assert len([*(tmp_path / "ours").glob("*.safetensors")]) > 2
    one, other = (
        AutoModelForMultimodalLM.from_pretrained(tmp_path / name).state_dict()
        for name in ("ours", "whole")
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    (lost, *_) = (tmp_path / "shards").glob("*.safetensors")
    lost.unlink()
    with pytest.raises(SettingError, match=f"names {lost.name}, which is not there"):
        convert(tmp_path / "shards", tmp_path / "again")


def earlier(tensors: Tensors) -> None:
    """As files on the hub have them, whose buffers hold nothing."""
    for name in [name for name in tensors if name.startswith("vision_tower.")]:
        old = name.replace("vision_tower.", "vision_tower.vision_model.")
        tensors[old] = tensors.pop(name)
    tensors["vision_tower.vision_model.embeddings.position_ids"] = torch.arange(17)[None]


def in_memory(tensors: Tensors) -> None:
    """As transformers calls them since version 5."""
    for name in [*tensors]:
        new = f"model.{name.replace('language_model.model.', 'language_model.')}"
        tensors[new.replace("model.language_model.lm_head", "lm_head")] = tensors.pop(name)


@pytest.mark.parametrize(
    ("change", "left_out"),
    [(earlier, ("vision_tower.vision_model.embeddings.position_ids",)), (in_memory, ())],
)
def test_names_have_changed_over_the_years(
    change: Callable[[Tensors], None], left_out: tuple[str, ...], published: Path, tmp_path: Path
) -> None:
    made = convert(changed(published, tmp_path / "other", change), tmp_path / "ours")
    assert made.left_out == left_out
    convert(published, tmp_path / "plain")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "plain"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop(DOWN),
            rf"^1 tensors are missing: {DOWN}$",
        ),
        (
            lambda t: t.update(extra=torch.zeros(2)),
            r"^1 tensors are unexpected: extra$",
        ),
        (
            lambda t: t.update(
                {"model.language_model.layers.7.mlp.down_proj.weight": torch.zeros(1)}
            ),
            r"^1 tensors are unexpected: model\.language_model\.layers\.7\.mlp\.down_proj\.weight$",
        ),
        (
            lambda t: t.update({HEAD: torch.zeros(5, 24)}),
            r"^1 tensors have another shape: language_model\.lm_head\.weight \[5, 24\] is not "
            r"language_model\.lm_head\.weight \[260, 24\]$",
        ),
        (
            lambda t: t.update({"lm_head.weight": torch.zeros(260, 24)}),
            r"^1 tensors are unexpected: (language_model\.)?lm_head\.weight$",
        ),
        (
            lambda t: (
                [t.pop(name) for name in [*t] if "multi_modal" in name]
                + [t.update(extra=torch.zeros(2))]
            ),
            r"^4 tensors are missing: input_projectors.* 1 tensors are unexpected: extra$",
        ),
        (
            lambda t: [t.pop(name) for name in [*t] if "vision_tower" in name],
            r"^55 tensors are missing: encoders\.image\.model\.embeddings\.class_embedding, .* …$",
        ),
        (
            lambda t: t.update({DOWN: t[DOWN].to(torch.int8)}),
            rf"^1 tensors are no floats: {DOWN} I8$",
        ),
        (
            lambda t: t.update({DOWN: t[DOWN].to(torch.float8_e4m3fn)}),
            rf"^1 tensors are no floats: {DOWN} F8_E4M3$",
        ),
        (lambda t: t[DOWN][0, :1].fill_(math.nan), rf"^1 tensors hold what is no number: {DOWN}$"),
        (lambda t: t[HEAD][0, :1].fill_(math.inf), rf"^1 tensors hold what is no number: {HEAD}$"),
    ],
)
def test_a_damaged_checkpoint_is_refused(
    change: Callable[[Tensors], Any], message: str, published: Path, tmp_path: Path
) -> None:
    damaged = changed(published, tmp_path / "damaged", change)
    with pytest.raises(ConversionError, match=message):
        convert(damaged, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_half_of_a_joined_tensor_is_refused(tmp_path: Path) -> None:
    published = tiny_oracles.idefics(tmp_path / "published")
    for number, lost in enumerate(("", "additional_embedding.")):
        name = f"model.embed_tokens.{lost}weight"
        half = changed(published, tmp_path / f"half-{number}", lambda t, n=name: t.pop(n))
        with pytest.raises(ConversionError, match=r"model\.embed_tokens\..* is not language_model"):
            convert(half, tmp_path / "ours")


def test_a_head_of_its_own_stays_one(tmp_path: Path) -> None:
    """Flan-T5's checkpoints have one, although its class ties it; equal copies are one."""
    published = tiny_oracles.blip_2_t5(tmp_path / "published")
    shared = "language_model.shared.weight"
    copies = ("language_model.encoder.embed_tokens.weight", "language_model.lm_head.weight")

    def copied(tensors: Tensors) -> None:
        tensors |= {name: tensors[shared].clone() for name in copies}

    def headed(tensors: Tensors) -> None:
        copied(tensors)
        tensors[copies[1]] += 1

    same = convert(changed(published, tmp_path / "copied", copied), tmp_path / "one")
    other = convert(changed(published, tmp_path / "headed", headed), tmp_path / "two")
    assert other.tensors == same.tensors + 1
    model = AutoModelForMultimodalLM.from_pretrained(tmp_path / "two")
    difference = model.language_model.lm_head.weight - model.language_model.shared.weight
    torch.testing.assert_close(difference, torch.ones_like(difference))
    # Any of the tied ones will do.
    lone = changed(published, tmp_path / "lone", lambda t: t.update({copies[0]: t.pop(shared)}))
    assert convert(lone, tmp_path / "three").tensors == same.tensors


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"model_type": "llava_next"},
            r"model_type: no conversion of 'llava_next'; did you mean llava",
        ),
        (
            {"projector_hidden_act": "relu"},
            r"config\.projector_hidden_act: 'relu'; .* 'gelu' alone",
        ),
        (
            {"vision_config.model_type": "siglip_vision_model"},
            r"vision_config\.model_type: 'siglip_vision_model'; the composition has 'clip_vision",
        ),
        ({"vision_config.layer_norm_eps": 1e-3}, r"vision_config\.layer_norm_eps: 0\.001; "),
        (
            {"vision_config.image_size": 32},
            r"image_processor: makes \(3, 16, 16\) .* \(3, 32, 32\)",
        ),
        ({"vision_feature_layer": 9}, "vision_feature_layer: 9, but the encoder has 3 layers"),
        ({"vision_feature_layer": [-1, -5]}, "vision_feature_layer: -5, but the encoder has 3"),
        ({"vision_feature_layer": []}, r"encoders\.image\.layers: names no hidden state"),
        ({"vision_feature_layer": "x"}, r"config\.json: .*'vision_feature_layer'"),
        ({"vision_config.hidden_act": "x"}, "clip cannot be as it is set: there is no 'x'"),
        ({"quantization_config": {"quant_method": "gptq"}}, r"config\.quantization_config: .*gptq"),
        ({"image_token_index": 7}, r"token_ids\.image: 7 in config\.json, but .*'<image>' is 259"),
    ],
)
def test_what_a_composition_cannot_be_is_refused(
    more: dict[str, Any], message: str, published: Path, tmp_path: Path
) -> None:
    other = reconfigured(published, tmp_path / "other", **more)
    with pytest.raises(SettingError, match=message):
        convert(other, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "has no weight_map from tensors to files"),
        ("{}", "has no weight_map from tensors to files"),
        ('{"weight_map": {"a": 3}}', "names 3, which is no file's name"),
        ('{"weight_map": {"a": "../model.safetensors"}}', r"names '\.\./model.* no file's name"),
        ('{"weight_map": {"a": "model.safetensors"}}', "1 tensors are not in it: a$"),
    ],
)
def test_an_index_keeps_its_promises(
    index: str, message: str, published: Path, tmp_path: Path
) -> None:
    shutil.copytree(published, tmp_path / "other")
    (tmp_path / "other" / converting.INDEX).write_text(index)
    with pytest.raises(SettingError, match=message):
        convert(tmp_path / "other", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_half_a_file_is_refused(published: Path, tmp_path: Path) -> None:
    shutil.copytree(published, tmp_path / "other")
    whole = (published / "model.safetensors").read_bytes()
    for held in (b"", whole[:-5]):
        (tmp_path / "other" / "model.safetensors").write_bytes(held)
        with pytest.raises(SettingError, match=r"model\.safetensors: is no whole file of safeten"):
            convert(tmp_path / "other", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_folders(published: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"has no config\.json"):
        convert(tmp_path / "nothing", tmp_path / "ours")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with pytest.raises(SettingError, match=r"--out: .*full is there already"):
        convert(published, tmp_path / "full")
    shutil.copytree(published, tmp_path / "bare")
    (tmp_path / "bare" / "model.safetensors").rename(tmp_path / "bare" / "pytorch_model.bin")
    with pytest.raises(SettingError, match=r"has no weights .*; pickles are not read"):
        convert(tmp_path / "bare", tmp_path / "ours")


def test_what_was_written_is_counted(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lossy(tensors: Tensors, *args: Any, **kwargs: Any) -> None:
        tensors.popitem()
        save_file(tensors, *args, **kwargs)

    monkeypatch.setattr(converting, "save_file", lossy)
    with pytest.raises(RuntimeError, match=r"79 tensors of \d+ values were written, not 80 of"):
        convert(published, tmp_path / "ours")
    assert not (tmp_path / "ours" / "config.json").exists()


def test_the_rules_are_data() -> None:
    for name in catalog.names("clmm.conversion"):
        one = catalog.find("clmm.conversion", name, where="test")
        assert conversion_of(one.model_type) == one()
        assert all(pattern.startswith("^") for pattern, _ in one.rules)
    rules = conversion_of("idefics").rules
    assert renamed("model.embed_tokens.additional_embedding.weight", rules) == (
        "language_model.model.embed_tokens.weight",
        1,
    )
    assert renamed("model.layers.3.mlp.up_proj.weight", rules) == (
        "language_model.model.layers.3.mlp.up_proj.weight",
        0,
    )
    assert renamed("something", rules) is None


@pytest.mark.parametrize(
    "name", ["llava", "blip_2_opt", "blip_2_t5", "instruct_blip_t5", "idefics", "intern_vl"]
)
def test_a_converted_model_answers_and_is_scored(name: str, tmp_path: Path) -> None:
    published = tiny_oracles.ORACLES[name](tmp_path / "published")
    convert(published, tmp_path / "ours")
    loaded = load(tmp_path / "ours", device="cpu")
    answerer = Answerer(loaded.model, batcher_of(loaded))
    seeing = [item for item in MIXED if item.images]
    answerer.check(seeing)
    texts = [answer.text for answer in answerer.answer(seeing, max_new_tokens=4)]
    assert len(texts) == len(seeing)
    [[one, other]] = answerer.log_likelihood(seeing[:1], [["Yes.", "No, never."]])
    assert other < one < 0


def test_the_template_comes_along(tmp_path: Path) -> None:
    """Theirs where there is one; a form of the paper's where there is none, never our own."""
    message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Why?"}]}]
    wanted = {
        "llava": "USER: <image>\nWhy? ASSISTANT:",
        "blip_2_opt": "<image>Question: Why? Answer:",
        "instruct_blip_llama": "<image>Why?",
        "idefics": "<s>User:<image>Why?<end_of_utterance>\nAssistant:",
        "intern_vl": "<|im_start|>user\n<IMG_CONTEXT>\nWhy?<|im_end|>\n<|im_start|>assistant\n",
    }
    for name, text in wanted.items():
        tiny_oracles.ORACLES[name](tmp_path / name)
        convert(tmp_path / name, tmp_path / f"{name}-ours")
        own = AutoProcessor.from_pretrained(tmp_path / f"{name}-ours")
        assert own.apply_chat_template(message, add_generation_prompt=True, tokenize=False) == text


def test_what_differs_is_said(tmp_path: Path) -> None:
    said = {name: convert(tiny_oracles.ORACLES[name](tmp_path / name), tmp_path / f"{name}-ours")
            for name in ("llava", "intern_vl", "qwen2_audio")}  # fmt: skip
    assert not said["llava"].departures
    assert "one square tile" in said["intern_vl"].departures[0]
    assert "the silence behind it" in said["qwen2_audio"].departures[0]


def test_half_precision_stays(published: Path, tmp_path: Path) -> None:
    model = AutoModelForMultimodalLM.from_pretrained(published, dtype=torch.bfloat16)
    shutil.copytree(published, tmp_path / "half")
    model.save_pretrained(tmp_path / "half")
    convert(tmp_path / "half", tmp_path / "ours")
    tensors = load_file(tmp_path / "ours" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert AutoModelForMultimodalLM.from_pretrained(tmp_path / "ours").dtype == torch.bfloat16


def test_what_processors_refuse(tmp_path: Path) -> None:
    convert(tiny_oracles.qwen2_audio(tmp_path / "audio"), tmp_path / "hears")
    hearing = AutoProcessor.from_pretrained(tmp_path / "hears")
    with pytest.raises(ValueError, match=r"2 <\|AUDIO\|> placeholders in the text, 0 recordings"):
        hearing(text="<|AUDIO|><|AUDIO|>")
    with pytest.raises(ValueError, match=r"audio: recordings of 8000 Hz, .* hears 16000 Hz"):
        hearing(text="<|AUDIO|>", audio=[torch.zeros(8000).numpy()], sampling_rate=8000)
    convert(tiny_oracles.intern_vl(tmp_path / "tiles"), tmp_path / "sees")
    seeing = AutoProcessor.from_pretrained(tmp_path / "sees")
    with pytest.raises(ValueError, match="1 <IMG_CONTEXT> placeholders in the text, 0 images"):
        seeing(text="<IMG_CONTEXT>")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    published = tiny_models.llava(tmp_path / "published")
    out = tmp_path / "ours"
    assert cli.main(["convert", str(published), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "clip → mlp → llama, 2 layers of width 32\n" in printed
    assert "64 tensors, 63,328 parameters" in printed
    one, other = (load(folder, device="cpu") for folder in (published, out))
    batch = [batcher_of(loaded).prompts(MIXED) for loaded in (one, other)]
    assert torch.equal(batch[0]["input_ids"], batch[1]["input_ids"])
    with torch.no_grad():
        ours = other.model(**batch[1]).logits
        pixels = one.processor.image_processor
        theirs = one.model(**batch[0]).logits
    assert type(pixels) is type(other.processor.image_processor)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert cli.main(["convert", str(published), "--out", str(out)]) == 2
    assert "is there already" in capsys.readouterr().err
    (published / "config.json").unlink()
    assert cli.main(["convert", str(published), "--out", str(tmp_path / "x")]) == 2
