"""ModaVerse (arXiv 2401.06395): the language model asks another generator in words.

No signal tokens and no output projector: the answer says `Modality: [IMAGE] Prompt: a red ring`,
and the prompt goes through the other generator's own text encoder. Only the language loss trains.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from streams import settings

_REQUEST = re.compile(
    r"Modality:\s*\[(?P<name>\w+)\]\s*Prompt:\s*(?P<prompt>.*?)\s*(?=Modality:\s*\[|\Z)", re.S
)


def request(name: str, prompt: str) -> str:
    """How the language model asks for a medium of that output; what training teaches it to say."""
    return f"Modality: [{name.upper()}] Prompt: {prompt}"


def requests(answer: str) -> list[tuple[str, str]]:
    """(output's name, prompt) of each request in an answer, in order."""
    return [(found["name"].lower(), found["prompt"]) for found in _REQUEST.finditer(answer)]


@dataclass(frozen=True, kw_only=True)
class TextRelay:
    """Another generator, asked with the prompt that the language model wrote."""

    generator: dict[str, Any]
    """The other generator: its name and settings."""

    modality: ClassVar[str] = "text"

    @property
    def makes(self) -> str:
        """What comes out: the other generator's modality."""
        inner = self._inner()
        return str(getattr(inner, "makes", inner.modality))

    @property
    def condition_shape(self) -> None:
        return None

    @property
    def any_length(self) -> bool:
        return False

    def _inner(self) -> Any:
        return settings.from_spec("clmm.generators", self.generator, where="text_relay.generator")

    def build(self, tokenizer: Any = None) -> Relay:
        return Relay(self._inner().build(tokenizer))

    def load(self, beside: Path | None = None) -> Relay:
        return Relay(self._inner().load(beside))


class Relay(nn.Module):
    """A generator that takes texts where others take H_X."""

    def __init__(self, generator: Any) -> None:
        super().__init__()
        self.generator = generator

    @property
    def device(self) -> Any:
        return self.generator.device

    def condition(self, texts: list[str]) -> Tensor:
        condition: Tensor = self.generator.condition(texts)
        return condition

    def generate(self, texts: list[str], **options: Any) -> Tensor:
        """Media of the prompts; options as the other generator's."""
        media: Tensor = self.generator.generate(self.condition(texts), **options)
        return media
