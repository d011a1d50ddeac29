"""Every component in a composition: counts, a pass, gradients, weights on disk and back.

Cases are found by the folders: a file without tiny settings fails.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_components as tiny
import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from clmm import stages
from clmm.composition import compose
from clmm.modeling_mmllm import FEATURES, MMLLMForConditionalGeneration, values_key
from clmm.processing_mmllm import byte_tokenizer
from clmm.stage_settings import Stage
from streams import catalog

Model = MMLLMForConditionalGeneration
CASES: dict[str, dict[str, Any]] = {
    "encoders": tiny.ENCODERS,
    "projectors": tiny.PROJECTORS,
    "output_projectors": tiny.OUTPUT_PROJECTORS,
    "generators": tiny.GENERATORS,
}
WORDS = {
    "qformer_input_ids": torch.tensor([[1, 2, 3], [4, 5, 6]]),
    "qformer_attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
}


@pytest.mark.parametrize("folder", CASES)
def test_every_file_has_tiny_settings(folder: str) -> None:
    named = {case.split(",")[0] for case in CASES[folder]}
    assert named == {*catalog.names(f"clmm.{folder}")}


def composed(encoders: dict[str, Any], projector: Any = "linear", **outputs: Any) -> Model:
    if any(spec["name"] == "nfnet" for spec in encoders.values()):
        pytest.importorskip("timm")
    torch.manual_seed(0)
    given = dict.fromkeys(encoders, projector)
    model = compose(llm=tiny.LLM, encoders=encoders, projectors=given, **outputs)
    for key, weight in model.named_parameters():
        # Gates that are closed at first, and would let no gradient through.
        if ".alpha_" in key or key.endswith("skipinit_gain"):
            nn.init.constant_(weight, 0.5)
    return model


def rows_of(model: Model, name: str, *, more: int = 0, ends: tuple[int, ...] = ()) -> Tensor:
    """Two rows, a medium in each; with `more` placeholders than it becomes tokens."""
    count = model.config.num_tokens(name) + more
    return torch.tensor([[7, *[model.config.token_ids[name]] * count, 8, 9, *ends]] * 2)


def batch_of(model: Model, name: str) -> dict[str, Tensor]:
    shape = model.config.encoder(name).shape
    values = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    reads = getattr(model.input_projectors[name], "reads_instruction", False)
    return {values_key(name): values, **(WORDS if reads else {})}


def labels_of(rows: Tensor) -> Tensor:
    return rows.masked_fill(rows >= tiny.LLM["vocab_size"], -100)


def only(model: Model, component: str, **batch: Tensor) -> None:
    """A stage trains the component, and a step gives all that trains a gradient, and no other."""
    stage = Stage(name=component, kind="pretraining", train=(component,))
    table = stages.apply(model, stage)
    model.zero_grad(set_to_none=True)
    model.train()(**batch).loss.backward()
    model.eval()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all(name.startswith(component) for name in trained)
    assert trained == {name for name, p in model.named_parameters() if p.grad is not None}
    assert table.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)


def idle(model: Model, component: str, name: str, settings: Any) -> set[str]:
    """Names of the parameters that the settings say nothing depends on; each is of some."""
    prefixes = tuple(getattr(settings, "unused", ()))
    own = [key for key, _ in getattr(model, component)[name].named_parameters()]
    for prefix in prefixes:
        assert any(key.startswith(prefix) for key in own), prefix
    return {f"{component}.{name}.{key}" for key in own if key.startswith(prefixes or ("\0",))}


def zeros(model: Model, component: str) -> set[str]:
    """Names of the component's parameters without a gradient, or with one that is all zero."""
    found = getattr(model, component).named_parameters(prefix=component)
    return {name for name, p in found if p.grad is None or not bool(p.grad.any())}


def is_saved(model: Model, folder: Path, **batch: Tensor) -> None:
    model.save_pretrained(folder)
    again = AutoModelForImageTextToText.from_pretrained(folder).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(**batch).logits, model(**batch).logits)
    assert again.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("case", tiny.ENCODERS)
def test_an_encoder(case: str, tmp_path: Path) -> None:
    encoders = tiny.ENCODERS[case]
    *_, name = encoders
    model = composed(encoders)
    settings, owner = model.config.encoder(name), model.config.encoder_owner(name)
    batch, rows = batch_of(model, name), rows_of(model, name)
    values = batch[values_key(name)]
    with torch.no_grad():
        features = model.encode(name, values)
        one = model.encode(name, values[:1])
    assert features.shape == (2, settings.num_tokens(settings.shape), settings.width)
    torch.testing.assert_close(one, features[:1], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=f"{name} tokens in the text"):
        model(input_ids=rows_of(model, name, more=1), **batch)
    with torch.no_grad():
        seen = model(input_ids=rows, **batch).logits
        kept = model(input_ids=rows, **{name + FEATURES: features}).logits
    torch.testing.assert_close(kept, seen)

    whole = {"input_ids": rows, "labels": labels_of(rows), **batch}
    only(model, "encoder", **whole)
    lazy = idle(model, "encoders", owner, model.config.encoder(owner))
    assert zeros(model, "encoders") == lazy
    trained = {key for key, p in model.named_parameters() if p.requires_grad}
    everything = {key for key, _ in model.encoders.named_parameters(prefix="encoders")}
    assert trained == everything - lazy
    # While another component trains a frozen one learns nothing, its statistics neither.
    before = {key: value.clone() for key, value in model.encoders.state_dict().items()}
    frozen = model.encode(name, values)
    only(model, f"input_projectors.{name}", **whole)
    torch.testing.assert_close(model.train().encode(name, values), frozen)
    assert all(torch.equal(before[k], value) for k, value in model.encoders.state_dict().items())
    is_saved(model.eval(), tmp_path, input_ids=rows, **batch)
    # A processor makes fp32 whatever the weights are.
    assert model.to(torch.bfloat16)(input_ids=rows, **batch).logits.isfinite().all()


