"""A memory of samples whose gradients point different ways.

An Avalanche plugin for `clmm.trainer`, in one process. Gradients [P] of the trained weights are
only compared by their cosine, so a count sketch [d] of each is enough (Charikar et al. 2002):
every weight is added to one of d sums, drawn once, with a drawn sign. Inner products are then
right in expectation and cosines wrong by about 1/√d.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from clmm.components import evaluating
from clmm.gradients import batch_gradient, trainable
from clmm.memory import Memory, named


class GradientMemory(Memory):
    """Greedy gradient-based sample selection (Aljundi et al. 2019, algorithm 2), after a stage.

    A sample's score is c = 1 + its highest cosine with `compared` samples drawn from the memory;
    1 when the memory is empty. While slots are free it is kept. Then only if c < 1: a sample i of
    the memory is drawn with probability C_i / Σ C and replaced with probability C_i / (C_i + c).
    """

    supervised_only = True
    supports_distributed = False  # processes would have to agree on every cosine's sign

    def __init__(
        self,
        *,
        size: int,
        share: float,
        seed: int,
        compared: int,
        candidates: int | None,
        dimensions: int,
    ) -> None:
        from avalanche.benchmarks.utils.utils import concat_datasets

        super().__init__(share=share, seed=seed)
        self._size, self._compared, self._candidates = size, compared, candidates
        self._dimensions = dimensions
        self.buffer = concat_datasets([])
        self.scores: list[float] = []

    def update(self, data: Any, strategy: Any) -> None:
        if not self._size:
            return
        sketch = Sketch(trainable(strategy.model), self._dimensions)
        offered = torch.randperm(len(data))[: self._candidates].tolist()
        # The rows offered, then the memory's; `slots` holds the places of what is kept.
        rows = data.subset(offered).concat(self.buffer)
        slots = list(range(len(offered), len(rows)))
        gradients = torch.zeros(len(rows), self._dimensions)
        for place in [*slots, *range(len(offered))]:
            found = sketch(_gradient(strategy, rows, place))
            gradients[place] = nn.functional.normalize(found, dim=0)
            if place < len(offered):
                self._offer(place, slots, gradients)
        self.buffer = rows.subset(slots)

    def _offer(self, place: int, slots: list[int], gradients: Tensor) -> None:
        drawn = [slots[i] for i in torch.randperm(len(slots))[: self._compared]]
        highest = (gradients[drawn] @ gradients[place]).max() if drawn else torch.zeros(())
        score = 1 + float(highest)
        if len(slots) < self._size:
            slots.append(place)
            self.scores.append(score)
        elif score < 1:
            chances = torch.tensor(self.scores, dtype=torch.float64).clamp(min=1e-12)
            slot = int(torch.multinomial(chances, 1))
            if float(torch.rand(())) * (self.scores[slot] + score) < self.scores[slot]:
                slots[slot], self.scores[slot] = place, score

    def state(self) -> dict[str, Any]:
        """Sample ids and their scores, slot by slot."""
        return {"ids": [sample.id for sample in self.samples], "scores": self.scores}

    def load_state(self, state: Mapping[str, Any], pool: Any) -> None:
        self.buffer, self.scores = named(state["ids"], pool), list(state["scores"])


class Sketch:
    """Gradients by parameter name → [dimensions]; draws from the global generator when made."""

    def __init__(self, weights: Mapping[str, Tensor], dimensions: int) -> None:
        self._dimensions = dimensions
        self._places = {
            name: torch.randint(dimensions, (weight.numel(),), dtype=torch.int32)
            for name, weight in weights.items()
        }
        self._signs = {
            name: torch.randint(2, (weight.numel(),), dtype=torch.int8) * 2 - 1
            for name, weight in weights.items()
        }

    def __call__(self, gradient: Mapping[str, Tensor]) -> Tensor:
        total = torch.zeros(self._dimensions)
        for name, found in gradient.items():
            flat = found.flatten().float().cpu()
            total.index_add_(0, self._places[name], flat * self._signs[name])
        return total


def _gradient(strategy: Any, rows: Any, place: int) -> dict[str, Tensor]:
    """Of one sample's loss, by parameter name."""
    examples = rows.collate_fn([rows[place]])[0].to(strategy.device)
    with evaluating(strategy.model):
        return batch_gradient(strategy, [examples])
