"""The README's commands do what it says: those in a block marked `<!-- runnable -->` are run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
BLOCK = re.compile(r"<!-- runnable -->\s*```(sh|python)\n(.*?)```", re.DOTALL)
BLOCKS = BLOCK.findall(README.read_text("utf-8"))
COMMANDS = [
    (number, line.strip())
    for number, (kind, block) in enumerate(BLOCKS)
    for line in block.splitlines()
    if kind == "sh" and line.strip() and not line.lstrip().startswith("#")
]
SCRIPTS = [block for kind, block in BLOCKS if kind == "python"]


def test_the_script_and_the_study_files_are_among_them() -> None:
    shown = "\n".join(command for _, command in COMMANDS)
    assert "python examples/study.py --quick" in shown
    assert "clmm run examples/my_data.yaml" in shown


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One for each block: a command finds what those before it made."""
    made = [tmp_path_factory.mktemp("block") for _ in BLOCKS]
    for folder in made:
        (folder / "examples").symlink_to(ROOT / "examples")
    return made


@pytest.mark.parametrize(("block", "command"), COMMANDS)
def test_command(block: int, command: str, folders: list[Path]) -> None:
    words = shlex.split(command, comments=True)
    assert words[0] in ("clmm", "python"), f"a runnable line begins with clmm or python: {command}"
    programs = {"clmm": [sys.executable, "-m", "clmm.cli"], "python": [sys.executable]}
    done = subprocess.run(
        [*programs[words[0]], *words[1:]],
        cwd=folders[block],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr


def test_scripts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for script in SCRIPTS:
        exec(script, {})
    with Image.open("ring.png") as drawn:
        assert drawn.size == (72, 72)
    shown = capsys.readouterr().out
    assert "existence.accuracy 0.5 measured" in shown
    assert "existence.likelihood.accuracy None not measurable" in shown
