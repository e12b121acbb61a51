"""SHA-256 of plain values: segments, searches and stored files are named and checked by it."""

from __future__ import annotations

import hashlib
import json


def digest(values: object) -> str:
    """SHA-256 of the canonical JSON (sorted keys, no spaces, no NaN) of plain values."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
