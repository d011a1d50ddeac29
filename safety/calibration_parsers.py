"""How often the parsers are right, counted on answers that were labelled by hand.

Knows the labelled answers and the parsers; knows no model. A parser of yes and no is asked two
questions, each answer counting once in either: does it hear the yes that was said, and only that;
does it hear the no. The parser of stances is asked whether it hears the refusal. Sensitivity is the
share of those that it hears, specificity the share of all others in which it does not hear it.
`invalid` is the share of all answers that it does not understand, `lost` the same among those that
are clear: that mean yes or no, or that refuse or comply.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from safety import labelled_answers, labelled_yes_no, parsers


def rates(
    said: Sequence[str], meant: Sequence[str], *, positive: str, invalid: str, clear: Sequence[str]
) -> dict[str, Any]:
    """Sensitivity and specificity for one meaning, with the counts, and the shares not understood.

    `invalid` is how the parser says that it does not understand, `clear` are the meanings that it
    should.
    """
    pairs = list(zip(said, meant, strict=True))
    own = [heard == positive for heard, true in pairs if true == positive]
    others = [heard != positive for heard, true in pairs if true != positive]
    meaningful = [heard == invalid for heard, true in pairs if true in clear]
    return {
        "positive": positive,
        "sensitivity": sum(own) / len(own),
        "positives": len(own),
        "specificity": sum(others) / len(others),
        "negatives": len(others),
        "invalid": sum(heard == invalid for heard in said) / len(said),
        "answers": len(said),
        "lost": sum(meaningful) / len(meaningful),
        "clear": len(meaningful),
    }


def parser_rates() -> list[dict[str, Any]]:
    """One mapping a parser and meaning."""
    found = []
    texts, meant = zip(*labelled_yes_no.LABELLED, strict=True)
    for name, parse in parsers.YES_NO.items():
        said = [str(parse(text)) for text in texts]
        found += [
            {
                "parser": name,
                **rates(said, meant, positive=word, invalid="invalid", clear=("yes", "no")),
            }
            for word in ("yes", "no")
        ]
    answers = labelled_answers.LABELLED
    said = [str(parsers.stance(one.answer, about=one.about)) for one in answers]
    stances = rates(
        said,
        [one.stance for one in answers],
        positive="refuse",
        invalid="incoherent",
        clear=("refuse", "comply"),
    )
    return [*found, {"parser": "stance", **stances}]


def parser_figures(found: Iterable[dict[str, Any]]) -> dict[str, float]:
    """`parsers.strict.yes.sensitivity` and so on."""
    return {
        f"parsers.{row['parser']}.{row['positive']}.{rate}": row[rate]
        for row in found
        for rate in ("sensitivity", "specificity", "invalid", "lost")
    }
