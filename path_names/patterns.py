"""Which files a pattern means: a name as it stands comes before what its signs could stand for.

Folders such as `cells [v2], final` are common. So each part of a path is taken literally where
there is a file or folder of that name, and as a glob otherwise; and a comma separates patterns
only where the text with the comma means nothing.
"""

from __future__ import annotations

import errno
import glob
import os


def match(pattern: str) -> list[str]:
    """Returns the existing paths that a glob means, sorted; [] if there is none.

    Raises:
      PermissionError: there is none that can be seen, as a folder of the pattern cannot be read.
    """
    pattern = os.path.expanduser(pattern)
    if os.path.lexists(pattern):
        return [pattern]
    head, *parts = pattern.split("/")
    places = [f"{head}/"] if not head and parts else _below("", head)
    for part in parts:
        if part:
            places = [path for place in places for path in _below(place, part)]
    # What a folder's literal name hides may still be meant.
    found = sorted(places or glob.glob(pattern))
    if not found:
        _refuse_closed_folder(pattern)
    return found


def split_patterns(text: str) -> list[str]:
    """Separates patterns at commas, except at commas that belong to a name.

    Those that mean nothing end at the next comma.
    """
    parts = text.split(",")
    patterns: list[str] = []
    while parts:
        ends = range(len(parts), 1, -1)
        end = next((e for e in ends if match(",".join(parts[:e]).strip())), 1)
        patterns.append(",".join(parts[:end]).strip())
        del parts[:end]
    return [pattern for pattern in patterns if pattern]


def _refuse_closed_folder(pattern: str) -> None:
    place = os.path.dirname(pattern) or "."
    while not os.path.lexists(place):
        place = os.path.dirname(place) or "."
    if os.path.isdir(place) and not os.access(place, os.R_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), place)


def _below(folder: str, part: str) -> list[str]:
    path = os.path.join(folder, part)
    if os.path.lexists(path):
        return [path]
    return glob.glob(os.path.join(glob.escape(folder), part)) if glob.has_magic(part) else []
