"""The comparison of runs: who is best, by how much, on which cases, and how sure that is."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from medlight.compare.metric import Metric, choose, per_case, without_split
from medlight.compare.notes import notes
from medlight.compare.parameters import differing
from medlight.compare.records import Record, Selection
from medlight.compare.stats import MINIMUM_PAIRS, Estimate, Paired, estimate, holm, paired


@dataclass(frozen=True)
class Row:
    """One run in the table. ``paired`` and ``p`` (Holm-corrected) are against the best run; ``why`` says what lacks."""

    record: Record
    params: dict[str, str]
    score: float | None
    mean: Estimate | None = None
    paired: Paired | None = None
    p: float | None = None
    why: str = ""
    best: bool = False


@dataclass(frozen=True)
class Comparison:
    """All rows, best first, then the runs that did not end; ``notes`` say how far the figures may be trusted."""

    metric: Metric
    rows: list[Row]
    cases: list[str]
    notes: list[str]
    sweeps: list[str]

    @property
    def parameters(self) -> list[str]:
        """Names of the hyper-parameters that differ."""
        return list(dict.fromkeys(name for row in self.rows for name in row.params))

    @property
    def metrics(self) -> list[str]:
        """Metrics of the whole run, first the one compared, those per label last."""
        names = {n for row in self.rows for n in row.record.metrics if n.startswith(("val/", "test/"))}
        return sorted(names, key=lambda n: (n != self.metric.name, n.count("/") > 1, n))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; what is not known is null."""
        found = {
            "metric": self.metric.name,
            "lower_is_better": self.metric.lower_is_better,
            "cases": self.cases,
            "sweeps": self.sweeps,
            "notes": self.notes,
            "runs": [_row_dict(row) for row in self.rows],
        }
        return dict(for_json(found))


def compare(selection: Selection, asked: str | None = None, seed: int = 0) -> Comparison:
    """Compare runs on one metric.

    Only runs that ended enter the statistics: a pruned trial was trained for fewer steps. All means are over the
    cases that every one of them has; where there is no such case, each is over its own and nothing is paired.

    Raises
    ------
    UsageError
        The metric exists in no run.
    """
    measured = [record for record in selection.records if record.names()]
    done = [record for record in selection.records if record.complete] or measured or selection.records
    tested = all(record.cases.get("test") for record in done)
    modes = {without_split(r.monitor): r.mode for r in done if r.monitor and r.mode}
    metric = choose(asked, [r.monitor for r in done if r.monitor], [r.names() for r in done], tested, modes)
    values = {r.run_id: r.values(metric.base, metric.split) for r in done}
    kept = [v for v in values.values() if v]
    common = sorted(set.intersection(*(set(v) for v in kept))) if kept else []
    changing = differing([record.params for record in selection.records])
    params = {record.run_id: own for record, own in zip(selection.records, changing, strict=True)}
    rows = _ranked([_row(r, params[r.run_id], metric, values[r.run_id], common, seed) for r in done], metric)
    rows = _against_best(rows, values, common, seed)
    others = [r for r in selection.records if r not in done]
    others.sort(key=lambda r: (r.state, r.started))
    rows += [_row(r, params[r.run_id], metric, {}, [], seed, "not compared") for r in others]
    said = notes(
        metric,
        case_ids=[set(values[r.run_id]) for r in done],
        alternatives=", ".join(sorted(set.intersection(*(per_case(r.cases.get(metric.split, {})) for r in done)))),
        common=len(common),
        tests=sum(row.p is not None for row in rows),
        listed=len(others),
        complete=done[0].complete,
        fewest=min((e.n for row in rows for e in _estimates(row)), default=None),
    )
    return Comparison(metric, rows, common, said, selection.sweeps)


def _row(
    record: Record,
    params: dict[str, str],
    metric: Metric,
    values: dict[str, float],
    common: list[str],
    seed: int,
    why: str = "",
) -> Row:
    mean = estimate([values[case] for case in (common or sorted(values))], seed) if values else None
    return Row(record, params, record.metrics.get(metric.name), mean, why=why)


def rank_value(row: Row) -> float:
    """What a run is ranked by: its mean over the cases, else the value it logged (nan: none)."""
    if row.mean and row.mean.n:
        return row.mean.mean
    return row.score if row.score is not None else math.nan


def _estimates(row: Row) -> list[Estimate]:
    return [found for found in (row.mean, row.paired.difference if row.paired else None) if found and found.n]


def _ranked(rows: list[Row], metric: Metric) -> list[Row]:
    sign = 1 if metric.lower_is_better else -1
    with_cases = any(row.mean and row.mean.n for row in rows)

    def key(row: Row) -> tuple[bool, bool, float, int]:
        value = rank_value(row)
        known = math.isfinite(value)
        return (
            not known,
            with_cases and not (row.mean and row.mean.n),
            sign * value if known else 0,
            row.record.started,
        )

    return sorted(rows, key=key)


def _against_best(rows: list[Row], values: dict[str, dict[str, float]], common: list[str], seed: int) -> list[Row]:
    best, *others = rows
    reference = values[best.record.run_id]
    compared = []
    for row in others:
        own = values[row.record.run_id]
        if not own or not reference:
            compared.append(replace(row, why="no values per case"))
        elif not common:
            compared.append(replace(row, why="no case in common"))
        else:
            found = paired([own[c] for c in common], [reference[c] for c in common], seed)
            why = "" if found.p is not None else f"{found.difference.n} pairs, {MINIMUM_PAIRS} needed"
            compared.append(replace(row, paired=found, why=why))
    tested = [row.paired.p for row in compared if row.paired and row.paired.p is not None]
    corrected = iter(holm(tested))
    return [replace(best, best=len(rows) > 1)] + [
        replace(row, p=next(corrected)) if row.paired and row.paired.p is not None else row for row in compared
    ]


def _row_dict(row: Row) -> dict[str, Any]:
    record = row.record
    return {
        "run_id": record.run_id,
        "name": record.name,
        "state": record.state,
        "reason": record.reason,
        "best": row.best,
        "parameters": row.params,
        "metrics": record.metrics,
        "mean": asdict(row.mean) if row.mean else None,
        "difference": asdict(row.paired.difference) if row.paired else None,
        "p": row.paired.p if row.paired else None,
        "p_holm": row.p,
        "no_p_because": row.why or None,
    }


def for_json(value: Any) -> Any:
    """A copy with null for every number that is not finite: JSON has neither NaN nor infinity."""
    if isinstance(value, dict):
        return {key: for_json(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [for_json(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
