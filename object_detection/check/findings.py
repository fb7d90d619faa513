"""Findings of the data check, and the page and the JSON that are made of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from outside_data.text import MOST_OF_A_LINE, clean

LEVELS = ("error", "warning", "note")
"""error: a training on it is lost; warning: it costs score; note: worth knowing."""

_MOST_EXAMPLES = 5


@dataclasses.dataclass
class CheckFinding:
    """One kind of fault of one split.

    Attributes:
      level: one of LEVELS.
      code: short name of the fault, the same in every set.
      split: its split, or those concerned; "" for the set as a whole.
      what: a sentence with the numbers.
      remedy: a sentence on what to do.
      count: how many boxes, images or classes; by default as many as there are examples, or 1.
      examples: image file and annotation, of which the first few are kept.
    """

    level: str
    code: str
    split: str
    what: str
    remedy: str
    count: int = 0
    examples: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Makes texts fit to be shown."""
        self.split = clean(self.split)
        self.what = clean(self.what, most=MOST_OF_A_LINE)
        self.remedy = clean(self.remedy, most=MOST_OF_A_LINE)
        self.count = int(self.count) or len(self.examples) or 1
        self.examples = tuple(map(clean, self.examples[:_MOST_EXAMPLES]))


@dataclasses.dataclass(frozen=True)
class Report:
    """All findings, errors first, and what the splits hold.

    splits: name to {"images": ..., "objects": ..., ...}.
    """

    findings: Sequence[CheckFinding]
    splits: Mapping[str, Mapping[str, Any]]
    anchors: Mapping[str, Any]

    @property
    def errors(self) -> list[CheckFinding]:
        """The findings that should stop a training."""
        return [item for item in self.findings if item.level == "error"]

    @property
    def counts(self) -> dict[str, int]:
        """Level to how many findings have it."""
        return {level: sum(f.level == level for f in self.findings) for level in LEVELS}

    def to_json(self) -> dict[str, Any]:
        """Returns what is written as JSON."""
        return {
            "counts": self.counts,
            "splits": self.splits,
            "anchors": self.anchors,
            "findings": [dataclasses.asdict(item) for item in self.findings],
        }

    def describe(self) -> str:
        """Returns the page."""
        lines = [
            f"{clean(name)}: " + ", ".join(f"{value:,} {key}" for key, value in facts.items())
            for name, facts in self.splits.items()
        ]
        if self.anchors:
            lines.append(self.anchors["summary"])
        for item in self.findings:
            where = f" [{item.split}]" if item.split else ""
            lines += ["", f"{item.level.upper()} {item.code}{where}: {item.what}"]
            lines += [f"    {example}" for example in item.examples]
            lines.append(f"  -> {item.remedy}")
        counts = ", ".join(f"{count} {level}s" for level, count in self.counts.items())
        return "\n".join([*lines, "", f"CHECK {counts}"])
