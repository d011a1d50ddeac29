"""Every recipe: its counts are the published ones or explained, and its tiny twin learns."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch import nn

from clmm import components, stages
from clmm.composition import compose
from clmm.measuring import measure
from clmm.modeling_mmllm import values_key
from clmm.processing_mmllm import byte_tokenizer
from clmm.recipe import Recipe, merged, names
from clmm.stage_settings import Stage
from streams.settings import SettingError

TABLE1 = [
    "Flamingo", "BLIP-2", "LLaVA", "MiniGPT-4", "InstructBLIP-7B", "InstructBLIP-13B", "Shikra",
    "IDEFICS-9B", "IDEFICS-80B", "Qwen-VL", "Qwen-VL-Chat", "LLaVA-1.5-7B",
    "LLaVA-1.5-7B+ShareGPT4V", "LLaVA-1.5-13B", "MiniGPT-v2", "MiniGPT-v2-Chat", "VILA-7B",
    "VILA-13B", "VILA-13B+ShareGPT4V",
]  # fmt: skip
OTHERS = [
    "GILL", "NExT-GPT", "MiniGPT-5", "Emu", "CoDi-2", "ModaVerse", "MobileVLM", "TinyGPT-V",
    "Vary-toy", "MoE-LLaVA", "Silkie",
]  # fmt: skip
MEASURED_MILLIONS = {
    "blip-2-flan-t5-xxl": 12098.0,
    "llava-13b": 13324.3,
    "minigpt-4": 14110.9,
    "instructblip-7b": 7913.2,
    "instructblip-13b": 14191.4,
    "idefics-9b": 8929.7,
    "idefics-80b": 79967.8,
    "vila-7b": 7046.1,
    "vila-13b": 13324.6,
}
"""Counts of the real configurations, made apart from this code."""
RECIPES = {name: Recipe.read(name) for name in names()}
measured_once = functools.cache(lambda name: measure(RECIPES[name]))


def test_every_row_of_table_1_has_one_recipe() -> None:
    assert sorted(r.table1 for r in RECIPES.values() if r.table1) == sorted(TABLE1)
    assert {*OTHERS} <= {recipe.model for recipe in RECIPES.values()}


@pytest.mark.parametrize("name", RECIPES)
def test_the_published_size_is_measured_or_explained(name: str) -> None:
    recipe = RECIPES[name]
    measured = measured_once(name)
    if name in MEASURED_MILLIONS:
        assert measured.total / 1e6 == pytest.approx(MEASURED_MILLIONS[name], abs=0.06)
    trained = {table.stage: table for table in measured.stages}
    for stage, found, said in [
        (None, measured.total, recipe.published.parameters),
        *((s, trained[s].trainable, n) for s, n in recipe.published.trainable.items()),
    ]:
        reasons = [line for line in recipe.explanation if line.stage == stage]
        for line in reasons:
            if line.component in measured.components:
                assert line.parameters == measured.components[line.component]
        if said is None:
            assert not reasons
            continue
        left = found - sum(line.parameters for line in reasons) - said
        assert abs(left) <= 0.01 * said
        # A recipe that is near enough does not explain, so that no gap is closed twice.
        assert not reasons or abs(found - said) > 0.01 * said
    assert all(table.trainable for table in measured.stages)


@pytest.mark.parametrize("name", RECIPES)
def test_a_composition_on_the_meta_device_is_what_was_counted(name: str) -> None:
    recipe = RECIPES[name]
    if recipe.stated:
        pytest.importorskip("timm")
    model = recipe.build(device="meta")
    counted = measured_once(name).components
    for row in components.table(model):
        kinds = (row.component, f"{row.component}s")
        assert row.total == sum(n for part, n in counted.items() if part.split(".")[0] in kinds)


def test_what_is_stated_is_what_would_be_counted() -> None:
    pytest.importorskip("timm")
    for recipe in RECIPES.values():
        for component, stated in recipe.stated.items():
            counted = measure(recipe).components[component]
            assert abs(counted - stated.parameters) < 1e4


@pytest.mark.parametrize("name", RECIPES)
def test_the_tiny_twin_learns_in_every_stage(name: str) -> None:
    torch.manual_seed(0)
    recipe = RECIPES[name]
    model = recipe.build(tiny=True)
    assert sum(p.numel() for p in model.parameters()) < 250_000
    for output in model.config.outputs:
        # Dropped conditions are the empty text's.
        made = model.config.media_generator(output).build(tokenizer=byte_tokenizer())
        model.attach_generator(output, made)
    names_before = {*model.state_dict()}
    for stage in recipe.stages:
        found = stages.apply(model, stage)
        model.train()
        learnt = {n: p.detach().clone() for n, p in model.named_parameters()}
        optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        loss = loss_of(model, stage)
        assert torch.isfinite(loss)
        loss.backward()
        assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        optimiser.step()
        moved = {n for n, p in model.named_parameters() if not torch.equal(p, learnt[n])}
        trained = {n for n, p in model.named_parameters() if p.requires_grad}
        assert moved
        assert moved <= trained
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == found.trainable
        moving = {components.component_of(model)[n] for n in moved}
        assert moving == {row.component for row in found.rows if row.trainable}
        model.zero_grad(set_to_none=True)
        stages.finish(model)
        assert {*model.state_dict()} == names_before


def loss_of(model: Any, stage: Stage) -> torch.Tensor:
    """The language model's, or that of the Q-Former's first stage."""
    if stage.objective != "q_former":
        loss: torch.Tensor = model(**batch(model)).loss
        return loss
    features = model.encode("image", torch.randn(2, *model.config.encoder("image").shape))
    ids = torch.randint(1, 50, (2, 6))
    stated = model.input_projectors["image"].first_stage(features, ids, torch.ones_like(ids))
    return stated["loss"]  # type: ignore[no-any-return]


ADDING = [
    name
    for name, recipe in RECIPES.items()
    if any(stage.lora or stage.signal_rows or stage.objective for stage in recipe.stages)
]


@pytest.mark.parametrize("name", ADDING)
def test_what_was_counted_is_what_is_set_at_full_size(name: str) -> None:
    recipe = RECIPES[name]
    if recipe.stated:
        pytest.importorskip("timm")
    model = recipe.build(device="meta")
    for stage, counted in zip(recipe.stages, measured_once(name).stages, strict=True):
        found = stages.apply(model, stage)
        assert found == counted
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == counted.trainable
        stages.finish(model)


def test_a_recipe_has_a_preference_stage_and_one_a_first_stage_of_its_q_former() -> None:
    found = {(stage.kind, name) for name, r in RECIPES.items() for stage in r.stages}
    assert ("preference", "silkie") in found
    objectives = {n: [s.objective for s in r.stages] for n, r in RECIPES.items()}
    assert objectives["blip-2-flan-t5-xxl"] == ["q_former", None]
    assert objectives["silkie"][-1] == {"name": "dpo", "beta": 0.1}


def batch(model: Any) -> dict[str, Any]:
    """Two rows, each with one medium of every input, and one asked for of every output."""
    config = model.config
    row, given = [3, 4], {}
    for name in config.inputs:
        row += [config.token_ids[name]] * config.num_tokens(name) + [5]
        given[values_key(name)] = torch.randn(2, *config.encoder(name).shape)
        if getattr(model.input_projectors[name], "reads_instruction", False):
            given["qformer_input_ids"] = torch.randint(1, 50, (2, 6))
    for name, ids in config.signal_ids.items():
        row += [6, *ids]
        generator = config.media_generator(name)
        if config.loss.alignment_weight:
            given[f"target_{name}_condition"] = torch.randn(2, *generator.condition_shape)
        if config.loss.denoising_weight:
            given[f"target_{name}_latents"] = torch.randn(2, *generator.latent_shape)
    ids = torch.tensor([[*row, 7, 8]] * 2)
    return {**given, "input_ids": ids, "labels": ids}


def test_merging_goes_by_mapping_and_another_component_starts_anew() -> None:
    full = {"llm": "vicuna-7b", "encoders": {"image": {"name": "clip", "image_size": 336}}}
    assert merged(full, {"llm": {"hidden_size": 8}})["llm"] == {
        "preset": "vicuna-7b",
        "hidden_size": 8,
    }
    changed = merged(full, {"encoders": {"image": {"depth": 1}}})
    assert changed["encoders"]["image"] == {"name": "clip", "image_size": 336, "depth": 1}
    other = merged(full, {"encoders": {"image": {"name": "vit", "depth": 1}}})
    assert other["encoders"]["image"] == {"name": "vit", "depth": 1}
    assert full["encoders"]["image"] == {"name": "clip", "image_size": 336}


VALUES: dict[str, Any] = {
    "summary": "Mine.",
    "model": "LLaVA",
    "paper": "none",
    "compose": {"llm": "vicuna-7b", "encoders": {"image": "clip"}, "projectors": {"image": "mlp"}},
    "tiny": {},
    "stages": [{"name": "S1", "kind": "pretraining", "train": ["input_projector"]}],
}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sumary": "Mine."}, r"mine\.yaml\.sumary: no such setting; did you mean summary\?"),
        ({"stages": [{"name": "S1"}]}, r"mine\.yaml: stages\[0\]\.kind: this setting is required"),
        (
            {"published": {"trainable": {"S2": 3}}},
            r"mine\.yaml: published\.trainable: there is no stage 'S2'; known: S1",
        ),
        (
            {"explanation": [{"component": "x", "parameters": 1, "stage": "S3"}]},
            r"mine\.yaml: explanation: there is no stage 'S3'",
        ),
        ({"explanation": [{"component": "x"}]}, r"explanation\[0\]\.parameters: .* is required"),
    ],
)
def test_a_recipe_that_cannot_be_read_says_why(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Recipe.of("mine", copy.deepcopy(VALUES) | changed, where="mine.yaml")


def test_a_recipe_is_found_by_name() -> None:
    with pytest.raises(
        SettingError, match=r"there is no recipe 'lava-13b'; did you mean llava-13b"
    ):
        Recipe.read("lava-13b")


def test_a_stage_that_names_nothing_is_refused_when_measured() -> None:
    recipe = Recipe.of("mine", copy.deepcopy(VALUES), where="mine.yaml")
    assert measure(recipe).stages[0].trainable == 1024 * 4096 + 4096 + 4096 * 4096 + 4096
    values = VALUES | {
        "stages": [{"name": "S1", "kind": "pretraining", "train": ["output_projector"]}]
    }
    with pytest.raises(SettingError, match=r"stage S1: train: 'output_projector' matches no"):
        measure(Recipe.of("mine", values, where="mine.yaml"))


def test_compose_is_what_a_recipe_builds_by() -> None:
    recipe = RECIPES["llava-13b"]
    one, other = recipe.build(tiny=True), compose(**recipe.composition(tiny=True))
    assert isinstance(one, nn.Module)
    assert one.config.to_dict() == other.config.to_dict()
    assert isinstance(recipe.stages[0], Stage)
