"""MME: two yes/no questions on each picture, in fourteen categories, from the official files.

Needs, for each category, either the table of the evaluation tool, `existence.txt`, or the folder
of the release, `existence/`, with a text file for each picture, which some categories keep in
`questions_answers_YN/` and the pictures in `images/`. Lines are `image<TAB>question<TAB>answer`,
or `question<TAB>answer` in a file named after its picture. Nothing is ever downloaded.

Accuracy is over questions; `acc_plus` is the share of the pictures whose two questions are both
right (Fu et al. 2023, arXiv 2306.13394). Both are judged, in each category and over all. The
published scores follow from them and get no verdict: a category's is 100·(accuracy + acc_plus),
`mme.perception.score` adds ten (at most 2,000) and `mme.cognition.score` four (at most 800); the
two are there when all their categories were asked. They are in points, not in shares.

The questions of a picture are found by its name; the official tool takes every two lines for a
pair. It computes its yes ratio on the truths, of the answers that it understands; ours is of the
answers, of all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from safety import official
from safety.official import Document, OfficialFileError, Record
from safety.scores import ProbeScores, Sheet
from safety.yes_no import CANDIDATES, YesNo, texts_of
from streams.catalog import nearest
from streams.sample import Answer, Image, Provenance, Sample, ask

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = (
    "commonsense_reasoning",
    "numerical_calculation",
    "text_translation",
    "code_reasoning",
)
CATEGORIES = PERCEPTION + COGNITION
SUFFIXES = (".jpg", ".png", ".jpeg")


def mme_parser(text: str) -> str:
    """The official tool's: yes or no exactly, in lower case and without full stops, else whichever
    of the two is in the first four characters, yes first; else invalid.

    So "Not sure", "None" and "Know" are no, and "The answer is yes" is neither.
    """
    plain = text.lower().replace(".", "")
    return next((word for word in ("yes", "no") if word in plain[:4]), "invalid")


@dataclass(frozen=True, kw_only=True)
class Mme:
    """MME from its official files: accuracy over questions and over pictures, by category."""

    folder: Path
    """Folder of the official files: the evaluation tool's tables, or the release's folders."""
    images: Path | None = None
    """Folder with the categories' folders of pictures; left out, it is `folder`."""
    categories: tuple[str, ...] = CATEGORIES
    """Categories to ask."""
    sha256: Mapping[str, str] = field(default_factory=dict)
    """File (`existence.txt` or `existence/0001.txt`) → SHA-256 that it must have."""
    limit: int | None = None
    """Only the first so many pictures of each category; none for all."""

    max_new_tokens: ClassVar[int] = 24
    """Longest answer, in tokens."""

    def __post_init__(self) -> None:
        official.check_limit(self.limit, where="probes.mme.limit")
        if not self.categories or len(set(self.categories)) < len(self.categories):
            raise ValueError(
                f"probes.mme.categories: give one or more, each once; got {list(self.categories)}"
            )
        for category in self.categories:
            if category not in CATEGORIES:
                near = nearest(category, list(CATEGORIES))
                raise ValueError(f"probes.mme.categories: there is no {category!r}{near}")

    def samples(self, seed: int) -> list[Sample]:
        """The official questions; `seed` changes nothing."""
        files = {category: self._files(category) for category in self.categories}
        names = [name for every in files.values() for name in every]
        official.check_digests(self.sha256, names, where="probes.mme.sha256")
        return [s for category, every in files.items() for s in self._category(category, every)]

    def continuations(self, samples: Sequence[Sample]) -> list[tuple[str, ...]]:
        return [CANDIDATES for _ in samples]

    def score(
        self,
        samples: Sequence[Sample],
        answers: Sequence[Answer],
        likelihoods: Sequence[Sequence[float]] | None,
    ) -> ProbeScores:
        questions = YesNo(
            name="mme",
            splits=self.categories,
            official=mme_parser,
            pooled=("acc_plus", "yes_rate"),
            per_split=("acc_plus",),
        )
        sheet = Sheet({s.id: s.cluster for s in samples})
        labels = questions.add(sheet, samples, texts_of(samples, answers), likelihoods)
        for prefix in ("mme", "mme.official", "mme.likelihood"):
            self._points(sheet, prefix)
        return sheet.scores(labels)

    def _points(self, sheet: Sheet, prefix: str) -> None:
        """The published scores, of what was measured."""
        points = {}
        for category in self.categories:
            parts = [sheet.figures[f"{prefix}.{category}.{m}"] for m in ("accuracy", "acc_plus")]
            known = [figure.value for figure in parts if figure.value is not None]
            if len(known) == len(parts):
                points[category] = 100 * sum(known)
                sheet.constant(f"{prefix}.{category}.score", points[category])
        for name, part in (("perception", PERCEPTION), ("cognition", COGNITION)):
            if all(category in points for category in part):
                sheet.constant(f"{prefix}.{name}.score", sum(points[c] for c in part))

    def _files(self, category: str) -> list[str]:
        """The category's text files, as paths in the folder."""
        table, root = f"{category}.txt", self.folder.expanduser()
        if (root / table).is_file():
            return [table]
        within = f"{category}/questions_answers_YN"
        if not (root / within).is_dir():
            within = category
        names = [f"{within}/{path.name}" for path in sorted((root / within).glob("*.txt"))]
        if not names:
            raise OfficialFileError(f"{root}: there is neither {table} nor a text file in {within}")
        return names

    def _category(self, category: str, files: Sequence[str]) -> list[Sample]:
        asked: dict[str, list[tuple[Document, Record]]] = {}
        pictures = (self.images or self.folder).expanduser() / category
        if (pictures / "images").is_dir():
            pictures = pictures / "images"
        for file in files:
            document = official.read(self.folder, file, self.sha256)
            for record in _records(document, pictures):
                asked.setdefault(record.get("image", str), []).append((document, record))
        if not asked:
            raise OfficialFileError(f"{self.folder}: {category} has no question")
        samples = []
        for name, pair in list(asked.items())[: self.limit]:
            texts = [record.get("question", str) for _, record in pair]
            if len(pair) != 2 or texts[0] == texts[1]:
                raise OfficialFileError(
                    f"{pair[-1][1].place}: {category}/{name} must have two different questions; "
                    f"it has {len(texts)}{', one of them twice' if len(texts) == 2 else ''}"
                )
            shown = official.picture(pictures, name, place=pair[0][1].place)
            for number, (document, record) in enumerate(pair, start=1):
                item = f"{category}/{name} {number}"
                source = Provenance(source=document.source, split="mme", item=item)
                samples.append(_sample(category, name, number, record, shown, source))
        return samples


def _sample(
    category: str, name: str, number: int, record: Record, shown: Image, source: Provenance
) -> Sample:
    label = record.one_of("answer", ("yes", "no"))
    return ask(
        id=f"mme-{category}-{name}-{number}",
        question=record.get("question", str),
        answer=f"{label.capitalize()}.",
        image=shown,
        scorer="yes_no",
        cluster=f"mme-{category}-{name}",
        provenance=source,
        metadata={"slice": category, "label": label},
    )


def _records(document: Document, pictures: Path) -> list[Record]:
    """Image, question and answer of every line; without an image, it is the file's namesake."""
    first = next((line for line in document.text.split("\n") if line.strip()), "")
    if first.count("\t") != 1:
        return document.table(delimiter="\t", header=("image", "question", "answer"))
    records = document.table(delimiter="\t", header=("question", "answer"))
    stem = document.path.stem
    found = [stem + suffix for suffix in SUFFIXES if (pictures / (stem + suffix)).is_file()]
    if len(found) != 1:
        raise OfficialFileError(
            f"{document.path.name}: {len(found)} pictures of its name ({', '.join(SUFFIXES)}) in "
            f"{pictures}, where one is expected"
        )
    return [Record(place=r.place, values={**r.values, "image": found[0]}) for r in records]
