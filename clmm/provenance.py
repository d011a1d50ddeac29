"""Where a run came from: command, commit, versions, device, seeds, hashes of data and prompts.

Records; decides nothing. Hashes cover what was asked and taught, so that two runs can be told to
have seen the same items.
"""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from streams.contents import files
from streams.sample import Image, Part, Sample, Text

PACKAGES = ("clmm-lab", "torch", "transformers", "peft", "accelerate", "avalanche-lib", "numpy")
HASHED_BYTES = 2**16


def record(
    *,
    seeds: Iterable[int],
    hashes: Mapping[str, str],
    model: Mapping[str, Any],
    reveal_unsafe: bool = False,
) -> dict[str, Any]:
    """One session's provenance, as plain data."""
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": git(),
        "versions": {"python": platform.python_version(), **versions()},
        "device": device(),
        "seeds": list(seeds),
        "model": dict(model),
        "hashes": dict(hashes),
        "reveal_unsafe": reveal_unsafe,
    }


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def git() -> dict[str, Any] | None:
    """Commit and dirtiness of the checkout that this package runs from; None for an install."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git(root, "status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=10
    ).stdout.strip()


def device() -> dict[str, Any]:
    """Machine, cores, and GPU if torch is loaded and sees one."""
    found: dict[str, Any] = {"machine": platform.machine(), "system": platform.system()}
    found["cores"] = os.cpu_count()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def hash_samples(samples: Iterable[Sample]) -> str:
    """SHA-256 over ids, messages, references, rejected answers and media, in order."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(f"\n{sample.id}\0{sample.scorer}".encode())
        for message in sample.messages:
            digest.update(f"\0{message.role}".encode())
            for part in message.parts:
                digest.update(_bytes(part))
        for part in sample.reference:
            digest.update(b"\0" + _bytes(part))
        for part in sample.rejected:
            digest.update(b"\0rejected\0" + _bytes(part))
        for text in sample.metadata.get("references", ()):
            digest.update(f"\0also\0{text}".encode())
        if sample.plain:
            digest.update(b"\0plain")
    return digest.hexdigest()


def _bytes(part: Part) -> bytes:
    if isinstance(part, Text):
        return part.text.encode()
    # An animated picture may be an image here and a video there.
    head = b"" if isinstance(part, Image) else f"\0{part.kind}\0".encode()
    if isinstance(part.source, np.ndarray):
        rate = getattr(part, "sampling_rate", None)
        shape = b"" if isinstance(part, Image) else f"{part.source.shape} {rate}".encode()
        return head + shape + np.ascontiguousarray(part.source).tobytes()
    return head + b"".join(_file_digest(str(file)) for file in files(part))


@cache
def _file_digest(path: str) -> bytes:
    """Of a file's size and beginning: a data set of millions of pictures is not read twice."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        return hashlib.sha256(f"{size}:".encode() + file.read(HASHED_BYTES)).digest()
