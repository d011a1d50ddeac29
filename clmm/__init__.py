"""The model, its training, the strategies, the experiment and the command line.

`Experiment` is the way in, and `compose` makes a model of components. Each is imported on first
use, so that `import clmm` costs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clmm.composition import compose
    from clmm.experiment import Experiment

__all__ = ["Experiment", "compose"]


def __getattr__(name: str) -> Any:
    if name == "Experiment":
        from clmm.experiment import Experiment

        return Experiment
    if name == "compose":
        from clmm.composition import compose

        return compose
    raise AttributeError(f"module 'clmm' has no attribute {name!r}")
