"""Counts a recipe's parameters, component by component and stage by stage, without memory.

Knows how components are built side by side; what the numbers should be, the recipe says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from clmm import llm, modeling_outputs, stages
from clmm.composition import configuration
from clmm.recipe import Recipe
from clmm.stages import StageTable


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A recipe's parameters, counted in networks that are built without memory."""

    components: Mapping[str, int]
    """encoders.image, input_projectors.image, language_model, … → parameters; one that shares
    another's weights is not there."""
    stages: tuple[StageTable, ...]
    """What each stage freezes and trains; generators are in none."""
    stated: tuple[str, ...]
    """Components whose library is not installed, so that the recipe's word is taken."""

    @property
    def total(self) -> int:
        return sum(self.components.values())


def measure(recipe: Recipe) -> Measured:
    """Builds the components on the meta device and counts them."""
    parts = Parts(recipe)
    counted = {name: _count(module) for name, module in parts.named_parts()}
    return Measured(
        components=counted,
        stages=tuple(stages.table(parts, stage) for stage in recipe.stages),
        stated=tuple(parts.stated),
    )


class Parts(nn.Module):
    """The components of a composition side by side on the meta device, named as in the model.

    So are counted those that cannot be built here: an encoder whose library is missing is one
    weight of the size that the recipe states, and its name is among `stated`.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        config = configuration(**recipe.composition())
        self.config = config
        self.stated: list[str] = []
        with torch.device("meta"):
            self.language_model = llm.built(config.text_config)
            encoders, projectors = {}, {}
            for name in config.inputs:
                if config.encoder_owner(name) == name:
                    where = f"encoders.{name}"
                    try:
                        encoders[name] = config.encoder(name).build()
                    except ImportError:
                        if where not in recipe.stated:
                            raise
                        encoders[name] = _Stated(recipe.stated[where].parameters)
                        self.stated.append(where)
                projectors[name] = _projector(config, name)
            self.encoders = nn.ModuleDict(encoders)
            self.input_projectors = nn.ModuleDict(projectors)
            self.output_projectors = modeling_outputs.projectors(config)
            # As in the model, generators are no part of it: they are frozen, and in no stage.
            self.generators = {
                name: config.media_generator(name).build() for name in config.outputs
            }

    def named_parts(self) -> Iterator[tuple[str, nn.Module]]:
        """Name → component, such as encoders.image."""
        for kind in ("encoders", "input_projectors"):
            for name, module in getattr(self, kind).items():
                yield f"{kind}.{name}", module
        yield "language_model", self.language_model
        for kind in ("output_projectors", "generators"):
            for name, module in getattr(self, kind).items():
                yield f"{kind}.{name}", module


class _Stated(nn.Module):
    def __init__(self, parameters: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(parameters))


def _projector(config: Any, name: str) -> nn.Module:
    projector, text = config.input_projector(name), config.text_config
    more = {"depth": text.num_hidden_layers} if getattr(projector, "in_layers", False) else {}
    module: nn.Module = projector.build(
        input_width=config.encoder(name).width, output_width=text.hidden_size, **more
    )
    return module


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
