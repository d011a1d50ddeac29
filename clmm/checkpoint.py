"""Plugins' states in two files: what is a tensor as safetensors, everything else as JSON.

Knows mappings and tensors; no plugin and no path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch


def parted(states: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """States less their tensors, and the tensors under `plugin.key` or `plugin.key.name`."""
    plain: list[dict[str, Any]] = [{} for _ in states]
    tensors: dict[str, Any] = {}
    for number, state in enumerate(states):
        for key, value in state.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{number}.{key}"] = value
            elif isinstance(value, Mapping) and _holds_tensors(value):
                tensors |= {f"{number}.{key}.{name}": one for name, one in value.items()}
            else:
                plain[number][key] = value
    # Saved tensors may neither share memory nor be views.
    return plain, {name: one.detach().cpu().clone() for name, one in tensors.items()}


def joined(plain: list[dict[str, Any]], tensors: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What `parted` took apart."""
    for place, tensor in tensors.items():
        number, key, *name = place.split(".", 2)
        if name:
            plain[int(number)].setdefault(key, {})[name[0]] = tensor
        else:
            plain[int(number)][key] = tensor
    return plain


def _holds_tensors(value: Mapping[str, Any]) -> bool:
    return bool(value) and all(isinstance(one, torch.Tensor) for one in value.values())
