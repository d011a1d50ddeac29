"""CoIN, eight visual tasks from ScienceQA to OCR-VQA, from its official files (2024).

Chen et al., "CoIN: A Benchmark of Continual Instruction tuNing for Multimodel Large Language
Model", arXiv 2403.08350. Reads the layout of its repository, zackschen/CoIN:

    Instructions_Original/TASK/train.json    LLaVA conversations
    Instructions_Original/TASK/val.json      question_id, image, text, answer; else test.json
    COCO2014/ GQA/ OCR-VQA/ …                pictures, or these under cl_dataset/

For the instructions of another type, `folder: …/Instructions_Type2` and `image_folder`.

Every task is scored by `exact` against the one answer in its test record. The authors do so too
for VizWiz, VQAv2, OCR-VQA, GQA and ScienceQA (by its letter); they forgive more in ImageNet (one
text holds the other), TextVQA (ten annotators) and Grounding (boxes that overlap by half), so
those three come out lower here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from streams.sources._official import Pictured, Row

_TEST = ("val.json", "test.json")


@dataclass(frozen=True, kw_only=True)
class Coin(Pictured):
    """ScienceQA, TextVQA, ImageNet, GQA, VizWiz, Grounding, VQAv2, OCR-VQA."""

    title: ClassVar[str] = "CoIN"
    roots: ClassVar[tuple[str, ...]] = (
        "Instructions_Original",
        "Instruction_Original",
        "playground/Instructions_Original",
        ".",
    )
    image_roots: ClassVar[tuple[str, ...]] = ("cl_dataset", ".")
    rows: ClassVar[tuple[Row, ...]] = (
        Row(task="ScienceQA", places=("ScienceQA",), published="the option's letter"),
        Row(task="TextVQA", places=("TextVQA",), test=_TEST, published="VQA's, ten annotators"),
        Row(task="ImageNet", places=("ImageNet",), published="one text holds the other"),
        Row(task="GQA", places=("GQA",)),
        Row(task="VizWiz", places=("VizWiz",), test=_TEST),
        Row(
            task="Grounding",
            places=("Grounding",),
            published="boxes overlap by half",
            answer="answer_bbox",
        ),
        Row(task="VQAv2", places=("VQAv2",), test=_TEST),
        Row(task="OCR-VQA", places=("OCRVQA", "OCR-VQA")),
    )
