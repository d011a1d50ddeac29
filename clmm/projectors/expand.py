"""One linear map makes several tokens of one feature: GILL's input projector (arXiv 2305.17216)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Expand:
    """P_X = W · F + b, cut into tokens: [B, n, d] → [B, tokens, D].

    F is an encoder's one feature of a medium, or the first of many, which is the class token where
    the encoder keeps it. GILL makes four tokens of CLIP's pooled feature (its released code).
    """

    tokens: int = 4
    """Tokens of one medium."""

    def num_tokens(self, features: int) -> int:
        return self.tokens

    def build(self, *, input_width: int, output_width: int) -> nn.Module:
        return _Expand(self.tokens, nn.Linear(input_width, self.tokens * output_width))


class _Expand(nn.Module):
    def __init__(self, tokens: int, linear: nn.Module) -> None:
        super().__init__()
        self.tokens = tokens
        self.linear = linear

    def forward(self, features: Tensor) -> Tensor:
        """[B, n, d] → [B, tokens, D]."""
        tokens: Tensor = self.linear(features[:, 0])
        return tokens.unflatten(1, (self.tokens, -1))
