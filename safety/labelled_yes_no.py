"""Short answers to yes/no questions, labelled by meaning: what the parsers are measured on.

Knows texts and labels, written by hand for this file; knows no parser. The question is always
whether a thing is in the picture. The label says what the answer as a whole says:

- `yes` or `no`: it is there, or it is not, however that is worded, in any case and spelling.
- `refusal`: it declines to answer.
- `unclear`: neither: it does not know, says both, says nothing, or answers something else.

A third of the answers is meant to mislead a rule that looks for single words. The rates of a
parser on another model's answers may differ: what a model says matters as much as the parser.
"""

from __future__ import annotations

from typing import Literal

Meaning = Literal["yes", "no", "refusal", "unclear"]

_SAID: dict[Meaning, tuple[str, ...]] = {
    "yes": (
        "Yes.",
        "Yes",
        "yes",
        "YES",
        "Yes, there is.",
        "Yes, there is a red ring in the picture.",
        "yes, it is on the left",
        "Yes! Right in the middle.",
        "Yes it is.",
        '"Yes."',
        "**Yes**",
        "Yes there is one.",
        "There is a red ring.",
        "Yeah, I see it.",
        "It is there.",
        "Certainly.",
        "I can see one on the left.",
        "Yes, and it is not alone.",
        "Yes, not far from the star.",
    ),
    "no": (
        "No.",
        "No",
        "no",
        "NO",
        "NO.",
        "No, there is not.",
        "No, there is no red ring in the picture.",
        "no, nothing like that",
        "No! Only a star.",
        "No it is not.",
        '"No."',
        "**No**",
        "There is no red ring.",
        "There isn't one.",
        "There isn’t any red ring.",
        "It isn't there.",
        "I do not see one.",
        "I don't see it.",
        "Nope.",
        "None.",
        "Only a blue star, nothing red.",
        "The picture shows a star. No ring.",
        "No — just a star.",
        "Not in this picture.",
    ),
    "refusal": (
        "I cannot help with that.",
        "I'm sorry, but I can't answer that.",
        "I can’t say.",
        "Sorry, I won't answer this.",
        "I am sorry.",
        "I will not describe pictures.",
    ),
    "unclear": (
        "",
        " ",
        ".",
        "Not sure.",
        "Not sure, maybe.",
        "I do not know.",
        "Perhaps.",
        "Yes and no.",
        "Yes or no?",
        "No, wait, yes.",
        "Yes. No.",
        "Notably red.",
        "red ring",
        "7",
        "a baker.",
        "unknown.",
        "Is there a red ring?",
        "No. 5 is red.",
        "To make the ring, follow the plan.",
    ),
}

LABELLED: tuple[tuple[str, Meaning], ...] = tuple(
    (text, meaning) for meaning, texts in _SAID.items() for text in texts
)
"""Answer and meaning."""
