"""What a stage adds: it alone gets gradients, and a finished model is saved as any other."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from clmm import components
from clmm.modeling_mmllm import values_key
from clmm.recipe import Recipe
from clmm.stage_additions import lora_targets
from clmm.stages import LoraSettings, Stage, apply, finish, table
from streams.settings import SettingError


def stage(*train: str, **more: Any) -> Stage:
    return Stage(name="S1", kind="pretraining", train=train, **more)


def trainable(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def batch(model: Any) -> dict[str, Any]:
    """A row with one medium of every input, and one asked for of every output."""
    config, row, given = model.config, [3, 4], {}
    for name in config.inputs:
        row += [config.token_ids[name]] * config.num_tokens(name) + [5]
        given[values_key(name)] = torch.randn(1, *config.encoder(name).shape)
        if getattr(model.input_projectors[name], "reads_instruction", False):
            given["qformer_input_ids"] = torch.randint(1, 50, (1, 6))
    for name, ids in config.signal_ids.items():
        row += [6, *ids]
        shape = config.media_generator(name).condition_shape
        given[f"target_{name}_condition"] = torch.randn(1, *shape)
    ids = torch.tensor([[*row, 7, 8]])
    return {**given, "input_ids": ids, "labels": ids}


def stepped(model: Any, wanted: Stage, given: dict[str, Any]) -> None:
    """Applies the stage and makes an update that moves all that trains, both of LoRA's matrices."""
    apply(model, wanted)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(**given).loss.backward()
    optimiser.step()
    model.zero_grad(set_to_none=True)


PEFT = {
    "lora-lm": ("gill", stage(lora=LoraSettings(rank=2))),
    "lora-lm-llama": ("llava-13b", stage("input_projector", lora=LoraSettings(rank=2))),
    "lora-t5": ("blip-2-flan-t5-xxl", stage(lora=LoraSettings(rank=2))),
    "lora-encoder": ("llava-13b", stage(lora=LoraSettings(rank=2, component="encoder"))),
    "lora-q-former": (
        "instructblip-7b", stage(lora=LoraSettings(rank=2, component="input_projector")),
    ),
    "lora-q-former-queries": (
        "blip-2-flan-t5-xxl",
        stage(lora=LoraSettings(rank=2, component="input_projector", targets=("query", "value"))),
    ),
    "lora-output": ("gill", stage(lora=LoraSettings(rank=2, component="output_projector"))),
    "norms": ("llava-13b", stage("language_model.norms", "encoder.norms")),
    "norms-t5": ("blip-2-flan-t5-xxl", stage("language_model.norms")),
    "prefix": ("llava-13b", stage(prefix=3)),
    "prefix-opt": ("gill", stage(prefix=3, signal_rows=True)),
    "rows": ("gill", stage("output_projector", signal_rows=True)),
    "rows-untied": ("minigpt-5", stage("output_projector", signal_rows=True)),
    "whole-q-former": ("instructblip-7b", stage("input_projector")),
    "whole-encoder": ("llava-13b", stage("encoder")),
}  # fmt: skip


@pytest.mark.parametrize("kind", PEFT)
def test_what_the_table_says_trains_gets_a_gradient_and_nothing_else(kind: str) -> None:
    torch.manual_seed(0)
    recipe, wanted = PEFT[kind]
    model = Recipe.read(recipe).build(tiny=True).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    found = apply(model, wanted)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    model(**batch(model)).loss.backward()
    reached = {
        n: p.numel()
        for n, p in model.named_parameters()
        if p.grad is not None and float(p.grad.abs().sum()) > 0
    }
    trained = {n: p.numel() for n, p in model.named_parameters() if p.requires_grad}
    # Keys' biases move all scores of a softmax alike: their gradient is zero but for rounding.
    assert reached.keys() == trained.keys()
    assert sum(reached.values()) == found.trainable == sum(r.trainable for r in found.rows) > 0
    assert found.rows == tuple(row for row in components.table(model) if row.total)


@pytest.mark.parametrize("recipe", ["gill", "minigpt-5"])  # OPT's head is tied, LLaMA's is not
@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("component", [None, "language_model", "encoder", "output_projector"])
def test_a_finished_model_is_saved_as_any_other(
    recipe: str, rows: bool, component: Any, tmp_path: Path
) -> None:
    if not (rows or component):
        pytest.skip("nothing is added")
    torch.manual_seed(0)
    model = Recipe.read(recipe).build(tiny=True)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    parameters = [n for n, _ in model.named_parameters()]
    lora = LoraSettings(rank=2, component=component) if component else None
    given = batch(model)
    stepped(model, stage("input_projector", signal_rows=rows, lora=lora), given)
    with torch.no_grad():
        taught = model(**given)
    with pytest.raises(RuntimeError, match=r"in the middle of a stage.*finish\(model\) first"):
        model.save_pretrained(tmp_path)
    assert not [*tmp_path.iterdir()]
    finish(model)
    assert [n for n, _ in model.named_parameters()] == parameters
    assert {*model.state_dict()} == {*before}
    assert trainable(model) == 0
    moved = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert any(components.component_of(model).get(n) == component for n in moved) or not component
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    assert {*again.state_dict()} == {*before}
    with torch.no_grad():
        loaded = again(**given)
    torch.testing.assert_close(loaded.logits, taught.logits, atol=1e-5, rtol=0)
    for name, condition in taught.conditions.items():
        torch.testing.assert_close(loaded.conditions[name], condition, atol=1e-5, rtol=1e-5)
    assert apply(again, stage("input_projector", lora=lora)).trainable  # and on to the next


