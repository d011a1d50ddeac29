"""What an encoder and an input projector are to a composition, and how features are selected.

Knows shapes and token counts; which network computes the features, each file in `clmm/encoders`
says, and what they become, each in `clmm/projectors`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

FROM_ZERO = (
    "dropout", "global_blocks", "guidance", "layer_scale", "omega", "registers", "text_layers",
    "vocabulary",
)  # fmt: skip
"""Numbers in the settings of components that may be 0; nothing can be built of another that is."""
SHARED = (
    ("hidden_size", "heads"), ("acoustic_size", "acoustic_heads"), ("tag_width", "tag_heads"),
    ("hidden", "heads"),
)  # fmt: skip
"""Widths that are divided among heads, where those have no width of their own."""


class Encoder(Protocol):
    """A frozen dataclass in `clmm/encoders`: F_X = ME_X(I_X), the survey's equation (1)."""

    modality: ClassVar[str]
    """image, video, audio, points, depth, thermal or imu."""

    @property
    def width(self) -> int:
        """d_X, the width of a feature."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """One medium as the preprocessor makes it, such as (3, 224, 224)."""
        ...

    def num_tokens(self, shape: tuple[int, ...]) -> int:
        """n, the features of one medium of this shape; the one source for processor and model."""
        ...

    def build(self) -> nn.Module:
        """Maps [N, *shape] to [N, n, width]; weights are random. `compose` also builds it without
        memory, on the device `meta`, and asks it once (`clmm/fitting.py`)."""
        ...

    def preprocessor(self) -> Any:
        """The transformers image processor or feature extractor that makes `shape`."""
        ...


class BorrowingEncoder(Protocol):
    """A frozen dataclass in `clmm/encoders` without weights: another input's encoder serves it."""

    @property
    def of(self) -> str:
        """The input that owns the encoder."""
        ...

    def over(self, encoder: Encoder) -> Encoder:
        """This input's encoder, given the owner's; one medium is [*lead, *the owner's shape]."""
        ...


class InputProjector(Protocol):
    """A frozen dataclass in `clmm/projectors`: P_X = Θ_{X→T}(F_X).

    One with `in_layers` true has a single placeholder a medium, is built with the language model's
    `depth` besides, and attends from inside it (`clmm/gated_layers.py`). One with
    `reads_instruction` true, and so its module, takes `qformer_input_ids` and
    `qformer_attention_mask` too; its `vocabulary` and `text_length` say which.
    """

    def num_tokens(self, features: int) -> int:
        """Tokens for the language model from so many features; ValueError where it cannot."""
        ...

    def build(self, *, input_width: int, output_width: int) -> nn.Module:
        """Maps [N, n, input_width] to [N, num_tokens(n), output_width]."""
        ...


