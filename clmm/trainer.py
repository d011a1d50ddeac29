"""The one training loop: Avalanche's supervised template with accelerate inside.

Knows experiences, plugins, gradients and processes; no strategy, no checkpoint, no file. One
Avalanche iteration is one update of the weights, however many micro-batches and processes share
it. Per micro-batch: before_forward, after_forward (add what depends on the batch to
`strategy.loss`). Per update: before_backward (add what depends on the weights alone; it comes
with the last micro-batch), after_backward (the gradient is whole), before_update, after_update.

Each sample is learnt by its own task's objective (`clmm.objective`). A batch's loss is the mean
over its samples' objectives, weighted by their samples, of each one's mean: over supervised tokens,
or over answers, of all micro-batches and processes, so neither their number nor the answers'
lengths change the gradient. Import it only where training begins: it pulls in Avalanche.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import repeat
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import DistributedType
from avalanche.training.templates import SupervisedTemplate
from peft.helpers import disable_input_dtype_casting
from torch import Tensor, nn

from clmm import components, decoder_rows
from clmm.actor import TrainedActor
from clmm.batching import to_model
from clmm.benchmark import Examples, Mixture
from clmm.objective import Objective
from clmm.objectives.sft import Sft
from clmm.training import TrainingDiverged, TrainSettings, derived_seed

REPLICATED = (
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.MULTI_XPU,
)


class TokenLogits(nn.Module):
    """A vision-language model as Avalanche sees it: examples → logits [supervised tokens, V].

    Its `named_parameters` are the trainable ones alone, because stock plugins copy, square and
    flatten all they are given. Frozen encoders stay in eval mode.
    """

    def __init__(self, model: Any, *, autocast: torch.dtype | None = None) -> None:
        super().__init__()
        self.model = model
        self._autocast = autocast
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        encoders = components.find(model)["encoder"]
        self._frozen = [
            module
            for module in map(model.get_submodule, encoders)
            if not any(p.requires_grad for p in module.parameters())
        ]

    def forward(self, examples: Examples) -> Tensor:
        weight = next(self.model.parameters())
        batch = to_model(examples.tensors, device=weight.device, dtype=self.model.dtype)
        rows, columns = (place.to(weight.device, non_blocking=True) for place in examples.places)
        length = decoder_rows.length(batch)
        # Logits of the prompt, images included, are most of the head's work and never used.
        first = int(examples.places[1].min()) if self._keeps else 0
        keep = {"logits_to_keep": length - first} if self._keeps else {}
        with torch.autocast(weight.device.type, self._autocast, enabled=self._autocast is not None):
            logits = self.model(**batch, use_cache=False, **keep).logits
        return logits[rows, columns - first].float()

    def train(self, mode: bool = True) -> TokenLogits:
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        named = super().named_parameters(*args, **kwargs)
        return ((name, weight) for name, weight in named if weight.requires_grad)


def cross_entropy(logits: Tensor, examples: Examples) -> Tensor:
    """Mean over the supervised tokens (nats)."""
    return nn.functional.cross_entropy(logits, examples.targets)


class _NoMetrics:
    """In the evaluator's place: stages are scored by whoever trains them."""

    supports_distributed = True

    def get_last_metrics(self) -> dict[str, Any]:
        return {}


