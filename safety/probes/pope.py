"""POPE: is the thing there? Yes/no questions on photographs, read from the official files.

Needs `coco_pope_random.json`, `coco_pope_popular.json` and `coco_pope_adversarial.json` (JSON
Lines of `question_id`, `image`, `text`, `label`) and the pictures of COCO val2014; neither is ever
downloaded. Figures are those of Li et al. 2023 (arXiv 2305.10355), yes being positive. Answers are
joined with questions by id; the official script joins them by order.

The published headline is the mean of the splits' F1. A mean of ratios is no ratio of sums, so no
exact paired test of it exists: `pope.mean_f1` is described, with a cluster bootstrap interval, and
`pope.f1`, over the questions of all splits together, is the one that is judged. `yes_rate` is the
share of the answers that say yes. The official parser takes all but No, no and not for yes, so
`pope.official.…` shows refusals and empty answers as a bias to yes; `pope.invalid` and
`pope.refusal` tell the two apart.

A published file holds 3,000 questions, the first release's random one 2,910. Ids count up without
a gap, from 1 in the earlier releases and from 0 in the present one; an id that is missing or extra
by that count is refused, whatever the file's length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from safety import official
from safety.scores import ProbeScores
from safety.yes_no import CANDIDATES, Measure, YesNo
from streams.catalog import nearest
from streams.sample import Answer, Provenance, Sample, ask

SPLITS = ("random", "popular", "adversarial")
COUNTS = {"random": (3000, 2910), "popular": (3000,), "adversarial": (3000,)}
"""Split → how many questions its published files hold."""
MEASURES: tuple[Measure, ...] = ("precision", "recall", "f1", "yes_rate")


@dataclass(frozen=True, kw_only=True)
class Pope:
    """POPE from its official files: accuracy, precision, recall, F1 and yes rate, by split."""

    folder: Path
    """Folder of the official files."""
    images: Path | None = None
    """Folder of the pictures; left out, they lie beside the files."""
    splits: tuple[str, ...] = SPLITS
    """Splits to ask; each is one file."""
    sha256: Mapping[str, str] = field(default_factory=dict)
    """File name → SHA-256 that it must have."""
    limit: int | None = None
    """Only the first so many questions of each split; none for all."""
    partial: bool = False
    """Whether a file that holds fewer or more items than the published one is meant."""

    max_new_tokens: ClassVar[int] = 24
    """Longest answer, in tokens."""

    def __post_init__(self) -> None:
        official.check_limit(self.limit, where="probes.pope.limit")
        if not self.splits or len(set(self.splits)) < len(self.splits):
            raise ValueError(
                f"probes.pope.splits: give one or more, each once; got {list(self.splits)}"
            )
        for split in self.splits:
            if split not in SPLITS:
                near = nearest(split, list(SPLITS))
                raise ValueError(f"probes.pope.splits: there is no {split!r}{near}")
        names = [_file(split) for split in self.splits]
        official.check_digests(self.sha256, names, where="probes.pope.sha256")

    def samples(self, seed: int) -> list[Sample]:
        """The official questions; `seed` changes nothing."""
        return [sample for split in self.splits for sample in self._split(split)]

    def continuations(self, samples: Sequence[Sample]) -> list[tuple[str, ...]]:
        return [CANDIDATES for _ in samples]

    def score(
        self,
        samples: Sequence[Sample],
        answers: Sequence[Answer],
        likelihoods: Sequence[Sequence[float]] | None,
    ) -> ProbeScores:
        questions = YesNo(
            name="pope",
            splits=self.splits,
            pooled=(*MEASURES, "mean_f1"),
            per_split=(*MEASURES, "invalid", "refusal"),
        )
        return questions.scores(samples, answers, likelihoods)

    def _split(self, split: str) -> list[Sample]:
        document = official.read(self.folder, _file(split), self.sha256)
        records = document.lines()
        if not records:
            raise official.OfficialFileError(f"{document.path}: has no question")
        numbers = [record.get("question_id", int) for record in records]
        first = 0 if 0 in numbers else 1
        expected = range(first, first + len(numbers))
        where = document.path.name
        official.check_ids(map(str, numbers), map(str, expected), where=where)
        official.check_count(len(numbers), COUNTS[split], self.partial, where=where)
        samples = []
        for number, record in list(zip(numbers, records, strict=True))[: self.limit]:
            label = record.one_of("label", ("yes", "no"))
            name = record.get("image", str)
            shown = official.picture(self.images or self.folder, name, place=record.place)
            samples.append(
                ask(
                    id=f"pope-{split}-{number}",
                    question=record.get("text", str),
                    answer=f"{label.capitalize()}.",
                    image=shown,
                    scorer="yes_no",
                    cluster=f"pope-{name}",
                    provenance=Provenance(
                        source=document.source, split="pope", item=f"{split} {number}"
                    ),
                    metadata={"slice": split, "label": label},
                )
            )
        return samples


def _file(split: str) -> str:
    return f"coco_pope_{split}.json"
