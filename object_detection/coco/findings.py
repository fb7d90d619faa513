"""What a reader or a conversion corrected and dropped: counted, with examples by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from outside_data.text import clean

_MOST_EXAMPLES = 3
MASK_PREFIX = "mask"
"""What is said of masks starts so; sets converted without masks leave it out."""


class Finding(NamedTuple):
    """One correction or loss.

    is_dropped: left out, rather than corrected.
    what: the same for like cases, such as 'box: no width or no height'.
    where: image file and annotation.
    source_id: of the image; '' where it belongs to none.
    """

    is_dropped: bool
    what: str
    where: str
    source_id: str = ""


class Counts:
    """Findings by kind.

    dropped, corrected: what -> how often.
    examples: what -> the first few places.
    """

    def __init__(self, findings: Iterable[Finding] = ()) -> None:
        self.dropped: Counter[str] = Counter()
        self.corrected: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}
        for finding in findings:
            self.add(finding)

    def drop(self, what: str, where: str) -> None:
        """Counts something that was left out."""
        self.add(Finding(True, what, where))

    def correct(self, what: str, where: str) -> None:
        """Counts something that was changed."""
        self.add(Finding(False, what, where))

    def add(self, finding: Finding) -> None:
        """Counts a finding."""
        (self.dropped if finding.is_dropped else self.corrected)[finding.what] += 1
        self._note(finding.what, [finding.where])

    def merge(self, other: Counts) -> None:
        """Adds the counts of another, which comes after this one."""
        self.dropped.update(other.dropped)
        self.corrected.update(other.corrected)
        for what, places in other.examples.items():
            self._note(what, places)

    def _note(self, what: str, places: Sequence[str]) -> None:
        shown = self.examples.setdefault(what, [])
        shown += map(clean, places[: _MOST_EXAMPLES - len(shown)])


def describe_counts(
    title: str, counts: Mapping[str, int], examples: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    """Yields lines: the title ("dropped"), then how often what was found, and where first.

    `counts` and `examples` as in `Counts`.
    """
    yield f"{title}:" if counts else f"{title}: nothing"
    for what, count in counts.items():
        places = [place for place in examples.get(what, ()) if place]
        shown = "; ".join(places) + ("; ..." if places and count > len(places) else "")
        yield f"  {count:,} x {what}" + (f" ({shown})" if shown else "")
