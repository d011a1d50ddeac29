"""CoIN, eight visual tasks from ScienceQA to OCR-VQA, from its official files (2024).

Chen et al., "CoIN: A Benchmark of Continual Instruction tuNing for Multimodel Large Language
Model", arXiv 2403.08350. Reads the layout of its repository, zackschen/CoIN:

    Instructions_Original/TASK/train.json    LLaVA conversations
    Instructions_Original/TASK/val.json      question_id, image, text, answer; else test.json
    COCO2014/ GQA/ OCR-VQA/ …                pictures, or these under cl_dataset/

For the instructions of another type, `folder: …/Instructions_Type2` and `image_folder`.

Tasks are scored as the authors do: ScienceQA by the option's letter, TextVQA by VQA's accuracy
against ten annotators (in TextVQA_0.5.1_val.json among the pictures; without that file, against the
one answer of the record), Grounding by boxes that overlap by half, the others by `exact`. Apart
from theirs: in ImageNet the answer must hold the class's name, where the authors also take a part
of the name; letters and boxes are read as `streams/scoring.py` says.
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
        Row(
            task="ScienceQA",
            places=("ScienceQA",),
            scorer="first_letter",
            published="the option's letter",
        ),
        Row(
            task="TextVQA",
            places=("TextVQA",),
            test=_TEST,
            scorer="vqa",
            published="VQA's, ten annotators",
            people="TextVQA_0.5.1_val.json",
        ),
        Row(
            task="ImageNet",
            places=("ImageNet",),
            scorer="contains",
            published="one text holds the other",
        ),
        Row(task="GQA", places=("GQA",)),
        Row(task="VizWiz", places=("VizWiz",), test=_TEST),
        Row(
            task="Grounding",
            places=("Grounding",),
            scorer="iou",
            published="boxes overlap by half",
            answer="answer_bbox",
        ),
        Row(task="VQAv2", places=("VQAv2",), test=_TEST),
        Row(task="OCR-VQA", places=("OCRVQA", "OCR-VQA")),
    )
