"""Jinja as every section uses it: all text escaped, an undefined name an error.

A section's template is a string in the section's own file; `macros.jinja` has the few shapes
that sections share.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from reports import wording


@functools.cache
def environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        number=wording.number,
        interval=wording.interval,
        count=wording.count,
        seconds=wording.seconds,
        size=wording.size,
        series=wording.series,
        breakable=wording.breakable,
    )
    return made


def render(template: str, **context: Any) -> Markup:
    """`template` with the shared macros at hand as `m`."""
    return Markup(_compiled(template).render(**context))


@functools.cache
def _compiled(template: str) -> Template:
    return environment().from_string('{% import "macros.jinja" as m %}' + template)
