"""Component-selective tuning: sequential LoRA on one kind of layer of the language model.

y = Wx + (α/r)·BAx on the linear layers of `part` alone, all others and the projector frozen. Found
by the names that Hugging Face models give their modules, under the language model. Which layers
are tuned decides how much is forgotten (Zhu et al. 2025, arXiv 2510.08564): attention projections
and gate and up projections are the mild choices. Trains fewer parameters than LoRA on all layers
of the same rank; raise `rank` to compare at equal numbers.

Stores the adapter: 4·r·Σ(in + out) bytes over those layers, whatever the number of tasks. No
sharded parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from clmm.strategy import Context, LoraTuned, Method
from streams.settings import SettingError

_INSIDE = {
    "attention": ("attn", "attention"),
    "mlp": ("mlp", "feed_forward", "feedforward", "ffn", "densereludense", "moe", "experts"),
}
"""Part → what the name of a module around its linear layers has in it."""
_ENTRANCES = (
    "gate_proj", "up_proj", "gate_up_proj", "w1", "w3", "wi", "wi_0", "wi_1", "fc1", "fc_in",
    "c_fc", "dense_h_to_4h",
)  # fmt: skip
_BARE = ("fc1", "fc2")
"""Linear layers of MLPs that have no module of their own (OPT)."""


@dataclass(frozen=True, kw_only=True)
class ComponentSelective(LoraTuned):
    """LoRA on attention projections, on MLPs, or on what leads into the MLPs."""

    part: Literal["attention", "mlp", "gate_up"] = "attention"
    """attention: all projections of attention; mlp: all linear layers of MLPs; gate_up: those of
    them that are applied to the MLP's input."""

    def __post_init__(self) -> None:
        if self.part not in ("attention", "mlp", "gate_up"):
            raise SettingError(
                f"component_selective.part: must be attention, mlp or gate_up; got {self.part!r}"
            )

    def build(self, context: Context) -> Method:
        from clmm.adapters import Lora
        from clmm.components import language_linears

        targets = layers(language_linears(context.model), self.part)
        lora = Lora(
            context.model, rank=self.rank, alpha=self.alpha, seed=context.seed, targets=targets
        )
        return Method(weights=lora, plugins=self.parts(context))


def layers(names: Sequence[str], part: str) -> list[str]:
    """Those of the linear layers `names` that belong to `part`; SettingError when none does."""
    attention = [name for name in names if _inside(name, "attention")]
    mlp = [name for name in names if name not in attention and _inside(name, "mlp")]
    found = {
        "attention": attention,
        "mlp": mlp,
        "gate_up": [name for name in mlp if _last(name) in _ENTRANCES],
    }[part]
    if not found:
        wanted = ", ".join(f"*{word}*" for word in _INSIDE["mlp" if part == "gate_up" else part])
        also = f" and named {', '.join(_ENTRANCES)}" if part == "gate_up" else ""
        raise SettingError(
            f"component_selective.part: looked for linear layers of the language model inside "
            f"modules named {wanted}{also}; it has {', '.join(sorted({*map(_last, names)}))}; "
            f"got {part!r}"
        )
    return found


def _inside(name: str, part: str) -> bool:
    around = name.lower().split(".")[:-1]
    if part == "mlp" and _last(name) in _BARE:
        return True
    return any(word in module for module in around for word in _INSIDE[part])


def _last(name: str) -> str:
    return name.rsplit(".", 1)[-1]