class Selected(nn.Module):
    """A transformers encoder with its feature rule: which layers, and whether leading tokens stay.

    `layers` are indices into the hidden states, 0 the embeddings and −1 the last; None is the
    model's own last state, after its final norm. Several are joined along the width. Of each the
    first `drop` tokens (class token, registers) are left out. A feature map [N, d, h, w] is read
    row by row. With `interpolate`, the position table is stretched to the image's size.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        layers: Sequence[int] | None = None,
        drop: int = 0,
        interpolate: bool = False,
    ):
        super().__init__()
        self.model = model
        self.layers = None if layers is None else tuple(layers)
        self.drop = drop
        self.options = {"interpolate_pos_encoding": True} if interpolate else {}

    def forward(self, values: Tensor) -> Tensor:
        """[N, *shape] → [N, n, width]."""
        if self.layers is None:
            states = [self.model(values, **self.options).last_hidden_state]
        else:
            output = self.model(values, output_hidden_states=True, **self.options)
            hidden = output.hidden_states
            states = [hidden[layer] for layer in self.layers]
        flat = [s.flatten(2).transpose(1, 2) if s.dim() == 4 else s[:, self.drop :] for s in states]
        return flat[0] if len(flat) == 1 else torch.cat(flat, dim=-1)


def joined(module: nn.Module, values: Tensor, axes: int) -> Tensor:
    """[N, *lead, *shape] through an encoder of [N, *shape], where `shape` has so many axes.

    Features of one medium follow one another: [N, prod(lead) · n, d_X].
    """
    lead = values.dim() - axes
    features: Tensor = module(values.flatten(0, lead - 1))
    return features if lead == 1 else features.reshape(len(values), -1, features.shape[-1])


def unused_blocks(
    layers: Sequence[int] | None, depth: int, *, blocks: str, ends: Sequence[str]
) -> tuple[str, ...]:
    """Prefixes of parameters that no feature depends on when `layers` of `depth` blocks are taken.

    Blocks behind the deepest layer, named `blocks` and a number, and `ends`, such as the norm
    behind the last. Empty where `layers` is None, for then the model's own last state is taken.
    """
    if layers is None:
        return ()
    deepest = max(layer % (depth + 1) for layer in layers)
    return (*(f"{blocks}.{i}." for i in range(deepest, depth)), *ends)


def unused_of(encoder: Any) -> tuple[str, ...]:
    """An encoder's own list of those prefixes; empty for one that has none."""
    return tuple(getattr(encoder, "unused", ()))


def patches(shape: Sequence[int], stride: int, *, where: str) -> int:
    """Patches of an image [3, height, width]; ValueError when the stride divides no whole side."""
    height, width = shape[-2:]
    for side in (height, width):
        if side % stride:
            raise ValueError(f"{where}: image_size {side} is no multiple of {stride}")
    return (height // stride) * (width // stride)


def check_settings(settings: Any, *, where: str) -> None:
    """ValueError where a component's numbers, or those of one inside it, are none to build of."""
    if dataclasses.is_dataclass(settings):
        settings = vars(settings)
    for key, value in settings.items():
        place = f"{where}.{key}"
        if key == "layers" and isinstance(value, (list, tuple)):
            _check_layers(value, settings.get("depth"), where=place)
            continue
        for one in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(one, Mapping):
                check_settings(one, where=place)
            elif isinstance(one, (int, float)) and not isinstance(one, bool):
                _check_number(key, one, where=place)
    table, patch = settings.get("position_size"), settings.get("patch_size")
    if isinstance(table, int) and isinstance(patch, int) and table < patch:
        raise ValueError(f"{where}.position_size: {table} is less than patch_size {patch}")
    for width, heads in SHARED:
        size, count = settings.get(width), settings.get(heads)
        if not (isinstance(size, int) and isinstance(count, int)) or "head_width" in settings:
            continue
        if size % count:
            raise ValueError(f"{where}.{width}: {size} is no multiple of {heads} {count}")


def _check_number(key: str, value: float, *, where: str) -> None:
    least = 0 if key in FROM_ZERO else 1 if isinstance(value, int) else None
    if not math.isfinite(value):
        raise ValueError(f"{where}: {value} is no number to build of")
    if least is None and value <= 0:
        raise ValueError(f"{where}: {value}; give more than 0")
    if least is not None and value < least:
        raise ValueError(f"{where}: {value}; give {least} or more")
    if key == "dropout" and value >= 1:
        raise ValueError(f"{where}: {value}; give a share below 1")


def _check_layers(layers: Sequence[int], depth: Any, *, where: str) -> None:
    if not layers:
        raise ValueError(f"{where}: names no hidden state; give some, such as [-2]")
    beyond = [layer for layer in layers if isinstance(layer, int) and isinstance(depth, int)
              and not -depth - 1 <= layer <= depth]  # fmt: skip
    if beyond:
        raise ValueError(
            f"{where}: {beyond[0]}, but depth {depth} has the hidden states 0 to {depth}, or "
            f"{-depth - 1} to -1"
        )
