"""What exporters make of the names of image files, undone; and names that differ only in form."""

from __future__ import annotations

import base64
import contextlib
import re
import unicodedata
from collections.abc import Iterator
from urllib.parse import unquote

_URL = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.-]+://[^/]*/([^?#]*)")
_UPLOAD = re.compile(r"^[^?]*/data/local-files/\?(?:.*&)?d=([^&]*)")
_FILE_URI = re.compile(r"^[^?]*\?(?:.*&)?fileuri=([^&]*)")
UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{6,8}-")
"""Label Studio puts it before the name of an uploaded file."""
_DRIVE = re.compile(r"^[a-zA-Z]:(?=[\\/])")


def spellings(name: str) -> Iterator[tuple[str, list[str]]]:
    """Yields what a name may have been before an exporter wrote it, and what was undone."""
    if found := _FILE_URI.match(name):
        with contextlib.suppress(ValueError):  # of what is no base64, or no text
            name = base64.urlsafe_b64decode(unquote(found[1])).decode()
    start = name.strip()
    kinds = ["spaces around it"] * (start != name)
    for pattern in (_UPLOAD, _URL):
        if found := pattern.match(start):
            start = found[1]
            kinds.append("URL")
            break
    for decoding in ([], ["percent-encoding"]):
        text = unquote(start) if decoding else start
        if decoding and text == start:
            return
        yield text, kinds + decoding
        plain = _DRIVE.sub("", text).replace("\\", "/")
        if plain != text:
            yield plain, [*kinds, *decoding, "backslashes"]


def folded(name: str) -> str:
    """Returns a name that is the same for all cases and Unicode forms of it."""
    return unicodedata.normalize("NFC", name).casefold()
