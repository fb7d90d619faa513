"""`zoo:PROGRAM/NAME`: published weights of other programs, fetched once and checked.

`zoo.yaml` lists them. A file lies in the cache as PROGRAM/FILE, beside it FILE.sha256 with its
sum, written when it was first seen: what changes afterwards is refused. Put there by hand it is
taken as if it had been fetched. Archives are unpacked, and the checkpoint inside is what is meant.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import http.client
import os
import re
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

import yaml

from engine.config.fields import look_up
from outside_data.expansion import Budget

PREFIX = "zoo:"
_TABLE = Path(__file__).with_name("zoo.yaml")
_ARCHIVES = (".tar.gz", ".zip")
_ATTEMPTS = 5
_CHUNK_BYTES = 1 << 20
_TIMEOUT_SECONDS = 60


@dataclasses.dataclass(frozen=True)
class ZooEntry:
    """Where weights come from, what they are for, and what their file must be.

    Attributes:
      name: PROGRAM/NAME.
      url: of the file.
      file: its name in the cache.
      model: that it fits.
      part: detector or backbone.
      licence: as the program states it.
      sha256: the sum of the file or its first digits; "": not published.
      md5: the same of another sum.
    """

    name: str
    url: str
    file: str
    model: str
    part: str
    licence: str
    sha256: str = ""
    md5: str = ""

    @property
    def is_archive(self) -> bool:
        """Whether the weights are inside of it."""
        return self.file.endswith(_ARCHIVES)


def entries() -> dict[str, ZooEntry]:
    """Reads the table."""
    found = {}
    for program, group in yaml.safe_load(_TABLE.read_text(encoding="utf-8")).items():
        for short, row in group["files"].items():
            digits = re.search(r"-([0-9a-f]{8})\.\w+$", row["file"])
            file = row.get("saved_as") or PurePosixPath(row["file"]).name
            if file.startswith("model_final"):  # Detectron names all its detectors alike
                file = f"{short}.pkl"
            found[f"{program}/{short}"] = ZooEntry(
                name=f"{program}/{short}",
                url=group["base"] + row["file"],
                file=file,
                model=row["model"],
                part=row["part"],
                licence=group["licence"],
                sha256=digits[1] if group.get("name_has_sum") and digits else "",
                md5=row.get("md5", ""),
            )
    return found


def lines() -> list[str]:
    """Returns the table for people: a heading, and a line for each file."""
    rows = [("zoo:NAME", "flag", "model_name", "sum", "licence", "URL")]
    for entry in entries().values():
        flag = "--pretrained_ckpt" if entry.part == "detector" else "--backbone_init"
        known = entry.sha256 and f"sha256 {entry.sha256}"
        known = known or (entry.md5 and f"md5 {entry.md5[:8]}") or "at first use"
        name = f"{PREFIX}{entry.name}"
        rows.append((name, flag, entry.model, known, entry.licence, entry.url))
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(text.ljust(w) for text, w in zip(row, widths)).rstrip() for row in rows]


def cache_folder() -> Path:
    """Returns where weights are kept: `zoo` in $RINGDET_CACHE, by default ~/.cache/ringdet."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("RINGDET_CACHE") or f"{home}/ringdet").expanduser() / "zoo"


def local_path(text: str) -> str:
    """Returns the file that `zoo:NAME` means, fetched if need be; any other text as it is.

    Raises:
      ConfigError: no such name; names the nearest.
      FileNotFoundError: it cannot be fetched; says what to fetch, and where to put it.
      ValueError: the file is not the one that the table, or the cache, knows.
    """
    if not text.startswith(PREFIX):
        return text
    entry = look_up(text.removeprefix(PREFIX), entries(), what="zoo")
    return _of_cache(entry, cache_folder() / entry.name.split("/")[0])


@functools.cache  # a command asks for the same file several times
def _of_cache(entry: ZooEntry, folder: Path) -> str:
    try:
        return str(fetch(entry, folder))
    except OSError as error:
        raise FileNotFoundError(
            f"{PREFIX}{entry.name}: {entry.url} cannot be fetched ({error}). On a machine without "
            f"network: fetch it elsewhere and put it at {folder / entry.file}"
        ) from error


def fetch(entry: ZooEntry, folder: Path) -> Path:
    """Puts weights into a folder, unless they are there; waits for another process that does.

    Returns:
      What to name: the file, or the checkpoint or SavedModel that was in the archive.

    Raises:
      OSError: no connection, or the server refuses; called again it goes on where it stopped.
      ValueError: the file is another one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder / entry.file):
        return _fetch(entry, folder)


@contextlib.contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Waits until no other process fetches a file; unguarded where there are no locks."""
    path = file.with_name(f".{file.name}.lock")
    with contextlib.ExitStack() as stack:
        # A folder may be read-only, and some network file systems have no locks.
        with contextlib.suppress(OSError):
            while True:
                lock = stack.enter_context(open(path, "w"))
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    print(f"waiting for another process that fetches {file}", flush=True)
                    fcntl.flock(lock, fcntl.LOCK_EX)
                if _is_at(path, lock.fileno()):
                    stack.callback(path.unlink, missing_ok=True)
                    break
        yield


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file still has its name, which who held the lock before has removed."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _fetch(entry: ZooEntry, folder: Path) -> Path:
    file, unpacked = folder / entry.file, folder / _stem(entry.file)
    if entry.is_archive and unpacked.is_dir():
        print(f"{unpacked} is there already")
        return _checkpoint_in(unpacked, file)
    if file.exists():
        print(f"{file} is there already")
    else:
        print(f"{entry.url} -> {file}", flush=True)
        _download(entry.url, file)
    _check_sums(file, entry)
    if not entry.is_archive:
        return file
    _unpack(file, unpacked)
    file.unlink()
    return _checkpoint_in(unpacked, file)


