"""Paths as TensorFlow's readers of checkpoints can take them.

They take a path for a pattern, in which `[` and a backslash mean something else and cannot be
escaped. A link to the folder has a plain name.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def plain_path(path: str | os.PathLike[str]) -> Iterator[str]:
    """Gives a path to the same file or prefix of files that holds no sign of a pattern.

    It is valid inside of the `with`.
    """
    folder, name = os.path.split(os.path.abspath(path))
    if not set("[\\") & set(folder):
        yield os.fspath(path)
        return
    with tempfile.TemporaryDirectory(prefix="ringdet-") as place:
        link = os.path.join(place, "folder")
        os.symlink(folder, link)
        yield os.path.join(link, name)
