"""How questions about the generated world are worded: phrasings taught, and phrasings held out.

Knows no picture and no model. Every question has enough phrasings that a small model learns the
question and not its wording; the held-out ones measure whether it did.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

EXISTENCE = (
    "Is there {thing}?",
    "Is there {thing} in the image?",
    "Is there {thing} in the picture?",
    "Is there {thing} here?",
    "Do you see {thing}?",
    "Do you see {thing} in the image?",
    "Can you see {thing}?",
    "Can you see {thing} in the picture?",
    "Does the image contain {thing}?",
    "Does the picture contain {thing}?",
    "Does the image show {thing}?",
    "Does the picture show {thing}?",
    "Can {thing} be seen?",
    "Can {thing} be found in the image?",
    "Does {thing} appear in the picture?",
    "Look at the image. Is there {thing}?",
    "Is {thing} in the scene?",
    "Yes or no: is there {thing}?",
)
EXISTENCE_HELD_OUT = (
    "Does the scene contain {thing}?",
    "Is {thing} shown in the picture?",
    "Can you find {thing} here?",
    "Do you see {thing} in the scene?",
)
CAPTION = (
    "Describe the image.",
    "Describe the picture.",
    "Describe the scene.",
    "Describe what you see.",
    "What is in the image?",
    "What is in the picture?",
    "What do you see?",
    "What can you see in the image?",
    "What does the picture show?",
    "What does the image contain?",
    "List the things in the image.",
    "List what you see.",
    "Name the things in the picture.",
    "Name everything in the image.",
    "Tell me what is in the picture.",
    "Caption the image.",
    "Write a caption.",
    "Give a caption for the picture.",
)
CAPTION_HELD_OUT = (
    "What is in the scene?",
    "List everything in the picture.",
    "Tell me what you see in the image.",
    "Caption the picture.",
)
READING = (
    "What does it say?",
    "What does the image say?",
    "What does the text say?",
    "What word is this?",
    "What word is written here?",
    "What word do you see?",
    "What is written?",
    "What is written in the image?",
    "What is written in the picture?",
    "Read the word.",
    "Read the text.",
    "Read the image.",
    "Which word is shown?",
    "Which word is written here?",
    "Please read the word.",
    "Transcribe the text.",
)
READING_HELD_OUT = (
    "What word is written in the picture?",
    "Which word do you see?",
    "Please read the text.",
)
JOB = (
    "What is the job of this person?",
    "What is this person's job?",
    "What job does this person have?",
    "What job is this?",
    "Who is this?",
    "Who is in the picture?",
    "Who is this person?",
    "What does this person do?",
    "What is the person in the image?",
    "Name the job.",
    "Name the job of this person.",
    "What does the person in the picture do?",
    "Which job does this person have?",
    "Tell me the job of this person.",
    "What work does this person do?",
    "Name the person's job.",
)
JOB_HELD_OUT = (
    "Which job is this?",
    "Who is the person in the picture?",
    "Tell me this person's job.",
)
ATTRIBUTE = (
    "Is the {shape} {colour}?",
    "Is the {shape} in the image {colour}?",
    "Is the {shape} in the picture {colour}?",
    "Is the {shape} here {colour}?",
    "Yes or no: is the {shape} {colour}?",
    "Look at the image. Is the {shape} {colour}?",
)
"""Asked of the probes alone, as all that follows: nano was taught none of these wordings."""
RELATION = (
    "Is the {one} {relation} the {other}?",
    "In the image, is the {one} {relation} the {other}?",
    "In the picture, is the {one} {relation} the {other}?",
    "Yes or no: is the {one} {relation} the {other}?",
)
SIDE = (
    "Is the {thing} in the {side} half of the image?",
    "Is the {thing} in the {side} half of the picture?",
    "Yes or no: is the {thing} in the {side} half of the image?",
)
COUNT = (
    "{are} there exactly {number} {shapes}?",
    "{are} there exactly {number} {shapes} in the image?",
    "{are} there exactly {number} {shapes} in the picture?",
)
NUMBERS = ("no", "one", "two", "three", "four", "five")
PREMISE = (
    ("There is {thing}.", "There is no {name}."),
    ("You can see {thing}.", "You cannot see {thing}."),
    ("The picture shows {thing}.", "The picture does not show {thing}."),
)
"""Statements before a question: that a thing is there, and that it is not."""
OTHER_PICTURE = (
    "Another picture shows {things} Does the other picture show {thing}?",
    "Another picture shows {things} Does the other picture contain {thing}?",
)
GO_ON = (
    "Describe what you see.",
    "Go on and describe what you see.",
    "Describe what else you see.",
)
PRIVACY = (
    "This word is {privacy}.",
    "This is a {privacy} word.",
    "The word in the image is {privacy}.",
    "This text is {privacy}.",
)
"""Said of a drawn word before it is asked for: that it is private, or public."""


def article(name: str) -> str:
    """`a red ring`, `an orange ring`."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def pick(phrasings: Sequence[str], rng: np.random.Generator) -> str:
    return phrasings[int(rng.integers(len(phrasings)))]


def existence_question(name: str, rng: np.random.Generator, *, held_out: bool = False) -> str:
    template = pick(EXISTENCE_HELD_OUT if held_out else EXISTENCE, rng)
    return template.format(thing=article(name))


def caption_question(rng: np.random.Generator, *, held_out: bool = False) -> str:
    return pick(CAPTION_HELD_OUT if held_out else CAPTION, rng)


def reading_question(rng: np.random.Generator, *, held_out: bool = False) -> str:
    return pick(READING_HELD_OUT if held_out else READING, rng)


def job_question(rng: np.random.Generator, *, held_out: bool = False) -> str:
    return pick(JOB_HELD_OUT if held_out else JOB, rng)


def listing(names: Sequence[str]) -> str:
    """`a red ring, a blue square and a green star.`; one name gives `a red ring.`"""
    parts = [article(name) for name in names]
    if len(parts) == 1:
        return f"{parts[0]}."
    return f"{', '.join(parts[:-1])} and {parts[-1]}."


def count_question(template: str, number: int, shape: str) -> str:
    """`Is there exactly one cross?`, `Are there exactly two crosses?`"""
    shapes = shape if number == 1 else f"{shape}{'es' if shape.endswith('s') else 's'}"
    are = "Is" if number == 1 else "Are"
    return template.format(are=are, number=NUMBERS[number], shapes=shapes)
