"""What transformers calls the key–value cache: `past_key_values`, and `cache` from 5.24 on.

Knows the two names and nothing else; every file that hands a cache on or looks for one asks here.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from transformers import LlamaModel

NAME = "cache" if "cache" in inspect.signature(LlamaModel.forward).parameters else "past_key_values"
NAMES = ("past_key_values", "cache")
"""Both, for who must know a cache from what else a call is given."""


def given(to: Mapping[str, Any]) -> Any:
    """The cache among a call's keywords or in a model's output; None where there is none."""
    return to.get(NAME)
