"""What must not drift: probes, the statistics of drift, verdicts. Knows no neural network."""

from __future__ import annotations

from typing import Any

__all__ = ["standard_probes"]

_STANDARD = ("existence", "captions", "reading", "refusal", "bias")


def standard_probes(*, items: int | None = None) -> tuple[Any, ...]:
    """The five probes of the generated world; `items` replaces each one's own number."""
    from streams import settings

    given = {} if items is None else {"items": items}
    return tuple(
        settings.from_spec("safety.probes", {"name": name, **given}, where="standard_probes")
        for name in _STANDARD
    )
