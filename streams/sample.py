"""What is asked and what is answered: messages of text and media, references, answers.

Knows no model, no tokenizer and no file format. A media item stays a path or an array until a
model's processor turns it into tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import numpy as np

Role = Literal["system", "user", "assistant"]
Kind = Literal["image", "video", "audio", "points"]
"""What a medium is, as chat templates, data files and a model's inputs name it."""
Scorer = Literal["yes_no", "exact", "contains", "first_letter", "vqa", "iou", "rouge_l"]


@dataclass(frozen=True, kw_only=True)
class Text:
    """A piece of text."""

    text: str
    withheld: bool = field(default=False, compare=False)
    """Whether its sample is withheld; it is then shown by its length alone."""

    def __repr__(self) -> str:
        if self.withheld:
            return f"Text(withheld, {len(self.text)} characters)"
        return f"Text(text={self.text!r})"


@dataclass(frozen=True, kw_only=True, eq=False)
class Image:
    """An image: a path to a file, or an array of shape [height, width, 3], dtype uint8."""

    source: Path | np.ndarray
    withheld: bool = False
    """Whether its sample is withheld; neither its path nor its pixels are then shown."""

    kind: ClassVar[Kind] = "image"

    def __post_init__(self) -> None:
        if isinstance(array := self.source, np.ndarray) and (
            array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3
        ):
            raise _misshapen(self, "[height, width, 3] and dtype uint8")

    def __repr__(self) -> str:
        return _shown(self)


@dataclass(frozen=True, kw_only=True, eq=False)
class Video:
    """A video: a path to a file or a folder of frames, or [frames, height, width, 3], uint8.

    Frames are at even distances in time; how far apart is not kept.
    """

    source: Path | np.ndarray
    withheld: bool = False
    """As an image's."""

    kind: ClassVar[Kind] = "video"

    def __post_init__(self) -> None:
        if isinstance(array := self.source, np.ndarray) and (
            array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3 or not array.size
        ):
            raise _misshapen(self, "[frames, height, width, 3] and dtype uint8")

    def __repr__(self) -> str:
        return _shown(self)


@dataclass(frozen=True, kw_only=True, eq=False)
class Audio:
    """A recording: a path to a file, or a wave [samples], float32 in [−1, 1], and its rate."""

    source: Path | np.ndarray
    sampling_rate: int | None = None
    """In Hz; of a wave alone, for a file says its own."""
    withheld: bool = False
    """As an image's."""

    kind: ClassVar[Kind] = "audio"

    def __post_init__(self) -> None:
        rate = self.sampling_rate
        if not isinstance(array := self.source, np.ndarray):
            if rate is not None:
                raise ValueError(f"audio: a file says its own sampling rate; leave out {rate}")
            return
        if array.dtype != np.float32 or array.ndim != 1 or not array.size:
            raise _misshapen(self, "[samples] and dtype float32")
        if not isinstance(rate, int) or rate < 1:
            raise ValueError(f"audio: a wave needs its sampling_rate in Hz; got {rate!r}")

    def __repr__(self) -> str:
        return _shown(self)


@dataclass(frozen=True, kw_only=True, eq=False)
class Points:
    """A point cloud: a path to a .npy file, or float32 [points, 3], or [points, 6] with colours.

    Coordinates are x, y, z in any unit; colours are red, green, blue in [0, 1].
    """

    source: Path | np.ndarray
    withheld: bool = False
    """As an image's."""

    kind: ClassVar[Kind] = "points"

    def __post_init__(self) -> None:
        if isinstance(array := self.source, np.ndarray) and (
            array.dtype != np.float32
            or array.ndim != 2
            or array.shape[1] not in (3, 6)
            or not array.size
        ):
            raise _misshapen(self, "[points, 3] or [points, 6] and dtype float32")

    def __repr__(self) -> str:
        return _shown(self)


Medium = Image | Video | Audio | Points
Part = Text | Medium
MEDIA: tuple[type[Medium], ...] = (Image, Video, Audio, Points)


def _misshapen(medium: Medium, wanted: str) -> ValueError:
    array = np.asarray(medium.source)
    return ValueError(
        f"{medium.kind}: an array must have shape {wanted}, not {list(array.shape)} and "
        f"{array.dtype}"
    )


def _shown(medium: Medium) -> str:
    """A path, or an array's shape: never what is in it, and nothing of a withheld one."""
    source, name = medium.source, type(medium).__name__
    if medium.withheld:
        return f"{name}(withheld)"
    if isinstance(source, np.ndarray):
        return f"{name}(source={source.dtype} {list(source.shape)})"
    return f"{name}(source={source!r})"


