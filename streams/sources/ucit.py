"""UCIT, six visual tasks that LLaVA has not seen, from its official files (2025).

Guo et al., "HiDe-LLaVA: Hierarchical Decoupling for Continual Instruction Tuning of Multimodal
Large Language Model", arXiv 2503.12941. Reads the layout of its repository, Ghy0501/HiDe-LLaVA,
and the one that Ghy0501/MCITlib makes of it:

    instructions/TASK/train.json, train_4w.json or train_brief_4w.json    LLaVA conversations
    instructions/TASK/test_3000.json    question_id, image, text, answer
    instructions/TASK/val_coco_type_3000.json    captions, where the test file has no answer
    datasets/TASK/…                     pictures

(MCITlib: TASK/train.json and TASK/test.json without `instructions`.) VizWiz and Flickr30k, which
are captions, are scored by `rouge_l` against the best of all captions of the picture, where the
authors average BLEU, METEOR, ROUGE-L and CIDEr against them; the others by `exact`, as the authors
do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from streams.sample import Scorer
from streams.sources._official import Pictured, Row

_TEST = ("test_3000.json", "test.json")
_CAPTIONS = "mean of BLEU, METEOR, ROUGE-L and CIDEr"
_ROUGE: Scorer = "rouge_l"
_COCO = "val_coco_type_3000.json"


@dataclass(frozen=True, kw_only=True)
class Ucit(Pictured):
    """ImageNet-R, ArxivQA, VizWiz, IconQA, CLEVR, Flickr30k."""

    title: ClassVar[str] = "UCIT"
    roots: ClassVar[tuple[str, ...]] = ("instructions", ".")
    image_roots: ClassVar[tuple[str, ...]] = ("datasets", ".")
    rows: ClassVar[tuple[Row, ...]] = (
        Row(task="ImageNet-R", places=("ImageNet-R",), test=_TEST),
        Row(
            task="ArxivQA",
            places=("ArxivQA",),
            train=("train_4w.json", "train.json"),
            test=_TEST,
        ),
        Row(
            task="VizWiz",
            places=("VizWiz", "VizWiz-caption"),
            test=_TEST,
            scorer=_ROUGE,
            published=_CAPTIONS,
            captions=_COCO,
        ),
        Row(task="IconQA", places=("IconQA",), test=_TEST),
        Row(
            task="CLEVR",
            places=("CLEVR", "CLEVR-Math"),
            train=("train_4w.json", "train.json"),
            test=_TEST,
        ),
        Row(
            task="Flickr30k",
            places=("Flickr30k", "Flickr30k-cap"),
            train=("train_brief_4w.json", "train.json"),
            test=_TEST,
            scorer=_ROUGE,
            published=_CAPTIONS,
            captions=_COCO,
        ),
    )
