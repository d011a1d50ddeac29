"""How a model's chat template writes a conversation, and where an answer begins and ends.

Knows the processor's template and tokenizer, no media and no tensors. Without a template the
plain form of the first LLaVA models is used: `USER: <image>\\n… ASSISTANT:`.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import ProcessorMixin

from clmm.processor_inputs import placeholders
from streams.sample import Kind, Sample, Text

PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ '' }}{% else %}{{ message['role'].upper() + ': ' }}"
    "{% endif %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% else %}{{ PLACEHOLDERS.get(part['type'], '') + '\\n' }}{% endif %}"
    "{% endfor %}{{ ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
_MARK = "answer-goes-here"


@dataclass(frozen=True, kw_only=True)
class Turns:
    """One processor's way of writing turns; build it with `Turns.of`."""

    processor: ProcessorMixin
    template: str | None
    """None: the processor's own."""
    opening: str
    """What the template puts before an answer, e.g. `ASSISTANT:`."""
    glue: str
    """White space between the opening and an answer, part of the answer's tokens."""
    end_id: int
    """The token that ends an answer."""

    @classmethod
    def of(cls, processor: ProcessorMixin) -> Turns:
        """Reads the template by writing one conversation.

        Raises ValueError when neither a template nor a placeholder is known, or the template
        drops what users say. Warns when the plain template stands in for a missing one.
        """
        template = None
        if not (processor.chat_template or processor.tokenizer.chat_template):
            tokens = placeholders(processor)
            if not tokens:
                raise ValueError(
                    f"{type(processor).__name__} has neither a chat template nor an image token, "
                    "so no prompt can be written; add chat_template.jinja to the model's folder"
                )
            warnings.warn(
                f"{type(processor).__name__} has no chat template; prompts are written as "
                f"'USER: {next(iter(tokens.values()))}\\n… ASSISTANT:'",
                stacklevel=3,
            )
            template = plain_template(tokens)
        elif not processor.chat_template:
            template = processor.tokenizer.chat_template
        question = [_turn("user", "question-goes-here")]
        asked = _render(processor, template, question, opening=False)
        prompt = _render(processor, template, question, opening=True)
        if "question-goes-here" not in prompt:
            raise ValueError(
                f"the chat template of {type(processor).__name__} leaves out what users say; "
                "it must accept content as a list of parts"
            )
        both = _render(processor, template, [*question, _turn("assistant", _MARK)], opening=False)
        before, _, after = both.partition(_MARK)
        glue = before.removeprefix(prompt)
        return cls(
            processor=processor,
            template=template,
            opening=prompt.removeprefix(asked),
            glue=glue if glue.isspace() else "",
            end_id=_end_id(processor.tokenizer, after.lstrip()),
        )

    def render(self, sample: Sample) -> str:
        """The prompt's text: all turns and the opening of the assistant's next one.

        Of a plain sample its words and what stands for its media, one after another.
        """
        if sample.plain:
            parts = sample.messages[0].parts
            return "".join(
                part.text if isinstance(part, Text) else self._medium(part.kind) for part in parts
            )
        turns = [
            {
                "role": message.role,
                "content": [
                    {"type": "text", "text": part.text}
                    if isinstance(part, Text)
                    else {"type": part.kind}
                    for part in message.parts
                ],
            }
            for message in sample.messages
        ]
        return _render(self.processor, self.template, turns, opening=True)

    def _medium(self, kind: Kind) -> str:
        """What stands for a medium: some templates put marks around the placeholder.

        The placeholder itself where the template moves media to another place.
        """
        parts: list[dict[str, str]] = [
            {"type": "text", "text": _MARK},
            {"type": kind},
            {"type": "text", "text": _MARK},
        ]
        turn = {"role": "user", "content": parts}
        written = _render(self.processor, self.template, [turn], opening=False)
        found = written.partition(_MARK)[2].partition(_MARK)[0].strip()
        return found or placeholders(self.processor).get(kind, "")

    def adds_special_tokens(self, rendered: str) -> bool:
        """False where the template already wrote the start token."""
        start = self.processor.tokenizer.bos_token
        return not (start and rendered.startswith(start))

    def answer_ids(self, text: str, plain: bool = False) -> tuple[int, ...]:
        """Tokens of `text` after the opening, then the end token.

        Tokenised behind the opening, so that word-start marks are as they would be in one text;
        alone where the tokenizer would merge across the boundary, or nothing opens (`plain`).
        """
        tokenizer = self.processor.tokenizer
        if plain:
            return (*tokenizer.encode(text, add_special_tokens=False), self.end_id)
        head = tokenizer.encode(self.opening, add_special_tokens=False)
        whole = tokenizer.encode(self.opening + self.glue + text, add_special_tokens=False)
        if whole[: len(head)] != head:
            whole = head + tokenizer.encode(self.glue + text, add_special_tokens=False)
        return (*whole[len(head) :], self.end_id)


def plain_template(tokens: Mapping[Kind, str]) -> str:
    """The plain form, with each kind's placeholder in front of what follows it."""
    return PLAIN_TEMPLATE.replace("PLACEHOLDERS", json.dumps(tokens, ensure_ascii=False))


def _turn(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}]}


def _render(
    processor: ProcessorMixin, template: str | None, turns: list[dict[str, Any]], *, opening: bool
) -> str:
    text: str = processor.apply_chat_template(
        turns, chat_template=template, add_generation_prompt=opening, tokenize=False
    )
    return text


def _end_id(tokenizer: Any, after: str) -> int:
    """The special token that the template writes after an answer, else the end of sequence."""
    ids = tokenizer.encode(after, add_special_tokens=False) if after else []
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    if ids and ids[0] in special:
        return int(ids[0])
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end-of-sequence token, so answers cannot end")
    return int(tokenizer.eos_token_id)
