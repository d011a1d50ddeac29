"""Input projectors that are grown one from another.

Knows a model's projector; nothing of losses or of how samples find theirs. The projectors are kept
on the CPU, and the one that works is copied into the model's own. What a `Batcher` keeps of a
picture comes before any projector, so it serves them all. Sharded parameters are not supported.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from clmm import components
from clmm.strategy import BASE

PROJECTORS_FILE = "projectors.safetensors"
Values = dict[str, Tensor]


class GrownProjectors:
    """The projectors of all tasks so far; several tasks may share one.

    `shares_with(task)` names the learnt task whose projector a new task goes on with, or None for
    a projector of its own, which starts as the newest one. Raises ValueError for a model without
    a projector, or one in half precision: AdamW's small updates would be rounded away.
    """

    def __init__(self, model: nn.Module, *, shares_with: Callable[[str], str | None]) -> None:
        owners = components.component_of(model)
        self._live = {
            name: weight
            for name, weight in model.named_parameters()
            if owners[name] == "input_projector"
        }
        if not self._live:
            raise ValueError(
                f"eproj: {type(model).__name__} has no input projector to grow; take isolated_lora"
            )
        halves = {w.dtype for w in self._live.values()} - {torch.float32, torch.float64}
        if halves:
            raise ValueError(
                f"eproj: a projector in {halves.pop()} loses small updates; load the model in fp32 "
                "(precision: fp32) and compute in bf16 (train.precision: bf16)"
            )
        self._shares_with = shares_with
        self._base = self._values()
        self._grown: list[Values] = []
        self._of: dict[str, int] = {}
        self._shown: int | None = None
        self._latest: int | None = None

    @property
    def trainable_parameters(self) -> int:
        return sum(weight.numel() for weight in self._live.values())

    @property
    def stored_bytes(self) -> int:
        return sum(tensor.nbytes for values in self._grown for tensor in values.values())

    def begin(self, task: str) -> None:
        kin = self._shares_with(task)
        if kin is None:
            self._keep()
            self._grown.append(dict(self._grown[-1] if self._grown else self._base))
        self._of[task] = len(self._grown) - 1 if kin is None else self._of[kin]
        self._latest = self._of[task]
        self._show(self._latest)
        for weight in self._live.values():
            weight.requires_grad_(True)

    def select(self, route: str | None) -> None:
        if route not in (None, BASE, *self._of):
            raise ValueError(f"no projector of {route!r} has been trained yet")
        if route is None:
            self._show(self._latest)
        else:
            self._show(None if route == BASE else self._of[route])

    def save(self, folder: Path) -> None:
        self._keep()
        tensors = {f"{n}/{k}": t for n, values in enumerate(self._grown) for k, t in values.items()}
        # One entry, since those of the metadata have no order.
        tasks = {"tasks": json.dumps([self._of, self._latest])}
        save_file(tensors, folder / PROJECTORS_FILE, metadata=tasks)

    def load(self, folder: Path) -> None:
        self.restore()
        with safe_open(folder / PROJECTORS_FILE, framework="pt") as file:
            self._of, self._latest = json.loads(file.metadata()["tasks"])
            self._grown = [{} for _ in {*self._of.values()}]
            for key in file.keys():  # noqa: SIM118  (it is no mapping)
                number, _, name = key.partition("/")
                self._grown[int(number)][name] = file.get_tensor(key)
        for values in self._grown:
            for name in sorted(values.keys() | self._live.keys()):
                found, wanted = (
                    list(one[name].shape) if name in one else None for one in (values, self._live)
                )
                if found != wanted:
                    place = folder / PROJECTORS_FILE
                    raise ValueError(f"{place}: {name} is {found}, not {wanted}")
        self._show(self._latest)

    def restore(self) -> None:
        self._show(None)
        self._grown, self._of, self._latest = [], {}, None
        for weight in self._live.values():
            weight.requires_grad_(False)

    def _values(self) -> Values:
        return {name: w.detach().to("cpu", copy=True) for name, w in self._live.items()}

    def _keep(self) -> None:
        """What training has made of the projector that works."""
        if self._shown is not None:
            self._grown[self._shown] = self._values()

    @torch.no_grad()
    def _show(self, number: int | None) -> None:
        if number == self._shown:
            return
        self._keep()
        values = self._base if number is None else self._grown[number]
        for name, weight in self._live.items():
            weight.copy_(values[name])
        self._shown = number
