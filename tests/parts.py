"""The parts of the tests: what is quick, and which of the nightly ones a day's run takes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

# A run takes one in so many of the nightly tests, others each day: all have run after a week.
NIGHTLY_PARTS = 7
# Files of which only what is marked itself is quick: they build networks and compile programs.
THOROUGH = (
    *("test_benchmarks", "test_efficientdet_backbone", "test_efficientdet_input_pipeline"),
    *("test_efficientdet_model", "test_maskrcnn_backbone", "test_maskrcnn_input_pipeline"),
    *("test_maskrcnn_model", "test_maskrcnn_task", "test_maskrcnn_weights"),
    *("test_canvas_choice", "test_host_batches"),
)
# The longest files, which are begun first where files run side by side.
LONGEST = ("test_slurm", "test_rank_equality", "test_maskrcnn", "test_scripts", "test_bad_input")


def place_of(item) -> int:
    """Returns where a test's file comes: the longest, others with commands, all else."""
    if item.path.stem in LONGEST:
        return LONGEST.index(item.path.stem)
    return len(LONGEST) + ("integration" not in item.path.parts)


def is_quick(item) -> bool:
    """Returns whether a test belongs to the quick part without being marked."""
    slow = any(item.get_closest_marker(name) for name in ("slow", "multi", "nightly", "gpu"))
    return not slow and "integration" not in item.path.parts and item.path.stem not in THOROUGH


def day() -> int:
    """Returns the day's number, which chooses the part of the nightly tests."""
    return int(os.environ["RINGDET_TESTS_DAY"])


def takes_all_nightly(config) -> bool:
    """Returns whether the command line or RINGDET_TESTS=all asks for the nightly tests."""
    return "nightly" in config.option.markexpr or os.environ.get("RINGDET_TESTS") == "all"


def not_due(items: Iterable, *, day: int, arguments: Sequence[str]) -> set:
    """Returns the nightly tests that are not due and that no argument names one by one.

    Those of one group, the argument of their marker, are due together.
    """

    def function(node_id: str) -> str:
        return node_id.rpartition("/")[2].partition("[")[0]

    def group_of(item) -> str:
        (*group,) = item.get_closest_marker("nightly").args
        return group[0] if group else item.nodeid

    named = {function(argument) for argument in arguments if "::" in argument}
    nightly = [
        item
        for item in items
        if item.get_closest_marker("nightly") and function(item.nodeid) not in named
    ]
    groups = sorted({group_of(item) for item in nightly})
    due = groups[day % NIGHTLY_PARTS :: NIGHTLY_PARTS]
    return {item for item in nightly if group_of(item) not in due}
