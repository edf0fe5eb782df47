"""Plots of a comparison as SVG text: readable on a light and on a dark page, nothing loaded from elsewhere."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from medlight.compare.parameters import ABSENT
from medlight.compare.table import Comparison, Row, rank_value

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK = "#010203"  # stands for the page's own text colour
_BEST, _OTHER = "#e8710a", "#4c8bd6"
PALETTE = (_OTHER, "#2e9e6b", "#a463c9", "#0fa3b1", "#c2185b", "#8d6e4f", "#7a8794", "#b5a100")
_FEW_POINTS = 12  # a curve of no more shows where they are
_STYLE = {
    "svg.fonttype": "none",
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#888888",
    "grid.alpha": 0.25,
    "grid.linewidth": 0.7,
}
_WIDTH = 9.6  # inches at 72 points: 691 units of the page


def brief(name: str, length: int = 26) -> str:
    """A name that fits beside a plot: the middle of a long one is left out."""
    if len(name) <= length:
        return name
    tail = (length - 1) // 2
    return f"{name[: length - 1 - tail]}…{name[-tail:]}"


def labels(rows: Sequence[Row]) -> list[str]:
    """A short label for each run; runs of one name are told apart by their ids."""
    names = [row.record.name for row in rows]
    return [
        brief(name) if names.count(name) == 1 else f"{brief(name, 17)} {row.record.run_id[:8]}"
        for name, row in zip(names, rows, strict=True)
    ]


def colours(comparison: Comparison) -> dict[str, str]:
    """The colour of each run (by id) in all plots; where more runs are drawn than there are colours, the best's own."""
    drawn = [row for row in comparison.rows if row.mean or any(row.record.curves.values())]
    others = [row.record.run_id for row in drawn if not row.best]
    few = len(others) <= len(PALETTE)
    found = {run_id: PALETTE[index] if few else _OTHER for index, run_id in enumerate(others)}
    return found | {row.record.run_id: _BEST for row in drawn if row.best}


def distribution(comparison: Comparison) -> str:
    """Box and points of the metric over the cases, a line for each run, best on top; '' without values per case."""
    metric, colour = comparison.metric, colours(comparison)
    found = []
    for row, label in zip(comparison.rows, labels(comparison.rows), strict=True):
        values = row.record.values(metric.base, metric.split) if row.mean else {}
        cases = comparison.cases or list(values)
        kept = [values[case] for case in cases if math.isfinite(values.get(case, math.nan))]
        if kept:
            found.append((label, kept, colour[row.record.run_id]))
    if not found:
        return ""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for position, (_, values, own) in enumerate(found):
            _box(axes, values, position, own)
        axes.set_yticks(range(len(found)), [label for label, _, _ in found])
        axes.set_ylim(len(found) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(f"{metric.name}, one point a case")

    return svg(draw, 0.9 + 0.42 * len(found), "cases")


def _box(axes: Axes, values: list[float], position: int, colour: str) -> None:
    import numpy as np

    axes.boxplot(
        [values],
        positions=[position],
        orientation="horizontal",
        widths=0.55,
        showfliers=False,
        manage_ticks=False,
        boxprops={"color": colour},
        whiskerprops={"color": colour},
        capprops={"color": colour},
        medianprops={"color": colour, "linewidth": 2.2},
    )
    spread = np.random.default_rng(position).uniform(-0.2, 0.2, len(values))  # so that equal values do not hide
    axes.plot(values, position + spread, "o", color=colour, alpha=0.45, markersize=3.2, markeredgewidth=0)


def curves(comparison: Comparison, name: str | None = None) -> str:
    """The validation metric over the steps of every run; '' where none has two points."""
    name = name or f"val/{comparison.metric.base}"
    rows = [row for row in comparison.rows if row.record.curves.get(name)]
    if all(len(row.record.curves[name]) < 2 for row in rows):
        return ""
    colour = colours(comparison)
    few = len(set(colour.values())) == len(colour)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for row, label in zip(rows, labels(rows), strict=True):
            steps, values = zip(*row.record.curves[name], strict=True)
            text = label if few or row.best else None
            dashed = "-" if row.record.complete else "--"
            marker = "o" if len(steps) <= _FEW_POINTS else ""
            width, alpha = (2.2, 1.0) if row.best else (1.3, 0.9 if few else 0.5)
            style: dict[str, Any] = {"color": colour[row.record.run_id], "linewidth": width, "alpha": alpha}
            axes.plot(steps, values, dashed, marker=marker, markersize=4.5, label=text, **style)
        cut = not all(row.record.complete for row in rows)
        axes.set_xlabel("step (dashed: not run to the end)" if cut else "step")
        axes.set_ylabel(name)
        axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))

    return svg(draw, 3.6, "curves")


