"""To which row of a batch a medium belongs, which its placeholders say, and what a medium is.

Media come in reading order, joined along their first axis, so that they are not as many as rows.
Knows tensors; nothing of models.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def some(media: Mapping[str, Tensor | None], key: str) -> Tensor | None:
    """What is given under a keyword; None where there is nothing in it."""
    found = media.get(key)
    return None if found is None or not len(found) else found


def check_shape(values: Tensor, shape: tuple[int, ...], key: str) -> None:
    """ValueError for values that are no [media, *shape] of floats."""
    if tuple(values.shape[1:]) != shape or not values.is_floating_point():
        raise ValueError(
            f"{key}: {values.dtype} of {tuple(values.shape)}; the model takes floats of "
            f"{('media', *shape)}, as its processor makes them"
        )


def instruction(words: Mapping[str, Tensor], here: Tensor, count: int) -> dict[str, Tensor]:
    """Each medium's instruction, [media, T], from its row's, [B, T].

    ValueError where rows, or an instruction and its mask, are not as many.
    """
    found = rows(here, count)
    shapes = {key: tuple(value.shape) for key, value in words.items()}
    if len({*shapes.values()}) > 1 or any(shape[0] != len(here) for shape in shapes.values()):
        raise ValueError(f"instructions are {shapes}, but the text has {len(here)} rows")
    return {key: value[found] for key, value in words.items()}


def rows(here: Tensor, count: int) -> Tensor:
    """The row of each of `count` media, whose placeholders are `here` [B, L]: [count].

    ValueError when they are not as many placeholders each.
    """
    found = here.nonzero()[:, 0]
    if not count or not len(found) or len(found) % count:
        raise ValueError(f"{len(found)} placeholders in the text for {count} media")
    return found[:: len(found) // count]


def check(here: Tensor, each: int, name: str) -> None:
    """ValueError, with the row, where one's placeholders [L] are of no whole number of media."""
    counts = here.sum(dim=1)
    if odd := (counts % each).nonzero().flatten().tolist():
        raise ValueError(
            f"row {odd[0]} has {int(counts[odd[0]])} {name} tokens, but one {name} becomes {each}"
        )


def refuse_heard(media: Mapping[str, Tensor | None]) -> None:
    """ValueError for media beside embeddings or encoder outputs, in which they would be already."""
    if given := [key for key, value in media.items() if value is not None]:
        raise ValueError(
            f"{', '.join(given)}: media enter where input_ids have their tokens; give input_ids, "
            "not inputs_embeds or encoder_outputs"
        )


def repeated(media: Tensor, here: Tensor, times: int) -> Tensor:
    """Media [count, …] of rows that are repeated `times` times each, as for beams."""
    row = rows(here, len(media)).repeat(times, 1)
    beam = torch.arange(times, device=row.device).unsqueeze(1)
    # By row, then by beam, then in reading order.
    order = (row * times + beam).flatten().argsort(stable=True)
    return media[order % len(media)]
