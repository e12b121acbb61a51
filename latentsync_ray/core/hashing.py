"""SHA-256 of plain values and of files: segments, searches and stored files are named and checked by it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path


def digest(values: object) -> str:
    """SHA-256 of the canonical JSON (sorted keys, no spaces, no NaN) of plain values."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
