"""The comparison in a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING, Any

from medlight.compare.notes import NO_INTERVAL
from medlight.compare.parameters import shown
from medlight.compare.stats import Estimate
from medlight.compare.table import Comparison, Row

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

NONE = "–"
_LARGE = 100_000  # columns; where no terminal cuts the lines, they are as long as they are


def number(value: float | None) -> str:
    """Four significant figures for small values, fewer decimals for large ones; a dash for none."""
    if value is None or not math.isfinite(value):
        return NONE
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.4g}"


def interval(found: Estimate | None) -> str:
    """``0.8812 [0.8701, 0.8903]`` of an estimate; a dash for none, and for the interval where it has none."""
    if found is None or not found.n:
        return NONE
    return f"{number(found.mean)} [{bounds(found)}]"


def bounds(found: Estimate, between: str = ", ") -> str:
    """The ends of an interval, or a dash where too few cases give none."""
    return f"{number(found.low)}{between}{number(found.high)}" if math.isfinite(found.low) else NONE


def p_value(row: Row) -> str:
    """The corrected p, or why there is none."""
    if row.best:
        return "best"
    if row.p is None:
        return row.why or NONE
    return "< 0.0001" if row.p < 0.0001 else f"{row.p:.4f}"


def state(row: Row) -> str:
    """``pruned: below the median at step 3``."""
    return f"{row.record.state}: {row.record.reason}" if row.record.reason else row.record.state


def console(stream: IO[str] | None = None) -> Console:
    """A console that cuts nothing where the output is no terminal."""
    from rich.console import Console

    probe = Console(file=stream, highlight=False)
    return probe if probe.is_terminal else Console(file=stream, highlight=False, width=_LARGE, color_system=None)


def print_comparison(comparison: Comparison, stream: IO[str] | None = None) -> None:
    """Print the table and its notes, with as many columns as the terminal has room for."""
    from rich.measure import Measurement

    out = console(stream)
    headline = [name for name in comparison.metrics if name.count("/") == 1]
    free = out.options.update(max_width=_LARGE)
    candidates = [_wide(comparison, headline), _wide(comparison, [])]
    fitting = (table for table in candidates if Measurement.get(out, free, table).maximum <= out.width)
    _print(out, next(fitting, None) or _narrow(comparison))
    for note in comparison.notes:
        out.print(f"- {note}", markup=False)


def _print(out: Console, table: Table) -> None:
    """Print a table; where no terminal shows it, without the blanks that fill its lines."""
    if out.is_terminal:
        out.print(table)
        return
    with out.capture() as captured:
        out.print(table)
    out.file.writelines(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def _new_table(title: str, columns: Sequence[tuple[str, bool]]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for name, is_number in columns:
        table.add_column(name, justify="right" if is_number else "left", overflow="fold")
    return table


def _title(comparison: Comparison) -> str:
    arrow = "lower is better" if comparison.metric.lower_is_better else "higher is better"
    return f"{comparison.metric.name} ({arrow}), {len(comparison.cases)} cases in common"


def _wide(comparison: Comparison, headline: list[str]) -> Table:
    parameters = comparison.parameters
    columns = [(name, False) for name in ("run", "id", "state", *parameters)]
    columns += [("mean [95 % interval]", True), ("n", True), ("difference to best", True), ("p (Holm)", True)]
    table = _new_table(_title(comparison), columns + [(name, True) for name in headline])
    for row in comparison.rows:
        cells = [row.record.name, row.record.run_id[:8], state(row)]
        cells += [shown(row.params.get(name, NONE)) for name in parameters]
        cells += [interval(row.mean), _size(row), interval(_difference(row)), p_value(row)]
        cells += [number(row.record.metrics.get(name)) for name in headline]
        table.add_row(*map(_escape, cells), style="bold" if row.best else None)
    return table


def _narrow(comparison: Comparison) -> Table:
    columns = [("run", False), ("parameters", False), ("mean [95 %]", True), ("to best [95 %]", True)]
    table = _new_table(_title(comparison), columns)
    for row in comparison.rows:
        known = {name: value for name, value in row.params.items() if value != NONE}
        cells = [f"{row.record.name}\n{row.record.run_id[:8]}, {state(row)}"]
        cells += ["\n".join(f"{name} {shown(value)}" for name, value in known.items()) or NONE]
        cells += [f"{interval(row.mean)}\nn = {_size(row)}".replace(" [", "\n[") if row.mean else number(row.score)]
        about = f"p = {p_value(row)}".replace("= <", "<") if row.p is not None else p_value(row)
        cells += [f"{interval(_difference(row))}\n{about}".replace(" [", "\n[") if row.paired else about]
        table.add_row(*map(_escape, cells), style="bold" if row.best else None, end_section=True)
    return table


def _difference(row: Row) -> Estimate | None:
    return row.paired.difference if row.paired else None


def _size(row: Row) -> str:
    size = _difference(row) or row.mean
    return str(size.n) if size else NONE


def print_summary(name: str, splits: dict[str, list[dict[str, Any]]], stream: IO[str] | None = None) -> None:
    """Print one run's metrics over its cases."""
    out = console(stream)
    columns = [("metric", False), ("mean [95 % interval]", True), ("n", True), ("median", True), ("min", True)]
    columns += [("max", True), ("worst case", False)]
    for split, lines in splits.items():
        table = _new_table(_escape(f"{name}: {split} cases"), columns)
        for line in lines:
            mean = Estimate(line["mean"], line["low"], line["high"], line["n"])
            cells = [line["metric"], interval(mean), str(line["n"])]
            cells += [number(line[key]) for key in ("median", "min", "max")]
            table.add_row(*map(_escape, [*cells, line["worst_case"]]))
        _print(out, table)
    if without_interval(splits):
        out.print(f"- {NO_INTERVAL}", markup=False)


def without_interval(splits: dict[str, list[dict[str, Any]]]) -> bool:
    """Whether one of a run's metrics is over too few cases for an interval."""
    return any(not math.isfinite(line["low"]) for lines in splits.values() for line in lines)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
