"""Recorded runs, read back from MLflow into plain values."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from medlight.compare.metric import Split, case_values, per_case, without_split
from medlight.errors import MedlightError, UsageError

if TYPE_CHECKING:
    from mlflow.entities import Run

Curve = list[tuple[int, float]]
_STATES = {"FINISHED": "complete", "SCHEDULED": "waiting", "KILLED": "stopped"}  # others: their name, in small


@dataclass(frozen=True)
class Record:
    """One run: what it was (params), how it went (curves over steps) and what it reached (metrics, cases).

    ``metrics`` are those of the best epoch by ``monitor``, whose better direction is ``mode`` ("min", "max").
    ``cases`` maps split -> case id -> column -> value.
    """

    run_id: str
    name: str
    state: str
    reason: str = ""
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    monitor: str | None = None
    mode: str = ""
    curves: dict[str, Curve] = field(default_factory=dict)
    cases: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    started: int = 0

    @property
    def complete(self) -> bool:
        """Whether it ran to its end, so that its scores may be set against others."""
        return self.state == "complete"

    def names(self) -> set[str]:
        """Every metric it has, per run or per case, with its split."""
        found = {name for name in self.metrics if name.startswith(("val/", "test/"))}
        for split, rows in self.cases.items():
            found |= {f"{split}/{base}" for base in per_case(rows)}
        return found

    def values(self, base: str, split: Split) -> dict[str, float]:
        """The metric of each case of a split; empty where it was not kept per case."""
        return case_values(self.cases.get(split, {}), base)


@dataclass(frozen=True)
class Selection:
    """The runs to compare, and the sweep that they came from if one was named."""

    records: list[Record]
    sweeps: list[str]


def collect(texts: Sequence[str]) -> Selection:
    """Read the runs named by ids, unique prefixes or names; a sweep stands for its trials.

    Raises
    ------
    UsageError
        A text that names no run or several, or a sweep without trials.
    """
    from medlight.tracking import store

    found: dict[str, Run] = {}
    sweeps: list[str] = []
    for text in texts:
        run = store.find_run(text)
        if run.data.tags.get("medlight.kind") != "sweep":
            found[run.info.run_id] = run
            continue
        trials = [child for child in store.children(run.info.run_id) if child.data.tags.get("medlight.kind") == "trial"]
        if not trials:
            raise UsageError(f"{text}: this sweep has no trials yet")
        sweeps.append(run.data.tags.get("medlight.name") or run.info.run_name)
        found.update((trial.info.run_id, trial) for trial in trials)
    return Selection([read(run) for run in found.values()], sweeps)


def read(run: Run) -> Record:
    """Read one run with its curves and its cases."""
    from medlight.tracking import store

    run_id, tags = run.info.run_id, run.data.tags
    client = store.client()
    names = [name for name in run.data.metrics if name.startswith(("train/", "val/", "test/"))]
    curves = {name: _curve(client.get_metric_history(run_id, name)) for name in names}
    usual = next((name for name in ("val/dice", "val/auroc", "val/loss") if name in curves), None)
    monitor = tags.get("medlight.monitor") or usual
    state = tags.get("medlight.state") or _STATES.get(run.info.status, run.info.status.lower())
    return Record(
        run_id=run_id,
        name=tags.get("medlight.name") or run.info.run_name or run_id[:8],
        state=state,
        reason=tags.get("medlight.reason", ""),
        params={**run.data.params, **_settled(run)},
        metrics=at_best(curves, monitor, tags.get("medlight.mode", "")),
        monitor=monitor,
        mode=tags.get("medlight.mode", ""),
        curves=curves,
        cases=_cases(run_id),
        started=run.info.start_time or 0,
    )


def _settled(run: Run) -> dict[str, str]:
    """What ``auto`` came to in a run, in its parameters' place: two runs with one configuration may differ in it."""
    found = {name: run.data.tags.get(f"medlight.{name}") for name in ("precision", "channels_last")}
    return {name: value for name, value in found.items() if value and run.data.params.get(name) == "auto"}


def _curve(points: Iterable[object]) -> Curve:
    """Points by step; of several at one step (a run that was resumed) the newest."""
    ordered = sorted(points, key=lambda p: (p.step, p.timestamp))  # type: ignore[attr-defined]
    return sorted({p.step: p.value for p in ordered}.items())  # type: ignore[attr-defined]


def at_best(curves: dict[str, Curve], monitor: str | None, mode: str = "") -> dict[str, float]:
    """Each metric at the step where the monitored one was best; the last value where it has none there."""
    from medlight.compare.metric import Metric

    last = {name: curve[-1][1] for name, curve in curves.items() if curve}
    points = [(step, value) for step, value in curves.get(monitor or "", []) if math.isfinite(value)]
    if not points or monitor is None:
        return last
    sign = 1 if Metric(without_split(monitor), "val", mode).lower_is_better else -1
    step = min(points, key=lambda point: sign * point[1])[0]
    return {
        name: next((v for s, v in reversed(curve) if s <= step), last[name]) if name.startswith("val/") else last[name]
        for name, curve in curves.items()
        if curve
    }


def _cases(run_id: str) -> dict[str, dict[str, dict[str, float]]]:
    from medlight.tracking import store

    try:
        file = store.artifact(run_id, "cases.csv")
    except MedlightError:  # a run that has no such table
        return {}
    return read_cases(file) if file.is_file() else {}


def read_cases(file: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Read cases.csv: a row per case with ``case_id``, ``split`` and columns of numbers (others are left out)."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    with file.open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            numbers = {name: _number(text) for name, text in row.items() if name not in ("case_id", "split")}
            kept = {name: value for name, value in numbers.items() if value is not None}
            table.setdefault(row.get("split") or "val", {})[row["case_id"]] = kept
    return table


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else math.nan
    except ValueError:
        return None