class Trainer(SupervisedTemplate):
    """Trains `model` on one experience after another; plugins as in Avalanche.

    `objectives[n]` is that of samples with task label n; without one they are learnt by `sft`.
    `network` is trained in the model's place by objectives that say so (`StagedObjective`).
    `steps` and `samples` count what has been trained. `report` is called after every update with
    stage, step, steps, loss and seconds. With `instead`, updates are left out and it is called once
    in their place. Raises TrainingDiverged, before the update, when loss or gradient is not finite.
    """

    def __init__(
        self,
        *,
        model: Any,
        settings: TrainSettings,
        seed: int,
        plugins: Sequence[Any] = (),
        objectives: Sequence[Objective] = (),
        network: nn.Module | None = None,
        find_unused_parameters: bool = False,
    ) -> None:
        device = next(model.parameters()).device
        unused = DistributedDataParallelKwargs(find_unused_parameters=find_unused_parameters)
        self._accelerator = partial(
            Accelerator,
            cpu=device.type == "cpu",
            mixed_precision="no",
            kwargs_handlers=[unused],
        )
        self.accelerator = self._accelerator()
        if self.accelerator.distributed_type not in REPLICATED:
            raise RuntimeError(
                f"{self.accelerator.distributed_type.value} shards parameters, which checkpoints "
                "and strategies here do not support yet; launch with plain torchrun"
            )
        self.world = self.accelerator.num_processes
        if settings.batch_size % self.world:
            raise RuntimeError(
                f"train.batch_size: {settings.batch_size} samples cannot be shared by "
                f"{self.world} processes; take a multiple"
            )
        self.settings, self.seed = settings, seed
        # Equal objectives are one, so that their samples share a forward pass.
        self._objectives: list[Objective] = [Sft()]
        for objective in objectives:
            if objective not in self._objectives:
                self._objectives.append(objective)
        self._objective_of = [self._objectives.index(one) for one in objectives]
        self._actor: Any = None  # of runs in which some task is not learnt by `sft`
        self.instead: Callable[[], None] | None = None
        self.samples = self.steps = 0
        self.report: Callable[[dict[str, Any]], None] = lambda event: None
        share = settings.batch_size // self.world
        self._autocast = torch.bfloat16 if settings.precision == "bf16" else None
        super().__init__(
            model=network or TokenLogits(model, autocast=self._autocast),
            optimizer=None,  # made afresh for every experience
            criterion=cross_entropy,
            train_mb_size=min(settings.micro_batch_size or share, share),
            device=self.accelerator.device if self.world > 1 else device,
            plugins=plugins,
            evaluator=_NoMetrics(),
        )
        self.replica: nn.Module = self.model

    @property
    def stage(self) -> int:
        """The stage that trains now or next, from 1."""
        return int(self.clock.train_exp_counter) + 1

    def make_train_dataloader(self, **_: Any) -> None:
        data = self.adapted_dataset
        tasks = len(data.targets_task_labels.uniques)
        left = len(data) % self.settings.batch_size
        if self.settings.online and 0 < left < self.world:
            raise RuntimeError(
                f"train.online: the last batch of stage {self.stage} has {left} samples, fewer "
                f"than the {self.world} processes; take another batch_size"
            )
        self.dataloader = Mixture(
            own=data,
            batch_size=self.settings.batch_size,
            steps=self.settings.updates(len(data), tasks),
            seed=derived_seed(self.seed, self.stage, "order"),
            rank=self.accelerator.process_index,
            world=self.world,
            online=self.settings.online,
        )

    def check_model_and_optimizer(self, **_: Any) -> None:
        """Nothing: plugins may still change what is trained, see `_before_training_exp`."""

    def _before_training_exp(self, **kwargs: Any) -> None:
        super()._before_training_exp(**kwargs)
        weights = list(self.model.parameters())
        if not weights:
            raise RuntimeError(f"stage {self.stage}: the strategy made no parameter trainable")
        groups = [
            {
                "params": [w for w in weights if w.ndim > 1],
                "weight_decay": self.settings.weight_decay,
            },
            {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=self.settings.learning_rate,
            fused=self.device.type in ("cpu", "cuda"),
        )
        # A fresh one holds no earlier stage's replica or optimiser.
        self.accelerator = self._accelerator()
        self.replica, self.optimizer = self.accelerator.prepare(self.model, optimizer)
        if len(self._objectives) > 1:
            self._actor = TrainedActor(self.model, autocast=self._autocast)

    def _after_training_exp(self, **kwargs: Any) -> None:
        self._actor = None
        super()._after_training_exp(**kwargs)
        self.optimizer.zero_grad()
        self.replica, self.optimizer = self.model, None

    def training_epoch(self, **kwargs: Any) -> None:
        if self.instead is not None:
            self.instead()
            return
        # Under autocast LoRA layers need not widen inputs that are narrowed again at once.
        narrow = disable_input_dtype_casting(self.model, active=self.settings.precision == "bf16")
        with _checkpointing(self.model.model, self.settings.gradient_checkpointing), narrow:
            self._update_after_update(**kwargs)

    def _update_after_update(self, **kwargs: Any) -> None:
        steps, start = len(self.dataloader), time.perf_counter()
        limit = self.settings.clip_norm or math.inf
        weights = list(self.model.parameters())
        for step, mbatch in enumerate(self.dataloader):
            self.mbatch = mbatch
            if self._stop_training:
                break
            self._unpack_minibatch()
            self.steps += 1
            self._before_training_iteration(**kwargs)
            for group in self.optimizer.param_groups:
                group["lr"] = self.settings.learning_rate_at(step, steps)
            self.optimizer.zero_grad()
            loss = self._backpropagate(**kwargs)
            self._after_backward(**kwargs)
            norm = float(self.accelerator.clip_grad_norm_(weights, limit))
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise TrainingDiverged(
                    stage=self.stage, step=step + 1, steps=steps, loss=loss, norm=norm
                )
            self._before_update(**kwargs)
            self.optimizer_step()
            self._after_update(**kwargs)
            self._after_training_iteration(**kwargs)
            seconds = time.perf_counter() - start
            self.report(
                {"stage": self.stage, "step": step + 1, "steps": steps, "loss": loss,
                 "seconds": seconds}
            )  # fmt: skip

    def _backpropagate(self, **kwargs: Any) -> float:
        """The whole batch's gradient; returns its loss, of all processes, penalties left out."""
        parts = [part for group in self._by_objective() for part in self._micro_batches(*group)]
        counts = torch.zeros(len(self._objectives), 2, dtype=torch.float64)
        for number, part, _ in parts:
            size = self._objectives[number].size(part)
            counts[number] += torch.tensor([size, len(part)], dtype=torch.float64)
        sizes, samples = self._over_processes(counts).T.tolist()
        self.samples += int(sum(samples))
        total = torch.zeros((), device=self.device)
        for number, part, task_labels in parts:
            last, objective = part is parts[-1][1], self._objectives[number]
            share = objective.size(part) / sizes[number]
            if len(self._objectives) > 1:
                share *= samples[number] / sum(samples)
            rows = objective.rows(part, self._actor)
            self.mbatch = [rows, rows, task_labels.repeat_interleave(len(rows) // len(part))]
            with nullcontext() if last else self.accelerator.no_sync(self.replica):
                self.loss = self._make_empty_loss()
                self._before_forward(**kwargs)
                self.mb_output = self.forward()
                self._after_forward(**kwargs)
                own = objective.loss(self.mb_output, rows, self._actor) * share
                total += own.detach()
                # Processes average their gradients; the batch's gradient is their sum.
                self.loss = self.loss + own * self.world
                if last:
                    self._before_backward(**kwargs)
                self.backward()
        return float(self._over_processes(total))

    def _by_objective(self) -> list[tuple[int, Examples, Tensor]]:
        """The batch in parts of one objective each: its number, samples, task labels."""
        labels = self.mb_task_id
        known = self._objective_of
        numbers = [known[n] if known and n >= 0 else 0 for n in labels.tolist()]
        if len(set(numbers)) == 1:
            return [(numbers[0], self.mb_x, labels)]
        found = []
        for number in sorted(set(numbers)):
            rows = [i for i, n in enumerate(numbers) if n == number]
            chosen = self.mb_x.like([self.mb_x.samples[i] for i in rows])
            found.append((number, chosen, labels[rows]))
        return found

    def _micro_batches(self, number: int, examples: Examples, labels: Tensor) -> Any:
        size = self.train_mb_size
        return zip(repeat(number), examples.split(size), labels.split(size), strict=False)

    def forward(self) -> Tensor:
        logits: Tensor = self.replica(self.mb_x)
        return logits

    def backward(self) -> None:
        self.accelerator.backward(self.loss)

    def optimizer_step(self) -> None:
        self.optimizer.step()

    def _over_processes(self, value: Tensor) -> Tensor:
        if self.world == 1:
            return value
        summed: Tensor = self.accelerator.reduce(value.to(self.device), "sum")
        return summed

    def _check_distributed_training_compatibility(self) -> bool:
        """Avalanche only warns; a penalty or projection of a share of the batch would be wrong."""
        if self.world > 1:
            for plugin in self.plugins:
                if not getattr(plugin, "supports_distributed", False):
                    raise RuntimeError(
                        f"{type(plugin).__name__} does not support several processes; use one"
                    )
        return True


@contextmanager
def _checkpointing(model: Any, on: bool) -> Iterator[None]:
    """transformers 5.23 has it under a new name and warns of the old; 5.17 has only the old."""
    new = hasattr(model, "activation_checkpointing_enable")
    name = "activation_checkpointing" if new else "gradient_checkpointing"
    if on:
        getattr(model, f"{name}_enable")({"use_reentrant": False})
    try:
        yield
    finally:
        if on:
            getattr(model, f"{name}_disable")()
