"""Finds encoder, input projector and language model inside any Hugging Face vision-language model.

Goes by the modules' conventional names, so it knows no model class. Freezing, the linear layers
that adapters take, and the parameter table are asked by component; nothing is trained here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from streams.catalog import nearest

COMPONENTS = ("encoder", "input_projector", "language_model")
OUTPUT = "output_projector"
"""A component that only models which generate have."""

_NAMES: dict[str, tuple[str, ...]] = {
    "input_projector": (
        "input_projectors", "input_projector", "multi_modal_projector", "connector", "merger",
        "deepstack_merger_list", "embed_vision", "modality_projection", "mlp1", "aligner",
        "image_to_text_projection", "language_projection", "qformer",
    ),
    "encoder": (
        "encoders", "encoder", "vision_tower", "vision_model", "visual", "vision_embed_tokens",
        "image_encoder", "video_tower", "audio_tower",
    ),
    "language_model": ("language_model", "text_model"),
    OUTPUT: ("output_projectors",),
}  # fmt: skip
HEADS = ("lm_head", "embed_out")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the parameter table."""

    component: str
    total: int
    trainable: int


def find(model: nn.Module) -> dict[str, list[str]]:
    """Component → full names of its modules, outermost first.

    Raises ValueError when the language model cannot be found. A component may have no module of
    its own (empty list); the language model's head belongs to the language model.
    """
    found: dict[str, list[str]] = {component: [] for component in (*COMPONENTS, OUTPUT)}
    for name, _ in model.named_modules():
        last = name.rsplit(".", 1)[-1]
        component = next((c for c, names in _NAMES.items() if last in names), None)
        inside = {c for c, roots in found.items() if any(_within(name, root) for root in roots)}
        # A projector inside the encoder is a component; a `vision_model` there is still encoder.
        if component and (not inside or (inside == {"encoder"} and component == "input_projector")):
            found[component].append(name)
    if not found["language_model"]:
        raise ValueError(
            f"{type(model).__name__} has no module named "
            f"{' or '.join(_NAMES['language_model'])}, so its language model cannot be found"
        )
    if not any(True for root in found[OUTPUT] for _ in model.get_submodule(root).parameters()):
        del found[OUTPUT]
    return found


def component_of(model: nn.Module) -> dict[str, str]:
    """Parameter name → component; `other` for what belongs to none."""
    found = find(model)
    return {name: _owner(name, found) for name, _ in model.named_parameters(remove_duplicate=True)}


def language_linears(model: nn.Module) -> list[str]:
    """Full names of the language model's linear layers, without the head: LoRA's targets."""
    return linears(model, "language_model")


def linears(model: nn.Module, component: str) -> list[str]:
    """Full names of a component's linear layers, without the language model's head.

    Layers that torch's own attention and encoder blocks read without calling them are left out:
    what wraps such a layer would have no effect. Raises ValueError where none is left.
    """
    found = find(model)
    outside = {
        id(inner)
        for outer in model.modules()
        if isinstance(outer, (nn.MultiheadAttention, nn.TransformerEncoderLayer))
        for inner in outer.children()
    }
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and id(module) not in outside
        and name.rsplit(".", 1)[-1] not in HEADS
        and _owner(name, found) == component
    ]
    if not names:
        what = component.replace("_", " ")
        raise ValueError(f"the {what} of {type(model).__name__} has no linear layer")
    return names


def train_only(model: nn.Module, components: Sequence[str]) -> int:
    """Makes exactly these components trainable; returns how many parameters that is.

    Raises ValueError for an unknown component, or one that has no parameters in this model.
    """
    owners = component_of(model)
    for component in components:
        if component not in (*COMPONENTS, OUTPUT):
            near = nearest(component, [*COMPONENTS, OUTPUT])
            raise ValueError(f"there is no component {component!r}{near}")
        if component not in owners.values():
            raise ValueError(f"{type(model).__name__} has no parameters in its {component}")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(owners[name] in components)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def table(model: nn.Module) -> list[Row]:
    """Total and trainable parameters of each component, tied ones counted once."""
    owners = component_of(model)
    rows = []
    for component in (*COMPONENTS, OUTPUT, "other"):
        own = [p for name, p in model.named_parameters() if owners[name] == component]
        rows.append(
            Row(
                component=component,
                total=sum(p.numel() for p in own),
                trainable=sum(p.numel() for p in own if p.requires_grad),
            )
        )
    return [row for row in rows if row.total or row.component in COMPONENTS]


def frozen_encoder(model: Any) -> Callable[[Tensor], Tensor] | None:
    """`model.encode_images` when the model has it and no encoder weight is trained, else None.

    What it returns may be computed once an image (`Batcher(encode_images=…)`); it raises
    RuntimeError if the encoder is trained later, when kept features would be stale.
    """
    encode = getattr(model, "encode_images", None)
    if encode is None:
        return None
    owners = component_of(model)
    weights = [p for name, p in model.named_parameters() if owners[name] == "encoder"]
    if any(weight.requires_grad for weight in weights):
        return None

    def encode_once(pixel_values: Tensor) -> Tensor:
        if any(weight.requires_grad for weight in weights):
            raise RuntimeError("the encoder is trained now, but its features were kept as frozen")
        weight = weights[0]
        # Whoever asks first, a training step or an answer in bf16, the kept values are the same.
        with evaluating(model), torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
            features: Tensor = encode(pixel_values.to(weight.device, weight.dtype))
        return features

    return encode_once


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; each module's own mode is put back afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def merged(model: nn.Module) -> Iterator[None]:
    """Active LoRA adapters added to their layers' weights, which are put back bit for bit.

    An answer then costs a third less. Only in fp32: half precision would round small updates away.
    """
    layers: list[Any] = [
        layer
        for layer in model.modules()
        if isinstance(layer, LoraLinear)
        and not (layer.disable_adapters or layer.merged)
        and layer.get_base_layer().weight.dtype == torch.float32  # type: ignore[union-attr]
    ]
    kept = [layer.get_base_layer().weight.detach().clone() for layer in layers]
    try:
        for layer in layers:
            layer.merge()
        yield
    finally:
        for layer, weight in zip(layers, kept, strict=True):
            layer.get_base_layer().weight.data.copy_(weight)
            layer.merged_adapters.clear()


def _within(name: str, root: str) -> bool:
    return name == root or name.startswith(root + ".")


def _owner(parameter: str, found: dict[str, list[str]]) -> str:
    """The component of the innermost root that holds the parameter."""
    roots = [(root, c) for c, names in found.items() for root in names if _within(parameter, root)]
    if roots:
        return max(roots, key=lambda pair: len(pair[0]))[1]
    return "language_model" if set(HEADS) & set(parameter.split(".")) else "other"