def _stem(file: str) -> str:
    return next((file.removesuffix(end) for end in _ARCHIVES if file.endswith(end)), file)


def _download(url: str, path: Path) -> None:
    """Downloads a file, by way of FILE.part, in several attempts."""
    part = path.with_name(f"{path.name}.part")
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            _transfer(url, part)
            break
        except urllib.error.HTTPError:
            raise
        except (OSError, http.client.HTTPException) as error:
            if attempt == _ATTEMPTS or not part.exists():
                raise OSError(str(error)) from error
            print(f"{error}: attempt {attempt + 1} of {_ATTEMPTS}", flush=True)
            time.sleep(attempt)
    part.replace(path)


def _transfer(url: str, path: Path) -> None:
    """Continues a file with what is missing at its end."""
    start = path.stat().st_size if path.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # there is nothing beyond the end
            return
        raise
    with response:
        if getattr(response, "status", None) != 206:
            start = 0
        length = response.headers.get("Content-Length")
        with open(path, "ab" if start else "wb") as file:
            shutil.copyfileobj(response, file, _CHUNK_BYTES)
            size = file.tell()
    if length is not None and size < start + int(length):
        raise OSError(f"the connection ended after {size} of {start + int(length)} bytes")


def _check_sums(path: Path, entry: ZooEntry) -> None:
    """Compares a file with the sums that are known, and records one; removes another file."""
    sums = {"SHA-256": hashlib.sha256(), "MD5": hashlib.md5()}
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(_CHUNK_BYTES), b""):
            for digest in sums.values():
                digest.update(chunk)
    record = path.with_name(f"{path.name}.sha256")
    recorded = record.read_text().strip() if record.is_file() else ""
    for kind, expected in (("SHA-256", entry.sha256), ("MD5", entry.md5), ("SHA-256", recorded)):
        found = sums[kind].hexdigest()
        if not found.startswith(expected):
            path.unlink()
            record.unlink(missing_ok=True)
            raise ValueError(
                f"{path} has the {kind} sum {found}, expected {expected}: it was removed, download "
                "it again"
            )
    if not (recorded or entry.is_archive):
        # The folder may be read-only: its files are then only compared with the table.
        with contextlib.suppress(OSError):
            record.write_text(f"{sums['SHA-256'].hexdigest()}\n")


def _unpack(archive: Path, folder: Path) -> None:
    """Unpacks an archive's files; the folder is there only when it is complete."""
    aside = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    budget = Budget(archive.stat().st_size)
    try:
        for name, size, stream in _members(archive):
            place = PurePosixPath(name)
            if place.is_absolute() or ".." in place.parts:
                raise ValueError(f"{name!r} would leave its folder")
            budget.take(size)
            (aside / place).parent.mkdir(parents=True, exist_ok=True)
            with open(aside / place, "wb") as file:
                shutil.copyfileobj(stream, file, _CHUNK_BYTES)
        _checkpoint_in(aside, archive)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, ValueError) as error:
        archive.unlink()
        shutil.rmtree(aside, ignore_errors=True)
        raise ValueError(f"{archive} is damaged ({error}): removed, download it again") from error
    aside.replace(folder)


def _members(archive: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Yields name, size and content of the regular files of an archive."""
    if archive.name.endswith(".zip"):
        with zipfile.ZipFile(archive) as content:
            for item in content.infolist():
                if not item.is_dir():
                    with content.open(item) as stream:
                        yield item.filename, item.file_size, stream
        return
    with tarfile.open(archive) as content:
        for item in content:
            if item.isfile():
                yield item.name, item.size, content.extractfile(item)


def _checkpoint_in(folder: Path, archive: Path) -> Path:
    """Returns the prefix of the one checkpoint, or the folder of the one SavedModel."""
    models = sorted(path.parent for path in folder.rglob("saved_model.pb"))
    prefixes = [path.with_suffix("") for path in sorted(folder.rglob("*.index"))]
    prefixes = [p for p in prefixes if any(p.parent.glob(f"{p.name}.data-*"))]
    found = models or prefixes
    if len(found) != 1:
        files = sorted(path.name for path in folder.rglob("*") if path.is_file())
        raise ValueError(f"{archive.name} holds no checkpoint, or several, but {files[:9]}")
    return found[0]
