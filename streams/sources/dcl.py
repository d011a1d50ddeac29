"""MLLM-DCL, five professional domains from remote sensing to finance, official files (2025).

Zhao et al., "MLLM-CL: Continual Learning for Multimodal Large Language Models", arXiv 2506.05453.
Reads the layout of its repository, bjzhb666/MLLM-CL, which Ghy0501/MCITlib shares:

    RS/train.json    LLaVA conversations, or these folders under Domain_data/
    RS/test.json     question_id, image, text, answer
    RS/images/…      pictures, whose paths begin at RS/
    Med/ AD/ Sci/ Fin/    the same

Finance and science are scored by `exact`, as the authors do but for science's maps; remote sensing,
medicine and driving by `contains`, where the authors look for letters and not for whole words.
Questions are asked as they stand in the file: the authors' evaluation appends to those of
finance how to answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from streams.sample import Scorer
from streams.sources._official import Pictured, Row

_CONTAINS: Scorer = "contains"
_OCCURS = "the answer occurs in what is said"


@dataclass(frozen=True, kw_only=True)
class Dcl(Pictured):
    """remote-sensing, medical, driving, science, finance."""

    title: ClassVar[str] = "MLLM-DCL"
    roots: ClassVar[tuple[str, ...]] = (".", "Domain_data")
    rows: ClassVar[tuple[Row, ...]] = (
        Row(task="remote-sensing", places=("RS",), scorer=_CONTAINS, published=_OCCURS),
        Row(task="medical", places=("Med",), scorer=_CONTAINS, published=_OCCURS),
        Row(task="driving", places=("AD",), scorer=_CONTAINS, published=_OCCURS),
        Row(task="science", places=("Sci",), published="exact match; maps by share of states"),
        Row(task="finance", places=("Fin",)),
    )