@dataclass(frozen=True, kw_only=True)
class Message:
    """One turn of a conversation; its parts are in reading order."""

    role: Role
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.parts if isinstance(part, Text))

    @property
    def media(self) -> tuple[Medium, ...]:
        return tuple(part for part in self.parts if not isinstance(part, Text))

    @property
    def images(self) -> tuple[Image, ...]:
        return tuple(part for part in self.parts if isinstance(part, Image))


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a sample came from, precisely enough to find it again."""

    source: str
    """Data set or generator, with its version or seed."""
    split: str
    """train, test, or the probe's name."""
    item: str
    """The item inside the source: a row, a file and line, or a generator's index."""
    licence: str = "unknown"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A prompt, the reference for its answer, and where both came from.

    `messages` ends with a user turn. `reference` is the assistant's turn that training teaches
    and scoring compares with. `scorer` names the rule in `streams.scoring`. `cluster` groups
    samples that are not independent (one image, one template family); statistics resample it.

    `rejected` is an answer that was liked less than the reference; preference learning needs it.
    A `plain` sample is text and media as they stand, without a chat template, as models are
    pre-trained on: its one message is what is given, perhaps nothing, its reference what follows,
    which may hold media too (an interleaved document).

    A `withheld` sample's texts and media are never stored, logged or shown: a run keeps its id,
    hashes, lengths and labels. Items of harmful external sets are withheld. Their parts are marked,
    so that no repr of the sample, a message, a part or the metadata quotes them.
    """

    id: str
    messages: tuple[Message, ...]
    reference: tuple[Part, ...]
    provenance: Provenance
    scorer: Scorer = "exact"
    cluster: str = ""
    metadata: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    rejected: tuple[Part, ...] = ()
    plain: bool = False
    withheld: bool = False

    def __post_init__(self) -> None:
        if not self.messages or self.messages[-1].role != "user":
            raise ValueError(f"sample {self.id}: its messages must end with a user turn")
        if self.plain and len(self.messages) > 1:
            raise ValueError(
                f"sample {self.id}: plain text has no turns, but it has {len(self.messages)}"
            )
        if self.withheld:
            closed = {
                "messages": tuple(replace(m, parts=_marked(m.parts)) for m in self.messages),
                "reference": _marked(self.reference),
                "rejected": _marked(self.rejected),
                "metadata": MappingProxyType(_Closed(self.metadata)),
            }
            for name, value in closed.items():
                object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        """Of a withheld sample the id alone, in whatever error or log it ends up."""
        shown = ("id", "withheld") if self.withheld else [one.name for one in fields(self)]
        return f"Sample({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    @property
    def question(self) -> str:
        """The last user turn's text."""
        return self.messages[-1].text

    @property
    def media(self) -> tuple[Medium, ...]:
        """All that is asked about, in reading order."""
        return tuple(medium for message in self.messages for medium in message.media)

    @property
    def images(self) -> tuple[Image, ...]:
        return tuple(image for message in self.messages for image in message.images)

    @property
    def reference_text(self) -> str:
        return "".join(part.text for part in self.reference if isinstance(part, Text))


class _Closed(dict[str, Any]):
    """Metadata that shows its keys alone."""

    def __repr__(self) -> str:
        return f"{{{', '.join(self)}: withheld}}"


def _marked(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    return tuple(replace(one, withheld=True) for one in parts)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model answered to one sample, and which route (adapter, expert, base) answered."""

    sample_id: str
    parts: tuple[Part, ...]
    route: str | None = None

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.parts if isinstance(part, Text))


def ask(
    *,
    id: str,
    question: str,
    answer: str,
    provenance: Provenance,
    image: Image | None = None,
    medium: Medium | None = None,
    scorer: Scorer = "exact",
    cluster: str = "",
    metadata: Mapping[str, Any] | None = None,
    withheld: bool = False,
) -> Sample:
    """The commonest sample: one user turn, media before the question if any, a text answer.

    An image, which most ask about, and any medium.
    """
    shown = tuple(one for one in (image, medium) if one is not None)
    parts: tuple[Part, ...] = (*shown, Text(text=question))
    return Sample(
        id=id,
        messages=(Message(role="user", parts=parts),),
        reference=(Text(text=answer),),
        provenance=provenance,
        scorer=scorer,
        cluster=cluster or id,
        metadata=MappingProxyType(dict(metadata or {})),
        withheld=withheld,
    )
