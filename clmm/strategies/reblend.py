"""Re-blending: text-only instruction data in every stage, so that language is not unlearnt.

L = CE on batches of which `share` are text-only samples of `source`; no other term. Tuning on
image–text pairs alone costs a model its text-only skills, and mixing text-only instructions back in
restores them (VILA, Lin et al. 2024, arXiv 2312.07533, section 3.3). Samples of the source that
hold an image are left out. What is mixed in takes the place of the task's samples, unless
`train.online`.

Stores one adapter (or the changed weights); the source's samples are data, not counted. Supports
several processes; no sharded parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from clmm.memory import Alignment, check_share
from clmm.strategy import Context, Tuned
from streams.settings import SettingError


@dataclass(frozen=True, kw_only=True)
class Reblend(Tuned):
    """Sequential tuning with a share of text-only samples."""

    source: Any
    """Where they come from: a stream's name, a path, a mapping or a list, as a study's `stream`."""
    share: float = 0.1
    """Part of each batch that is text-only."""

    def __post_init__(self) -> None:
        check_share("reblend.share", self.share)

    def parts(self, context: Context) -> list[Any]:
        from streams.loading import load_stream

        tasks = load_stream(self.source, where="reblend.source").tasks
        plain = tuple(s for task in tasks for s in task.train if not s.media)
        if not plain:
            raise SettingError(
                f"reblend.source: all samples of {self.source!r} hold media; name text-only data"
            )
        mixed = replace(context, alignment=plain)
        return [Alignment(mixed, share=self.share, field="reblend.share", mode="during")]
