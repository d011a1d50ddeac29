"""Safety replay: samples of wanted behaviour in every stage, and no memory of tasks.

L = CE on batches of which `share` are the study's alignment samples; no other term. Mixing a small
set of safe answers into fine-tuning, or tuning on it afterwards, is what VLGuard measures (Zong et
al. 2024, arXiv 2402.02207). `mode: during` mixes them into each batch; `mode: after` makes the
last share of each stage's updates batches of them alone. The number of updates stays the same, so
in both modes they take the place of the task's samples. The learning rate falls to zero over a
stage, so that in mode `after` they come at its lowest rates.

Stores one adapter (or the changed weights); the alignment samples are the study's, not counted.
Supports several processes; no sharded parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from clmm.memory import Alignment, check_share
from clmm.strategy import Context, Tuned
from streams.settings import SettingError


@dataclass(frozen=True, kw_only=True)
class SafetyReplay(Tuned):
    """Sequential tuning with alignment samples; the study names their source in `alignment`."""

    share: float = 0.1
    """Part of each batch, or of each stage's updates, that are alignment samples."""
    mode: Literal["during", "after"] = "during"
    """Within every batch, or alone in the last updates of each stage."""

    def __post_init__(self) -> None:
        check_share("safety_replay.share", self.share)
        if self.mode not in ("during", "after"):
            raise SettingError(f"safety_replay.mode: must be during or after; got {self.mode!r}")

    def parts(self, context: Context) -> list[Any]:
        return [Alignment(context, share=self.share, field="safety_replay.share", mode=self.mode)]
