"""MM-SafetyBench from its official files: questions whose harm a picture carries, 13 scenarios.

Liu et al. 2024 (arXiv 2311.17600): 1,680 questions, each with three pictures, 5,040 pairs.
`processed_questions/NN-NAME.json` maps an id to its texts; the pictures lie at
`imgs/NN-NAME/KIND/ID.jpg`. A kind of picture goes with one of the texts:

- `SD`, a generated picture of the key phrase: `Rephrased Question(SD)`;
- `TYPO`, the key phrase drawn: `Rephrased Question`;
- `SD_TYPO`, the one above the other: `Rephrased Question`.

Ids of a scenario count up from 0; a file of another length than the published one is refused
unless `partial`. Scenarios are known by their numbers, 01 to 13, whatever their names. Every item
counts as one that should be refused, as the official attack success rate takes it; of the later
scenarios (lobbying, advice) a careful answer may be right too, so look at the scenarios' own
figures. All items are withheld: no text and no picture is stored or shown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from safety import official, refusing, unsafe_sets
from safety.official import OfficialFileError
from safety.scores import ProbeScores
from streams.catalog import nearest
from streams.sample import Answer, Provenance, Sample

SCENARIOS = tuple(f"{number:02d}" for number in range(1, 14))
COUNTS = dict(
    zip(SCENARIOS, (97, 163, 44, 144, 122, 154, 109, 153, 139, 130, 167, 109, 149), strict=True)
)
"""Scenario → how many questions its file holds; 1,680 in all."""
TEXTS = {"SD": "Rephrased Question(SD)", "SD_TYPO": "Rephrased Question"}
TEXTS["TYPO"] = TEXTS["SD_TYPO"]
"""Kind of picture → field of the text it is asked with."""
ABOUT = ("Question", "Changed Question", "Key Phrase")
"""Fields whose words an answer may name."""


@dataclass(frozen=True, kw_only=True)
class MmSafetybench:
    """MM-SafetyBench: refusal, compliance and incoherence by scenario and kind of picture."""

    folder: Path
    """Folder with `processed_questions`."""
    images: Path | None = None
    """Folder of the scenarios' picture folders; left out, `imgs` in the folder."""
    scenarios: tuple[str, ...] = SCENARIOS
    """Numbers of the scenarios to ask, such as 01; each is one file."""
    kinds: tuple[str, ...] = tuple(TEXTS)
    """Kinds of picture to ask with: SD, SD_TYPO, TYPO."""
    sha256: Mapping[str, str] = field(default_factory=dict)
    """Name of a scenario's file → SHA-256 that it must have."""
    limit: int | None = None
    """Only the first so many questions of each scenario; none for all."""
    partial: bool = False
    """Whether a file that holds fewer or more items than the published one is meant."""
    judge: Any = "prefix"
    """Who says what an answer does: a file of safety/judges, a mapping with its name, a judge."""
    rules: tuple[str, ...] = ()
    """Refusal lists under which attack success is given too, such as vlguard."""

    max_new_tokens: ClassVar[int] = unsafe_sets.MOST_TOKENS
    """Longest answer, in tokens."""

    def __post_init__(self) -> None:
        where = "probes.mm_safetybench"
        official.check_limit(self.limit, where=f"{where}.limit")
        refusing.check_rules(self.rules, where=f"{where}.rules")
        for name, known in (("scenarios", SCENARIOS), ("kinds", tuple(TEXTS))):
            given = getattr(self, name)
            if not given or len(set(given)) < len(given):
                raise ValueError(f"{where}.{name}: give one or more, each once; got {list(given)}")
            for one in given:
                if one not in known:
                    raise ValueError(f"{where}.{name}: there is no {one!r}{nearest(one, [*known])}")

    def samples(self, seed: int) -> list[Sample]:
        """The official pairs; `seed` changes nothing."""
        files = self._files()
        names = [path.name for path in files.values()]
        official.check_digests(self.sha256, names, where="probes.mm_safetybench.sha256")
        return [sample for number in self.scenarios for sample in self._scenario(files[number])]

    def continuations(self, samples: Sequence[Sample]) -> list[tuple[str, ...]]:
        return unsafe_sets.continuations(samples)

    def score(
        self,
        samples: Sequence[Sample],
        answers: Sequence[Answer],
        likelihoods: Sequence[Sequence[float]] | None,
    ) -> ProbeScores:
        return unsafe_sets.score(
            "mm_safetybench", samples, answers, likelihoods, judge=self.judge, rules=self.rules
        )

    @property
    def _questions(self) -> Path:
        return self.folder.expanduser() / "processed_questions"

    def _files(self) -> dict[str, Path]:
        """Number → file of the scenarios that are asked."""
        found: dict[str, Path] = {}
        for path in sorted(self._questions.glob("*.json")):
            if (match := re.match(r"(\d\d)-", path.name)) is None:
                raise OfficialFileError(f"{path}: begins with no number of a scenario")
            if match[1] in found:
                raise OfficialFileError(f"{path}: scenario {match[1]} is there twice")
            found[match[1]] = path
        for number in self.scenarios:
            if number not in found:
                raise OfficialFileError(
                    f"{self._questions}: there is no file of scenario {number} ({number}-….json)"
                )
        return found

    def _scenario(self, path: Path) -> list[Sample]:
        document = official.read(self._questions, path.name, self.sha256, withheld=True)
        questions = document.json()
        if not isinstance(questions, dict) or not questions:
            raise OfficialFileError(f"{path}: must map ids to questions")
        official.check_ids(questions, map(str, range(len(questions))), where=path.name)
        count = COUNTS[path.name[:2]]
        official.check_count(len(questions), (count,), self.partial, where=path.name)
        images = self.images or self.folder.expanduser() / "imgs"
        samples = []
        for item, values in list(questions.items())[: self.limit]:
            place = f"{path.name}: {item}"
            record = document.record(values, place)
            number = path.name[:2]
            about = " ".join(unsafe_sets.text(record, one) for one in ABOUT)
            for kind in self.kinds:
                question = unsafe_sets.text(record, TEXTS[kind])
                shown = f"{path.stem}/{kind}/{item}.jpg"
                samples.append(
                    unsafe_sets.sample(
                        id=f"mm_safetybench-{number}-{item}-{kind}",
                        question=question,
                        about=f"{about} {question}",
                        image=official.picture(images, shown, place=place),
                        restricted=True,
                        slices=(f"scenario {number}", kind),
                        cluster=f"mm_safetybench-{number}-{item}",
                        provenance=Provenance(
                            source=document.source,
                            split="mm_safetybench",
                            item=f"{number} {item} {kind}",
                            licence="CC BY-NC 4.0",
                        ),
                    )
                )
        return samples
