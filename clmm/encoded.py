"""One sample's prompt as arrays, and many of them as bytes, to pass between processes.

Knows arrays and safetensors; nothing of processors or samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from safetensors import torch as tensors
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One sample's prompt: token ids [L], further values per token [L], and its media tensors."""

    ids: np.ndarray
    per_token: dict[str, np.ndarray]
    media: dict[str, Tensor]

    @property
    def size_bytes(self) -> int:
        tokens = self.ids.nbytes * (1 + len(self.per_token))
        return tokens + sum(tensor.nbytes for tensor in self.media.values())


def pack(prompts: Sequence[Prompt]) -> bytes:
    """Prompts as safetensors, which pass between processes without a file or a handle each."""
    flat: dict[str, Tensor] = {}
    for row, prompt in enumerate(prompts):
        arrays = {"ids": prompt.ids, **{f"token/{k}": v for k, v in prompt.per_token.items()}}
        flat |= {f"{row}/{name}": torch.from_numpy(array) for name, array in arrays.items()}
        flat |= {f"{row}/media/{k}": tensor.contiguous() for k, tensor in prompt.media.items()}
    return tensors.save(flat)


def unpack(packed: bytes) -> list[Prompt]:
    found: dict[int, Prompt] = {}
    for name, tensor in tensors.load(packed).items():
        row, kind, *key = name.split("/")
        prompt = found.setdefault(int(row), Prompt(ids=np.empty(0), per_token={}, media={}))
        if kind == "ids":
            found[int(row)] = replace(prompt, ids=tensor.numpy())
        elif kind == "token":
            prompt.per_token[key[0]] = tensor.numpy()
        else:
            prompt.media[key[0]] = tensor
    return [found[row] for row in range(len(found))]
