"""Stages as data: what trains is what the patterns say, counted before and after it is set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from clmm import components
from clmm.configuration_mmllm import MMLLMConfig
from clmm.modeling_mmllm import MMLLMForConditionalGeneration
from clmm.recipe import Recipe
from clmm.stages import LoraSettings, Stage, apply, matching, table
from streams.settings import SettingError

TEXT = {
    "model_type": "llama", "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
}  # fmt: skip
SEES = {"patch_size": 8, "hidden_size": 16, "depth": 3, "heads": 2, "mlp": 16, "image_size": 16}
QUERIES = LoraSettings(rank=2, targets=("q_proj", "v_proj"))


@pytest.fixture
def model() -> MMLLMForConditionalGeneration:
    torch.manual_seed(0)
    config = MMLLMConfig(
        encoders={"image": {"name": "clip", **SEES}},
        input_projectors={"image": {"name": "mlp"}},
        text_config=TEXT,
        token_ids={"image": 39},
    )
    return MMLLMForConditionalGeneration(config)


def stage(*train: str, **more: Any) -> Stage:
    return Stage(name="S1", kind="pretraining", train=train, **more)


def trainable(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    "wanted",
    [
        stage("input_projector"),
        stage("input_projector", "language_model"),
        stage("encoder", "input_projector", freeze=("encoders.image.model.embeddings",)),
        stage("encoders.image.model.encoder.layers.[1-2].*"),
        stage("language_model.model.layers.*norm*", "language_model.model.embed_tokens"),
        stage("input_projector", lora=QUERIES),
        stage(lora=LoraSettings(rank=3)),
        stage("language_model.norms"),
        stage("input_projector", prefix=3),
        stage("encoder.norms", lora=LoraSettings(rank=2, component="encoder"), prefix=2),
        stage(lora=LoraSettings(rank=2, component="input_projector")),
    ],
)
def test_what_is_foretold_is_what_is_set(
    model: MMLLMForConditionalGeneration, wanted: Stage
) -> None:
    before = [p.requires_grad for p in model.parameters()]
    foretold = table(model, wanted)
    assert [p.requires_grad for p in model.parameters()] == before
    assert apply(model, wanted) == foretold
    assert foretold.trainable == trainable(model) > 0
    assert foretold.total == sum(p.numel() for p in model.parameters())
    assert foretold.rows == tuple(components.table(model))
    assert table(model, wanted) == foretold


def test_one_step_moves_what_trains_alone(model: MMLLMForConditionalGeneration) -> None:
    apply(model, stage("input_projector", lora=QUERIES))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    ids = torch.tensor([[39] * 4 + [3, 4, 5]])
    model(input_ids=ids, pixel_values=torch.randn(1, 3, 16, 16), labels=ids).loss.backward()
    optimiser.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    # LoRA's A has no gradient yet: B is zero.
    assert moved == {
        n for n, p in model.named_parameters() if p.requires_grad and ".lora_A." not in n
    }


def test_adapters_go_on_in_the_next_stage(model: MMLLMForConditionalGeneration) -> None:
    apply(model, stage(lora=QUERIES))
    adapters = {name for name, _ in model.named_parameters() if "lora_" in name}
    again = apply(model, stage("input_projector", "language_model.model.layers.0", lora=QUERIES))
    assert {name for name, _ in model.named_parameters() if "lora_" in name} == adapters
    assert trainable(model) == again.trainable == sum(again.patterns.values())
    frozen = apply(model, stage("input_projector"))
    assert trainable(model) == frozen.trainable == frozen.patterns["input_projector"]
    with pytest.raises(
        SettingError, match=r"rank 2 on 4 layers, and the stage wants rank 4 on 4; finish"
    ):
        apply(model, stage(lora=LoraSettings(rank=4, targets=("q_proj", "v_proj"))))


def test_rows_of_signal_tokens_train_by_themselves() -> None:
    torch.manual_seed(0)
    model = Recipe.read("gill").build(tiny=True)
    rows, width = 8, 32  # OPT's head is tied to its embedding
    taught = stage("output_projector", signal_rows=True)
    foretold = table(model, taught)
    assert apply(model, taught) == foretold
    assert foretold.patterns["signal_rows"] == rows * width
    assert trainable(model) == foretold.trainable
    assert foretold.total == sum(p.numel() for p in model.parameters())
    assert table(model, taught) == foretold
    adapted = apply(model, stage("language_model.model.decoder.embed_tokens", lora=QUERIES))
    assert trainable(model) == adapted.trainable
    assert adapted.patterns["language_model.model.decoder.embed_tokens"] == 73 * width
    together = apply(model, stage(lora=QUERIES, signal_rows=True))
    assert trainable(model) == together.trainable == sum(together.patterns.values())


def test_rows_need_signal_tokens(model: MMLLMForConditionalGeneration) -> None:
    with pytest.raises(SettingError, match="stage S1: signal_rows: the model has no signal tokens"):
        table(model, stage("encoder", signal_rows=True))


def test_a_stage_without_memory_counts_the_same() -> None:
    config = MMLLMConfig(
        encoders={"image": {"name": "clip", **SEES}},
        input_projectors={"image": {"name": "mlp"}},
        text_config=TEXT,
        token_ids={"image": 39},
    )
    with torch.device("meta"):
        model = MMLLMForConditionalGeneration(config)
    foretold = table(model, stage("input_projector", lora=QUERIES))
    assert apply(model, stage("input_projector", lora=QUERIES)) == foretold
    assert foretold.trainable == trainable(model)
    assert all(p.is_meta for p in model.parameters())


def test_any_model_of_transformers() -> None:
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        image_size=16, patch_size=8,
    )  # fmt: skip
    text = {key: value for key, value in TEXT.items() if key != "model_type"}
    config = LlavaConfig(
        vision_config=vision, text_config=LlamaConfig(**text), image_token_index=39
    )
    model = LlavaForConditionalGeneration(config)
    found = apply(model, stage("input_projector"))
    assert found.trainable == 16 * 32 + 32 + 32 * 32 + 32 == trainable(model)
    assert matching(model, ["lm_head", "model.vision_tower"], where="train")["lm_head"] == [
        "lm_head.weight"
    ]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("input_projectr", r"stage S1: train: 'input_projectr' matches no parameter; did you mean"),
        ("encoders.image.model.encodr", r"did you mean encoders\.image\.model\.encoder\?"),
        ("language_model.layers.7.*", r"matches no parameter; did you mean language_model"),
    ],
)
def test_a_pattern_that_matches_nothing_is_an_error(
    model: MMLLMForConditionalGeneration, train: str, message: str
) -> None:
    with pytest.raises(SettingError, match=message):
        table(model, stage(train))
    with pytest.raises(SettingError, match=message.replace("train:", "freeze:")):
        table(model, stage("encoder", freeze=(train,)))


def test_targets_that_match_nothing_are_an_error(model: MMLLMForConditionalGeneration) -> None:
    with pytest.raises(
        SettingError, match=r"of the language model is named 'q_prj'; did you mean q_proj"
    ):
        table(model, stage(lora=LoraSettings(rank=2, targets=("q_prj",))))


def test_a_stage_is_read_from_plain_values() -> None:
    values = {"name": "S2", "kind": "instruction", "train": ["encoder"], "lora": {"rank": 4}}
    assert Stage.read(values, where="stages[0]") == Stage(
        name="S2", kind="instruction", train=("encoder",), lora=LoraSettings(rank=4)
    )
    with pytest.raises(
        SettingError, match=r"stages\[0\]\.trian: no such setting; did you mean train"
    ):
        Stage.read({**values, "trian": []}, where="stages[0]")
    with pytest.raises(SettingError, match=r"stages\[0\]\.lora\.rnk: .*did you mean rank\?"):
        Stage.read({**values, "lora": {"rnk": 4}}, where="stages[0]")
    with pytest.raises(SettingError, match=r"lora\.rank: must be at least 1; got 0"):
        Stage.read({**values, "lora": {"rank": 0}}, where="stages[0]")
    with pytest.raises(SettingError, match=r"there is no 'q_formr'; did you mean q_former\?"):
        Stage.read({**values, "objective": "q_formr"}, where="stages[0]")
    with pytest.raises(SettingError, match=r"stages\[0\]\.kind: "):
        Stage.read({**values, "kind": "tuning"}, where="stages[0]")


def test_the_table_is_printed_and_saved(
    model: MMLLMForConditionalGeneration, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = table(model, stage("input_projector", lora=QUERIES))
    found.print()
    shown = capsys.readouterr().out
    assert "input_projector" in shown
    assert f"{found.trainable:,}" in shown
    found.save(tmp_path / "deep" / "S1.json")
    saved = json.loads((tmp_path / "deep" / "S1.json").read_text())
    assert saved["components"]["encoder"]["trainable"] == 0
    assert saved["components"]["language_model"]["trainable"] == saved["patterns"]["lora"]
    assert saved["trainable"] == found.trainable
