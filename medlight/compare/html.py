"""The comparison as one HTML page: tables that sort, plots inside, no request to anywhere."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from importlib import resources
from string import Template
from typing import Any

from medlight.compare import plots
from medlight.compare.notes import NO_INTERVAL
from medlight.compare.parameters import shown
from medlight.compare.records import Record
from medlight.compare.stats import Estimate
from medlight.compare.table import Comparison, Row
from medlight.compare.text import NONE, bounds, number, p_value, state, without_interval

_WHAT = {
    "distribution": "Score of each case",
    "curves": "Validation over the fit",
    "parameters": "Score against hyper-parameters",
}


def page(comparison: Comparison) -> str:
    """Return the page of a comparison."""
    metric = comparison.metric
    title = f"{', '.join(comparison.sweeps)}: {metric.name}" if comparison.sweeps else f"Comparison: {metric.name}"
    direction = "lower is better" if metric.lower_is_better else "higher is better"
    subtitle = f"{len(comparison.rows)} runs, {len(comparison.cases)} {metric.split} cases in common, {direction}"
    figures = {
        "distribution": plots.distribution(comparison),
        "curves": plots.curves(comparison),
        "parameters": plots.parameters(comparison),
    }
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in comparison.notes)
    body = _scores(comparison) + f"<ul class='soft'>{notes}</ul>"
    body += "".join(
        f"<h2>{_WHAT[name]}</h2><figure role='img' aria-label='{_WHAT[name]}'>{svg}</figure>"
        for name, svg in figures.items()
        if svg
    )
    return fill(title, subtitle, body + _metrics(comparison))


def summary_page(record: Record, splits: dict[str, list[dict[str, Any]]]) -> str:
    """Return the page of one run: its metrics over its cases (as ``summary`` gives them)."""
    body = ""
    for split, lines in splits.items():
        head = [("metric", False), ("mean", True), ("n", True), ("median", True), ("min", True), ("max", True)]
        rows = []
        for line in lines:
            mean = Estimate(line["mean"], line["low"], line["high"], line["n"])
            cells = [text_cell(line["metric"], "name"), _estimate(mean), number_cell(line["n"])]
            cells += [number_cell(line[key]) for key in ("median", "min", "max")]
            rows.append(("", [*cells, text_cell(line["worst_case"])]))
        body += f"<h2>{split} cases</h2>" + table([*head, ("worst case", False)], rows)
    if without_interval(splits):
        body += f"<ul class='soft'><li>{html.escape(NO_INTERVAL)}</li></ul>"
    return fill(record.name, f"run {record.run_id}, {state(Row(record, {}, None))}", body)


def fill(title: str, subtitle: str, body: str) -> str:
    """Return a whole page around a body of HTML; title and subtitle are plain text."""
    template = Template(resources.files("medlight.compare").joinpath("page.html").read_text(encoding="utf-8"))
    return template.substitute(title=html.escape(title), subtitle=html.escape(subtitle), body=body)


def _scores(comparison: Comparison) -> str:
    head = [("run", False), ("state", False), (f"{comparison.metric.name}", True), ("difference to best", True)]
    head += [("p (Holm)", True), ("n", True)] + [(name, False) for name in comparison.parameters]
    rows = []
    for row in comparison.rows:
        pairs = row.paired.difference if row.paired else None
        size = pairs or row.mean
        mean = _estimate(row.mean) if row.mean and row.mean.n else number_cell(row.score)
        cells = [_name(row), text_cell(state(row)), mean, _estimate(pairs), _p(row)]
        cells += [number_cell(size.n if size else None)]
        cells += [text_cell(shown(row.params.get(name, NONE))) for name in comparison.parameters]
        rows.append((_kind(row, comparison), cells))
    return table(head, rows)


def _metrics(comparison: Comparison) -> str:
    names = comparison.metrics
    if not names:
        return ""
    head = [("run", False)] + [(name, True) for name in names]
    rows = [
        (_kind(row, comparison), [_name(row), *(number_cell(row.record.metrics.get(name)) for name in names)])
        for row in comparison.rows
    ]
    return "<h2>All metrics at each run's best epoch, as logged</h2>" + table(head, rows)


def _kind(row: Row, comparison: Comparison) -> str:
    if row.best:
        return "best"
    listed = not row.record.complete and any(other.record.complete for other in comparison.rows)
    return "listed" if listed else ""


def table(head: Sequence[tuple[str, bool]], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Return a table that sorts: columns (name, whether numbers), rows (class, cells as HTML)."""

    # Names hold no spaces: a break is allowed where a person would make one.
    def breakable(name: str) -> str:
        escaped = html.escape(name)
        return escaped.replace("/", "/<wbr>").replace(".", ".<wbr>").replace("_", "_<wbr>")

    heads = "".join(
        f"<th{' class=number' if is_number else ''}><button type='button'>{breakable(name)}</button></th>"
        for name, is_number in head
    )
    body = "".join(f"<tr class='{kind}'>{''.join(cells)}</tr>" for kind, cells in rows)
    return f"<div class='scroll'><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"


def text_cell(text: str, kind: str = "") -> str:
    """Return a cell of text."""
    kinds = f"{kind} long" if max(map(len, text.split()), default=0) > 22 else kind
    return f"<td class='{kinds.strip()}'>{html.escape(text)}</td>"


def _name(row: Row) -> str:
    name, run_id = html.escape(row.record.name), html.escape(row.record.run_id[:8])
    return f"<td class='name long' data-sort='{name}'>{name}<small><code>{run_id}</code></small></td>"


def number_cell(value: float | None) -> str:
    """Return a cell of a number; a dash for none."""
    known = value is not None and math.isfinite(value)
    shown = str(value) if isinstance(value, int) else number(value)
    return f"<td class='number' data-sort='{value if known else ''}'>{shown}</td>"


def _estimate(found: Estimate | None) -> str:
    if found is None or not found.n:
        return number_cell(None)
    ends = f"<small>{bounds(found, ' to ')}</small>"
    return f"<td class='number' data-sort='{found.mean}'>{number(found.mean)}{ends}</td>"


def _p(row: Row) -> str:
    key = row.p if row.p is not None else ""
    return f"<td class='number' data-sort='{key}'>{html.escape(p_value(row))}</td>"
