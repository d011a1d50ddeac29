"""The model, its training, the strategies, the experiment and the command line.

`Experiment` is the way in; `compose` and `compose_file` make a model of components, `processor_of`
the processor that goes with it. Each is imported on first use, so that `import clmm` costs no
torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clmm.composed_processor import processor_of
    from clmm.composition import compose, compose_file
    from clmm.experiment import Experiment

__all__ = ["Experiment", "compose", "compose_file", "processor_of"]

_HOMES = {
    "Experiment": "clmm.experiment",
    "compose": "clmm.composition",
    "compose_file": "clmm.composition",
    "processor_of": "clmm.composed_processor",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'clmm' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
