"""One offline HTML file from run folders: every file in `reports/sections/` is a section.

Knows how the page is put together and what it may load: nothing. The same run folder gives the
same bytes.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from markupsafe import Markup

from reports import drawing, markup, runs
from reports.run_folder import RunFolder, write_whole
from reports.runs import Report
from streams import catalog


class Section(Protocol):
    """A part of the page: one file, one frozen dataclass; its fields are its settings."""

    place: ClassVar[int]
    """Sections stand in rising order of place."""
    title: ClassVar[str]

    def render(self, report: Report, swatches: Sequence[Markup]) -> Markup | None:
        """The section's body, or None to leave it out. `swatches` are the strategies' marks."""
        ...


@dataclass(frozen=True, kw_only=True)
class _Rendered:
    anchor: str
    title: str
    body: Markup


def write_report(paths: Sequence[Path | str], out: Path | str | None = None) -> Path:
    """Write the report on the finished stages of the run folders `paths`; returns its path.

    Without `out` it goes into the run folder, or the first of several.
    """
    text = report_html(runs.read(paths))
    out = RunFolder(paths[0]).report if out is None else Path(out)
    write_whole(out, text.encode())
    return out


def sections() -> list[tuple[str, Section]]:
    """Name and section, in the order of the page."""
    package = "reports.sections"
    found: list[tuple[str, Any]] = [
        (name, catalog.find(package, name, where=package)()) for name in catalog.names(package)
    ]
    return sorted(found, key=lambda pair: (pair[1].place, pair[0]))


def report_html(report: Report) -> str:
    swatches = [drawing.swatch(arm.index) for arm in report.arms]
    bodies = [
        _Rendered(anchor=name.replace("_", "-"), title=section.title, body=body)
        for name, section in sections()
        if (body := section.render(report, swatches)) is not None
    ]
    folder = Path(__file__).parent
    style, script = ((folder / name).read_text("utf-8") for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    return markup.environment().get_template("page.jinja").render(
        title=" · ".join(run.name for run in report.runs),
        report=report,
        unsafe=[run.name for run in report.runs if run.folder.reveals_unsafe],
        sections=bodies,
        swatches=swatches,
        symbols=drawing.symbols(len(report.arms)),
        policy=policy,
        style=Markup(style),
        script=Markup(script),
    )  # fmt: skip
