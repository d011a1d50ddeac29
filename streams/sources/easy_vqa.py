"""The easy-VQA set from its package: "what color is the shape?" → "teal", and yes or no."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import NonNegativeInt, PositiveInt

from streams.sample import Image, Provenance, Sample, ask
from streams.settings import SettingError
from streams.sources._drawn import Split
from streams.stream import Task

Questions = Literal["all", "short", "color", "shape", "yes_no"]


@dataclass(frozen=True, kw_only=True)
class EasyVqa:
    """One shape on a light background (Zhou 2019), in the set's own words and its own split.

    The set answers "is there a red shape?" with no seven times in eight, so a blind model does
    well. Here every question has each of its answers equally often: one must look.
    """

    questions: Questions = "all"
    """`color` or `shape` asks for one, `short` for either, `yes_no` whether there is one."""
    negations: bool = True
    """Whether to keep "is there not a red shape?"; they make yes and no an exclusive or."""
    train_items: PositiveInt = 2000
    test_items: PositiveInt = 300
    seed: NonNegativeInt = 0
    """Chooses the items."""

    def tasks(self) -> tuple[Task, ...]:
        return (
            Task(
                name="easy_vqa" if self.questions == "all" else f"easy_vqa_{self.questions}",
                train=self._samples("train", self.train_items),
                test=self._samples("test", self.test_items),
                description="Which shape, and of which colour, is in the picture?",
            ),
        )

    def _samples(self, split: Split, count: int) -> list[Sample]:
        import easy_vqa

        read = {
            "train": (easy_vqa.get_train_questions, easy_vqa.get_train_image_paths),
            "test": (easy_vqa.get_test_questions, easy_vqa.get_test_image_paths),
        }
        texts, answers, images = read[split][0]()
        paths = read[split][1]()
        rows = self._balanced(texts, answers, np.random.default_rng([self.seed, split == "test"]))
        if count > len(rows):
            raise SettingError(
                f"easy_vqa.{split}_items: got {count}; "
                f"there are {len(rows)} balanced questions of this kind"
            )
        return [
            ask(
                id=f"easy_vqa/{split}/{row:05d}",
                question=texts[row],
                answer=answers[row],
                image=Image(source=Path(paths[images[row]])),
                provenance=Provenance(
                    source="easy-vqa 1.0", split=split, item=f"question {row}", licence="MIT"
                ),
                scorer="yes_no" if answers[row] in ("yes", "no") else "exact",
                cluster=f"easy_vqa/{split}/{images[row]}",
            )
            for row in rows[:count]
        ]

    def _balanced(
        self, texts: list[str], answers: list[str], rng: np.random.Generator
    ) -> list[int]:
        """Rows in blocks: each block is one question text with each of its answers once."""
        groups: defaultdict[str, defaultdict[str, list[int]]] = defaultdict(
            lambda: defaultdict(list)
        )
        for row, (text, answer) in enumerate(zip(texts, answers, strict=True)):
            kind = "yes_no" if answer in ("yes", "no") else "short"
            about = "color" if "color" in text.split() else "shape"
            kinds = {"all", kind, about} if kind == "short" else {"all", kind}
            negated = {"not", "no"} & set(text.split())
            if self.questions in kinds and (self.negations or not negated):
                groups[text][answer].append(row)
        blocks: list[tuple[int, ...]] = []
        for by_answer in groups.values():
            blocks += zip(*(rng.permutation(rows).tolist() for rows in by_answer.values()))  # noqa: B905
        return [row for block in rng.permutation(len(blocks)) for row in blocks[block]]
