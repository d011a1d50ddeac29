"""Your own data: a folder of LLaVA-format JSON or JSONL with its images, video, audio or 3D.

A folder holds one of

    train.json  test.json            one task, named after the folder
    NAME/train.json  NAME/test.json  a task for each sub-folder, in the order of their names
    NAME.json …                      a task for each file, in the order of their names

(`.jsonl` everywhere too), and the images, whose paths in the records are looked up in `images/`
beside the JSON file, then in `images/` of the folder, then beside the JSON file, then in the
folder. Videos are so looked up in `videos/`, recordings in `audio/` and point clouds in `points/`
first; which files they may be, `streams/video.py`, `audio.py` and `points.py` say. Without a test
file, a fifth of the images or other media is held out for the test, with all that is asked about
them; which, depends on their paths alone. The record format is in
`streams/sources/_llava_records.py`. Records with a `rejected` answer are preference pairs, which
`stream: {name: staged, of: ./my-data, objective: dpo}` learns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from streams.sources._folders import Foldered
from streams.sources._llava_records import Problems, Record, read_records


@dataclass(frozen=True, kw_only=True)
class LlavaJson(Foldered):
    """Reads and checks every record before anything is trained.

    A conversation of several answers becomes one sample an answer, with the turns before it as
    context. An answer is scored by `yes_no` where all answers of the task are yes or no, by
    `exact` where none has more than three words, else by `rouge_l`.
    """

    def read(self, file: Path, folders: Sequence[Path], problems: Problems) -> list[Record]:
        return read_records(file, folders, problems)
