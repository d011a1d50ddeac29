"""TRACE, eight text tasks from C-STANCE to 20Minuten, from its official files (2023).

Wang et al., "TRACE: A Comprehensive Benchmark for Continual Learning in Large Language Models",
arXiv 2310.06762. Reads the layout of its repository, BeyonderXX/TRACE:

    TASK/train.json, TASK/test.json    lists of {"prompt": …, "answer": …}; eval.json is not read

or these folders under LLM-CL-Benchmark_5000/, as they are published. As the authors do, C-STANCE,
FOMC and the two NumGLUE are scored by `exact`, and ScienceQA, whose answers go on with the reasons,
by `first_letter`; the others by `rouge_l`, where the authors take ROUGE-L and BLEU for MeetingBank,
edit similarity for Py150 and SARI for 20Minuten.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from streams.sample import Scorer
from streams.sources._official import Official, Row

_ROUGE: Scorer = "rouge_l"


@dataclass(frozen=True, kw_only=True)
class Trace(Official):
    """C-STANCE, FOMC, MeetingBank, Py150, ScienceQA, NumGLUE-cm, NumGLUE-ds, 20Minuten."""

    title: ClassVar[str] = "TRACE"
    roots: ClassVar[tuple[str, ...]] = (".", "LLM-CL-Benchmark_5000")
    question: ClassVar[str] = "prompt"
    rows: ClassVar[tuple[Row, ...]] = (
        Row(task="C-STANCE", places=("C-STANCE",)),
        Row(task="FOMC", places=("FOMC",)),
        Row(
            task="MeetingBank",
            places=("MeetingBank",),
            scorer=_ROUGE,
            published="ROUGE-L and BLEU",
        ),
        Row(task="Py150", places=("Py150",), scorer=_ROUGE, published="edit similarity"),
        Row(
            task="ScienceQA",
            places=("ScienceQA",),
            scorer="first_letter",
            published="first letter",
        ),
        Row(task="NumGLUE-cm", places=("NumGLUE-cm",)),
        Row(task="NumGLUE-ds", places=("NumGLUE-ds",)),
        Row(task="20Minuten", places=("20Minuten",), scorer=_ROUGE, published="SARI"),
    )
