"""The components of any vision-language model, found by their modules' names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from clmm import components
from clmm.loading import Loaded, load


@pytest.fixture(scope="module", params=sorted(tiny_models.FAMILIES))
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder = tmp_path_factory.mktemp(request.param)
    return load(tiny_models.FAMILIES[request.param](folder), device="cpu")


def test_every_parameter_belongs_to_one_of_three_components(loaded: Loaded) -> None:
    rows = components.table(loaded.model)
    assert [row.component for row in rows] == list(components.COMPONENTS)
    assert all(row.total > 0 for row in rows)
    assert sum(row.total for row in rows) == loaded.model.num_parameters()
    owners = components.component_of(loaded.model)
    heads = [name for name in owners if "lm_head" in name]
    assert all(owners[name] == "language_model" for name in heads)


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("llava", ["model.vision_tower", "model.multi_modal_projector", "model.language_model"]),
        ("qwen2_vl", ["model.visual", "model.visual.merger", "model.language_model"]),
        ("idefics3", ["model.vision_model", "model.connector", "model.text_model"]),
        ("mmllm", ["encoders", "input_projectors", "language_model"]),
    ],
)
def test_where_they_are(family: str, expected: list[str], tmp_path: Path) -> None:
    model = load(tiny_models.FAMILIES[family](tmp_path), device="cpu").model
    assert components.find(model) == {
        component: [name] for component, name in zip(components.COMPONENTS, expected, strict=True)
    }


# peft asks transformers in a way that the newest transformers calls old.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_linear_layers_of_the_language_model_are_all_that_lora_needs(loaded: Loaded) -> None:
    names = components.language_linears(loaded.model)
    assert len(names) == 2 * 7  # two layers of q, k, v, o, gate, up, down
    assert not any("lm_head" in name or "vis" in name for name in names)
    adapted: Any = get_peft_model(
        loaded.model, LoraConfig(r=2, target_modules=names), adapter_name="first"
    )
    owners = components.component_of(adapted)
    trained = {owners[name] for name, p in adapted.named_parameters() if p.requires_grad}
    assert trained == {"language_model"}
    assert len(adapted.base_model.targeted_module_names) == len(names)
    adapted.unload()


def test_only_the_named_components_are_trained(loaded: Loaded) -> None:
    for wanted in (["input_projector"], ["encoder", "language_model"], []):
        count = components.train_only(loaded.model, wanted)
        rows = components.table(loaded.model)
        assert sum(row.trainable for row in rows) == count
        assert all(row.trainable == row.total * (row.component in wanted) for row in rows)
    with pytest.raises(ValueError, match="'projector'; did you mean input_projector"):
        components.train_only(loaded.model, ["projector"])


def test_a_component_without_parameters_is_an_error() -> None:
    blind = nn.Module()
    blind.language_model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="has no parameters in its encoder"):
        components.train_only(blind, ["encoder"])
    text = LlamaForCausalLM(
        LlamaConfig(vocab_size=8, hidden_size=32, intermediate_size=8, num_hidden_layers=1)
    )
    with pytest.raises(ValueError, match="LlamaForCausalLM has no module named language_model"):
        components.find(text)


def test_features_are_kept_only_of_an_encoder_that_stays_as_it_is(tmp_path: Path) -> None:
    model = load(tiny_models.mmllm(tmp_path), device="cpu").model
    assert components.frozen_encoder(model) is None
    components.train_only(model, ["language_model"])
    encode = components.frozen_encoder(model)
    assert encode is not None
    pixels = torch.rand(2, 3, 32, 32)
    model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = encode(pixels)
    assert model.training
    assert features.dtype == torch.float32
    with torch.no_grad():
        assert torch.equal(features, model.eval().encode_images(pixels))
    components.train_only(model, ["encoder"])
    with pytest.raises(RuntimeError, match="encoder is trained now"):
        encode(pixels)


def test_a_model_that_cannot_take_features_gets_pixels(loaded: Loaded) -> None:
    components.train_only(loaded.model, [])
    has_features = hasattr(loaded.model, "encode_images")
    assert (components.frozen_encoder(loaded.model) is not None) == has_features
