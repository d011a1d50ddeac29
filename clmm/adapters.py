"""The weights a strategy trains: none, whole components, or LoRA adapters by peft.

Knows modules and safetensors; nothing of data, stages' losses or routers. `Lora` saves what
`peft.PeftModel.from_pretrained(base, folder / "adapters" / NAME)` loads; `Full` saves the tensors
that differ from the base. Sharded parameters are not supported.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file, save_file
from torch import nn

from clmm import components
from clmm.strategy import BASE, Context, Weights
from clmm.training import derived_seed

WEIGHTS_FILE = "weights.safetensors"
ADAPTER_FILE = "adapter_model.safetensors"
FULL_COMPONENTS = ("input_projector", "language_model")


def weights(tuning: Literal["lora", "full"], context: Context, *, rank: int, alpha: int) -> Weights:
    """One set of weights that all stages share."""
    if tuning == "full":
        return Full(context.model)
    return Lora(context.model, rank=rank, alpha=alpha, seed=context.seed)


class Frozen:
    """Nothing is trained and nothing stored."""

    trainable_parameters = 0
    stored_bytes = 0

    def begin(self, task: str) -> None:
        raise RuntimeError(f"nothing is trained, so there is no stage for {task}")

    def select(self, route: str | None) -> None: ...

    def save(self, folder: Path) -> None: ...

    def load(self, folder: Path) -> None: ...

    def restore(self) -> None: ...


class Full:
    """Projector and language model themselves; the encoder stays frozen.

    Keeps a copy of the base's values on the CPU, so that the base can be put back exactly.
    Raises ValueError for weights in half precision: AdamW's small updates would be rounded away.
    """

    as_trained = True
    trains = ("full",)

    def __init__(self, model: nn.Module) -> None:
        owners = components.component_of(model)
        found = set(owners.values())
        # Models without a projector of their own are tuned in their language model alone.
        parts = [component for component in FULL_COMPONENTS if component in found]
        self.trainable_parameters = components.train_only(model, parts)
        self._trained = {n: w for n, w in model.named_parameters() if w.requires_grad}
        halves = {w.dtype for w in self._trained.values()} - {torch.float32, torch.float64}
        if halves:
            raise ValueError(
                f"full tuning of weights in {halves.pop()} loses small updates; load the model in "
                "fp32 (precision: fp32) and compute in bf16 (train.precision: bf16), or tune LoRA"
            )
        self._base = {n: w.detach().to("cpu", copy=True) for n, w in self._trained.items()}

    @property
    def stored_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._base.values())

    def begin(self, task: str) -> None:
        for weight in self._trained.values():
            weight.requires_grad_(True)

    def select(self, route: str | None) -> None:
        if route is not None:
            raise ValueError("fully tuned weights have one route")

    def save(self, folder: Path) -> None:
        now = {n: w.detach().cpu().contiguous() for n, w in self._trained.items()}
        changed = {n: t for n, t in now.items() if not torch.equal(t, self._base[n])}
        save_file(changed, folder / WEIGHTS_FILE)

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        changed = load_file(folder / WEIGHTS_FILE)
        for name, weight in self._trained.items():
            weight.copy_(changed.pop(name, self._base[name]))
        if changed:
            raise ValueError(f"{folder / WEIGHTS_FILE}: this model has no {next(iter(changed))}")

    def take(self, folder: Path) -> None:
        self.load(folder)

    @torch.no_grad()
    def restore(self) -> None:
        for name, weight in self._trained.items():
            weight.copy_(self._base[name])
            weight.requires_grad_(False)


class Lora:
    """LoRA adapters on the linear layers of projector and language model, the head left out.

    y = Wx + (α/r)·BAx (Hu et al. 2021, arXiv 2106.09685), A Kaiming, B zero, in fp32. One adapter
    for all stages, or one a task; its initial A derives from the seed and the adapter's number.
    `targets` are full names of other linear layers to adapt instead.
    """

    as_trained = True
    trains_plainly = True
    """Of a class and not of its heirs: what a stage trains is one adapter, on `targets`."""

    def __init__(
        self,
        model: Any,
        *,
        rank: int,
        alpha: int,
        seed: int,
        one_per_task: bool = False,
        targets: Sequence[str] | None = None,
    ) -> None:
        roots = components.find(model)["input_projector"]
        projector = [
            f"{root}.{name}" if name else root
            for root in roots
            for name, module in model.get_submodule(root).named_modules()
            if isinstance(module, nn.Linear)
        ]
        every = {*projector, *components.language_linears(model)}
        self._targets = sorted(every if targets is None else set(targets))
        self._model, self._seed, self._one_per_task = model, seed, one_per_task
        self._settings: dict[str, Any] = {"r": rank, "lora_alpha": alpha, "lora_dropout": 0.0}
        layers = [model.get_submodule(name) for name in self._targets]
        self.trainable_parameters = sum(rank * sum(layer.weight.shape) for layer in layers)
        self._peft: Any = None
        self._latest: str | None = None

    @property
    def trains(self) -> Hashable | None:
        if not vars(type(self)).get("trains_plainly"):
            return None
        return ("lora", *self._settings.values(), *self._targets)

    @property
    def adapters(self) -> list[str]:
        """Names in the order of their making."""
        return [] if self._peft is None else list(self._peft.peft_config)

    @property
    def stored_bytes(self) -> int:
        return sum(t.nbytes for name in self.adapters for t in self._tensors(name).values())

    def begin(self, task: str) -> None:
        name = task if self._one_per_task else "default"
        if name not in self.adapters:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derived_seed(self._seed, len(self.adapters), "adapter"))
                self._add(name)
        self._latest = name
        self.select(None)

    def select(self, route: str | None) -> None:
        if self._peft is None:
            if route not in (None, BASE):
                raise ValueError(f"no adapter {route!r} has been trained yet")
            return
        if route == BASE:
            self._peft.base_model.disable_adapter_layers()
            return
        self._peft.base_model.enable_adapter_layers()
        self._peft.set_adapter(route or self._latest)

    def save(self, folder: Path) -> None:
        for name in self.adapters:
            place = folder / "adapters" / name
            place.mkdir(parents=True, exist_ok=True)
            config = self._peft.peft_config[name]
            config.inference_mode, training = True, config.inference_mode
            config.save_pretrained(place)
            config.inference_mode = training
            save_file(self._tensors(name), place / ADAPTER_FILE)

    def load(self, folder: Path) -> None:
        self.restore()
        for name in sorted(place.name for place in (folder / "adapters").glob("*")):
            self._add(name)
            self._fill(name, folder / "adapters" / name)
            self._latest = name

    def take(self, folder: Path) -> None:
        (place,) = (folder / "adapters").iterdir()
        assert self._latest is not None
        self._fill(self._latest, place)

    def _fill(self, name: str, place: Path) -> None:
        state = load_file(place / ADAPTER_FILE)
        result: Any = set_peft_model_state_dict(self._peft, state, adapter_name=name)
        if result.unexpected_keys:
            raise ValueError(f"{place}: this model has no {result.unexpected_keys[0]}")

    def restore(self) -> None:
        if self._peft is not None:
            self._peft.unload()
            self._peft = self._latest = None
        self._model.requires_grad_(False)

    def _add(self, name: str) -> None:
        config = LoraConfig(
            target_modules=self._targets,
            base_model_name_or_path=getattr(self._model, "name_or_path", None),
            **self._settings,
        )
        with warnings.catch_warnings():
            # peft still asks transformers by the older name; it gets the right answer.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            if self._peft is None:
                self._peft = PeftModel(self._model, config, adapter_name=name)
            else:
                self._peft.add_adapter(name, config)

    def _tensors(self, name: str) -> dict[str, torch.Tensor]:
        state = get_peft_model_state_dict(
            self._peft, adapter_name=name, save_embedding_layers=False
        )
        return {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}
