"""MLLM-DCL, five professional domains from remote sensing to finance, official files (2025).

Zhao et al., "MLLM-CL: Continual Learning for Multimodal Large Language Models", arXiv 2506.05453.
Reads the layout of its repository, bjzhb666/MLLM-CL, which Ghy0501/MCITlib shares:

    RS/train.json    LLaVA conversations, or these folders under Domain_data/
    RS/test.json     question_id, image, text, answer
    RS/images/…      pictures, whose paths begin at RS/
    Med/ AD/ Sci/ Fin/    the same

Every task is scored by `exact`. The authors do so too for finance and most of science; for remote
sensing, medicine and driving the answer need only occur in what is said, so those come out lower
here. Questions are asked as they stand in the file: the authors' evaluation appends to those of
finance how to answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from streams.sources._official import Pictured, Row

_OCCURS = "the answer occurs in what is said"


@dataclass(frozen=True, kw_only=True)
class Dcl(Pictured):
    """remote-sensing, medical, driving, science, finance."""

    title: ClassVar[str] = "MLLM-DCL"
    roots: ClassVar[tuple[str, ...]] = (".", "Domain_data")
    rows: ClassVar[tuple[Row, ...]] = (
        Row(task="remote-sensing", places=("RS",), published=_OCCURS),
        Row(task="medical", places=("Med",), published=_OCCURS),
        Row(task="driving", places=("AD",), published=_OCCURS),
        Row(task="science", places=("Sci",), published="exact match; maps by share of states"),
        Row(task="finance", places=("Fin",)),
    )
