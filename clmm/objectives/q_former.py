"""The Q-Former's first stage: image–text contrast, matching and captions, without a language model.

L = ITC + ITM + ITG of BLIP-2 (Li et al. 2023, arXiv 2301.12597, section 3.1), each with its mask:
`clmm/q_former_losses.py`. Negatives come from the pairs of one forward pass in one process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from clmm.benchmark import Examples
    from clmm.objective import Actor
    from streams.sample import Sample


@dataclass(frozen=True, kw_only=True)
class QFormer:
    """A stage of its own: it trains a `q_former` projector with a text side that goes afterwards.

    Texts are read in tokens of the processor's `qformer_tokenizer`, where it has one, or else of
    its tokenizer.
    """

    input: str = "image"
    """The input whose projector trains."""
    vocabulary: int = 30523
    """Tokens of the text side, [DEC] the last of them: BERT's 30522 and that."""
    text_length: int = 512
    """Longest text, in tokens."""
    contrast_width: int = 256
    """Width in which images and texts are compared."""
    label_smoothing: float = 0.1
    """ε of contrast and captions."""

    def check(self, samples: Sequence[Sample]) -> None:
        for sample in samples:
            if not sample.plain or len(sample.images) != 1 or not sample.reference_text.strip():
                raise ValueError(
                    f"sample {sample.id}: q_former needs an image and its text, plain, without "
                    "turns; take the stream `pairs`"
                )

    def rows(self, examples: Examples, actor: Actor) -> Examples:
        return examples

    def size(self, examples: Examples) -> int:
        return len(examples)

    def loss(self, logits: Tensor, rows: Examples, actor: Actor) -> Tensor:
        """`logits` are the three losses [3]."""
        return logits.sum()

    def size_beside(self, model: Any) -> int:
        from clmm import q_former_stage

        return q_former_stage.size_beside(model, self)

    def begin(self, model: Any) -> None:
        from clmm import q_former_stage

        q_former_stage.begin(model, self)

    def network(self, model: Any, processor: Any, *, autocast: Any) -> Any:
        from clmm import q_former_stage

        return q_former_stage.FirstStage(model, processor, self, autocast=autocast)

    def trains(self, model: Any) -> set[str]:
        from clmm import q_former_stage

        return q_former_stage.trains(model, self)
