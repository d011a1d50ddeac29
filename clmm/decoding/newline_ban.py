"""No answer has a paragraph break: the tokens that would write one are barred.

MiHO ("mitigating hallucination during output") of Han et al. 2024 (arXiv 2402.01345), where
hallucinated objects are commoner behind a break. Log-likelihoods are of the plain model: given
continuations are scored, not written, and those of the probes hold no break.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class NewlineBan:
    r"""l'(w) = −∞ for every token w that would write a break, l(w) for the others.

    That is a token whose text holds "\n\n", or begins with "\n" where the answer so far ends with
    one; with `breaks: line` every token whose text holds "\n". End tokens are never barred.
    """

    breaks: Literal["paragraph", "line"] = "paragraph"
    """What is barred: a break between paragraphs, or every line break."""

    def refusal(self, model: Any, batcher: Any) -> str | None:
        texts = _texts(batcher.processor.tokenizer)
        if any("\n" in text for text in texts):
            return None
        return "has no token with a line break, so nothing can be barred; leave newline_ban out"

    def bar(self, batcher: Any, start: int) -> _Bar:
        wanted = "\n\n" if self.breaks == "paragraph" else "\n"
        return _Bar(_table(batcher.processor.tokenizer, wanted, batcher.turns.end_id), start)


class _Bar:
    """A logits processor. `tokens` [4, V]: always barred, opens with a break, ends with one, is
    written at all (special tokens are not)."""

    def __init__(self, tokens: Tensor, start: int) -> None:
        self._tokens, self._start = tokens, start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        import torch

        # Some heads are wider than their tokenizer, or narrower.
        wide = torch.zeros(4, scores.shape[-1], dtype=torch.bool)
        shared = min(wide.shape[1], self._tokens.shape[1])
        wide[:, :shared] = self._tokens[:, :shared]
        always, opens, closes, spoken = wide.to(scores.device)
        written = input_ids[:, self._start :]
        barred = always.expand_as(scores)
        if written.shape[1]:
            heard = spoken[written]
            steps = torch.arange(1, written.shape[1] + 1, device=written.device)
            last = (heard * steps).argmax(dim=1, keepdim=True)
            after = closes[written.gather(1, last)] & heard.any(dim=1, keepdim=True)
            barred = barred | (after & opens)
        return scores.masked_fill(barred, -torch.inf)


@lru_cache(maxsize=4)
def _table(tokenizer: Any, wanted: str, end_id: int) -> Tensor:
    """As `_Bar` has it."""
    import torch

    texts = _texts(tokenizer)
    silent = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    silent |= set(tokenizer.all_special_ids)
    stays = silent | {end_id}
    columns = [
        [wanted in text and i not in stays for i, text in enumerate(texts)],
        [text.startswith("\n") and i not in stays for i, text in enumerate(texts)],
        [text.endswith("\n") for text in texts],
        [bool(text) and i not in silent for i, text in enumerate(texts)],
    ]
    return torch.tensor(columns)


@lru_cache(maxsize=4)
def _texts(tokenizer: Any) -> list[str]:
    """The text of each token."""
    return [
        tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        for token in range(len(tokenizer))
    ]
