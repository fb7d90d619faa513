"""Text that came from data, before a person sees it: one door for terminals, pages and pictures.

Names of categories and files are chosen by others. Signs that a terminal obeys, that end a line or
that turn its direction become their Python escapes, and what is long loses its middle. So a name
can neither clear a screen nor pass for a line of its own, such as `ERROR (rank 0 ...)`.
"""

from __future__ import annotations

from typing import Any

MOST_OF_A_NAME = 200
MOST_OF_A_LINE = 4000
MOST_LINES = 2000

# Joiners, without which some scripts and emoji cannot be written. They show nothing.
_HARMLESS = {0x200C: None, 0x200D: None}
_CONTINUED = "    "


def clean(text: Any, *, most: int = MOST_OF_A_NAME) -> str:
    """Returns one line without control signs, of about `most` characters.

    Escaped are all characters that Unicode does not call printable: line ends, tabs, terminal
    escapes, marks of direction, halves of surrogates (bytes of a file name that are no UTF-8).
    """
    text = str(text)
    if len(text) > most:
        kept = max(most // 2, 1)
        text = f"{text[:kept]}...({len(text):,} characters)...{text[-kept:]}"
    if text.translate(_HARMLESS).isprintable():
        return text
    return "".join(
        sign
        if sign.isprintable() or ord(sign) in _HARMLESS
        else sign.encode("unicode_escape").decode("ascii")
        for sign in text
    )


def counted(number: int, noun: str) -> str:
    """Returns a number of things: `1 object`, `1,234 objects`, `2 classes`."""
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{ending}"


def encodable(text: str) -> str:
    """Returns text that UTF-8 can hold: halves of surrogates (see `clean`) become escapes."""
    return text.encode(errors="backslashreplace").decode()


def clean_lines(text: Any) -> str:
    """Returns a message of several lines, each cleaned; all but the first are indented.

    A line that begins at the margin is thus never one that data have put into a message.
    """
    first, *others = str(text).replace("\r\n", "\n").split("\n")
    lines = [clean(first, most=MOST_OF_A_LINE)]
    for line in others[:MOST_LINES]:
        line = clean(line.replace("\t", _CONTINUED), most=MOST_OF_A_LINE)
        lines.append(line if not line or line.startswith(" ") else _CONTINUED + line)
    if len(others) > MOST_LINES:
        lines.append(f"{_CONTINUED}... and {len(others) - MOST_LINES:,} more lines")
    return "\n".join(lines)
