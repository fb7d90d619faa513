"""Reads what others wrote: regular files only, up to a size; JSON and YAML within bounds.

Every reader here ends in one of two ways when it cannot give what was asked for. `OSError` (mostly
`FileNotFoundError`): there is no such file, or it must not be opened. `BadFileError`: it was read
and is not what it should be. Both name the file and say what to do. Python's parsers raise more
than that: of deep nesting RecursionError, of numbers with megabytes of digits ValueError.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from outside_data.text import clean

MOST_JSON_BYTES = 4 << 30
"""Of an annotation file; COCO's largest has 0.5 GB."""
MOST_SMALL_BYTES = 64 << 20
"""Of a card, of a checkpoint's description, of annotations that are a file for each image."""
MOST_YAML_BYTES = 512 << 10
"""Of a recipe, a label map, a catalog."""
MOST_YAML_NODES = 200_000
"""Of a YAML file with its aliases written out."""

_OF_FILE_SYSTEMS = ("lost+found", "System Volume Information")
_COPY_AGAIN = "If it was cut short, copy or download it again"


class BadFileError(ValueError):
    """A file of others that is not what it should be; names it, says where and what to do."""


@contextlib.contextmanager
def open_file(
    path: str | os.PathLike[str], *, most: int | None = MOST_SMALL_BYTES
) -> Iterator[BinaryIO]:
    """Opens a regular file for reading its bytes.

    Args:
      path: a file; links are followed.
      most: bytes beyond which it is not opened; None: any.

    Raises:
      FileNotFoundError: there is no such file, or no file can have this name.
      OSError: it is a pipe, a device or a folder, or cannot be read.
      BadFileError: it is larger than `most`.
    """
    shown = clean(os.fspath(path))
    try:
        # Opening a pipe would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise FileNotFoundError(f"no file {shown} (looked from {os.getcwd()})") from None
    except ValueError as error:
        raise FileNotFoundError(f"{shown}: no file can have this name ({error})") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{shown}: not a regular file: only such are read; name a file")
        if most is not None and status.st_size > most:
            raise BadFileError(
                f"{shown}: {status.st_size:,} bytes, more than the {most:,} that are read of such "
                "a file: is it the right one?"
            )
        with open(descriptor, "rb", closefd=False) as file:
            yield file
    except OSError as error:
        if error.errno and error.filename is None:  # the disk failed while it was read
            raise OSError(error.errno, error.strerror, shown) from error
        raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def open_as_utf8(
    path: str | os.PathLike[str], *, most: int | None = MOST_SMALL_BYTES
) -> Iterator[BinaryIO]:
    """Opens a text as `open_file` does, for reading it as UTF-8 bytes, whatever it is stored in."""
    with open_file(path, most=most) as file:
        encoding = text_encoding(file.read(4))
        file.seek(0)
        is_utf8 = encoding.startswith("utf-8")
        yield file if is_utf8 else codecs.EncodedFile(file, "utf-8", encoding, "replace")


def read_file(path: str | os.PathLike[str], *, most: int = MOST_SMALL_BYTES) -> bytes:
    """Returns the bytes of a regular file; `path`, `most` and errors as of `open_file`."""
    with open_file(path, most=most) as file:
        return file.read()


def read_text(path: str | os.PathLike[str], *, most: int = MOST_SMALL_BYTES) -> str:
    """Returns the text of a file of `text_encoding`; raises as `read_file`."""
    data = read_file(path, most=most)
    try:
        return data.decode(text_encoding(data))
    except UnicodeDecodeError as error:
        raise _no_text(path, error) from None


def _no_text(path: str | os.PathLike[str], error: UnicodeDecodeError) -> BadFileError:
    return BadFileError(
        f"{clean(path)}: no UTF-8 text ({error}): unpack it if it is an archive, else save it as "
        "UTF-8"
    )


def text_encoding(head: bytes) -> str:
    """Returns the encoding that a text's first four bytes tell: UTF-8, or UTF-16 or UTF-32.

    Windows' shell writes UTF-16. Of a mark none gives it as a part of the text; without one, zeros
    beside the first letters tell, as Python reads JSON.
    """
    return json.detect_encoding(head)


def read_json(path: str | os.PathLike[str], *, most: int = MOST_SMALL_BYTES) -> Any:
    """Returns what a JSON file holds; raises as `read_file`."""
    return parse_json(read_file(path, most=most), path)


