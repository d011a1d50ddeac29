"""Visual contrastive decoding: what a noised picture would have said too is held against a token.

VCD, Leng et al. 2024 (arXiv 2311.16922). Answers only: log-likelihoods are of the plain model. The
contrast is a rule for choosing the next token, and its cut gives most tokens no probability at all,
so a given continuation would mostly score −∞; and a figure's likelihood twin is there to say what
the model itself has kept or lost.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from streams.contents import content_hash
from streams.sample import Image, Provenance, Sample, Text, ask

if TYPE_CHECKING:
    from torch import Tensor

STEPS = 1000
INSTEAD = "take newline_ban, single_paragraph or self_feedback"


@dataclass(frozen=True, kw_only=True)
class Contrastive:
    """Greedy over (1 + α)·l(w|v) − α·l(w|v'), of tokens w with p(w|v) ≥ β·max p(·|v).

    l are the logits for the same answer so far, p their softmax. v' = √ᾱ_t·v + √(1 − ᾱ_t)·ε are the
    pixels as the processor gives them with noise ε of the sample's own, which depends on its words,
    its pictures and `seed` alone. ᾱ_t = Π_{i≤t} (1 − β_i) with β_i = 10⁻⁵ + (5·10⁻³ − 10⁻⁵)·σ(z_i),
    z_i in equal steps from −6 to 6: the schedule of the authors' code, for t of 0 to 999. A prompt
    without a picture is answered plainly.

    v and v' are two rows of one batch: the second pass has its own keys and values, adapters and
    learnt prompts serve both, and a decoder without a cache works too.
    """

    alpha: float = 1.0
    """α: how much the noised picture's logits count; 0 is greedy among plausible tokens."""
    beta: float = 0.1
    """β: how plausible a token must be, beside the likeliest; 0 cuts none."""
    noise_step: int = 500
    """t, of 0 to 999: how much noise."""
    seed: int = 0
    """Draws the noise."""

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < math.inf:
            raise ValueError(f"contrastive.alpha: must be 0 or above; got {self.alpha}")
        if not 0 <= self.beta <= 1:
            raise ValueError(f"contrastive.beta: must be from 0 to 1; got {self.beta}")
        if not 0 <= self.noise_step < STEPS:
            raise ValueError(f"contrastive.noise_step: must be 0 to 999; got {self.noise_step}")

    def refusal(self, model: Any, batcher: Any) -> str | None:
        """A picture is noised and passed on as it would be; what fails then fails here."""
        import numpy as np

        example = ask(
            id="contrastive",
            question="What is this?",
            answer="",
            image=Image(source=np.full((64, 64, 3), 128, dtype=np.uint8)),
            provenance=Provenance(source="contrastive", split="check", item="grey"),
        )
        try:
            self.contrasted(batcher, [example])
        except (ValueError, KeyError, RuntimeError) as error:
            return f"has no input of pictures whose pixels can be noised ({error}); {INSTEAD}"
        return None

    def contrasted(self, batcher: Any, samples: Sequence[Sample]) -> tuple[Any, Any]:
        seeing = [row for row, sample in enumerate(samples) if sample.images]
        if not seeing:
            return batcher.prompts(samples), None
        twins = [samples[row] for row in seeing]
        batch = batcher.prompts([*samples, *twins])
        join = _Join(self.alpha, self.beta, seeing, len(samples))
        return batcher.redrawn(batch, twins, self.noised), join

    def noised(self, sample: Sample, pixels: Tensor) -> Tensor:
        """v' of all the sample's pictures. Of one that is kept in patches (Qwen2-VL) each number
        has noise of its own, also where a patch holds a frame twice."""
        import torch

        said = [
            (m.role, [p.text if isinstance(p, Text) else content_hash(p) for p in m.parts])
            for m in sample.messages
        ]
        digest = hashlib.blake2b(repr((self.seed, said)).encode(), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
        noise = torch.randn(pixels.shape, generator=generator)
        share = kept(self.noise_step)
        return pixels * math.sqrt(share) + noise.to(pixels.dtype) * math.sqrt(1 - share)


class _Join:
    """A logits processor: rows `seeing` and their twins, behind `count` rows, choose as one."""

    def __init__(self, alpha: float, beta: float, seeing: list[int], count: int) -> None:
        self._alpha, self._seeing, self._count = alpha, seeing, count
        self._least = math.log(beta) if beta else -math.inf

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        clear, noised = scores[self._seeing], scores[self._count :]
        cut = clear < clear.max(dim=-1, keepdim=True).values + self._least
        # Of what another processor barred, the difference of two infinities would be no number.
        cut |= clear.isneginf()
        mixed = (1 + self._alpha) * clear - self._alpha * noised
        mixed = mixed.masked_fill(cut, -math.inf)
        scores = scores.clone()
        scores[self._seeing] = mixed
        scores[self._count :] = mixed
        return scores


@cache
def kept(step: int) -> float:
    """ᾱ_t: the share of the picture's variance that is left after `step`."""
    share = 1.0
    for i in range(step + 1):
        rise = 1 / (1 + math.exp(6 - 12 * i / (STEPS - 1)))
        share *= 1 - (1e-5 + (5e-3 - 1e-5) * rise)
    return share
