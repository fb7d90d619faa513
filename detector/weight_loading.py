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

from engine.files.weight_files import WeightFile, read_weight_file
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
      value: of the file; one of another network is left as it is, for `assign` to tell.
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


def load_own(model: tf.keras.Model, path: str) -> LoadReport:
    """Loads all variables of a model from one of our checkpoints, averages where it has both.

    Raises:
      ValueError: it is of another network; nothing was changed.
    """
    file = read_weight_file(path)
    named: list[tuple[str, Translated]] = []
    skipped: dict[str, str] = {}
    for source, array in file.arrays.items():
        copy, _, name = source.partition("/")
        if copy in ("model", "ema"):
            named.append((name, Translated(array, source, copy == "ema")))
        else:
            skipped[source] = "training state"
    found = prefer_averages(named, skipped)
    return assign(file, found, variables_of(model), kept={}, skipped=skipped)


def assign(
    file: WeightFile,
    found: Mapping[str, Translated],
    wanted: Mapping[str, tf.Variable],
    *,
    kept: Mapping[str, str],
    skipped: Mapping[str, str],
    part_of: Callable[[str], str] = first_part,
    is_known: Callable[[str], bool] = bool,
    hint: str = "",
    details: tuple[str, ...] = (),
    also_expected: str = "",
) -> LoadReport:
    """Checks all, then assigns all: each variable must be found, in its shape, but those kept.

    Args:
      file: where the arrays come from.
      found: our name -> array.
      wanted: the variables to fill.
      kept: variables that keep their values, and why.
      skipped: names in the file that are not used, and why.
      part_of: variable -> the part of the model that it is of, its row in the report.
      is_known: whether a name found is that of a variable; one of a part of the model that is
        loaded must then have its place there.
      hint: what is said first of a file of another network.
      details: see `LoadReport`.
      also_expected: names of other programs that would have been understood, as ", or ...".

    Raises:
      ValueError: nothing matched, the file is of another network, or values are not finite; nothing
        was changed.
    """
    missing, problems = dict(kept), []
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
    parts = set(map(part_of, wanted))
    homeless = [
        name for name in found if name not in wanted and part_of(name) in parts and is_known(name)
    ]
    problems += [f"{found[name].source} has no place in the model" for name in homeless]
    loaded = [name for name in wanted if name in found and name not in missing]
    if not loaded:
        some = list(wanted)[:_EXAMPLES]
        expected = ", ".join(f"{name} {tuple(wanted[name].shape)}" for name in some)
        arrays = list(file.arrays.items())[:_EXAMPLES]
        present = ", ".join(f"{clean(name)} {array.shape}" for name, array in arrays)
        raise ValueError(
            f"{file.path} ({file.kind}): none of its {len(file.arrays)} arrays fits the model. "
            f"Expected for example {expected}{also_expected}; found for example {present}."
        )
    if problems:
        problems = [*filter(None, [hint]), *problems]
        fits = parts - {part_of(name) for name in (*missing, *homeless)}
        alone = " Its backbone fits: --backbone_init of train.py takes that alone."
        raise ValueError(
            f"{file.path} ({file.kind}) holds weights of another network: {len(loaded)} of "
            f"{len(wanted)} variables match, but {'; '.join(map(clean, problems[:_EXAMPLES]))}"
            f"{' and others' if len(problems) > _EXAMPLES else ''}. Choose the model the file was "
            f"made with.{alone if 'backbone' in fits else ''}"
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
        missing=missing,
        part_of=part_of,
        details=details,
        note=file.note,
    )
