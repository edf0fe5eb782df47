"""Results as one HTML page: the verdicts, ours beside what was published, the validation curves."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from medlight.compare.html import fill, number_cell, table, text_cell
from medlight.compare.plots import PALETTE, brief, svg
from medlight.compare.text import NONE, number
from medlight.reproduce import markdown
from medlight.reproduce.verdict import RULE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
_COLUMNS = 2
_COLOURS = {
    "reproduced": "#2e9e6b",
    "claim holds": "#2e9e6b",
    "not reproduced": "#c2185b",
    "claim fails": "#c2185b",
}
_NEUTRAL = "#7a8794"


def page(results: Row) -> str:
    """Return results.html."""
    subtitle = (
        f"{results['paper']} – {markdown.counted(results['seeds'])}, budget {results['budget']}, {results['date']}"
    )
    body = _verdicts(results["verdicts"]) + _figure("Ours beside what was published", intervals(results["verdicts"]))
    body += _figure("Validation over the fits", curves(results["runs"]))
    for title, texts in (
        ("Deviations from the paper", results["deviations"]),
        ("The rule", [text.replace("*", "") for text in RULE]),
    ):
        if texts:
            body += (
                f"<h2>{title}</h2><ul class='soft'>{''.join(f'<li>{html.escape(text)}</li>' for text in texts)}</ul>"
            )
    body += "<h2>Runs</h2>" + _runs(results["runs"])
    body += f"<h2>How it was made</h2><p class='soft'><code>{html.escape(results['command'])}</code></p>"
    return fill(f"{results['study']}: expected and found", subtitle, body)


def _figure(title: str, drawn: str) -> str:
    return f"<h2>{title}</h2><figure role='img' aria-label='{title}'>{drawn}</figure>" if drawn else ""


def _verdicts(rows: Sequence[Row]) -> str:
    head = [("expected", False), ("published", False), ("ours", True), ("sd", True), ("seeds", True)]
    head += [("95 % interval", False), ("p", False), ("verdict", False), ("source", False)]
    found = []
    for row in rows:
        ours = row["ours"]
        colour = _COLOURS.get(row["verdict"], _NEUTRAL)
        badge = f"<td><b style='color:{colour}'>{html.escape(row['verdict'])}</b></td>"
        parts = [text_cell(markdown.what(row), "name"), text_cell(markdown.published(row)), number_cell(ours["mean"])]
        parts += [number_cell(ours["sd"]), number_cell(len(ours["per_seed"])), text_cell(markdown.interval(ours))]
        found.append(("", [*parts, text_cell(markdown.p_value(ours)), badge, text_cell(row["source"] or NONE)]))
    return table(head, found)


def _runs(runs: Sequence[Row]) -> str:
    names = sorted({name for run in runs for name in run.get("figures", {})})
    head = [("run", False), ("state", False), ("MLflow run", False), ("minutes", True), *((n, True) for n in names)]
    rows = []
    for run in runs:
        state = f"{run['state']}: {run['reason']}" if run.get("reason") else run["state"]
        cells = [text_cell(f"{run['variant']}-seed{run['seed']}", "name"), text_cell(state)]
        cells += [text_cell(run.get("run_id", NONE)[:12]), f"<td class='number'>{markdown.minutes(run)}</td>"]
        rows.append(("", cells + [number_cell((run.get("figures") or {}).get(name)) for name in names]))
    return table(head, rows)


def intervals(rows: Sequence[Row]) -> str:
    """Ours less what was published (of a claim: the difference), with interval, seeds and tolerance; '' for none."""
    drawn = [row for row in rows if row["ours"]["per_seed"]]
    if not drawn:
        return ""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for place, row in enumerate(drawn):
            _interval(axes, place, row)
        axes.axvline(0, color="#888888", linewidth=1)
        axes.set_yticks(range(len(drawn)), [_label(row) for row in drawn], fontsize=9)
        axes.set_ylim(len(drawn) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("ours less published, or the claim's difference (bar: tolerance; dots: seeds; line: 95 %)")

    return svg(draw, 0.9 + 0.5 * len(drawn), "intervals")


def _label(row: Row) -> str:
    """What is expected; a claim on two lines."""
    return "\n> ".join(brief(side, 44) for side in markdown.what(row).split(" > "))


def _interval(axes: Axes, place: int, row: Row) -> None:
    ours, colour = row["ours"], _COLOURS.get(row["verdict"], _NEUTRAL)
    zero = row.get("value", 0.0)
    if "value" in row:
        axes.barh(place, 2 * row["tolerance"], left=-row["tolerance"], height=0.6, color="#4c8bd6", alpha=0.18)
    if ours["low"] is not None:
        axes.plot([ours["low"] - zero, ours["high"] - zero], [place, place], color=colour, linewidth=2)
    seeds = [value - zero for value in ours["per_seed"].values()]
    axes.plot(seeds, [place] * len(seeds), "o", color=colour, alpha=0.5, markersize=4, markeredgewidth=0)
    axes.plot(ours["mean"] - zero, place, "D", color=colour, markersize=6)


def curves(runs: Sequence[Row]) -> str:
    """The monitored metric of every run, a panel for each metric, a colour for each variant; '' where there is none."""
    found = [run for run in runs if len(run.get("curve", [])) > 1]
    monitors = list(dict.fromkeys(run["monitor"] for run in found))
    if not found:
        return ""
    names = list(dict.fromkeys(run["variant"] for run in found))
    colour = {name: PALETTE[index % len(PALETTE)] for index, name in enumerate(names)}

    def draw(figure: Figure) -> None:
        panels = figure.subplots(len(monitors), 1, squeeze=False)[:, 0]
        for axes, monitor in zip(panels, monitors, strict=True):
            told: set[str] = set()
            for run in (run for run in found if run["monitor"] == monitor):
                steps, values = zip(*run["curve"], strict=True)
                label = None if run["variant"] in told else run["variant"]
                told.add(run["variant"])
                axes.plot(steps, values, color=colour[run["variant"]], linewidth=1.2, alpha=0.8, label=label)
            axes.set_xlabel("step")
            axes.set_ylabel(monitor)
            axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))

    return svg(draw, 3.2 * len(monitors), "fits")


def summary(results: Row) -> str:
    """One line of all verdicts: ``3 reproduced, 1 undecided``."""
    words = [row["verdict"] for row in results["verdicts"]]
    return ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words)) or number(None)
