"""XSTest from its official file: safe prompts that look unsafe, and unsafe ones that match them.

Röttger et al. 2024 (arXiv 2308.01263): 250 safe prompts of ten types and 200 unsafe contrasts of
eight. Three releases are known by their files and columns: `xstest_prompts.csv` (id, prompt, type,
label, focus, note), `xstest_v2_prompts.csv` (id_v1, id_v2, type, prompt, focus, note) and
`xstest_prompts_v1.csv` (id, type, prompt, focus, note; safe prompts alone). In all of them a type
that begins with `contrast_` is unsafe; where there is a label, it must say the same.

The releases hold 450, 450 and 200 prompts, whose ids are 1 to 450, v2-1 to v2-450 and v1-1 to
v1-200. A table of another length is refused unless `partial`; of a whole one the ids are checked,
and whether a prompt stands under its right id, the file alone does not tell.

Over-refusal is of the safe prompts, refusal of the unsafe ones. Prompts about the same word
(`focus`) are one cluster. All items are withheld, the safe ones too: no text is stored or shown.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from safety import official, refusing, unsafe_sets
from safety.official import Document, OfficialFileError, Record
from safety.scores import ProbeScores
from streams.catalog import nearest
from streams.sample import Answer, Provenance, Sample

RELEASES: dict[str, tuple[str, ...]] = {
    "xstest_prompts.csv": ("id", "prompt", "type", "label", "focus", "note"),
    "xstest_v2_prompts.csv": ("id_v1", "id_v2", "type", "prompt", "focus", "note"),
    "xstest_prompts_v1.csv": ("id", "type", "prompt", "focus", "note"),
}
"""File → its columns."""
WHOLE = {
    "xstest_prompts.csv": ("", 450),
    "xstest_v2_prompts.csv": ("v2-", 450),
    "xstest_prompts_v1.csv": ("v1-", 200),
}
"""File → how its ids begin, and how many there are from 1 on."""
CONTRAST = "contrast_"
TYPES = (
    "homonyms", "figurative_language", "safe_targets", "safe_contexts", "definitions",
    "nons_group_real_discr", "real_group_nons_discr", "historical_events", "privacy_public",
    "privacy_fictional", "contrast_homonyms", "contrast_figurative_language",
    "contrast_safe_targets", "contrast_safe_contexts", "contrast_definitions", "contrast_discr",
    "contrast_historical_events", "contrast_privacy",
)  # fmt: skip
"""Ten safe types and eight unsafe ones."""


@dataclass(frozen=True, kw_only=True)
class Xstest:
    """XSTest: over-refusal of safe prompts, refusal of unsafe ones, by type."""

    folder: Path
    """Folder of the official table."""
    file: str = "xstest_prompts.csv"
    """The release's table."""
    sha256: Mapping[str, str] = field(default_factory=dict)
    """File name → SHA-256 that it must have."""
    limit: int | None = None
    """Only the first so many prompts; none for all."""
    partial: bool = False
    """Whether a file that holds fewer or more items than the published one is meant."""
    judge: Any = "prefix"
    """Who says what an answer does: a file of safety/judges, a mapping with its name, a judge."""
    rules: tuple[str, ...] = ()
    """Refusal lists under which attack success is given too, such as vlguard."""

    max_new_tokens: ClassVar[int] = unsafe_sets.MOST_TOKENS
    """Longest answer, in tokens."""

    def __post_init__(self) -> None:
        where = "probes.xstest"
        official.check_limit(self.limit, where=f"{where}.limit")
        refusing.check_rules(self.rules, where=f"{where}.rules")
        if self.file not in RELEASES:
            near = nearest(self.file, [*RELEASES])
            raise ValueError(f"{where}.file: {self.file!r} is no known release{near}")
        official.check_digests(self.sha256, [self.file], where=f"{where}.sha256")

    def samples(self, seed: int) -> list[Sample]:
        """The official prompts; `seed` changes nothing."""
        document = official.read(self.folder, self.file, self.sha256, withheld=True)
        records = document.table()
        if not records:
            raise OfficialFileError(f"{document.path}: has no prompt")
        unsafe_sets.check_columns(records[0], RELEASES[self.file])
        ids = [unsafe_sets.label(record, self._id, r"[\w-]{1,12}") for record in records]
        begins, count = WHOLE[self.file]
        official.check_ids(ids, where=self.file)
        official.check_count(len(ids), (count,), self.partial, where=self.file)
        if len(ids) == count:
            whole = [f"{begins}{number}" for number in range(1, count + 1)]
            official.check_ids(ids, whole, where=self.file)
        pairs = list(zip(ids, records, strict=True))[: self.limit]
        return [self._sample(document, item, record) for item, record in pairs]

    def continuations(self, samples: Sequence[Sample]) -> list[tuple[str, ...]]:
        return unsafe_sets.continuations(samples)

    def score(
        self,
        samples: Sequence[Sample],
        answers: Sequence[Answer],
        likelihoods: Sequence[Sequence[float]] | None,
    ) -> ProbeScores:
        return unsafe_sets.score(
            "xstest", samples, answers, likelihoods, judge=self.judge, rules=self.rules
        )

    @property
    def _id(self) -> str:
        return "id_v2" if "id_v2" in RELEASES[self.file] else "id"

    def _sample(self, document: Document, item: str, record: Record) -> Sample:
        kind = unsafe_sets.one_of(record, "type", TYPES)
        unsafe = kind.startswith(CONTRAST)
        if "label" in record.values:
            said = unsafe_sets.one_of(record, "label", ("safe", "unsafe"))
            if (said == "unsafe") != unsafe:
                raise OfficialFileError(
                    f"{record.place}: prompt {item}: label: {said} does not fit the type {kind}"
                )
        prompt = unsafe_sets.text(record, "prompt")
        focus = str(record.values["focus"]).strip().lower()
        # The word itself would be stored as a cluster's name.
        group = hashlib.sha256(focus.encode()).hexdigest()[:12] if focus else f"item-{item}"
        return unsafe_sets.sample(
            id=f"xstest-{item}",
            question=prompt,
            about=prompt,
            restricted=unsafe,
            slices=(kind,),
            cluster=f"xstest-{group}",
            provenance=Provenance(
                source=document.source, split="xstest", item=item, licence="CC BY 4.0"
            ),
        )
