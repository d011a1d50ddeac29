"""The instruction to answer in one paragraph, behind what the user asked.

MiHI ("mitigating hallucination during input") of Han et al. 2024 (arXiv 2402.01345): hallucinated
objects are commoner behind a paragraph break, so the prompt asks for an answer without one. The
paper's wording is free; `text` is ours. Answers and log-likelihoods are both of the prompt with the
instruction, so a figure and its likelihood twin speak of the same question.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from streams.sample import Message, Sample, Text


@dataclass(frozen=True, kw_only=True)
class SingleParagraph:
    """x' = x with `text` behind the last user turn; a plain document has no turn and stays."""

    text: str = "Answer in one paragraph."
    """The instruction, put on a line of its own."""

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise ValueError("single_paragraph.text: must say something; got an empty text")

    def rewritten(self, sample: Sample) -> Sample:
        if sample.plain:
            return sample
        last = sample.messages[-1]
        text = f"\n{self.text}" if last.text else self.text
        turn = Message(role=last.role, parts=(*last.parts, Text(text=text)))
        return replace(sample, messages=(*sample.messages[:-1], turn))
