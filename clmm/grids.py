"""Features as the square grid that they are of, its positions, and pictures made small.

Knows lengths and widths; knows no projector.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import interpolate


def side(features: int, *, where: str) -> int:
    """Side of the square grid of so many features; ValueError where there is none."""
    edge = math.isqrt(features)
    if edge * edge != features:
        raise ValueError(f"{where}: {features} features are no square grid; {edge**2} would be")
    return edge


def as_grid(features: Tensor, *, where: str) -> Tensor:
    """[B, n, d], read row by row → [B, d, side, side]."""
    edge = side(features.shape[1], where=where)
    return features.transpose(1, 2).unflatten(2, (edge, edge))


def as_sequence(grid: Tensor) -> Tensor:
    """[B, d, h, w] → [B, h · w, d]."""
    return grid.flatten(2).transpose(1, 2)


def positions(edge: int, width: int, *, device: torch.device | None = None) -> Tensor:
    """Sine and cosine positions of a square grid, row by row: [edge², width], in fp32.

    The first half of the width is the column's, the second the row's; of each half the sines stand
    before the cosines, at frequencies 10000^(−2i/h) with h = width / 2 and i = 0 … h/2 − 1, as
    MAE's (arXiv 2111.06377) released positions are.
    """
    if width % 4:
        raise ValueError(f"positions: width {width} is no multiple of 4")
    quarter = width // 4
    steps = torch.arange(quarter, dtype=torch.float64, device=device)
    frequencies = 10000.0 ** (-steps / quarter)
    angles = torch.arange(edge, dtype=torch.float64, device=device)[:, None] * frequencies
    one = torch.cat([angles.sin(), angles.cos()], dim=1).float()
    columns, rows = one.repeat(edge, 1), one.repeat_interleave(edge, dim=0)
    return torch.cat([columns, rows], dim=1)


def made_small(pictures: Tensor, size: tuple[int, ...]) -> Tensor:
    """Pictures [N, 3, H, W] of another size, [N, 3, *size], bicubic; in fp32, as there is no other
    for it everywhere."""
    small = interpolate(
        pictures.float(), size=size, mode="bicubic", align_corners=False, antialias=True
    )
    return small.to(pictures.dtype)


def resized(table: Tensor, edge: int) -> Tensor:
    """Positions [m², width] of one grid for a grid of side `edge`, by bicubic interpolation."""
    old = side(len(table), where="resized")
    if old == edge:
        return table
    grid = table.float().unflatten(0, (old, old)).permute(2, 0, 1).unsqueeze(0)
    new = interpolate(grid, size=(edge, edge), mode="bicubic", align_corners=False)
    return as_sequence(new)[0].to(table.dtype)
