"""Pre-training of nano's encoder by itself: each patch says what is centred in it.

Three linear heads on every cell of the 6 × 6 feature map name the colour, the shape and the
letters there, as a detector's encoder is taught. A share of the pictures is grey, or painted in
colours without a name, so that shape is learnt apart from colour and pairs that are held out can
be seen right. The heads are thrown away. Knows nothing of language.
"""

from __future__ import annotations

from collections.abc import Callable
from string import ascii_uppercase

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from clmm.nano.curriculum import Lesson, picture_lesson
from streams.world import COLOURS, SHAPES, SIZE, Colour, DrawnWord, Figure, Scene, render

GRID = 6
_CELL = SIZE // GRID
_COLOURS = tuple(COLOURS)
_SHAPES = (*SHAPES, "hat")
_HEADS = (1 + len(_COLOURS), 1 + len(_SHAPES), 1 + len(ascii_uppercase), 1 + len(ascii_uppercase))
_IGNORE = -100
_UNNAMED: tuple[Colour, ...] = (
    (255, 150, 180), (130, 75, 35), (128, 128, 128), (0, 115, 115), (115, 115, 0),
    (25, 25, 120), (230, 30, 170), (165, 240, 60), (255, 200, 160), (110, 10, 60),
)  # fmt: skip


def _cell(x: float, y: float) -> tuple[int, int]:
    return min(max(int(y) // _CELL, 0), GRID - 1), min(max(int(x) // _CELL, 0), GRID - 1)


def targets(lesson: Lesson) -> np.ndarray:
    """What each cell shows: int64 [6, 6, 4] = colour, shape, letter in the left and right half."""
    grid = np.zeros((GRID, GRID, len(_HEADS)), dtype=np.int64)
    match lesson.scene:
        case Scene(things=things):
            for t in things:
                grid[(*_cell(t.x, t.y), slice(0, 2))] = (
                    1 + _COLOURS.index(t.colour),
                    1 + _SHAPES.index(t.shape),
                )
        case Figure(hat=hat, tool=tool, x=x, y=y):
            grid[(*_cell(x, y - 17), slice(0, 2))] = (
                1 + _COLOURS.index(hat),
                1 + _SHAPES.index("hat"),
            )
            if tool:
                grid[(*_cell(x + 23, y + 8), slice(0, 2))] = (
                    1 + _COLOURS.index("white"),
                    1 + _SHAPES.index(tool),
                )
        case DrawnWord(letters=letters):
            for letter, across, down in letters:
                half = int(across % _CELL) // (_CELL // 2)
                grid[(*_cell(across, down), 2 + half)] = 1 + ascii_uppercase.index(letter)
    return grid


def pixels(pictures: list[np.ndarray]) -> Tensor:
    """uint8 [72, 72, 3] pictures as the image processor gives them: [n, 3, 72, 72] in [−1, 1]."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def _batch(rng: np.random.Generator, size: int) -> tuple[Tensor, Tensor]:
    pictures, grids = [], []
    for _ in range(size):
        lesson = picture_lesson(rng, questions=0)
        picture, grid = lesson.picture, targets(lesson)
        assert picture is not None
        if isinstance(lesson.scene, Scene) and rng.random() < 0.35:
            inks = rng.permutation(len(_UNNAMED))[: len(COLOURS)]
            palette = {name: _UNNAMED[int(i)] for name, i in zip(COLOURS, inks, strict=True)}
            picture = render(lesson.scene, palette)
            grid[..., 0][grid[..., 0] > 0] = _IGNORE
        if rng.random() < 0.2:
            grey = (picture @ rng.dirichlet([1, 1, 1])).astype(np.uint8)
            picture = np.repeat(grey[..., None], 3, axis=-1)
            grid[..., 0][grid[..., 0] > 0] = _IGNORE
        pictures.append(picture)
        grids.append(grid)
    return pixels(pictures), torch.from_numpy(np.stack(grids))


def dense_loss(logits: Tensor, grid: Tensor) -> Tensor:
    """Sum of the heads' cross-entropies; empty cells, which are most, count a tenth."""
    total = logits.new_zeros(())
    for index, head in enumerate(logits.split(_HEADS, dim=-1)):
        weight = torch.ones(head.shape[-1])
        weight[0] = 0.1
        total = total + functional.cross_entropy(
            head.flatten(0, -2), grid[..., index].flatten(), weight=weight, ignore_index=_IGNORE
        )
    return total


class Dense(nn.Module):
    """An encoder with its pre-training heads: [n, 3, 72, 72] → logits [n, 6, 6, Σ heads]."""

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.Linear(width, sum(_HEADS))

    def forward(self, pixel_values: Tensor) -> Tensor:
        hidden = self.encoder(pixel_values).last_hidden_state
        return self.heads(hidden.permute(0, 2, 3, 1)).float()


def lessons(model: Dense, *, batch_size: int, seed: int) -> Callable[[int], Tensor]:
    """The loss of step `n` on its own, fresh pictures."""

    def loss(step: int) -> Tensor:
        pixel_values, grid = _batch(np.random.default_rng([seed, 1, step]), batch_size)
        return dense_loss(model(pixel_values), grid)

    return loss
