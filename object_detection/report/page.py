"""The page of a report: one HTML file that needs nothing else, for light and dark, wide and small.

Whatever comes from data (names of classes, files, settings) is escaped here, where it becomes HTML.
"""

from __future__ import annotations

import base64
import html
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from object_detection.report.charts import COLORS
from outside_data.text import MOST_OF_A_LINE, clean

_DARK = {
    "ink": "#e6e9ef",
    "faint": "#8c95a6",
    "grid": "#2b3342",
    "accent": "#6ea0ff",
    "second": "#ff8a5c",
    "third": "#4fd39a",
    "fourth": "#c792f5",
    "fifth": "#e3b341",
    "sixth": "#f783ac",
}
_LIGHT_PAGE = {"paper": "#f5f7fa", "card": "#ffffff", **COLORS}
_DARK_PAGE = {"paper": "#10141b", "card": "#181e28", **_DARK}

_STYLE = """
:root { color-scheme: light dark; LIGHT }
@media (prefers-color-scheme: dark) { :root { DARK } }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif }
main, header > div, nav > div { max-width: 1180px; margin: 0 auto; padding: 0 16px }
header { padding: 28px 0 8px }
h1 { font-size: 25px; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere }
h2 { font-size: 19px; margin: 36px 0 8px } section { scroll-margin-top: 52px }
p { margin: 4px 0 12px; max-width: 78ch } .faint { color: var(--faint) }
nav { position: sticky; top: 0; background: var(--paper); border-bottom: 1px solid var(--grid);
  z-index: 2 }
nav > div { display: flex; gap: 18px; overflow-x: auto; white-space: nowrap; padding: 10px 16px }
a { color: var(--accent); text-decoration: none } a:hover { text-decoration: underline }
.grid { display: grid; gap: 14px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px),
  1fr)) }
.tiles { display: grid; gap: 10px; margin: 16px 0;
  grid-template-columns: repeat(auto-fit, minmax(128px, 1fr)) }
.card { background: var(--card); border: 1px solid var(--grid); border-radius: 10px;
  padding: 12px 14px; min-width: 0 }
.tile b { display: block; font-size: 25px; line-height: 1.2 } .tile span { color: var(--faint) }
svg { width: 100%; height: auto; display: block }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
.scroll > table { width: 100% }
th, td { padding: 4px 7px; text-align: right; border-bottom: 1px solid var(--grid) }
th { font-weight: 600; color: var(--faint); white-space: nowrap }
th:first-child, td:first-child, .text { text-align: left; max-width: 40ch;
  overflow-wrap: break-word }
td + td.text { min-width: 17ch } .sortable td:first-child { min-width: 15ch }
table.confusion th + th { text-align: center }
table.sortable th { cursor: pointer }
table.confusion td { text-align: center; min-width: 44px }
td.bar { background: linear-gradient(90deg, color-mix(in srgb, var(--accent) 24%, transparent)
  var(--share), transparent var(--share)) no-repeat }
figure { margin: 0; cursor: zoom-in } figure img { width: 100%; display: block; border-radius: 6px }
.whole { grid-column: 1 / -1 }
figcaption { padding: 0 0 8px; overflow-wrap: anywhere }
.pair { display: grid; gap: 6px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 240px),
  1fr)) }
.wide { display: grid; gap: 14px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 520px),
  1fr)) }
.key { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin: 0 4px 0 12px }
details { margin: 8px 0 } summary { cursor: pointer }
pre { overflow-x: auto; font-size: 12.5px; line-height: 1.45; margin: 8px 0 }
footer { padding: 28px 16px; text-align: center; color: var(--faint) }
@media (max-width: 500px) { body { font-size: 14px } h1 { font-size: 20px }
  .tile b { font-size: 21px } th, td { padding: 4px 6px } }
"""

_SORT = """
for (const head of document.querySelectorAll("table.sortable th")) head.onclick = () => {
  const column = head.cellIndex, body = head.closest("table").tBodies[0];
  const up = head.dataset.up = head.dataset.up === "1" ? "" : "1";
  const value = row => row.cells[column].textContent, rows = [...body.rows];
  const order = (a, b) => { const x = parseFloat(value(a)), y = parseFloat(value(b));
    return isNaN(x) && isNaN(y) ? value(a).localeCompare(value(b))
      : (isNaN(x) ? -1 : x) - (isNaN(y) ? -1 : y); };
  rows.sort((a, b) => up ? order(b, a) : order(a, b)); body.append(...rows);
};
for (const figure of document.querySelectorAll("figure"))
  figure.onclick = () => figure.closest(".card").classList.toggle("whole");
"""


def escape(value: Any) -> str:
    """Returns a value as text that is safe between tags and in quoted attributes."""
    return html.escape(clean(value, most=MOST_OF_A_LINE), quote=True)


