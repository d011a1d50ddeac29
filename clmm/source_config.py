"""Reads what a transformers config says, and refuses what a composition has no setting for.

Knows values and their names; which of them matter, each file in `clmm/conversion` says.
"""

from __future__ import annotations

import copy
from typing import Any

from streams.settings import SettingError


def require(config: Any, where: str, **usual: Any) -> None:
    """Raises SettingError for a setting that is not what the composition takes for granted."""
    for name, value in usual.items():
        found = getattr(config, name, value)
        if found != value:
            raise SettingError(f"{where}.{name}: {found!r}; the composition has {value!r} alone")


def side(value: int | list[int] | tuple[int, ...], where: str) -> int:
    """A square's side, however it is written."""
    sides = {*value} if isinstance(value, (list, tuple)) else {value}
    if len(sides) != 1:
        raise SettingError(f"{where}: {value!r} is no square")
    return int(sides.pop())


def layers(value: int | list[int] | tuple[int, ...], depth: int, where: str) -> list[int]:
    """One hidden state or several, of as many blocks, as a list."""
    chosen = [value] if isinstance(value, int) else [*value]
    for layer in chosen:
        if not -depth - 1 <= layer <= depth:
            raise SettingError(f"{where}: {layer}, but the encoder has {depth} layers")
    return chosen


def token(config: Any, name: str) -> int:
    """The id of a placeholder; raises SettingError when the config leaves it out."""
    found = getattr(config, name, None)
    if found is None:
        raise SettingError(
            f"{name}: config.json does not say which token stands for a medium; early checkpoints "
            "lack it, so take a later revision"
        )
    return int(found)


def language_model(config: Any) -> Any:
    """The language model's own config, which ties its embeddings where the whole does."""
    text = copy.deepcopy(config.text_config)
    tied = getattr(config, "tie_word_embeddings", None)
    if tied is not None and not text.is_encoder_decoder:
        text.tie_word_embeddings = tied
    return text
