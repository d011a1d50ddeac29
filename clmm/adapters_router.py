"""One LoRA adapter a task, and one more that names a sample's task.

The adapters are those of `clmm.adapters.Lora`, bit for bit, whether there is a router or not.
Knows peft; nothing of data or losses. The router's adapter is saved as tensors beside theirs.
Sharded parameters are not supported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from clmm.adapters import ADAPTER_FILE, Lora
from clmm.adapters_frozen import lora_layers
from clmm.training import derived_seed

ROUTER = "_router"
"""The adapter's name; no task may have it."""
ROUTER_FOLDER = "router"


class RouterLora(Lora):
    """`select(ROUTER)` chooses the router's adapter; its scale is 2, whatever its rank."""

    trains_plainly = True

    def __init__(self, model: Any, *, rank: int, alpha: int, seed: int, router_rank: int) -> None:
        super().__init__(model, rank=rank, alpha=alpha, seed=seed, one_per_task=True)
        self._router_rank = router_rank

    @property
    def adapters(self) -> list[str]:
        """The tasks' own, in the order of their making."""
        return [name for name in super().adapters if name != ROUTER]

    @property
    def routes(self) -> bool:
        """Whether the router's adapter is there."""
        return self._peft is not None and ROUTER in self._peft.peft_config

    @property
    def stored_bytes(self) -> int:
        own = sum(t.nbytes for t in self._tensors(ROUTER).values()) if self.routes else 0
        return super().stored_bytes + own

    def begin_router(self, stage: int) -> None:
        """A fresh router, to be trained; its initial values derive from the seed and the stage."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(self._seed, stage, "router"))
            if self.routes:
                for layer in lora_layers(self._model).values():
                    layer.reset_lora_parameters(ROUTER, init_lora_weights=True)
            else:
                self._add(ROUTER)
        self.select(ROUTER)

    def save(self, folder: Path) -> None:
        super().save(folder)
        if self.routes:
            (folder / ROUTER_FOLDER).mkdir(exist_ok=True)
            save_file(self._tensors(ROUTER), folder / ROUTER_FOLDER / ADAPTER_FILE)

    def load(self, folder: Path) -> None:
        super().load(folder)
        if (folder / ROUTER_FOLDER).exists():
            self._add(ROUTER)
            self._fill(ROUTER, folder / ROUTER_FOLDER)

    def _add(self, name: str) -> None:
        tasks = self._settings
        if name == ROUTER:
            rank = self._router_rank
            self._settings = {**tasks, "r": rank, "lora_alpha": 2 * rank}
        try:
            super()._add(name)
        finally:
            self._settings = tasks
