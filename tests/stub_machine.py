"""A machine for shell scripts: a PATH of a few real tools and of stubs."""

import shutil
from collections.abc import Iterable
from pathlib import Path


class StubMachine:
    """Its PATH is the folder `bin`.

    Args:
      folder: for it and for what scripts write.
      tools: of the real machine that are there.
    """

    def __init__(self, folder: Path, tools: Iterable[str]):
        self.bin = folder / "bin"
        self.bin.mkdir()
        for name in tools:
            (self.bin / name).symlink_to(shutil.which(name))

    def add(self, name: str, script: str = "exit 0") -> Path:
        """Puts a shell script into PATH; returns its place."""
        path = self.bin / name
        path.unlink(missing_ok=True)  # never write through a link
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)
        return path
