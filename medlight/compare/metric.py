"""What is compared: a metric's name, its split, its direction, and its value for each case."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from medlight.config import nearest
from medlight.errors import UsageError

Split = Literal["val", "test"]
CaseRows = Mapping[str, Mapping[str, float]]  # case id -> column of cases.csv -> value

_LOWER_IS_BETTER = ("loss", "hd95", "hd", "assd", "ece", "error", "mae", "mse", "rmse", "brier", "fpr", "distance")

_NO_SCORES = ("target", "predicted", "probability", "epoch")  # columns of cases.csv that no run is judged by


@dataclass(frozen=True)
class Metric:
    """A metric on one split; ``base`` is its name without the split (``dice``, ``dice/Anterior``).

    ``mode`` is what the task said of it ("min", "max"); where it said nothing the name tells.
    """

    base: str
    split: Split
    mode: str = ""

    @property
    def name(self) -> str:
        """The name it is logged under: ``val/dice``."""
        return f"{self.split}/{self.base}"

    @property
    def lower_is_better(self) -> bool:
        """Whether a smaller value is the better one: losses, errors and distances."""
        if self.mode:
            return self.mode == "min"
        words = self.base.lower().split("/")[0].replace("-", "_").split("_")
        return any(word in _LOWER_IS_BETTER for word in words)


def without_split(name: str) -> str:
    """``val/dice`` -> ``dice``; a name without a split stays."""
    return name.split("/", 1)[1] if name.startswith(("val/", "test/")) else name


def case_values(rows: CaseRows, base: str) -> dict[str, float]:
    """The metric of each case. Empty where cases.csv has none.

    A metric kept per label (columns ``dice/Anterior``, ``dice/Posterior``) is the mean over the labels that have a
    value in the case; accuracy is the share of ``target`` columns that ``predicted`` equals (one, unless multi-label).
    """
    columns = {column for row in rows.values() for column in row}
    if base in columns:
        return {case: row[base] for case, row in rows.items() if base in row}
    labels = sorted(column for column in columns if column.startswith(f"{base}/"))
    if labels:
        return {case: _mean([row[name] for name in labels if name in row]) for case, row in rows.items()}
    if base == "accuracy":
        pairs = [(name, name.replace("target", "predicted", 1)) for name in columns if name.split("/")[0] == "target"]
        hits = {c: [float(row[t] == row[p]) for t, p in pairs if t in row and p in row] for c, row in rows.items()}
        return {case: _mean(own) for case, own in hits.items() if own}
    return {}


def per_case(rows: CaseRows) -> set[str]:
    """Metrics that cases.csv gives for each case: its columns, their means over labels, accuracy."""
    columns = {column for row in rows.values() for column in row}
    scores = {column for column in columns if column.split("/")[0] not in _NO_SCORES}
    scores |= {column.split("/")[0] for column in scores}
    return scores | ({"accuracy"} if case_values(rows, "accuracy") else set())


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def choose(
    asked: str | None, monitors: Sequence[str], logged: Sequence[set[str]], tested: bool, modes: Mapping[str, str] = {}
) -> Metric:
    """Pick the metric: the one asked for, else what the runs monitored, else the first that all have logged.

    Parameters
    ----------
    asked:
        ``--metric``: ``val/dice``, or ``dice`` for the test split where all runs have it and validation elsewhere.
    monitors:
        What each run chose its best epoch by, as far as known.
    logged:
        The names that each run has (with split).
    tested:
        Whether all runs have test cases.
    modes:
        "min" or "max" for the metrics (without split) whose task said so.

    Raises
    ------
    UsageError
        No run has that metric; the nearest name is told.
    """
    known = set().union(*logged) if logged else set()
    name = asked or next((m for m in monitors if m in known), None) or _first_common(logged)
    base = without_split(name)
    if asked and asked != base:
        split: Split = "test" if asked.startswith("test/") else "val"
    else:
        split = "test" if tested and f"test/{base}" in known else "val"
    metric = Metric(base, split, modes.get(base, ""))
    if metric.name not in known:
        names = sorted(known | {without_split(n) for n in known})
        listing = ", ".join(sorted(n for n in known if n.count("/") == 1)) or "none"
        raise UsageError(f"--metric {name}: no run has it{nearest(name, names)}; there are {listing}")
    return metric


def _first_common(logged: Iterable[set[str]]) -> str:
    names = list(logged)
    common = set.intersection(*names) if names else set()
    for base in ("dice", "auroc", "accuracy", "f1", "loss"):
        if f"val/{base}" in common or f"test/{base}" in common:
            return base
    if not common:
        raise UsageError("the runs have no metric in common; name one of theirs with --metric")
    return min(common, key=lambda name: (name.count("/"), name))
