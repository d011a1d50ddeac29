"""One LoRA adapter, trained on task after task with nothing done against forgetting.

Stores the adapter: 4·r·Σ(in + out) bytes, whatever the number of tasks. No sharded parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

from clmm.strategy import LoraTuned


@dataclass(frozen=True, kw_only=True)
class SequentialLora(LoraTuned):
    """The baseline of continual LoRA tuning; the base weights stay as they are."""
