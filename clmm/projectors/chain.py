"""Projectors in a row: TinyGPT-V's linear map behind MiniGPT-4's projector (arXiv 2312.16862)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from clmm.encoding import InputProjector
from streams import settings


@dataclass(frozen=True, kw_only=True)
class Chain:
    """The tokens of one are the features of the next: [B, n, d] → [B, m, D].

    So a projector that was trained for one language model is kept, and another width joined to it.
    """

    projectors: tuple[dict[str, Any], ...]
    """Name and settings of each in `clmm/projectors`, from the encoder on."""
    widths: tuple[int, ...]
    """Width between each two of them."""

    def __post_init__(self) -> None:
        if not self.projectors or len(self.widths) != len(self.projectors) - 1:
            raise ValueError(
                f"chain: {len(self.widths)} widths between {len(self.projectors)} projectors"
            )

    @property
    def steps(self) -> tuple[InputProjector, ...]:
        """The projectors, as their settings."""
        made = tuple(
            settings.from_spec("clmm.projectors", spec, where=f"chain.projectors[{i}]")
            for i, spec in enumerate(self.projectors)
        )
        for step, spec in zip(made, self.projectors, strict=True):
            if getattr(step, "in_layers", False) or getattr(step, "reads_instruction", False):
                raise ValueError(f"chain: {spec['name']} takes more than features")
        return made

    def num_tokens(self, features: int) -> int:
        for step in self.steps:
            features = step.num_tokens(features)
        return features

    def build(self, *, input_width: int, output_width: int) -> nn.Module:
        widths = (input_width, *self.widths, output_width)
        return nn.Sequential(
            *(
                step.build(input_width=before, output_width=after)
                for step, before, after in zip(self.steps, widths, widths[1:], strict=False)
            )
        )
