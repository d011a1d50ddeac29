"""The README's commands do what it says: those in a block marked `<!-- runnable -->` are run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
BLOCK = re.compile(r"<!-- runnable -->\s*```(sh|python)\n(.*?)```", re.DOTALL)
BLOCKS = BLOCK.findall(README.read_text("utf-8"))
COMMANDS = [
    line.strip()
    for kind, block in BLOCKS
    for line in block.splitlines()
    if kind == "sh" and line.strip() and not line.lstrip().startswith("#")
]
SCRIPTS = [block for kind, block in BLOCKS if kind == "python"]


def test_the_script_and_the_study_files_are_among_them() -> None:
    shown = "\n".join(COMMANDS)
    assert "python examples/study.py --quick" in shown
    assert "clmm run examples/my_data.yaml" in shown


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command: str, tmp_path: Path) -> None:
    words = shlex.split(command, comments=True)
    assert words[0] in ("clmm", "python"), f"a runnable line begins with clmm or python: {command}"
    programs = {"clmm": [sys.executable, "-m", "clmm.cli"], "python": [sys.executable]}
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    done = subprocess.run(
        [*programs[words[0]], *words[1:]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr


def test_script(capsys: pytest.CaptureFixture[str]) -> None:
    (script,) = SCRIPTS
    exec(script, {})
    shown = capsys.readouterr().out
    assert "existence.accuracy 0.5 measured" in shown
    assert "existence.likelihood.accuracy None not measurable" in shown
