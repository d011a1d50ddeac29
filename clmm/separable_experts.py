"""Two sets of LoRA experts, one chosen by what a sample shows and one by what it asks.

Knows layers, samples' features from the frozen base and the trainer's model; nothing of losses. Of
each set one expert serves a whole sample, in all layers of the language model; `chosen` says which
before a batch goes through. Sharded parameters are not supported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clmm import components
from clmm.experts import ExpertLinear, ExpertLora
from clmm.routing import FLOOR
from clmm.routing_features import LEARNT, Features
from streams.sample import Answer, Sample

GATES_FILE = "gates.safetensors"
T = TypeVar("T")


class Chosen:
    """Which experts serve the batch that goes through the model next."""

    shares: Tensor | None = None
    """0 or 1 for each expert, [samples, experts]; one row serves all samples."""

    def of(self, x: Tensor) -> Tensor:
        """The shares for a layer's input `x`: they broadcast to [..., experts].

        Raises RuntimeError where `x` does not show which sample a vector belongs to.
        """
        if self.shares is None:
            raise RuntimeError(
                "smolora: no experts were chosen for these samples; ask through Learner.answering, "
                "or give the trainer's model their examples"
            )
        if len(self.shares) == 1:
            return self.shares[0]
        if x.ndim != 3 or len(x) != len(self.shares):
            raise RuntimeError(
                f"smolora: a layer's input {list(x.shape)} does not show which of "
                f"{len(self.shares)} samples a vector is of; take moelora for this model"
            )
        return self.shares.unsqueeze(1)


class SeparableLinear(ExpertLinear):
    """A frozen linear layer, its experts and their fusion: A [r, in], B [out, r], w [2, out].

    The first half of the experts is the visual set, the second half that of instructions.
    """

    def __init__(
        self, base_layer: nn.Linear, *, rank: int, alpha: int, experts: int, chosen: Chosen
    ) -> None:
        super().__init__(base_layer, rank=rank, alpha=alpha, experts=experts)
        self.register_parameter("gate", None)  # that of all layers is `Gates`
        fusion = torch.empty(2, base_layer.weight.shape[0])
        nn.init.kaiming_uniform_(fusion, a=math.sqrt(5))
        self.fusion = nn.Parameter(fusion.to(base_layer.weight.device))
        self._chosen = chosen

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.base_layer(x)
        if not self.enabled:
            return result
        shares = self._chosen.of(x)
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(self.lora_A.dtype)
        hidden = nn.functional.linear(x, self.lora_A).unflatten(-1, (self.experts, -1))
        halves = (hidden * shares.unsqueeze(-1)).flatten(-2).chunk(2, dim=-1)
        outputs = self.lora_B.chunk(2, dim=1)
        pair = [nn.functional.linear(h, b) for h, b in zip(halves, outputs, strict=True)]
        changes = torch.stack(pair, dim=-2) * self.scale
        weights = (changes * self.fusion).sum(dim=-1, keepdim=True).softmax(dim=-2)
        return result + (changes * weights).sum(dim=-2).to(result.dtype)


class Gates(nn.Module):
    """Scores Gz + b of each set's experts; the highest serves. Features z [samples, 2, D].

    z is less its mean over the first task, in units of its spread there: features of all samples
    have so much in common that without this one expert would serve them all.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, *, width: int, experts: int) -> None:
        super().__init__()
        # Drawn on the CPU, so that all devices start the same. The bias decides between experts
        # where z is but rounding, as of a question that all samples share.
        bound = width**-0.5
        self.weight = nn.Parameter(torch.empty(2, experts, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(2, experts).uniform_(-bound, bound))
        self.register_buffer("centre", torch.zeros(2, width))
        self.register_buffer("spread", torch.ones(2))

    @torch.no_grad()
    def fit(self, features: Tensor) -> None:
        """Takes the mean and the spread of the first task's features [samples, 2, D]."""
        self.centre.copy_(features.mean(dim=0))
        varied = (features - features.mean(dim=0)).square().mean(dim=(0, 2))
        square = varied + FLOOR * features.square().mean(dim=(0, 2))
        self.spread.copy_(torch.where(square > 0, square.sqrt(), 1.0))

    def forward(self, features: Tensor) -> Tensor:
        """Shares of the experts [samples, 2·experts]: 1 for two, else 0.

        Their derivative is that of the softmax of the scores (straight through).
        """
        z = (features.to(self.weight.device) - self.centre) / self.spread.unsqueeze(-1)
        soft = (torch.einsum("spd,ped->spe", z, self.weight) + self.bias).softmax(dim=-1)
        hard = nn.functional.one_hot(soft.argmax(dim=-1), soft.shape[-1])
        return (hard + (soft - soft.detach())).flatten(1)


class SeparableLora(ExpertLora):
    """Both sets of `experts` each, on the language model's layers; trains the gates too."""

    def __init__(self, model: Any, *, rank: int, alpha: int, experts: int, seed: int) -> None:
        super().__init__(model, rank=rank, alpha=alpha, experts=2 * experts, seed=seed)
        # Which sample a projector's input belongs to does not show.
        self._targets = sorted(components.language_linears(model))
        self._gate_sizes = {
            "width": model.get_input_embeddings().weight.shape[1],
            "experts": experts,
        }
        shapes = [model.get_submodule(name).weight.shape for name in self._targets]
        self.trainable_parameters = sum(rank * sum(shape) + 2 * shape[0] for shape in shapes)
        self.trainable_parameters += 2 * experts * (self._gate_sizes["width"] + 1)
        self.gates: Gates | None = None
        self.chosen = Chosen()

    @property
    def trains(self) -> Hashable | None:
        return None

    @property
    def stored_bytes(self) -> int:
        return super().stored_bytes + sum(tensor.nbytes for tensor in self._gate_tensors().values())

    def select(self, route: str | None) -> None:
        self.chosen.shares = None
        super().select(route)

    def save(self, folder: Path) -> None:
        super().save(folder)
        save_file(self._gate_tensors(), folder / GATES_FILE)

    def load(self, folder: Path) -> None:
        super().load(folder)
        if self.gates is not None:
            try:
                self.gates.load_state_dict(load_file(folder / GATES_FILE))
            except RuntimeError as error:
                raise ValueError(f"{folder / GATES_FILE}: {error}") from error

    def restore(self) -> None:
        super().restore()
        self.gates = self.chosen.shares = None

    def _wrap(self) -> None:
        for name in self._targets:
            layer = SeparableLinear(
                self._model.get_submodule(name), chosen=self.chosen, **self._sizes
            )
            self._layers[name] = layer
            self._model.set_submodule(name, layer)
        self.gates = Gates(**self._gate_sizes).to(layer.weight.device)

    def _gate_tensors(self) -> dict[str, Tensor]:
        state = {} if self.gates is None else self.gates.state_dict()
        return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


class ChosenInTraining:
    """An Avalanche plugin: experts are chosen for whatever samples the trainer's model is given."""

    supports_distributed = True
    supervised_only = True

    def __init__(self, weights: SeparableLora, features: Features) -> None:
        self._weights, self._features = weights, features
        self._model: Any = None

    def before_training_exp(self, strategy: Any, **_: Any) -> None:
        if strategy.settings.gradient_checkpointing:
            raise RuntimeError(
                "smolora: train.gradient_checkpointing computes layers again when their samples' "
                "experts are no longer known; turn it off, or take moelora"
            )
        gates = self._weights.gates
        assert gates is not None
        if strategy.stage == 1:
            data = strategy.experience.dataset
            places = range(0, len(data), -(-len(data) // LEARNT))
            gates.fit(self._features([data[place][0] for place in places]))
        if self._model is not strategy.model:
            # Its parameters are what is trained; its hooks serve all who ask it later.
            self._model = strategy.model
            self._model.add_module("gates", gates)
            self._model.register_forward_pre_hook(self._choose)
            self._model.register_forward_hook(self._forget)

    def _choose(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        features = self._features.remembered(args[0].samples)
        assert self._weights.gates is not None
        self._weights.chosen.shares = self._weights.gates(features)

    def _forget(self, *_: Any) -> None:
        self._weights.chosen.shares = None


class SeparableAnswerer:
    """Answers each sample by its own experts, whatever samples are asked with it."""

    def __init__(self, weights: SeparableLora, features: Features, answerer: Any) -> None:
        self._weights, self._features, self._answerer = weights, features, answerer

    def answer(self, samples: Sequence[Sample], *, max_new_tokens: int = 48) -> list[Answer]:
        def ask(rows: list[int]) -> list[Answer]:
            asked = [samples[i] for i in rows]
            found: list[Answer] = self._answerer.answer(asked, max_new_tokens=max_new_tokens)
            return found

        return self._by_experts(samples, ask)

    def log_likelihood(
        self, samples: Sequence[Sample], continuations: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        def ask(rows: list[int]) -> list[list[float]]:
            found: list[list[float]] = self._answerer.log_likelihood(
                [samples[i] for i in rows], [continuations[i] for i in rows]
            )
            return found

        return self._by_experts(samples, ask)

    @torch.no_grad()
    def _by_experts(
        self, samples: Sequence[Sample], ask: Callable[[list[int]], list[T]]
    ) -> list[T]:
        if self._weights.gates is None or not samples:
            return ask(list(range(len(samples))))
        shares = self._weights.gates(self._features.remembered(samples))
        groups: dict[tuple[float, ...], list[int]] = {}
        for place, row in enumerate(shares.tolist()):
            groups.setdefault(tuple(row), []).append(place)
        found: dict[int, T] = {}
        try:
            for rows in groups.values():
                self._weights.chosen.shares = shares[rows[:1]]
                found |= zip(rows, ask(rows), strict=True)
        finally:
            self._weights.select(None)
        return [found[place] for place in range(len(samples))]
