"""In which form a question wants its answer, and how a question is written into a template.

Knows samples; which forms a stream asks for is each source's own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from streams.sample import Part, Sample, Text

Form = Literal["yes_no", "choice", "short", "sentence"]
QUESTION = "{question}"
_SHORT = 3
"""Most words of a short answer."""


def form(sample: Sample) -> Form | None:
    """None for boxes, for plain text and for answers with media: nothing else can be asked."""
    media = not all(isinstance(part, Text) for part in sample.reference)
    if sample.plain or media or sample.scorer == "iou":
        return None
    if sample.scorer == "yes_no":
        return "yes_no"
    if sample.scorer == "first_letter":
        return "choice"
    return "short" if len(sample.reference_text.split()) <= _SHORT else "sentence"


def written(sample: Sample, template: str) -> Sample:
    """The sample with its last question in the place of `{question}`, media where they were."""
    before, _, after = template.partition(QUESTION)
    *turns, last = sample.messages
    parts: list[Part] = list(last.parts)
    texts = [place for place, part in enumerate(parts) if isinstance(part, Text)]
    if not texts:
        parts, texts = [*parts, Text(text="")], [len(parts)]
    for place, (head, tail) in ((texts[0], (before, "")), (texts[-1], ("", after))):
        part = parts[place]
        assert isinstance(part, Text)
        parts[place] = Text(text=f"{head}{part.text}{tail}")
    return replace(sample, messages=(*turns, replace(last, parts=tuple(parts))))
