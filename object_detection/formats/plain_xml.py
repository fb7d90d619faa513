"""Reads XML that comes from strangers: a document that defines entities is refused.

Entities are all that makes XML dangerous to parse (expansion without end, files of this machine),
and no annotation tool writes any.
"""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from outside_data.files import open_file, read_file

_ENCODING = re.compile(rb"""<\?xml[^>]*?encoding=["']([\w.-]+)""")
_OF_EXPAT = (b"utf-8", b"utf-16", b"iso-8859-1", b"us-ascii")  # it knows no others
_ROOT_TAG = re.compile(rb"<([A-Za-z_][\w.-]*)[\s>/]")


def parse_xml(path: Path) -> Element:
    """Returns the root element of an XML file.

    Raises:
      ValueError: it is no well-formed XML, or defines an entity; names file and line.
    """
    data, encoding = read_file(path), None
    if (declared := _ENCODING.match(data)) and declared[1].lower() not in _OF_EXPAT:
        try:
            data, encoding = data.decode(declared[1].decode()).encode(), "utf-8"
        except (LookupError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not in the encoding that it states: {error}") from error
    builder = TreeBuilder()
    parser = expat.ParserCreate(encoding)
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data

    def refuse(*_: object) -> None:
        raise ValueError(
            f"{path}: line {parser.CurrentLineNumber} defines an entity, which no annotation tool "
            "does and which can fill the memory: refused. Remove the DOCTYPE from the file"
        )

    parser.EntityDeclHandler = refuse
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, UnicodeDecodeError, LookupError) as error:
        raise ValueError(f"{path} is no well-formed XML: {error}") from error
    return builder.close()


def root_tag(path: Path) -> str:
    """Returns the name of an XML file's first element by its first bytes; "" if there is none."""
    with open_file(path, most=None) as file:
        found = _ROOT_TAG.search(file.read(4096).replace(b"\0", b""))
    return found[1].decode() if found else ""


def number(node: Element, where: str, path: Path) -> float:
    """Returns the number in a child element, or in an attribute (`@name`).

    Raises:
      ValueError: there is none; names the file and the place.
    """
    text = node.get(where[1:]) if where.startswith("@") else node.findtext(where)
    try:
        return float(text)
    except (TypeError, ValueError):
        raise ValueError(f"{path}: <{node.tag}> has {where}={text!r}: expected a number") from None
