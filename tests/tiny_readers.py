"""Models with known faults, for probes that read official files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from safety.probing import ProbeRun
from streams.sample import Answer, Sample, Text

CODE = "__import__('pathlib').Path({!r}).write_text('run')"
"""What a tool that hands a file's text to `eval` would run."""


@dataclass
class Scripted:
    """Says what `say` says; finds likelier what `prefer` says, by one nat."""

    say: Callable[[Sample], str]
    prefer: Callable[[Sample], str]

    def answer(self, samples: Sequence[Sample], *, max_new_tokens: int = 48) -> list[Answer]:
        return [answered(s, self.say(s)) for s in samples]

    def log_likelihood(
        self, samples: Sequence[Sample], continuations: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        return [
            [-1.0 if text == self.prefer(s) else -2.0 for text in texts]
            for s, texts in zip(samples, continuations, strict=True)
        ]


def answered(sample: Sample, text: str) -> Answer:
    return Answer(sample_id=sample.id, parts=(Text(text=text),))


def truth(sample: Sample) -> str:
    return f"{str(sample.metadata['label']).capitalize()}."


def values(run: ProbeRun) -> dict[str, Any]:
    return {name: figure.value for name, figure in run.figures.items()}


def lines(*records: Mapping[str, Any]) -> str:
    return "".join(json.dumps(record) + "\r\n" for record in records)
