"""Checksums of a checkpoint's files, kept in the JSON beside them, which has one of its own.

TensorFlow checks the tensors that are read, but neither notices a file of another save nor a
flipped bit in the JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from outside_data.files import BadFileError, expecting, open_file

_FILES, _OWN = "files", "description_sha256"
_CHUNK = 1 << 22


def sealed(description: Mapping[str, Any], files: Mapping[str, Path]) -> dict[str, Any]:
    """Returns a description with the checksums of files (by suffix) and its own."""
    listed = {
        suffix: {"bytes": os.path.getsize(path), "sha256": sha256_of(path)}
        for suffix, path in files.items()
    }
    content = json.loads(json.dumps({**description, _FILES: listed}))
    return {**content, _OWN: _own(content)}


def require_sound(description: Mapping[str, Any], *, path: Path) -> None:
    """Raises BadFileError if a description is not what was written; says nothing of older ones."""
    if _OWN in description:
        content = {name: value for name, value in description.items() if name != _OWN}
        if _own(content) != description[_OWN]:
            raise BadFileError(f"{path} is not what was written: its checksum differs")


def require_same_files(prefix: str | Path, description: Mapping[str, Any]) -> None:
    """Raises BadFileError if a file of a checkpoint is missing or not what was written."""
    with expecting(f"{prefix}.json", f"{_FILES!r} with the bytes and the sha256 of each"):
        files = [
            (Path(f"{prefix}{suffix}"), int(told["bytes"]), str(told["sha256"]))
            for suffix, told in description.get(_FILES, {}).items()
        ]
    for path, expected_bytes, expected_sha256 in files:
        if not path.is_file():
            raise BadFileError(f"{path} is missing")
        size = os.path.getsize(path)
        if size != expected_bytes:
            raise BadFileError(f"{path} is damaged: {expected_bytes} bytes expected, {size} found")
        if sha256_of(path) != expected_sha256:
            raise BadFileError(f"{path} is damaged: its checksum differs from the one in the JSON")


def has_checksums(description: Mapping[str, Any]) -> bool:
    """True for a description that `sealed` made."""
    return _FILES in description


def sha256_of(path: Path) -> str:
    """Returns the sha256 of a file, as `sha256sum` prints it."""
    digest = hashlib.sha256()
    with open_file(path, most=None) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _own(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