def parse_json(data: bytes | str, path: str | os.PathLike[str]) -> Any:
    """Returns what JSON text means.

    Args:
      data: as `text_encoding` tells.
      path: the file, for messages.

    Raises:
      BadFileError: it is no text, no JSON, too deep, or has numbers of too many digits.
    """
    try:
        return json.loads(data)
    except UnicodeDecodeError as error:
        raise _no_text(path, error) from None
    except RecursionError:
        what = "its brackets are nested too deeply to be read"
    except MemoryError:
        what = f"this machine has not the memory to hold it ({len(data):,} bytes as text)"
    except ValueError as error:
        what = clean(error)
    raise BadFileError(f"{clean(path)} is no valid JSON: {what}. {_COPY_AGAIN}")


class _Loader(yaml.SafeLoader):
    """Reads 1e-4 and 1.5e3 as numbers, as YAML 1.2 does; YAML 1.1 asks for a point and a sign."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    [*"-+.0123456789"],
)


def read_yaml(path: str | os.PathLike[str], *, as_text: bool = False) -> Any:
    """Returns what a YAML file holds, aliases resolved; raises as `read_file`.

    Values are numbers, dates and so on (`on` is true), or with `as_text` the text that is written.
    Aliases that would multiply beyond MOST_YAML_NODES are refused before anything is built, and so
    is a key that stands twice in one mapping.
    """
    text = read_text(path, most=MOST_YAML_BYTES)
    try:
        loader = yaml.BaseLoader(text) if as_text else _Loader(text)
        try:
            root = loader.get_single_node()
            if root is None:
                return None
            num_nodes = _expanded_nodes(root, {})
            if num_nodes <= MOST_YAML_NODES:
                return loader.construct_document(root)
            what = f"{num_nodes:,} values with its aliases written out, of {MOST_YAML_NODES:,}"
        finally:
            loader.dispose()
    except RecursionError:
        what = "it is nested too deeply to be read, or contains itself"
    except Exception as error:  # PyYAML lets errors of numbers, dates and keys through as they come
        what = clean(" ".join(str(error).split()), most=500)
    raise BadFileError(f"{clean(path)}: not readable as YAML: {what}. Correct it or remove it")


def _expanded_nodes(node: yaml.Node, known: dict[int, int]) -> int:
    """Returns how many nodes a node stands for; `known` is of those whose count is complete."""
    if id(node) not in known:
        parts: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            _require_single_keys(node)
            parts = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            parts = node.value
        known[id(node)] = 1 + sum(_expanded_nodes(part, known) for part in parts)
    return known[id(node)]


def _require_single_keys(node: yaml.MappingNode) -> None:
    """Raises yaml.MarkedYAMLError for a key that stands twice: YAML would take the later value."""
    seen = set()
    for key in [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]:
        if key.value in seen and key.value != "<<":
            what = f"key {key.value!r} stands twice"
            raise yaml.MarkedYAMLError(problem=what, problem_mark=key.start_mark)
        seen.add(key.value)


@contextlib.contextmanager
def expecting(path: str | os.PathLike[str], what: str) -> Iterator[None]:
    """Around what reads a file's content: errors that do not name it become a `BadFileError`.

    That says what was expected in the file, or the folder of files, and what to do without.
    """
    try:
        yield
    except BadFileError:
        raise
    except Exception as error:
        is_named = os.fspath(path) in str(error)
        if isinstance(error, OSError) and is_named:
            raise
        if isinstance(error, ValueError) and is_named:
            raise BadFileError(str(error)) from error
        found = f"{type(error).__name__}: {clean(error)}"
        raise BadFileError(f"{clean(path)}: expected {what}; found something else ({found})") from (
            error
        )


def walk(
    root: str | os.PathLike[str], *, follow_links: bool
) -> Iterator[tuple[str, list[str], list[str]]]:
    """Goes through a folder as `os.walk`, to which unreadable folders would just be empty.

    Raises:
      OSError: a folder cannot be read. A hidden one in it, and what file systems keep for
        themselves, is passed over.
    """

    def refuse(error: OSError) -> None:
        name = os.path.basename(error.filename)
        is_spare = name.startswith(".") or name in _OF_FILE_SYSTEMS
        if not is_spare or error.filename == os.fspath(root):
            raise error

    yield from os.walk(root, followlinks=follow_links, onerror=refuse)


def regular_file(path: str | os.PathLike[str]) -> Path | None:
    """Returns the path if a regular file is there; a name that no file can have is none."""
    try:
        return Path(path) if os.path.isfile(path) else None
    except ValueError:
        return None
