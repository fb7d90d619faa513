"""Lets a record set appear all at once: shards grow in a hidden folder, the card comes last.

When all shards are written, a marker says so, the old card goes, old shards of the prefix go, new
shards are renamed into place, the new card is written, the hidden folder goes. So at every moment
the old set is whole, or the marker is there without a card and `record_files` refuses the prefix.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from object_detection.records.card import DataCard, card_path, save_card
from object_detection.records.tfrecord_file import (
    is_half_published,
    publishing_marker,
    staging_folder,
)

_LOCK_NAME = "lock"


@contextlib.contextmanager
def staged(prefix: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields an empty hidden folder beside the record set; removes it in the end.

    What an interrupted conversion left behind is removed first.

    Raises:
      ValueError: another process is converting to the same prefix.
    """
    folder = staging_folder(prefix)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / _LOCK_NAME, "w") as lock:
        _acquire(lock.fileno(), prefix)
        if is_half_published(prefix):
            for path in _shards_in_place(prefix):
                path.unlink()
        for leftover in folder.iterdir():
            if leftover.name != _LOCK_NAME:
                leftover.unlink()
        try:
            yield folder
        finally:
            if not is_half_published(prefix):
                shutil.rmtree(folder, ignore_errors=True)


def publish(card: DataCard, staging: Path, prefix: str | os.PathLike[str]) -> list[str]:
    """Moves the card's shards from the staging folder into place and writes the card.

    Returns names of the files of an earlier conversion that were removed and not replaced.
    """
    folder = Path(prefix).parent
    publishing_marker(prefix).touch()
    card_path(prefix).unlink(missing_ok=True)
    old = _shards_in_place(prefix)
    for path in old:
        path.unlink()
    for shard in card.shards:
        os.replace(staging / shard.file, folder / shard.file)
    save_card(card, card_path(prefix))
    new = {shard.file for shard in card.shards}
    return sorted(path.name for path in old if path.name not in new)


def _shards_in_place(prefix: str | os.PathLike[str]) -> list[Path]:
    target = Path(prefix)
    name = re.compile(re.escape(target.name) + r"-\d{5}-of-\d{5}(\.tfrecord)?")
    return [path for path in target.parent.iterdir() if name.fullmatch(path.name)]


def _acquire(lock: int, prefix: str | os.PathLike[str]) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # Some network file systems have no locks; two conversions at once are unguarded there.
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise ValueError(
                f"another process is converting to {os.fspath(prefix)}: wait for it or end it"
            ) from error