def parameters(comparison: Comparison) -> str:
    """The score against each hyper-parameter that differs; '' with fewer than three runs or nothing to show."""
    rows = [row for row in comparison.rows if math.isfinite(rank_value(row)) and row.record.complete]
    names = [name for name in comparison.parameters if len({row.params.get(name) for row in rows}) > 1]
    if len(rows) < 3 or not names:
        return ""
    columns = 3
    lines = math.ceil(len(names) / columns)
    colour = colours(comparison)

    def draw(figure: Figure) -> None:
        grid = figure.subplots(lines, columns, squeeze=False, sharey=True)
        for index, axes in enumerate(grid.flat):
            if index >= len(names):
                axes.set_visible(False)
                continue
            _scatter(axes, rows, names[index], colour)
            if index % columns == 0:
                axes.set_ylabel(comparison.metric.name)

    return svg(draw, 2.6 * lines, "parameters")


def _scatter(axes: Axes, rows: Sequence[Row], name: str, colour: Mapping[str, str]) -> None:
    texts = [row.params.get(name, ABSENT) for row in rows]
    places, ticks, logarithmic = _places(texts)
    for row, place in zip(rows, places, strict=True):
        own = colour.get(row.record.run_id, _OTHER)
        axes.plot(place, rank_value(row), "o", color=own, alpha=0.8, markersize=5.5)
    if ticks:
        slanted = len(ticks) > 2
        axes.set_xticks(range(len(ticks)), [brief(text, 16) for text in ticks])
        axes.tick_params(axis="x", labelrotation=30 if slanted else 0, labelrotation_mode="xtick")
        axes.set_xlim(-0.5, len(ticks) - 0.5)
    elif logarithmic:
        axes.set_xscale("log")
        low, high = min(places), max(places)
        axes.set_xlim(low / (high / low) ** 0.08, high * (high / low) ** 0.08)
    axes.tick_params(labelsize=8.5)
    axes.set_xlabel(brief(name, 32))
    axes.margins(y=0.12)


def _places(texts: Sequence[str]) -> tuple[list[float], list[str], bool]:
    """Positions along the axis; tick texts where the values are no numbers; whether the axis is logarithmic."""
    try:
        numbers = [float(text) for text in texts]
    except ValueError:
        ticks = sorted(set(texts), key=lambda t: (t == ABSENT, t))
        return [float(ticks.index(text)) for text in texts], ticks, False
    return numbers, [], min(numbers) > 0 and max(numbers) / min(numbers) >= 20


def svg(draw: Callable[[Figure], None], height: float, prefix: str) -> str:
    """Draw on a figure of its own (no global state, no window) and return its ``<svg>`` element.

    height: in inches. prefix: of the element's ids, another for each plot of a page.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings: Any = {**_STYLE, "svg.hashsalt": prefix}
    with mpl.rc_context(settings):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        stream = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    return _for_page(stream.getvalue(), prefix)


def _for_page(drawn: str, prefix: str) -> str:
    """Cut the file's head, let the page's text colour in, and make ids that no other plot of the page has."""
    body = drawn[drawn.index("<svg") :].strip()
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'(\sid="|url\(#|href="#)', rf"\g<1>{prefix}-", body)
    body = re.sub(
        r'^<svg([^>]*?) width="[^"]*"([^>]*?)>', r"<svg\1\2>", re.sub(r'\sheight="[^"]*pt"', "", body, count=1)
    )
    return body.replace(_INK, "currentColor")
