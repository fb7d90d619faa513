"""A machine for shell scripts: a PATH of a few real tools and of stubs; stand-ins for programs."""

import shutil
import sys
from collections.abc import Iterable
from pathlib import Path


def write_executable(path: Path, script: str) -> Path:
    """Writes a shell script that can be started; returns its place."""
    path.unlink(missing_ok=True)  # never write through a link
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)
    return path


def in_place_of_train(folder: Path, program: Path) -> dict[str, str]:
    """Returns the variable that has the launcher start a program with train.py's flags."""
    command = f'exec "{sys.executable}" "{program}" "${{@:2}}"'
    return {"PYTHON": str(write_executable(folder / "python", command))}


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
        return write_executable(self.bin / name, script)
