"""An encoder's size, counted without memory, and media of its shape."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def millions(encoder: Any) -> float:
    """Parameters of the encoder as its settings say, counted without memory, in millions."""
    with torch.device("meta"):
        built = encoder if isinstance(encoder, nn.Module) else encoder.build()
    return sum(p.numel() for p in built.parameters()) / 1e6


def values(encoder: Any, media: int = 2) -> torch.Tensor:
    return torch.randn(media, *encoder.shape, generator=torch.Generator().manual_seed(0))
