"""The project's own files: those that git holds, not what a user has left beside them."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@functools.cache
def own_files(*patterns: str) -> tuple[Path, ...]:
    """Returns the files that match a glob relative to the repository, sorted.

    Without git, as in an unpacked archive, all files that match.
    """
    wanted = [f":(glob){pattern}" for pattern in patterns]
    run = subprocess.run(
        ["git", "ls-files", "-z", *wanted], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if run.returncode:
        return tuple(sorted(path for pattern in patterns for path in ROOT.glob(pattern)))
    found = (ROOT / name for name in run.stdout.split("\0") if name)
    return tuple(sorted(path for path in found if path.is_file()))
