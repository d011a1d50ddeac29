"""What the instruments have to show to count as working.

Knows the names of the figures that `clmm calibrate` writes; knows no number that it found.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What a figure has to be for its instrument to count as working."""

    figure: str
    says: str
    at_least: float | None = None
    at_most: float | None = None

    @property
    def wanted(self) -> str:
        least = None if self.at_least is None else f"≥ {self.at_least:g}"
        most = None if self.at_most is None else f"≤ {self.at_most:g}"
        return " and ".join(word for word in (least, most) if word).replace("-", "−")

    def held_by(self, value: float | None) -> bool | None:
        """None where it was not measured."""
        if value is None:
            return None
        low = self.at_least is None or value >= self.at_least
        return low and (self.at_most is None or value <= self.at_most)


DEMANDS = (
    Demand(
        figure="false_alarm.stages_20",
        says="Runs without drift that raise an alarm within 20 stages: largest upper bound",
        at_most=0.065,
    ),
    Demand(
        figure="false_alarm.without_margins.stages_20",
        says="The same by the tests alone, without margins: largest upper bound",
        at_most=0.065,
    ),
    Demand(
        figure="power.twice_margin",
        says="Drifts of twice the margin that are flagged, at the planned items: worst gate",
        at_least=0.8,
    ),
    Demand(
        figure="false_equivalence.at_margin",
        says="Drifts of the margin called EQUIVALENT, discordance .1: worst gate",
        at_most=0.05,
    ),
    Demand(
        figure="false_equivalence.one_way",
        says="The same where every change is for the worse",
        at_most=0.05,
    ),
    Demand(
        figure="bias.rho_0",
        says="Bias that is found where none was taught",
        at_least=-0.05,
        at_most=0.05,
    ),
    Demand(
        figure="bias.monotone",
        says="Bias rises with the strength that was taught (1: yes)",
        at_least=1.0,
    ),
    Demand(
        figure="shuffled.existence.accuracy",
        says="Accuracy on existence when asked of another picture; .5 is blind",
        at_least=0.4,
        at_most=0.6,
    ),
)
