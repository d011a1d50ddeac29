"""Pairs of image and caption to pre-train on: a folder of LLaVA-Pretrain-format JSON.

    {"id": "004539375", "image": "00453/004539375.jpg",
     "conversations": [{"from": "human", "value": "Render a concise summary.\\n<image>"},
                       {"from": "gpt", "value": "a plain ring on a table"}]}

As in the first stage of LLaVA (Liu et al. 2023, arXiv 2304.08485) what the human says is dropped:
a sample is the image, then its caption, without a chat template. Videos, recordings and point
clouds may be captioned in the same way. The folder is laid out as for
`streams/sources/llava_json.py`; without a test file, a share of the images is held out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from streams.sample import Message
from streams.sources._folders import Foldered
from streams.sources._llava_records import Problems, Record, read_records


@dataclass(frozen=True, kw_only=True)
class Pairs(Foldered):
    """Each record has a medium and two turns: one of human and one of gpt, the caption."""

    plain: ClassVar[bool] = True

    def read(self, file: Path, folders: Sequence[Path], problems: Problems) -> list[Record]:
        pairs = []
        for record in read_records(file, folders, problems):
            if len(record.turns) != 2:
                reason = f"has {len(record.turns)} turns; a pair has one of human and one of gpt"
                problems.add(record.place, reason)
            elif not record.media:
                reason = "has no image or other medium; a pair has one, and a caption"
                problems.add(record.place, reason)
            else:
                asked, caption = record.turns
                bare = Message(role="user", parts=asked.media)
                pairs.append(replace(record, turns=(bare, caption)))
        return pairs
