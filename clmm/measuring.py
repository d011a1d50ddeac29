"""Counts a recipe's parameters, component by component and stage by stage, without memory.

Knows how components are built side by side, and what of a gap each line of a recipe's explanation
accounts for; what the numbers should be, the recipe says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from clmm import llm, modeling_outputs, stages
from clmm.composition import configuration
from clmm.recipe import Explained, Recipe, digits, prints
from clmm.stages import StageTable
from streams.catalog import nearest
from streams.settings import SettingError


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A recipe's parameters, counted in networks that are built without memory."""

    components: Mapping[str, int]
    """encoders.image, input_projectors.image, language_model, … → parameters; one that shares
    another's weights is not there."""
    parameters: Mapping[str, int]
    """Full name of each parameter, such as language_model.lm_head.weight → its size."""
    stages: tuple[StageTable, ...]
    """What each stage freezes and trains; generators are in none."""
    stated: tuple[str, ...]
    """Components whose library is not installed, so that the recipe's word is taken."""

    @property
    def total(self) -> int:
        return sum(self.components.values())

    def count(self, part: str, *, stage: str | None = None) -> int | None:
        """The parameters of a component, of a module in it, or of what a stage adds (`lora`,
        `signal_rows`); None where there is no such part."""
        added = next((table.patterns for table in self.stages if table.stage == stage), {})
        if part in ("lora", "signal_rows"):
            return added.get(part)
        sizes = [n for name, n in self.parameters.items() if f"{name}.".startswith(f"{part}.")]
        return sum(sizes) if sizes else None


@dataclass(frozen=True, kw_only=True)
class Reason:
    """A line of a recipe's explanation with its count."""

    component: str
    parameters: int
    """What it adds to the measured count, over the published one."""
    note: str


def reasons(recipe: Recipe, measured: Measured, *, stage: str | None = None) -> tuple[Reason, ...]:
    """Why the measured count differs from the published one, of the whole or of a stage.

    Raises SettingError for a component that is not there, one whose count is written down although
    it is ours, and one whose printed count has other digits than what was measured.
    """
    return tuple(
        _reason(line, measured, where=f"{recipe.name}.yaml: explanation[{i}]")
        for i, line in enumerate(recipe.explanation)
        if line.stage == stage
    )


def _reason(line: Explained, measured: Measured, *, where: str) -> Reason:
    parts = line.component.split(" + ")
    counts = [measured.count(part, stage=line.stage) for part in parts]
    if line.parameters is not None:
        if any(count is not None for count in counts):
            raise SettingError(f"{where}.parameters: {line.component} is measured; leave it out")
        return Reason(component=line.component, parameters=line.parameters, note=line.note)
    for part, count in zip(parts, counts, strict=True):
        if count is None:
            near = nearest(part, [*measured.components, "lora", "signal_rows"])
            raise SettingError(f"{where}.component: {part!r} is no part that was measured{near}")
    own = sum(count for count in counts if count is not None)
    if line.printed is None:
        return Reason(component=line.component, parameters=own, note=line.note)
    if not prints(own + line.besides, line.printed):
        raise SettingError(
            f"{where}.printed: {line.component} has {own:,} parameters and {line.besides:,} "
            f"besides, which nobody prints as {line.printed}"
        )
    said, _ = digits(line.printed)
    note = f"published as {line.printed}" + (f". {line.note}" if line.note else "")
    return Reason(component=line.component, parameters=own - said, note=note)


def measure(recipe: Recipe) -> Measured:
    """Builds the components on the meta device and counts them."""
    parts = Parts(recipe)
    sizes = {
        component: {name: parameter.numel() for name, parameter in module.named_parameters()}
        for component, module in parts.named_parts()
    }
    return Measured(
        components={component: sum(found.values()) for component, found in sizes.items()},
        parameters={f"{c}.{name}": n for c, found in sizes.items() for name, n in found.items()},
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
