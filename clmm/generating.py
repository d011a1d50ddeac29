"""What an output projector and a generator are to a composition.

Knows shapes: r signal tokens of width D become a condition [L, d_c], which a generator turns into
a medium. Which networks do it, each file in `clmm/output_projectors` and `clmm/generators` says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn


class OutputProjector(Protocol):
    """A frozen dataclass in `clmm/output_projectors`: H_X = Θ_{T→X}(S_X), in equation (4)."""

    @property
    def add_embedding(self) -> bool:
        """Whether its input is the hidden state plus the signal token's own embedding."""
        ...

    def num_tokens(self, signals: int) -> int:
        """L, the tokens of the condition from so many signal tokens; ValueError if it cannot."""
        ...

    def build(self, *, input_width: int, output_width: int) -> nn.Module:
        """Maps [B, r, input_width] to [B, num_tokens(r), output_width]."""
        ...


class Generator(Protocol):
    """A frozen dataclass in `clmm/generators`: the settings of MG_X, the modality generator."""

    modality: ClassVar[str]
    """image, video or audio; text when another generator is asked in words."""

    @property
    def condition_shape(self) -> tuple[int, int] | None:
        """(L, d_c) of τ_X(t); None for a generator that is asked in words, without signals."""
        ...

    @property
    def any_length(self) -> bool:
        """Whether a condition of another L serves too: cross-attention does not mind."""
        ...

    def build(self) -> Any:
        """The network with random weights; a `Generates`."""
        ...

    def load(self, beside: Path | None = None) -> Any:
        """The network from its folder, safetensors only; a relative one lies in `beside`."""
        ...


class Generates(Protocol):
    """A built generator. Media are in [0, 1] (waves in [−1, 1]), batch first."""

    def condition(self, texts: list[str]) -> Tensor:
        """τ_X(t): [B, L, d_c]."""
        ...

    def loss(
        self, condition: Tensor, *, media: Tensor | None = None, latents: Tensor | None = None
    ) -> Tensor:
        """L_X-gen, the survey's equation (5), a mean."""
        ...

    def generate(
        self,
        condition: Tensor,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int = 0,
    ) -> Tensor:
        """Media from conditions [B, L, d_c]; the same seed gives the same media."""
        ...