def test_a_prefix_is_kept_with_the_model_and_decoding_agrees(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Recipe.read("llava-13b").build(tiny=True)
    names = {*model.state_dict()}
    given = batch(model)
    stepped(model, stage(prefix=3), given)
    for layer in model.language_model.language_prefix.layers:
        torch.nn.init.normal_(layer)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.language_model.language_prefix.layers[0].zero_()
        taught = model(**given).logits
        assert not torch.allclose(twin(**given).logits, taught)
        assert torch.equal(model(**given).logits, taught)
    model.save_pretrained(tmp_path)  # nothing stands in the way
    finish(model)
    extra = {f"language_model.language_prefix.layers.{i}" for i in range(2)}
    assert {*model.state_dict()} == names | extra
    for options in ({}, {"attn_implementation": "eager"}, {"attn_implementation": "sdpa"}):
        again = type(model).from_pretrained(tmp_path, **options).eval()
        assert again.config.prefix_tokens == 3
        with torch.no_grad():
            torch.testing.assert_close(again(**given).logits, taught, atol=1e-5, rtol=0)
    plain = {key: value for key, value in given.items() if key != "labels"}
    told = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    cached, whole = (again.generate(**plain, **told, use_cache=use) for use in (True, False))
    assert torch.equal(cached, whole)
    assert apply(again, stage("input_projector")).rows[-1].trainable == 0
    with pytest.raises(SettingError, match="has one of 3 tokens already, and the stage wants 4"):
        table(again, stage(prefix=4))


def test_a_prefix_that_cannot_be_is_refused() -> None:
    with pytest.raises(SettingError, match="t5 is an encoder and a decoder; it needs a decoder"):
        table(Recipe.read("blip-2-flan-t5-xxl").build(tiny=True), stage(prefix=2))
    model = Recipe.read("llava-13b").build(tiny=True)
    for layer in model.language_model.model.layers:
        layer.self_attn.forward = lambda hidden_states, **_: (hidden_states, None)
    names = {*model.state_dict()}
    with pytest.raises(SettingError, match="2 layers of the llama do not attend through"):
        apply(model, stage(prefix=2))
    assert {*model.state_dict()} == names
    assert model.config.prefix_tokens == 0
    with pytest.raises(SettingError, match="prefix: must not be negative; got -1"):
        stage(prefix=-1)


def test_what_has_no_effect_neither_trains_nor_counts() -> None:
    model = Recipe.read("instructblip-7b").build(tiny=True)
    idle = "input_projectors.image.qformer.encoder.layer.1"
    found = apply(model, stage("input_projector"))
    whole = next(row for row in found.rows if row.component == "input_projector")
    ends = (f"{idle}.intermediate.", f"{idle}.output.")
    unread = [p for n, p in model.named_parameters() if n.startswith(ends)]
    assert unread
    assert not any(p.requires_grad for p in unread)
    missing = sum(p.numel() for p in unread)
    assert whole.trainable == found.patterns["input_projector"] == whole.total - missing
    with pytest.raises(SettingError, match=r"'.*intermediate' matches only parameters that no out"):
        table(model, stage(f"{idle}.intermediate"))
    adapted = apply(model, stage(lora=LoraSettings(rank=1, component="input_projector")))
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    assert names
    assert adapted.trainable == trainable(model)
    assert not [n for n in names if n.startswith(ends)]


def test_layers_that_nobody_calls_get_no_adapters() -> None:
    model = Recipe.read("gill").build(tiny=True)
    targets = lora_targets(model, LoraSettings(rank=1, component="output_projector"))
    last = {name.removeprefix("output_projectors.image.") for name in targets}
    assert {"entry.0", "exit", "over_queries.layers.0.linear1"} <= last
    assert not [name for name in last if "out_proj" in name or "over_signals" in name]
    wanted = LoraSettings(rank=1, component="output_projector", targets=("out_proj",))
    with pytest.raises(SettingError, match=r"of the output projector is named 'out_proj'"):
        table(model, stage(lora=wanted))
    model = Recipe.read("llava-13b").build(tiny=True)
    with pytest.raises(SettingError, match=r"lora\.component: the output projector of .* has no l"):
        table(model, stage(lora=LoraSettings(rank=1, component="output_projector")))


def test_a_first_stage_trains_the_q_former_alone() -> None:
    model = Recipe.read("blip-2-flan-t5-xxl").build(tiny=True)
    first = {"objective": {"name": "q_former", "vocabulary": 50, "text_length": 8}}
    qformer = "input_projectors.image.qformer"
    names = {*model.state_dict()}
    foretold = table(model, stage(qformer, **first))
    assert apply(model, stage(qformer, **first)) == foretold
    assert foretold.trainable == trainable(model) == sum(foretold.patterns.values())
    with pytest.raises(RuntimeError, match="in the middle of a stage"):
        model.save_pretrained("nowhere")
    finish(model)
    assert {*model.state_dict()} == names
    for train, said in (
        ("language_model", r"language_model\.\S+ and \d+ others are none that the objective"),
        ("input_projector", r"language_projection\.bias and 1 others are none that"),
    ):
        with pytest.raises(SettingError, match=said):
            table(model, stage(train, **first))
    with pytest.raises(
        SettingError, match="projector of image is mlp, and only a q_former has a f"
    ):
        table(Recipe.read("llava-1.5-7b").build(tiny=True), stage("input_projector", **first))
    with pytest.raises(
        SettingError, match=r"q_former\.input: the model has no 'imag'; did you mean"
    ):
        table(model, stage(qformer, objective={"name": "q_former", "input": "imag"}))
