"""The settings of a training stage: which parts train, on what, and with what that is added.

Knows names and words; no model, no weights. `clmm/stages.py` applies them to one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from clmm import objective
from streams import settings
from streams.settings import SettingError

Kind = Literal["pretraining", "instruction", "preference"]
Component = Literal["encoder", "input_projector", "language_model", "output_projector"]


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Adapters y = Wx + (α/r)·BAx on linear layers of one component (arXiv 2106.09685)."""

    rank: int
    """r, the width of the adapters."""
    alpha: float | None = None
    """α; the rank when left out."""
    dropout: float = 0.0
    """Dropped share of the adapters' input in training."""
    component: Component = "language_model"
    """Whose layers get adapters."""
    targets: tuple[str, ...] = ()
    """Last names, such as q_proj, or dotted globs of layers; all but the head when left out."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise SettingError(f"lora.rank: must be at least 1; got {self.rank}")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a recipe; all that no pattern of `train` names is frozen."""

    name: str
    """As the paper calls it."""
    kind: Kind
    """pretraining (PT), instruction (IT, SFT) or preference (DPO, PPO and their kin)."""
    data: str = ""
    """What it was trained on, in words."""
    training: str = ""
    """Objective, learning rate, steps and batch size, in words."""
    objective: str | Mapping[str, Any] | None = None
    """A file of `clmm/objectives`, or its name and settings; left out, the tasks' own."""
    train: tuple[str, ...] = ()
    """Components (encoder, input_projector, language_model, …), a component's norms
    (language_model.norms), modules, or dotted globs of parameter names; a module's name stands for
    all that is in it."""
    freeze: tuple[str, ...] = ()
    """Patterns taken out of `train` again."""
    lora: LoraSettings | None = None
    """Adapters on one component that train besides."""
    prefix: int = 0
    """Keys and values in each layer of the language model that train besides (prefix tuning)."""
    signal_rows: bool = False
    """The signal tokens' own rows of the language model's embedding and head train besides."""

    def __post_init__(self) -> None:
        if self.prefix < 0:
            raise SettingError(f"prefix: must not be negative; got {self.prefix}")

    @classmethod
    def read(cls, values: Any, *, where: str) -> Stage:
        """From plain values; SettingError for what is no setting of a stage."""
        if not isinstance(values, Mapping):
            raise SettingError(f"{where}: give name, kind and train; got {values!r}")
        values = dict(values)
        if isinstance(values.get("lora"), Mapping):
            values["lora"] = settings.build(LoraSettings, values["lora"], where=f"{where}.lora")
        if values.get("objective") is not None:
            objective.of(values["objective"], where=f"{where}.objective", staged=True)
        return settings.build(cls, values, where=where)
