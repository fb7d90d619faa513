"""Puts named arrays of a file into a model, strictly, and says what went where.

A load either succeeds as a whole or changes nothing. What may differ from file to model without
being an error is the family's matter; kinds of file are that of `engine.files.weight_files`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from engine.files.weight_files import WeightFile
from outside_data.text import clean

# Names that a message gives of many.
_EXAMPLES = 3


class Translated(NamedTuple):
    """One array of a file under our name, in our layout."""

    array: np.ndarray
    source: str  # its name in the file
    is_average: bool = False


def first_part(name: str) -> str:
    """Returns the part of the model that a variable belongs to: the first part of its name."""
    return name.split("/")[0]


def prefer_averages(
    named: Iterable[tuple[str, Translated]], unused: dict[str, str]
) -> dict[str, Translated]:
    """Takes the moving average where a file has both a value and its average.

    Args:
      named: (our name, array) in the file's order; of equals the first is taken.
      unused: gets the names in the file that are not taken, and why.

    Returns:
      {our name: array}.
    """
    chosen: dict[str, Translated] = {}
    for name, value in named:
        known = chosen.get(name)
        if known is not None and (known.is_average or not value.is_average):
            unused[value.source] = f"{known.source} is used"
            continue
        if known is not None:
            unused[known.source] = f"{value.source} is used"
        chosen[name] = value
    return chosen


def with_our_epsilon(
    found: Mapping[str, Translated], *, theirs: float | None, ours: float
) -> dict[str, Translated]:
    """Scales gammas so that another epsilon beneath the root gives the same normalisation.

    Args:
      found: our name -> array; gammas whose variance is there too are corrected.
      theirs: what the file's program adds to variances; None: as ours.
      ours: what the model adds.
    """
    corrected = dict(found)
    if theirs is None:
        return corrected
    for name, value in found.items():
        variance = found.get(f"{name.removesuffix('/gamma')}/moving_variance")
        if not name.endswith("/gamma") or variance is None:
            continue
        spread = variance.array.astype(np.float64)
        is_sound = spread + theirs > 0.0
        ratio = np.where(is_sound, (spread + ours) / np.where(is_sound, spread + theirs, 1), 1)
        gamma = (value.array * np.sqrt(ratio)).astype(np.float32)
        corrected[name] = value._replace(array=gamma)
    return corrected


def pick_classes(
    value: Translated,
    ours: tf.Variable,
    channels: Sequence[int],
    *,
    groups: int = 1,
    width: int = 1,
    has_background: bool = False,
) -> Translated:
    """Picks the model's classes out of a predictor's last axis [groups, classes, width].

    Args:
      value: of the file; one of another network is left as it is, for `compare` to tell.
      ours: the variable that it is for; new classes keep its values.
      channels: for each class of the model its class in the file, -1 if it is new.
      groups: anchors whose classes follow one another.
      width: numbers of each class.
      has_background: the file's last class is kept as the last.

    Raises:
      ValueError: the file has no such class.
    """
    *lead, size = value.array.shape
    if tuple(lead) != tuple(ours.shape[:-1]) or size % (groups * width):
        return value
    by_class = value.array.reshape(*lead, groups, -1, width)
    known = by_class.shape[-2] - has_background
    if min(channels) < -1 or max(channels) >= known:
        raise ValueError(
            f"channels names {min(channels)}..{max(channels)}, but {value.source} has "
            f"{known} classes"
        )
    picks = [*channels, known] if has_background else list(channels)
    picked = by_class[..., picks, :]
    kept = ours.numpy().reshape(picked.shape)
    picked = np.where((np.array(picks) < 0)[:, np.newaxis], kept, picked)
    return value._replace(array=picked.reshape(ours.shape))


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What one load did."""

    path: str
    kind: str  # of file, see engine.files.weight_files
    num_averaged: int  # loaded values that are moving averages
    loaded: tuple[str, ...]  # variables of the model
    skipped: dict[str, str]  # name in the file -> why it was not used
    missing: dict[str, str]  # variable of the model -> why it kept its value
    part_of: Callable[[str], str] = first_part  # variable -> its row in the table
    details: tuple[str, ...] = ()  # what else is known of the file
    note: str = ""  # the file's

    def format_table(self) -> str:
        """Renders the report as a table by part, with examples of what was left out."""
        averaged = f", {self.num_averaged} averaged values" if self.num_averaged else ""
        rows = [f"weights from {self.path} ({self.kind}{averaged})"]
        rows += [f"  {detail}" for detail in (self.note, *self.details) if detail]
        rows.append(f"  {'part':<12}{'loaded':>8}{'missing':>9}")
        for part in dict.fromkeys(map(self.part_of, (*self.loaded, *self.missing))):
            loaded = sum(self.part_of(name) == part for name in self.loaded)
            missing = sum(self.part_of(name) == part for name in self.missing)
            rows.append(f"  {part:<12}{loaded:>8}{missing:>9}")
        rows += _format_examples("kept as initialised", self.missing)
        rows += _format_examples("not used from the file", self.skipped)
        return "\n".join(rows)


