"""A sweep in the terminal: a bar and a line for each trial that ended; a table at the end."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from medlight.sweeps.rows import Row


class Terminal:
    """Tells a person how a sweep goes: with a live bar in a terminal, else with plain lines.

    Args:
        trials: how many are planned, those of an earlier start included.
        metrics: the objectives' names.
    """

    def __init__(self, console: Console, trials: int, metrics: list[str]) -> None:
        self.console, self.trials, self.metrics = console, trials, metrics
        self.counts: Counter[str] = Counter()
        self.running: set[int] = set()
        self.best = ""
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        self.progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self.task = self.progress.add_task("", total=trials)

    def __enter__(self) -> Terminal:
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def resumed(self, rows: list[Row]) -> None:
        """Count the trials of an earlier start."""
        self.counts.update(row.state for row in rows if row.state in ("complete", "pruned", "failed"))
        self._refresh()

    def started(self, number: int, params: dict[str, Any]) -> None:
        """A trial was started."""
        self.running.add(number)
        self._refresh()

    def ended(self, row: Row, best: list[float] | None) -> None:
        """A trial ended."""
        self.running.discard(row.number)
        self.counts[row.state] += 1
        if best is not None:
            self.best = "  best " + ", ".join(f"{m} {v:.4g}" for m, v in zip(self.metrics, best, strict=True))
        values = "  ".join(f"{m} {v:.4g}" for m, v in zip(self.metrics, row.values or [], strict=False))
        what = row.reason if row.state == "failed" else f"{values}  {_params(row.params)}"
        seconds = f"{row.seconds:.0f} s" if row.seconds is not None else ""
        self.note(f"trial {row.number} {row.state} ({seconds})  {what}")
        self._refresh()

    def note(self, text: str) -> None:
        """A line of its own."""
        self.console.print(escape(text), highlight=False, soft_wrap=True)

    def _refresh(self) -> None:
        finished = sum(self.counts[state] for state in ("complete", "pruned", "failed"))
        parts = [f"{self.counts[state]} {state}" for state in ("complete", "pruned", "failed") if self.counts[state]]
        text = ", ".join([f"{len(self.running)} running", *parts]) + self.best
        self.progress.update(self.task, completed=finished, total=max(self.trials, finished), description=text)


def table(rows: list[Row], metrics: list[str], best: list[int]) -> Table:
    """The trials as a rich table; the best are marked with a star."""
    result = Table(box=None, header_style="bold")
    for name in ("trial", "state", *metrics):
        result.add_column(name, justify="left" if name == "state" else "right")
    result.add_column("parameters", overflow="fold")
    if any(row.reason for row in rows):
        result.add_column("reason", overflow="fold")
    for row in rows:
        values = [f"{value:.4g}" for value in row.values or []]
        cells = [
            f"{'* ' if row.number in best else ''}{row.number}",
            row.state,
            *(values + [""] * len(metrics))[: len(metrics)],
            _params(row.params),
            row.reason,
        ]
        result.add_row(*(escape(cell) for cell in cells[: len(result.columns)]))
    return result


def _params(params: dict[str, Any]) -> str:
    shown = (f"{value:.4g}" if isinstance(value, float) else str(value) for value in params.values())
    return " ".join(f"{name}={value}" for name, value in zip(params, shown, strict=True))
