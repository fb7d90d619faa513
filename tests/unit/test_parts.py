"""Every nightly test runs once a week, and whenever it is named."""

from pathlib import Path

import parts
import pytest


class Item:
    """As much of a test as is looked at: its name and its marks."""

    def __init__(self, name: str, **marks: tuple):
        self.path = Path("tests/unit/test_x.py")
        self.nodeid = f"{self.path}::{name}"
        self.marks = {mark: getattr(pytest.mark, mark)(*a).mark for mark, a in marks.items()}

    def get_closest_marker(self, name: str):
        return self.marks.get(name)


ITEMS = [
    Item("test_plain"),
    *(Item(f"test_variant[{i}]", nightly=()) for i in range(20)),
    *(Item(f"test_of_a_group[{i}]", nightly=("group",)) for i in range(3)),
]


def taken(day: int, *arguments: str) -> list:
    left_out = parts.not_due(ITEMS, day=day, arguments=arguments)
    return [item for item in ITEMS if item not in left_out]


def test_each_day_has_its_share_and_a_week_has_all():
    week = [taken(day) for day in range(738000, 738007)]
    assert all(items[0] is ITEMS[0] for items in week)
    # Twenty variants and one group of three: three of 21 each day.
    assert sorted(len(items) - 1 for items in week) == [3] * 6 + [5]
    assert all(sum(item in items for items in week) == 1 for item in ITEMS[1:])
    assert sum(ITEMS[-1] in items and ITEMS[-2] in items for items in week) == 1


def test_what_is_named_runs_on_any_day():
    for day in range(7):
        assert ITEMS[5] in taken(day, "unit/test_x.py::test_variant[4]")
        assert ITEMS[5] in taken(day, "tests/unit/test_x.py::test_variant")


def test_quick_is_what_has_no_other_mark():
    assert parts.is_quick(ITEMS[0]) and not parts.is_quick(ITEMS[1])
    assert not parts.is_quick(Item("test_a", slow=()))