def _format_examples(title: str, reasons: Mapping[str, str]) -> list[str]:
    if not reasons:
        return []
    rows = [f"  {title}: {len(reasons)}"]
    for name, reason in list(reasons.items())[:_EXAMPLES]:
        rows.append(f"    {clean(name)}: {clean(reason)}")
    if len(reasons) > _EXAMPLES:
        rows.append(f"    and {len(reasons) - _EXAMPLES} more")
    return rows


def variables_of(model: tf.keras.Model) -> dict[str, tf.Variable]:
    """Returns the variables of a model by name."""
    return {variable.name.removesuffix(":0"): variable for variable in model.variables}


def compare(
    found: Mapping[str, Translated],
    wanted: Mapping[str, tf.Variable],
    *,
    kept: Mapping[str, str],
) -> tuple[dict[str, str], list[str]]:
    """Returns {variable: why it cannot be loaded}, and what of it is a problem, as sentences.

    None is that those in `kept` keep their values, for the reason there.
    """
    missing = dict(kept)
    problems: list[str] = []
    for name, variable in wanted.items():
        shape = tuple(variable.shape)
        if name in kept:
            continue
        if name not in found:
            missing[name] = "not in the file"
            problems.append(f"{name} is not in the file")
        elif found[name].array.shape != shape:
            missing[name] = f"shape {shape} here, {found[name].array.shape} in the file"
            problems.append(f"{name}: {missing[name]}")
    return missing, problems


def assign(
    file: WeightFile,
    found: Mapping[str, Translated],
    wanted: Mapping[str, tf.Variable],
    *,
    missing: Mapping[str, str],
    skipped: Mapping[str, str],
    problems: list[str],
    part_of: Callable[[str], str] = first_part,
    details: tuple[str, ...] = (),
    also_expected: str = "",
) -> LoadReport:
    """Checks all, then assigns all.

    Args:
      file: where the arrays come from.
      found: our name -> array.
      wanted: the variables to fill.
      missing: variables that keep their values, and why.
      skipped: names in the file that are not used, and why.
      problems: what says that the file is of another network; any is an error.
      part_of: variable -> its row in the report.
      details: see `LoadReport`.
      also_expected: see `nothing_matched`.

    Raises:
      ValueError: nothing matched, there are problems, or values are not finite; nothing was
        changed.
    """
    loaded = [name for name in wanted if name in found and name not in missing]
    if not loaded:
        raise nothing_matched(file, wanted, also_expected=also_expected)
    if problems:
        raise ValueError(
            f"{file.path} ({file.kind}) holds weights of another network: {len(loaded)} of "
            f"{len(wanted)} variables match, but {'; '.join(map(clean, problems[:_EXAMPLES]))}"
            f"{' and others' if len(problems) > _EXAMPLES else ''}. Choose the model the file was "
            "made with."
        )
    for name in loaded:
        if not np.all(np.isfinite(found[name].array)):
            raise ValueError(f"{file.path}: {clean(found[name].source)} holds non-finite values.")
    for name in loaded:
        wanted[name].assign(found[name].array.astype(wanted[name].dtype.as_numpy_dtype))
    left = {
        value.source: missing.get(name, "no such variable in the model")
        for name, value in found.items()
        if name in missing or name not in wanted
    }
    return LoadReport(
        path=file.path,
        kind=file.kind,
        num_averaged=sum(found[name].is_average for name in loaded),
        loaded=tuple(loaded),
        skipped={**skipped, **left},
        missing=dict(missing),
        part_of=part_of,
        details=details,
        note=file.note,
    )


def nothing_matched(
    file: WeightFile, wanted: Mapping[str, tf.Variable], *, also_expected: str = ""
) -> ValueError:
    """Returns the error of a file none of whose arrays fits.

    Args:
      file: the file.
      wanted: the variables to fill.
      also_expected: names of other programs that would have been understood, as ", or ...".
    """
    expected = ", ".join(f"{name} {tuple(wanted[name].shape)}" for name in list(wanted)[:_EXAMPLES])
    present = ", ".join(
        f"{clean(name)} {array.shape}" for name, array in list(file.arrays.items())[:_EXAMPLES]
    )
    return ValueError(
        f"{file.path} ({file.kind}): none of its {len(file.arrays)} arrays fits the model. "
        f"Expected for example {expected}{also_expected}; found for example {present}."
    )
