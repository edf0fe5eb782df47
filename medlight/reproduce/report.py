"""A study's results as plain values: what results.json holds, and what the Markdown and the page are written from."""

from __future__ import annotations

import hashlib
import math
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import medlight
from medlight.compare.records import Record, read
from medlight.reproduce.expected import FILE, Budget, Study
from medlight.reproduce.run import Outcome
from medlight.reproduce.verdict import Judged, Measured, judge
from medlight.tracking import store
from medlight.tracking.identity import scrub
from medlight.tracking.manifest import code_digest, git_state, hardware

POINTS = 50  # of a committed curve
_PACKAGES = ("torch", "lightning", "monai", "torchio", "mlflow", "numpy", "scipy")
Results = dict[str, Any]


def results(
    study: Study, budget: Budget, outcomes: Sequence[Outcome], seeds: int, command: str, parent: str
) -> Results:
    """Judge every expectation by what is done; what is not finished is named."""
    records = {o.run_id: _record(o.run_id) for o in outcomes if o.state == "done" and o.run_id}
    runs: dict[str, list[Measured]] = {}
    for outcome in outcomes:
        if outcome.state == "done" and outcome.run_id:
            record = records[outcome.run_id]
            measured = Measured(outcome.item.seed, record.metrics, record.cases)
            runs.setdefault(outcome.item.variant, []).append(measured)
    judged = [judge(entry, runs, seeds, budget) for entry in study.expected]
    wanted = {metric for entry in study.expected for _, metric in entry.sides}
    rows = [_row(o, records.get(o.run_id or ""), wanted) for o in outcomes]
    git = git_state(study.folder) or {}  # the study may lie elsewhere than the runs
    found = {
        "study": study.name,
        "paper": study.paper,
        "source": study.source,
        "budget": budget,
        "seeds": seeds,
        "state": _state(budget, outcomes, judged),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": command,
        "commit": git.get("commit"),
        "uncommitted": git.get("dirty"),
        "code_digest": code_digest(),
        "files_digest": files_digest(study),
        "versions": {"medlight": medlight.__version__, "python": platform.python_version(), **_versions()},
        "hardware": hardware(),
        "parent_run": parent,
        "verdicts": [each.to_dict() for each in judged],
        "deviations": study.deviations,
        "runs": rows,
    }
    return dict(_finite(found))


def _record(run_id: str) -> Record:
    return read(store.find_run(run_id))


def _state(budget: Budget, outcomes: Sequence[Outcome], judged: Sequence[Judged]) -> str:
    done = sum(outcome.state == "done" for outcome in outcomes)
    failed = sum(outcome.state == "failed" for outcome in outcomes)
    if done < len(outcomes):
        return f"{done} of {len(outcomes)} runs" + (f", {failed} failed" if failed else "")
    return "smoke" if budget == "quick" else "complete"


def _row(outcome: Outcome, record: Record | None, wanted: set[str]) -> dict[str, Any]:
    item = outcome.item
    row: dict[str, Any] = {"variant": item.variant, "seed": item.seed, "state": outcome.state}
    if outcome.reason:
        row["reason"] = scrub(outcome.reason)
    if record is None:
        return row
    monitor = record.monitor or ""
    shown = {n for n in record.metrics if n.startswith("test/") and n.count("/") == 1} | {monitor}
    figures = {name: record.metrics[name] for name in sorted(record.metrics) if name in wanted | shown}
    curve = thinned(record.curves.get(monitor, []), record.mode)
    row |= {"run_id": record.run_id, "minutes": round(outcome.minutes, 2), "figures": figures}
    return {**row, "monitor": monitor, "curve": curve}


def thinned(curve: Sequence[tuple[int, float]], mode: str = "max", points: int = POINTS) -> list[list[float]]:
    """At most so many points of a curve, evenly spread; the first, the last and the best are among them."""
    if len(curve) <= points:
        return [[step, round(value, 5)] for step, value in curve]
    best = (min if mode == "min" else max)(range(len(curve)), key=lambda i: curve[i][1])
    even = {round(i * (len(curve) - 1) / (points - 2)) for i in range(points - 1)}
    return [[curve[i][0], round(curve[i][1], 5)] for i in sorted(even | {best})]


def files_digest(study: Study) -> str:
    """One digest of expected.yaml and of the variants' files: whether the results are of the study as it is now."""
    digest = hashlib.sha256()
    names = {file for variant in study.variants.values() for file in variant.files}
    for name in (FILE, *sorted(names)):
        digest.update(f"{name}\0".encode() + (study.folder / name).read_bytes())
    return digest.hexdigest()[:16]


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _finite(value: Any) -> Any:
    """JSON has no word for what is not a number."""
    if isinstance(value, dict):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
