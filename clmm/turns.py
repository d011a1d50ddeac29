"""How a model's chat template writes a conversation, and where an answer begins and ends.

Knows the processor's template and tokenizer, no media and no tensors. Without a template the
plain form of the first LLaVA models is used: `USER: <image>\\n… ASSISTANT:`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import ProcessorMixin

from streams.sample import Image, Sample

PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ '' }}{% else %}{{ message['role'].upper() + ': ' }}"
    "{% endif %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ 'IMAGE_TOKEN\\n' }}{% else %}{{ part['text'] }}{% endif %}"
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

        Raises ValueError when neither a template nor an image token is known, or the template
        drops what users say. Warns when the plain template stands in for a missing one.
        """
        template = None
        if not (processor.chat_template or processor.tokenizer.chat_template):
            image_token = getattr(processor, "image_token", None)
            if not image_token:
                raise ValueError(
                    f"{type(processor).__name__} has neither a chat template nor an image token, "
                    "so no prompt can be written; add chat_template.jinja to the model's folder"
                )
            warnings.warn(
                f"{type(processor).__name__} has no chat template; prompts are written as "
                f"'USER: {image_token}\\n… ASSISTANT:'",
                stacklevel=3,
            )
            template = PLAIN_TEMPLATE.replace("IMAGE_TOKEN", image_token)
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

        Of a plain sample its words and what stands for its images, one after another.
        """
        if sample.plain:
            parts = sample.messages[0].parts
            return "".join(self.image if isinstance(part, Image) else part.text for part in parts)
        turns = [
            {
                "role": message.role,
                "content": [
                    {"type": "image"}
                    if isinstance(part, Image)
                    else {"type": "text", "text": part.text}
                    for part in message.parts
                ],
            }
            for message in sample.messages
        ]
        return _render(self.processor, self.template, turns, opening=True)

    @cached_property
    def image(self) -> str:
        """What stands for an image: some templates put marks around the image token.

        The image token itself where the template moves images to another place.
        """
        parts: list[dict[str, str]] = [
            {"type": "text", "text": _MARK},
            {"type": "image"},
            {"type": "text", "text": _MARK},
        ]
        turn = {"role": "user", "content": parts}
        written = _render(self.processor, self.template, [turn], opening=False)
        found = written.partition(_MARK)[2].partition(_MARK)[0].strip()
        return found or getattr(self.processor, "image_token", "")

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
