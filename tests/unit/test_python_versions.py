"""Python 3.9 runs all of it: what only later versions take is not asked of the standard library.

Type checkers have forgotten Python 3.9. Names and arguments that it lacks show at import; these
forms show only when they run.
"""

from __future__ import annotations

import ast

import pytest
from own_files import ROOT, own_files

# Functions of `traceback` that took type, value and trace apart before 3.10.
_OF_AN_EXCEPTION = {"format_exception": 3, "print_exception": 3, "format_exception_only": 2}


def too_new(source: str) -> list[int]:
    """Returns the lines of forms that Python 3.9 refuses."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Subscript) and getattr(node.value, "attr", "") == "parents":
            # `Path.parents` takes slices and negative numbers from 3.10 on.
            is_new = isinstance(node.slice, (ast.Slice, ast.UnaryOp))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            is_new = len(node.args) < _OF_AN_EXCEPTION.get(node.func.attr, 0)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
            is_new = isinstance(node.args[1], ast.BinOp)  # A | B
        else:
            is_new = False
        if is_new:
            lines.append(node.lineno)
    return lines


def test_no_program_asks_for_what_python_39_lacks():
    found = {
        path.relative_to(ROOT).as_posix(): lines
        for path in own_files("**/*.py")
        if (lines := too_new(path.read_text(encoding="utf-8")))
    }
    assert found == {}


@pytest.mark.parametrize(
    "source",
    ["p.parents[:3]", "p.parents[-1]", "traceback.format_exception(e)", "isinstance(a, int | str)"],
)
def test_the_forms_are_told(source):
    assert too_new(source) == [1]
    assert (
        too_new("p.parents[1], traceback.format_exception(type(e), e, t), isinstance(a, int)") == []
    )
