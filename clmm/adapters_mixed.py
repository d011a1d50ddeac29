"""One LoRA adapter a task; while answering, each row of a batch has its own mixture of them.

y = Wx + (α/r)·Σ_t s_t·B_t A_t x with shares s of the row that x belongs to. Knows peft's layers and
which row a vector belongs to; nothing of samples or routers. Sharded parameters are not supported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from clmm import components
from clmm.adapters import Lora
from clmm.adapters_frozen import lora_layers
from clmm.strategy import BASE


class RowsUnknown(RuntimeError):  # noqa: N818  (what happened, as TrainingDiverged)
    """A layer's input does not show which row a vector belongs to; ask one row at a time."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What is known of a batch."""

    shares: Tensor
    """Of each adapter in each row, [rows, adapters]."""
    media: Tensor
    """Vectors of media in each row [rows]: the placeholders in its prompt."""

    def of(self, x: Tensor, *, projector: bool) -> Tensor:
        """Shares of each vector of a layer's input `x` [..., width]: broadcasts to [..., adapters].

        The language model's inputs are [rows, L, width]; a projector's are the vectors of all
        media in the rows' order. Raises RowsUnknown for others, unless all rows are alike.
        """
        shares = self.shares.to(x.device)
        if torch.equal(shares, shares[:1].expand_as(shares)):
            return shares[0]
        if not projector and x.ndim == 3 and len(x) == len(shares):
            return shares.unsqueeze(1)
        media = self.media.to(x.device)
        if projector and x.shape[:-1].numel() == int(media.sum()):
            return shares.repeat_interleave(media, dim=0).view(*x.shape[:-1], -1)
        raise RowsUnknown(f"an input {list(x.shape)} for {len(shares)} rows")


class MixedLora(Lora):
    """Adapters that are trained alone; inside `mixing` they answer together."""

    trains_plainly = True

    def __init__(self, model: Any, *, rank: int, alpha: int, seed: int) -> None:
        super().__init__(model, rank=rank, alpha=alpha, seed=seed, one_per_task=True)
        self._language = set(components.language_linears(model))
        self._scale = alpha / rank
        self.rows: Rows | None = None
        """Of the batch that goes through the model next."""
        self.one_by_one = False
        """Whether this model's layers hide their rows (RowsUnknown), so that each goes alone."""

    @contextmanager
    def mixing(self, adapters: Sequence[str]) -> Iterator[None]:
        """Answers come from these adapters by the shares in `rows`, whose columns they are."""
        self.select(BASE)
        hooks = []
        try:
            for name, layer in lora_layers(self._model).items():
                inputs = torch.cat([layer.lora_A[one].weight for one in adapters]).detach()
                outputs = torch.cat([layer.lora_B[one].weight for one in adapters], dim=1).detach()
                mix = partial(self._mix, name, len(adapters), inputs, outputs)
                hooks.append(layer.register_forward_hook(mix))
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self.rows = None
            self.select(None)

    def _mix(
        self, name: str, adapters: int, inputs: Tensor, outputs: Tensor, _: nn.Module,
        args: tuple[Tensor, ...], result: Tensor,
    ) -> Tensor:  # fmt: skip
        """A layer's forward hook: adds the mixture to what the layer alone returned."""
        assert self.rows is not None
        x = args[0]
        shares = self.rows.of(x, projector=name not in self._language)
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(inputs.dtype)
        hidden = nn.functional.linear(x, inputs).unflatten(-1, (adapters, -1))
        mixed = nn.functional.linear((hidden * shares.unsqueeze(-1)).flatten(-2), outputs)
        return result + (mixed * self._scale).to(result.dtype)