@pytest.mark.parametrize("case", tiny.PROJECTORS)
def test_an_input_projector(case: str, tmp_path: Path) -> None:
    model = composed({"image": tiny.EYE}, tiny.PROJECTORS[case])
    settings = model.config.input_projector("image")
    batch, rows = batch_of(model, "image"), rows_of(model, "image")
    words = {key: value for key, value in batch.items() if key in WORDS}
    with torch.no_grad():
        tokens = model.project("image", model.encode("image", batch["pixel_values"]), **words)
    if not getattr(settings, "in_layers", False):
        count = settings.num_tokens(16)
        assert tokens.shape == (2, count, 16)
        assert int((rows == model.config.token_ids["image"]).sum()) == 2 * count
    with pytest.raises(ValueError, match="image tokens in the text"):
        model(input_ids=rows_of(model, "image", more=1), **batch)

    whole = {"input_ids": rows, "labels": labels_of(rows), **batch}
    only(model, "input_projector", **whole)
    assert zeros(model, "input_projectors") == idle(model, "input_projectors", "image", settings)
    only(model, "language_model", **whole)
    assert zeros(model, "input_projectors") == {
        name for name, _ in model.input_projectors.named_parameters(prefix="input_projectors")
    }
    is_saved(model, tmp_path, input_ids=rows, **batch)
    assert model.to(torch.bfloat16)(input_ids=rows, **batch).logits.isfinite().all()


def painted(generator: Any, output: str, projector: Any, signals: int) -> Model:
    return composed(
        {"image": tiny.EYE},
        generators={output: generator},
        output_projectors={output: projector},
        signals={output: signals},
    )


def asked(model: Model, output: str) -> dict[str, Tensor]:
    """Two rows that see a picture and ask for a medium each, and what the medium should be."""
    made = model.config.media_generator(output)
    rows = rows_of(model, "image", ends=tuple(model.config.signal_ids[output]))
    torch.manual_seed(2)
    return {
        "input_ids": rows,
        "labels": labels_of(rows),
        f"target_{output}_condition": torch.randn(2, *made.condition_shape),
        f"target_{output}_latents": torch.randn(2, *made.latent_shape),
        **batch_of(model, "image"),
    }


@pytest.mark.parametrize("case", tiny.OUTPUT_PROJECTORS)
def test_an_output_projector(case: str, tmp_path: Path) -> None:
    spec, signals = tiny.OUTPUT_PROJECTORS[case]
    _, painter = tiny.GENERATORS["latent_diffusion"]
    model = painted(painter, "image", spec, signals)
    batch = asked(model, "image")
    model.attach_generator("image", model.config.media_generator("image").build(byte_tokenizer()))
    only(model, "output_projector", **batch)
    assert not zeros(model, "output_projectors")
    settings = model.config.output_projector("image")
    found = model(**batch).conditions["image"]
    assert found.shape == (2, settings.num_tokens(signals), 16)
    seen = {key: value for key, value in batch.items() if not key.startswith(("target", "labels"))}
    is_saved(model, tmp_path, **seen)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    batch.pop("target_image_latents")
    torch.testing.assert_close(
        again(**batch).conditions["image"], model(**batch).conditions["image"]
    )


@pytest.mark.parametrize("case", tiny.GENERATORS)
def test_a_generator(case: str, tmp_path: Path) -> None:
    output, spec = tiny.GENERATORS[case]
    if spec["name"] == "text_relay":
        words: Any = composed({"image": tiny.EYE}, generators={output: spec})
        relay = words.config.media_generator(output).build(byte_tokenizer())
        words.attach_generator(output, relay)
        made = relay.generate(["a red ring"], steps=2)
        torch.testing.assert_close(relay.generate(["a red ring"], steps=2), made)
        is_saved(words, tmp_path, input_ids=rows_of(words, "image"), **batch_of(words, "image"))
        return
    length = spec.get("condition_length", 1)
    model = painted(spec, output, {**tiny.MAPPER, "queries": length}, 2)
    settings: Any = model.config.media_generator(output)
    generator = settings.build(byte_tokenizer()).eval()
    model.attach_generator(output, generator)
    batch = asked(model, output)
    only(model, "output_projector", **batch)
    assert all(p.grad is None and not p.requires_grad for p in generator.parameters())
    assert not any("unet" in key or "generator" in key for key in model.state_dict())
    condition = model(**batch).conditions[output].detach()
    media = generator.generate(condition, steps=2, seed=3)
    # Saved with the model's folder, and found beside it.
    generator.save(tmp_path / "made")
    model.config.generators[output] = {**spec, "folder": "made"}
    seen = {key: value for key, value in batch.items() if not key.startswith(("target", "labels"))}
    is_saved(model, tmp_path, **seen)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again.generator(output).generate(condition, steps=2, seed=3), media)
