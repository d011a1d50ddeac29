"""Whether components fit: each is built without memory, and asked once by what stands before it.

So whatever a network itself cannot be, or cannot take, is refused before anything is allocated.
Knows names, shapes and modalities; nothing of what a component computes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from clmm import llm
from clmm.configuration_mmllm import MMLLMConfig
from streams.settings import SettingError

MODALITIES = ("image", "video", "audio", "points", "depth", "thermal", "imu")
"""An input or output of such a name takes a component of that modality alone."""
MAPS = ("depth", "thermal")
"""Of these a picture can be drawn, which another input's image encoder then sees."""


def check(config: MMLLMConfig) -> None:
    """Raises SettingError for components that do not fit, with both names and both numbers."""
    _check_language_model(config.text_config)
    for name in config.inputs:
        _check_input(config, name)
    for name in config.outputs:
        _check_output(config, name)


def _check_language_model(text: Any) -> None:
    """It has layers, no weight is empty, and embeddings are as wide as what media become."""
    kind = llm.describe(text)
    made = _without_memory(lambda: llm.built(text), where=f"llm: {kind}, cannot be as it is set")
    empty = [name for name, weight in made.named_parameters() if not weight.numel()]
    if empty or text.num_hidden_layers < 1:
        raise SettingError(f"llm: {kind}, has nothing in {empty[0] if empty else 'its layers'}")
    heads, shared = (
        getattr(text, key, None) for key in ("num_attention_heads", "num_key_value_heads")
    )
    if heads and shared and heads % shared:
        raise SettingError(
            f"llm: {kind}, has {heads} num_attention_heads, no multiple of its {shared} "
            "num_key_value_heads"
        )
    width = made.get_input_embeddings().weight.shape[1]
    if width != text.hidden_size:
        raise SettingError(
            f"llm: {kind}, takes embeddings of width {width}; media cannot stand among them"
        )


def _check_input(config: MMLLMConfig, name: str) -> None:
    encoder, kind, text = config.encoder(name), config.encoders[name]["name"], config.text_config
    borrows = config.encoder_owner(name) != name
    drawn = borrows and encoder.modality == "image" and name in MAPS
    if name in MODALITIES and encoder.modality != name and not drawn:
        raise SettingError(
            f"encoders.{name}: {kind} encodes {encoder.modality}, not {name}; call it "
            f"{encoder.modality}, or take another for {name}"
        )
    shape = (1, encoder.num_tokens(encoder.shape), encoder.width)
    if not borrows:
        where = f"encoders.{name}: {kind} cannot be as it is set"
        _ask(encoder.build, encoder.shape, shape, where=where)
    room = getattr(text, "max_position_embeddings", None)
    tokens = config.num_tokens(name)
    if room is not None and tokens >= room:
        raise SettingError(
            f"projectors.{name}: one {name} becomes {tokens} tokens, but {llm.describe(text)} has "
            f"{room} positions"
        )
    projector: Any = config.input_projector(name)
    layered = getattr(projector, "in_layers", False)
    more = {"depth": text.num_hidden_layers} if layered else {}
    _ask(
        lambda: projector.build(input_width=shape[2], output_width=text.hidden_size, **more),
        shape[1:],
        None if layered else (1, projector.num_tokens(shape[1]), text.hidden_size),
        where=(
            f"projectors.{name}: {config.input_projectors[name]['name']} cannot join {kind}, "
            f"{shape[1]} features of width {shape[2]}, to {llm.describe(text)}"
        ),
    )


def _check_output(config: MMLLMConfig, name: str) -> None:
    generator, kind, text = (
        config.media_generator(name),
        config.generators[name]["name"],
        config.text_config,
    )
    # What is asked in words makes what its own generator makes.
    makes = getattr(generator, "makes", generator.modality)
    if name in MODALITIES and makes not in (name, "text"):
        raise SettingError(
            f"generators.{name}: {kind} generates {makes}, not {name}; call it {makes}, or take "
            f"another for {name}"
        )
    _without_memory(generator.build, where=f"generators.{name}: {kind} cannot be as it is set")
    if generator.condition_shape is None:
        return
    projector, signals = config.output_projector(name), len(config.signal_ids[name])
    width = generator.condition_shape[1]
    _ask(
        lambda: projector.build(input_width=text.hidden_size, output_width=width),
        (signals, text.hidden_size),
        (1, projector.num_tokens(signals), width),
        where=(
            f"output_projectors.{name}: {config.output_projectors[name]['name']} cannot join "
            f"{llm.describe(text)}, to {kind}, width {width}"
        ),
    )


def _ask(
    build: Callable[[], Any], given: tuple[int, ...], wanted: tuple[int, ...] | None, *, where: str
) -> None:
    """One pass over [1, *given]; SettingError where it cannot be, or makes another shape."""

    def made() -> Tensor:
        module = build().eval()
        words = torch.zeros(1, 1, dtype=torch.long)
        reads = {"qformer_input_ids": words} if getattr(module, "reads_instruction", False) else {}
        output: Tensor = module(torch.empty(1, *given), **reads)
        return output

    found = _without_memory(made, where=where)
    if found is not None and wanted is not None and tuple(found.shape) != wanted:
        raise SettingError(f"{where}: it makes {tuple(found.shape)}, but says {wanted}")


def _without_memory(made: Callable[[], Any], *, where: str) -> Any:
    """What is made on the device that holds no values.

    None where its library is not installed, or it cannot go on without values.
    """
    try:
        with torch.device("meta"), torch.no_grad():
            return made()
    except ImportError:
        return None
    # Networks are of several libraries, and each refuses in its own way.
    except Exception as error:
        if "meta tensor" in str(error):  # it asks for a value, as far as which it was right
            return None
        raise SettingError(f"{where}: {llm.reason(error)}") from None
