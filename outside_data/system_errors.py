"""What the operating system refused, of which file, and what to do about it."""

from __future__ import annotations

import errno
import os
import pwd
import stat
from pathlib import Path

from outside_data.text import clean

_DISK_FAILS = "the disk or file server fails: see `dmesg` and `mount`; then start again"
_REMEDIES = {
    errno.ENOSPC: "free some space, or name a folder on another disk",
    errno.EDQUOT: "free some of your quota, or name a folder on another disk",
    errno.EROFS: "name a folder elsewhere, or have the file system mounted for writing",
    errno.ENOTDIR: "a part of this path is a file where a folder is expected",
    errno.EISDIR: "a file is expected, and this is a folder",
    errno.EEXIST: "something else has this name: remove it, or name another path",
    errno.ENAMETOOLONG: "the file system takes no name so long: name a shorter one",
    errno.ELOOP: "the link leads back to itself: correct it, or name another path",
    errno.EMFILE: "this process may open no more files: raise `ulimit -n`",
    errno.ENFILE: "this machine may open no more files: raise `sysctl fs.file-max`",
    errno.EIO: _DISK_FAILS,
    errno.ESTALE: _DISK_FAILS,
    errno.ETIMEDOUT: _DISK_FAILS,
}


def explained(error: Exception) -> str:
    """Returns an error's text; of one of the system, with its file and what to do."""
    if isinstance(error, BrokenPipeError):
        return f"{error}: what read this program's output has ended, as after `| head`"
    if isinstance(error, UnicodeEncodeError) and "surrogates" in error.reason:
        return (
            f"{clean(error.object)}: a name that is no {error.encoding}, which TensorFlow needs: "
            "rename it; or, if it is shown rightly elsewhere, set LC_ALL=C.UTF-8"
        )
    if not isinstance(error, OSError):
        return str(error)
    remedy = _REMEDIES.get(error.errno or 0)
    if not isinstance(error.filename, (str, bytes, os.PathLike)):  # of an open file: none, a number
        is_systems = remedy and error.strerror == os.strerror(error.errno or 0)
        return f"{error.strerror}: {remedy}" if is_systems else str(error)
    path = os.fsdecode(error.filename)
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"no permission for {clean(path)}: {_holder_of(path)}"
    return f"{clean(path)}: {error.strerror}: {remedy}" if remedy else str(error)


def _holder_of(path: str) -> str:
    """Says whose the path is, or the folder that hides it or where it would be made."""
    place = full = Path(path).absolute()
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    status = place.lstat()
    return (
        f"{'it' if place == full else clean(place)} is {_name_of(status.st_uid)}'s with mode "
        f"{stat.filemode(status.st_mode)}, and this process is {_name_of(os.geteuid())}'s. Change "
        "the mode (chmod), or name another path"
    )


def _name_of(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user {user}"
