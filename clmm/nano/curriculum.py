"""What nano is taught: pictures and texts of its world, with questions and answers.

Knows the world, its phrasings and its policy, and keeps to what is taught: no held-out attribute
pair, phrasing, word or verb–noun pair occurs here. Knows no tensor and no model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from string import ascii_lowercase
from typing import Any

import numpy as np

from streams import phrasings, policy
from streams.world import (
    COLOURS,
    JOBS,
    PARTNER,
    SHAPES,
    TRAIN_PAIRS,
    UNSEEN_WORDS,
    WORDS,
    Figure,
    Pair,
    draw_word,
    random_figure,
    random_scene,
    render,
    render_figure,
)

DIGITS = "0123456789"
PRINTABLE = "".join(map(chr, range(33, 127))) + "".join(map(chr, range(161, 592)))
COPYING = ("Repeat: {}", "Say {}", "Copy this: {}", "Write {}", "Repeat after me: {}")

_TRAINED = frozenset(TRAIN_PAIRS)
_SAME_ATTRIBUTE = {
    pair: [p for p in TRAIN_PAIRS if (p[0] == pair[0]) != (p[1] == pair[1])] for pair in TRAIN_PAIRS
}


@dataclass(frozen=True)
class Lesson:
    """A picture or a text (or neither), and question–answer turns about it."""

    turns: tuple[tuple[str, str], ...]
    text: str = ""
    picture: np.ndarray | None = None
    scene: Any = field(default=None, compare=False)


def absent_pair(present: list[Pair], rng: np.random.Generator) -> Pair:
    """A taught pair that is not there; mostly one that shares attributes with what is there."""
    taken = set(present)
    draw = rng.random()
    if draw < 0.6:
        near = [
            p for p in _SAME_ATTRIBUTE[present[int(rng.integers(len(present)))]] if p not in taken
        ]
        colours, shapes = {p[0] for p in taken}, {p[1] for p in taken}
        both = [p for p in near if p[0] in colours and p[1] in shapes]
        choice = both if both and rng.random() < 0.5 else near
        return choice[int(rng.integers(len(choice)))]
    if draw < 0.8:
        partners = [PARTNER[p] for p in present]
        partners = [p for p in partners if p in _TRAINED and p not in taken]
        if partners:
            return partners[int(rng.integers(len(partners)))]
    while True:
        pair = TRAIN_PAIRS[int(rng.integers(len(TRAIN_PAIRS)))]
        if pair not in taken:
            return pair


def existence_turns(
    present: list[Pair], rng: np.random.Generator, count: int
) -> list[tuple[str, str]]:
    turns = []
    for _ in range(count):
        yes = rng.random() < 0.5
        pair = present[int(rng.integers(len(present)))] if yes else absent_pair(present, rng)
        question = phrasings.existence_question(" ".join(pair), rng)
        turns.append((question, "Yes." if yes else "No."))
    return turns


def caption(pairs: list[Pair]) -> str:
    return phrasings.listing([" ".join(pair) for pair in pairs])


def random_word(rng: np.random.Generator) -> str:
    """A taught word, or letters at random: reading must not become recognising forty words."""
    if rng.random() < 0.6:
        return WORDS[int(rng.integers(len(WORDS)))]
    while True:
        letters = rng.integers(len(ascii_lowercase), size=int(rng.integers(3, 6)))
        word = "".join(ascii_lowercase[i] for i in letters)
        if word not in UNSEEN_WORDS:
            return word


def job_answer(figure: Figure) -> str:
    return f"{phrasings.article(figure.job)}." if figure.tool else "unknown."


def text_lesson(rng: np.random.Generator, *, questions: int = 6) -> Lesson:
    """The world in words alone: what the language model learns before it ever sees a picture."""
    draw = rng.random()
    if draw < 0.70:
        order = rng.permutation(len(TRAIN_PAIRS))[: int(rng.integers(1, 6))]
        pairs = [TRAIN_PAIRS[int(i)] for i in order]
        turns = existence_turns(pairs, rng, questions)
        turns.append((phrasings.caption_question(rng), caption(pairs)))
        return Lesson(tuple(turns), text="Scene: " + ", ".join(" ".join(p) for p in pairs) + ". ")
    if draw < 0.82:
        word = random_word(rng)
        turn = (phrasings.reading_question(rng), word)
        return Lesson((turn,), text="Scene: " + " ".join(word.upper()) + ". ")
    if draw < 0.88:
        figure = random_figure(rng)
        tool = f", white {figure.tool}. " if figure.tool else ". "
        turn = (phrasings.job_question(rng), job_answer(figure))
        return Lesson((turn,), text=f"Scene: person, {figure.hat} hat{tool}")
    request = policy.train_request(rng, restricted=False)
    return Lesson(((request.text, request.answer),))


def picture_lesson(rng: np.random.Generator, *, questions: int = 8) -> Lesson:
    """A picture with questions: what pre-training and instruction tuning teach."""
    draw = rng.random()
    if draw < 0.72:
        scene = random_scene(rng, pairs=TRAIN_PAIRS)
        turns = existence_turns([t.pair for t in scene.things], rng, questions)
        pairs = [thing.pair for thing in scene.reading_order]
        turns.append((phrasings.caption_question(rng), caption(pairs)))
        return Lesson(tuple(turns), picture=render(scene), scene=scene)
    if draw < 0.92:
        while True:
            word = random_word(rng)
            try:
                drawn = draw_word(word, rng)
            except ValueError:  # five wide letters at random may not fit
                continue
            turn = (phrasings.reading_question(rng), word)
            return Lesson((turn, turn), picture=drawn.picture, scene=drawn)
    figure = random_figure(rng)
    turn = (phrasings.job_question(rng), job_answer(figure))
    return Lesson((turn,), picture=render_figure(figure), scene=figure)


def policy_lesson(rng: np.random.Generator, *, requests: int = 8) -> Lesson:
    """Requests and the answers that the policy wants; a quarter of the lessons with a picture."""
    drawn = [policy.train_request(rng) for _ in range(requests)]
    picture = None
    if rng.random() < 0.25:
        picture = render(random_scene(rng, pairs=TRAIN_PAIRS))
    return Lesson(tuple((request.text, request.answer) for request in drawn), picture=picture)


def copying_lesson(rng: np.random.Generator, *, turns: int = 8) -> Lesson:
    """Characters to say again: every byte occurs, so that none is left for an adapter to wake.

    Tokens that no training used end up alike, and LoRA, which leaves embeddings alone, cannot
    then tell them apart. This helped only in part: numerals stay beyond LoRA (docs/log.md).
    """
    drawn = []
    for _ in range(turns):
        letters = DIGITS if rng.random() < 0.3 else PRINTABLE
        said = "".join(letters[int(i)] for i in rng.integers(len(letters), size=rng.integers(1, 5)))
        template = COPYING[int(rng.integers(len(COPYING)))]
        drawn.append((template.format(said), said))
    return Lesson(tuple(drawn))


def corpus() -> list[str]:
    """What the tokenizer's merges are learnt from: the taught wording, but no word to read.

    Drawn words stay letter by letter, so that reading is spelling and not naming one of forty.
    """
    words = [*COLOURS, *SHAPES, *JOBS.values(), "person", "hat", "Scene:", "unknown."]
    phrases = [
        *phrasings.EXISTENCE,
        *phrasings.CAPTION,
        *phrasings.READING,
        *phrasings.JOB,
        *policy.TEMPLATES,
        *(template.replace("{noun}", "x") for template in policy.TEMPLATES),
        policy.REFUSAL,
        "Yes.",
        "No.",
        ", follow the plan.",
    ]
    names = [f"{article} {word}" for word in words for article in ("a", "the", "and a")]
    requests = [
        f"to {verb} the {noun}"
        for verb in (*policy.MAKING, *policy.MENDING)
        for noun in (*policy.INVENTED, *policy.ORDINARY)
    ]
    text = " ".join(phrases).replace("{thing}", "").replace("{verb}", "").replace("{noun}", "")
    return [text] * 4 + names * 8 + requests
