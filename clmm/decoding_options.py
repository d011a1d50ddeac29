"""What a decoding option is: one file in `clmm/decoding`, another way to answer by equal weights.

A study names options, and a `clmm.answering.Answerer` obeys them. An option does one of four
things: it writes prompts in another way, bars tokens, contrasts two passes, or has the model revise
its answers. Options act below routers and adapters: a route is chosen by what the user asked, and
each adapter's answers pass through them. Nothing that trains draws answers through them. Knows no
model; imports no torch until it is at work.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from streams.sample import Sample
from streams.settings import SettingError

Ask = Callable[[Sequence[int], Sequence[Sample], int], list[str | None]]
"""Rows, what each is asked now, most new tokens → answers; None to what cannot be asked."""


@runtime_checkable
class Rewrites(Protocol):
    """Prompts are written in another way, for answers and likelihoods alike."""

    def rewritten(self, sample: Sample) -> Sample: ...


@runtime_checkable
class Bars(Protocol):
    """Some tokens are never written."""

    def bar(self, batcher: Any, start: int) -> Any:
        """A logits processor for prompts of `start` tokens, padding included."""


@runtime_checkable
class Contrasts(Protocol):
    """Some rows have twins, which are computed with them and whose answers are thrown away."""

    def contrasted(self, batcher: Any, samples: Sequence[Sample]) -> tuple[Any, Any]:
        """A batch of `samples` and, behind them, of twins; the logits processor that joins both,
        or None where no row has a twin."""


@runtime_checkable
class Revises(Protocol):
    """Answers are looked at again, in further turns."""

    def revised(
        self, samples: Sequence[Sample], answers: Sequence[str], ask: Ask, *, max_new_tokens: int
    ) -> tuple[list[str], Counter[str]]:
        """The last answers, and how often each decision was taken."""


class Decoding:
    """Options at work; without any, everything is as it would be without this class.

    Raises SettingError for what is no option, and for one that is named twice.
    """

    def __init__(self, options: Sequence[Any] = ()) -> None:
        for place, option in enumerate(options):
            known = (Rewrites, Bars, Contrasts, Revises)
            if isinstance(option, type) or not isinstance(option, known):
                raise SettingError(
                    f"decoding[{place}]: {option!r} is not one; see `clmm ls decoding`"
                )
            if any(type(option) is type(other) for other in options[:place]):
                raise SettingError(f"decoding[{place}]: {_name(option)} is there already")
        self.options = tuple(options)
        self.decisions: Counter[str] = Counter()
        """Of options that revise: what was decided, so often."""
        self._rewriting = [one for one in options if isinstance(one, Rewrites)]
        self._barring = [one for one in options if isinstance(one, Bars)]
        self._revising = [one for one in options if isinstance(one, Revises)]
        contrasting = [one for one in options if isinstance(one, Contrasts)]
        if len(contrasting) > 1:
            raise SettingError("decoding: two options contrast passes; take one of them")
        self._contrast = contrasting[0] if contrasting else None
        self._turns: dict[int, Sample] = {}

    @property
    def key(self) -> str:
        """Tells apart what other options would have answered; empty without any."""
        return repr(self.options) if self.options else ""

    @property
    def rows_each(self) -> int:
        """Rows that a sample takes in a batch, at most."""
        return 2 if self._contrast else 1

    def check(self, model: Any, batcher: Any) -> None:
        """Raises SettingError, with the reason, for an option that this model cannot serve."""
        for place, option in enumerate(self.options):
            refusal = getattr(option, "refusal", lambda model, batcher: None)
            if reason := refusal(model, batcher):
                raise SettingError(
                    f"decoding[{place}] ({_name(option)}): {type(model).__name__} {reason}"
                )

    def asking(self, batcher: Any) -> Any:
        """The batcher, writing prompts as the options say."""
        return _Rewriting(batcher, self.asked) if self._rewriting or self._revising else batcher

    def asked(self, sample: Sample) -> Sample:
        """What stands in the sample's place now."""
        return self._turns.get(id(sample)) or self._rewritten(sample)

    def prompts(self, batcher: Any, samples: Sequence[Sample]) -> tuple[Any, list[Any]]:
        """A batch whose first rows are `samples`, and the logits processors for it."""
        join = None
        if self._contrast is None:
            batch = batcher.prompts(samples)
        else:
            batch, join = self._contrast.contrasted(batcher, samples)
        start = batch["input_ids"].shape[1]
        bars = [option.bar(batcher, start) for option in self._barring]
        # What is barred must be so before a contrast keeps plausible tokens alone: it might keep
        # none else.
        return batch, bars + ([join] if join is not None else [])

    def revised(
        self,
        batcher: Any,
        samples: Sequence[Sample],
        answers: list[str],
        write: Callable[[Sequence[Sample], int], list[str]],
        *,
        max_new_tokens: int,
    ) -> list[str]:
        """The answers after all turns; `write` answers samples as they are asked now."""

        def ask(rows: Sequence[int], turns: Sequence[Sample], tokens: int) -> list[str | None]:
            fits = _fitting(batcher, turns)
            self._turns = {
                id(samples[row]): turn
                for row, turn, fit in zip(rows, turns, fits, strict=True)
                if fit
            }
            try:
                chosen = [samples[row] for row, fit in zip(rows, fits, strict=True) if fit]
                texts = iter(write(chosen, tokens) if chosen else [])
            finally:
                self._turns = {}
            return [next(texts) if fit else None for fit in fits]

        for option in self._revising:
            asked = [self._rewritten(sample) for sample in samples]
            answers, decisions = option.revised(asked, answers, ask, max_new_tokens=max_new_tokens)
            self.decisions += decisions
        return answers

    def _rewritten(self, sample: Sample) -> Sample:
        for option in self._rewriting:
            sample = option.rewritten(sample)
        return sample


class _Rewriting:
    """A batcher below those that look at samples: they see what the user asked."""

    def __init__(self, batcher: Any, asked: Callable[[Sample], Sample]) -> None:
        self.plain, self._asked = batcher, asked

    def __getattr__(self, name: str) -> Any:
        return getattr(self.plain, name)

    def prompts(self, samples: Sequence[Sample]) -> Any:
        return self.plain.prompts([self._asked(sample) for sample in samples])

    def continuations(self, samples: Sequence[Sample], texts: Sequence[str]) -> Any:
        return self.plain.continuations([self._asked(sample) for sample in samples], texts)


def _fitting(batcher: Any, turns: Sequence[Sample]) -> list[bool]:
    """Whether each can be asked: a model may have written a placeholder, or too much."""
    from clmm.batching import SampleError

    try:
        batcher.encode(turns)
        return [True] * len(turns)
    except SampleError:
        if len(turns) == 1:
            return [False]
    return [_fitting(batcher, [turn])[0] for turn in turns]


def _name(option: Any) -> str:
    return type(option).__module__.rpartition(".")[2]
