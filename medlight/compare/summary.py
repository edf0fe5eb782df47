"""One run on its own: its metrics over its cases."""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict
from typing import Any

from medlight.compare.metric import Metric, Split
from medlight.compare.records import Record
from medlight.compare.stats import estimate
from medlight.errors import UsageError


def summary(record: Record, seed: int = 0) -> dict[str, list[dict[str, Any]]]:
    """Each metric of cases.csv over its cases, by split: mean with interval, median, range and the worst case.

    Raises
    ------
    UsageError
        The run has no values per case.
    """
    found = {}
    for split in ("val", "test"):
        names = {name.split("/", 1)[1] for name in record.names() if name.startswith(f"{split}/")}
        ordered = sorted(names, key=lambda name: (name.split("/")[0], name))
        lines = [_line(record, "test" if split == "test" else "val", name, seed) for name in ordered]
        found[split] = [line for line in lines if line]
    if not any(found.values()):
        raise UsageError(f"{record.run_id}: this run has no values per case (cases.csv); name another run beside it")
    return {split: lines for split, lines in found.items() if lines}


def _line(record: Record, split: Split, base: str, seed: int) -> dict[str, Any] | None:
    values = {case: value for case, value in record.values(base, split).items() if math.isfinite(value)}
    if not values:
        return None
    mode = record.mode if record.monitor == f"val/{base}" else ""
    worst = (max if Metric(base, split, mode).lower_is_better else min)(values, key=lambda case: values[case])
    return {
        "metric": base,
        **asdict(estimate(list(values.values()), seed)),
        "median": statistics.median(values.values()),
        "min": min(values.values()),
        "max": max(values.values()),
        "worst_case": worst,
    }
