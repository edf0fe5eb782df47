"""The trials of a sweep as rows: for the terminal, for JSON, for trials.csv."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from medlight.sweeps.study import INTERRUPTED, history
from medlight.tracking.identity import scrub

STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


@dataclass(frozen=True)
class Row:
    """One trial; ``values`` in the order of the objectives, ``retry_of`` the interrupted trial that it repeats."""

    number: int
    state: str
    values: list[float] | None
    params: dict[str, Any]
    reason: str
    run_id: str
    seconds: float | None
    retry_of: int | None

    def to_dict(self) -> dict[str, Any]:
        """The row for JSON."""
        return asdict(self)


def row(trial: FrozenTrial) -> Row:
    """One trial as a row."""
    failed = trial.state == TrialState.FAIL
    before = history(trial)
    return Row(
        number=trial.number,
        state=STATES[trial.state],
        values=list(trial.values) if trial.values is not None and not failed else None,
        params=dict(trial.params),
        reason=str(trial.user_attrs.get("reason", INTERRUPTED if failed else "")),
        run_id=str(trial.user_attrs.get("run_id", "")),
        seconds=round(trial.duration.total_seconds(), 1) if trial.duration else None,
        retry_of=before[-1] if before else None,
    )


def rows(study: optuna.Study) -> list[Row]:
    """Every trial of a study."""
    return [row(trial) for trial in study.get_trials(deepcopy=False)]


def best(study: optuna.Study) -> list[FrozenTrial]:
    """The best trial; with several objectives those that no other beats in all. Empty before one is complete."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not complete:
        return []
    return study.best_trials if len(study.directions) > 1 else [study.best_trial]


def to_csv(study: optuna.Study, metrics: list[str]) -> str:
    """The trials as CSV, for the run: one column for each objective and parameter; file names are left out."""
    table = rows(study)
    params = sorted({name for each in table for name in each.params})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", *metrics, *params, "seconds", "retry_of", "run_id", "reason"])
    for each in table:
        values: list[Any] = [*each.values] if each.values else [""] * len(metrics)
        found = [each.params.get(name, "") for name in params]
        last: list[Any] = [each.seconds, each.retry_of, each.run_id, scrub(each.reason)]
        writer.writerow([each.number, each.state, *values, *found, *last])
    return text.getvalue()