def page(title: str, subtitle: str, sections: Sequence[tuple[str, str, str]], foot: str) -> str:
    """Returns the whole file.

    Args:
      title, subtitle: text.
      sections: (id, heading, HTML); what has no HTML is left out.
      foot: text.
    """
    shown = [section for section in sections if section[2]]
    style = _STYLE.replace("LIGHT", _variables(_LIGHT_PAGE)).replace("DARK", _variables(_DARK_PAGE))
    links = "".join(f'<a href="#{name}">{escape(heading)}</a>' for name, heading, _ in shown)
    body = "".join(
        f'<section id="{name}"><h2>{escape(heading)}</h2>{content}</section>\n'
        for name, heading, content in shown
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body>\n"
        f'<header><div><h1>{escape(title)}</h1><div class="faint">{escape(subtitle)}</div></div>'
        f"</header>\n<nav><div>{links}</div></nav>\n<main>\n{body}</main>\n"
        f"<footer>{escape(foot)}</footer><script>{_SORT}</script></body></html>\n"
    )


def _variables(colors: Mapping[str, str]) -> str:
    return " ".join(f"--{name}: {value};" for name, value in colors.items())


def tiles(values: Iterable[tuple[str, str]]) -> str:
    """Returns large numbers side by side, from (what, value)."""
    cells = (
        f'<div class="card tile"><b>{escape(value)}</b><span>{escape(what)}</span></div>'
        for what, value in values
    )
    return f'<div class="tiles">{"".join(cells)}</div>'


def cards(contents: Iterable[str], kind: str = "grid") -> str:
    """Returns HTML contents side by side."""
    inside = "".join(f'<div class="card">{content}</div>' for content in contents)
    return f'<div class="{kind}">{inside}</div>'


def paragraph(text: str) -> str:
    """Returns a paragraph of text."""
    return f"<p>{escape(text)}</p>"


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    bars: Iterable[int] = (),
    sort: bool = True,
) -> str:
    """Returns a table; numbers as percent with a decimal, `-` where there is none.

    Args:
      head: names of the columns.
      rows: text, whole numbers, or fractions (NaN and below 0: unknown).
      bars: columns of fractions that are shown as bars too.
      sort: whether a click on a name sorts.
    """
    bars = set(bars)
    lines = [
        "<tr>" + "".join(_cell(value, column in bars) for column, value in enumerate(row)) + "</tr>"
        for row in rows
    ]
    first = next(iter(rows), ())
    names = "".join(
        f"<th{_kind_of(value)}>{escape(name)}</th>"
        for name, value in itertools.zip_longest(head, first, fillvalue="")
    )
    return (
        f'<div class="scroll"><table{" class=sortable" if sort else ""}><thead><tr>{names}</tr>'
        f"</thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _cell(value: Any, is_bar: bool) -> str:
    if not isinstance(value, float):
        return f"<td{_kind_of(value)}>{escape(value)}</td>"
    if is_bar and value >= 0:
        return f'<td class="bar" style="--share:{100 * value:.1f}%">{percent(value)}</td>'
    return f"<td>{percent(value)}</td>"


def _kind_of(value: Any) -> str:
    """Returns the attribute of a cell: text is aligned on the left, numbers on the right."""
    is_number = str(value) == "-" or str(value).replace(".", "", 1).isdecimal()
    is_text = isinstance(value, str) and not is_number
    return ' class="text"' if is_text else ""


def percent(fraction: float) -> str:
    """Returns a fraction in percent with a decimal, `-` for NaN and below 0."""
    return f"{100 * fraction:.1f}" if fraction >= 0 else "-"


def plain(number: float) -> str:
    """Returns a number with two decimals, `-` for NaN."""
    return "-" if math.isnan(number) else f"{number:.2f}"


def confusion_table(counts: np.ndarray, names: Sequence[str]) -> str:
    """Returns a table of counts shaded by the share of their row; names are those of both sides."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    rows = []
    for name, row, share in zip(names, counts.tolist(), shares):
        cells = "".join(
            f'<td style="background:color-mix(in srgb, var(--accent) {62 * part:.0f}%, transparent)'
            f'" title="{100 * part:.1f}% of {escape(name)}">{count or ""}</td>'
            for count, part in zip(row, share)
        )
        rows.append(f"<tr><th>{escape(name)}</th>{cells}</tr>")
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    return (
        f'<div class="scroll"><table class="confusion"><thead><tr><th>annotated \\ detected</th>'
        f"{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def image(jpeg: bytes, alternative: str) -> str:
    """Returns a picture with its bytes inside."""
    data = base64.b64encode(jpeg).decode("ascii")
    return f'<img loading="lazy" alt="{escape(alternative)}" src="data:image/jpeg;base64,{data}">'


def key(colors: Iterable[tuple[str, tuple[int, int, int]]]) -> str:
    """Returns what colours mean, from (meaning, colour)."""
    keys = (
        f'<span class="key" style="background:rgb{color}"></span>{escape(meaning)}'
        for meaning, color in colors
    )
    return f"<p>{''.join(keys)}</p>"


def folded(summary: str, text: str) -> str:
    """Returns preformatted text that a click unfolds."""
    lines = "\n".join(map(escape, text.split("\n")))
    return f"<details><summary>{escape(summary)}</summary><pre>{lines}</pre></details>"
