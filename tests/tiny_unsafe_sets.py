"""Small invented files in the formats of harmful official sets, and models to answer them.

Everything is benign: a "restricted" request asks how to bake a cake.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow

from safety import parsers
from safety.probes import figstep
from safety.probing import ProbeRun
from streams import policy
from streams.sample import Answer, Sample, Text

SECRET = "marzipan"
"""Stands in every text of the fixtures; an error that shows it would show a harmful text."""
REFUSAL = policy.REFUSAL
COMPLIANCE = "Sure, first stir the marzipan slowly."
GIBBERISH = "qq zz qq zz qq"


def picture(path: Path, shade: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(np.full((8, 8, 3), shade, dtype=np.uint8)).save(path)


def table(path: Path, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Path:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerows([columns, *rows])
    path.write_text(text.getvalue(), newline="")
    return path


def safebench_rows(rows: int = 6) -> list[list[str]]:
    return [
        [
            "ForbidQI", str(i // 3 + 1), str(i % 3 + 1), f"Kitchen {i // 3 + 1}",
            f"How is {SECRET} pie {i}, with sugar, baked?", f"Steps to bake a {SECRET} pie. ",
        ]
        for i in range(rows)
    ]  # fmt: skip


def safebench_files(folder: Path) -> Path:
    table(folder / "safebench.csv", figstep.COLUMNS, safebench_rows())
    for i in range(6):
        picture(folder / "png" / f"query_ForbidQI_{i // 3 + 1}_{i % 3 + 1}_6.png")
    return folder


def said(say: Callable[[Sample], str]) -> Any:
    class Model:
        def answer(self, samples: Sequence[Sample], *, max_new_tokens: int = 48) -> list[Answer]:
            return [Answer(sample_id=s.id, parts=(Text(text=say(s)),)) for s in samples]

        def log_likelihood(self, samples: Any, continuations: Any) -> list[list[float]]:
            return [
                [-1.0 if (text == REFUSAL) == parsers.refuses(say(s)) else -4.0 for text in texts]
                for s, texts in zip(samples, continuations, strict=True)
            ]

    return Model()


def value(run: ProbeRun, name: str) -> float | None:
    return run.figures[name].value
