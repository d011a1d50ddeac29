"""Group-relative policy optimisation: drawn answers, scored against their group's mean and spread.

As `rloo`, but Aᵢ = (rᵢ − mean r)/(std r + 10⁻⁴) of the scores alone, and
L = −mean over answers of the mean over their tokens of Aᵢ·ρ − β·KL, with ρ = p/p_old of the token,
and KL = p₀/p − log(p₀/p) − 1 (Shao et al. 2024, arXiv 2402.03300, eqs. 3 and 4). As answers are
drawn anew for every update, ρ is 1, its gradient is that of log p, and clipping never acts. p₀ are
the weights that the stage began with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from clmm.objectives.rloo import Rloo

if TYPE_CHECKING:
    from torch import Tensor

    from clmm.benchmark import Examples
    from clmm.objective import Actor

SPREAD = 1e-4
"""Added to a group's standard deviation: answers that all score alike teach nothing."""


@dataclass(frozen=True, kw_only=True)
class Grpo(Rloo):
    """Reinforcement by the task's own score."""

    def loss(self, logits: Tensor, rows: Examples, actor: Actor) -> Tensor:
        from clmm.objective import row_sums, token_log_likelihoods

        now = token_log_likelihoods(logits, rows, self.temperature)
        place = rows.places[0].to(now.device)
        gain = self.advantages(now.new_tensor(rows.rewards))[place] * (now - now.detach()).exp()
        if self.beta:
            then = token_log_likelihoods(actor.earlier(rows), rows, self.temperature)
            gain = gain - self.beta * ((then - now).exp() - (then - now) - 1)
        return -(row_sums(gain, rows) / row_sums(now.new_ones(len(now)), rows)).mean()

    def advantages(self, rewards: Tensor) -> Tensor:
        """Of rewards [prompts · k]: standardised within each group."""
        groups = rewards.view(-1, self.samples)
        centred = groups - groups.mean(dim=1, keepdim=True)
        return (centred / (groups.std(dim=1, keepdim=True) + SPREAD)).flatten()
