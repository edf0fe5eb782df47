"""A sweep's own MLflow run: the search space, what became of the trials, the best of them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import optuna
import yaml
from mlflow.entities import Param

from medlight.sweeps import plots, rows
from medlight.sweeps.spec import Sweep
from medlight.tracking import store
from medlight.tracking.identity import scrub
from medlight.tracking.logger import MLflowLogger

log = logging.getLogger("medlight.sweeps")


class Record:
    """The parent run; a tracking server that goes away stops neither the sweep nor its record.

    Args:
        run_id: the run of a sweep that is resumed.
    """

    def __init__(self, sweep: Sweep, run_id: str | None) -> None:
        self.sweep = sweep
        self.logger = MLflowLogger(sweep.study, sweep.name, kind="sweep", run_id=run_id)
        self.run_id = self.logger.run_id
        self._late: list[Callable[[], None]] = []
        self._writer = ThreadPoolExecutor(1)  # a slow server doesn't hold the trials up

    def start(self, resolved: dict[str, Any], digest: str) -> None:
        """Write down what is searched."""
        sweep = self.sweep
        self.logger.set_tags({"medlight.state": "running", "medlight.config_digest": digest})
        objectives = ", ".join(f"{each.direction} {each.metric}" for each in sweep.objectives)
        sampler, pruner = (spec["class_path"] if spec else "none" for spec in (sweep.sampler, sweep.pruner))
        searched = {f"space.{path}": _short(value) for path, value in sweep.written["space"].items()}
        own = {"objectives": objectives, "sampler": sampler, "pruner": pruner, "seed": sweep.seed}
        self.logger.log_params({**own, **searched})
        self.logger.log_text(yaml.safe_dump(sweep.written["space"], sort_keys=False), "space.yaml")
        self.logger.log_text(yaml.safe_dump(dict(sweep.written), sort_keys=False), "sweep.yaml")
        self.logger.log_text(yaml.safe_dump(resolved, sort_keys=False), "config.yaml")

    def child(self, number: int) -> str:
        """The run of a trial, if it came to have one."""
        try:
            found = store.runs(f"tags.`mlflow.parentRunId` = '{self.run_id}' and tags.`medlight.trial` = '{number}'")
        except Exception as error:
            log.warning("trial %d: its run can't be looked up: %s", number, error)
            return ""
        return str(found[0].info.run_id) if found else ""

    def stillborn(self, launch: dict[str, Any]) -> str:
        """Make the run of a trial that ended before its fit had made one, to show its reason beside the others."""
        tags = {"medlight.kind": "trial", "medlight.study": launch["study"], "medlight.name": launch["name"]}
        tags |= {"mlflow.parentRunId": launch["parent"], **launch["tags"]}
        try:
            experiment = store.experiment_id(launch["study"])
            return str(store.client().create_run(experiment, run_name=launch["name"], tags=tags).info.run_id)
        except Exception as error:
            log.warning("trial %s: its run can't be made: %s", launch["name"], error)
            return ""

    def ended(self, row: rows.Row) -> None:
        """Give a trial's run its parameters and, where it failed, the reason; tried again later where that fails."""

        def write() -> None:
            run_id = row.run_id or self.child(row.number)
            if not run_id:
                return
            client = store.client()
            params = [Param(f"space.{name}", str(value)) for name, value in row.params.items()]
            client.log_batch(run_id, params=params)
            if row.state == "failed":
                client.set_tag(run_id, "medlight.state", "failed")
                client.set_tag(run_id, "medlight.reason", scrub(row.reason)[:500])
                status = "KILLED" if row.reason.startswith("interrupted") else "FAILED"
                client.set_terminated(run_id, status)

        self._writer.submit(self._attempt, write)

    def progress(self, study: optuna.Study, ended: int) -> None:
        """The best values so far, over the trials that ended."""
        self.logger.log_metrics({"trials/ended": float(ended), **self._best(study)}, step=ended)

    def finish(self, study: optuna.Study) -> None:
        """Write the trials, the plots and the best trial, and close the run."""
        self._catch_up()
        best = rows.best(study)
        runs = [str(trial.user_attrs.get("run_id", "")) for trial in best]
        numbers = ",".join(str(trial.number) for trial in best)
        state = "complete" if best else "failed"
        self.logger.set_tags(
            {"medlight.state": state, "medlight.best_run": ",".join(runs), "medlight.best_trial": numbers}
        )
        self.logger.log_text(rows.to_csv(study, [each.metric for each in self.sweep.objectives]), "trials.csv")
        with TemporaryDirectory() as folder:
            for file in plots.draw(study, [each.metric for each in self.sweep.objectives], Path(folder)):
                self.logger.log_artifact(file, "images")
        self.logger.finalize("success" if best else "failed")

    def killed(self, reason: str) -> None:
        """Close the run of a sweep that was stopped; call it where the exception is handled, which tells its status."""
        self._catch_up()
        self.logger.set_tags({"medlight.state": "killed", "medlight.reason": reason})
        self.logger.finalize("failed")

    def _best(self, study: optuna.Study) -> dict[str, float]:
        best = rows.best(study)
        if not best:
            return {}
        values: dict[str, float] = {}
        for index, objective in enumerate(self.sweep.objectives):
            reached = [trial.values[index] for trial in best]
            values[f"best/{objective.metric}"] = (max if objective.direction == "maximize" else min)(reached)
        return values

    def _catch_up(self) -> None:
        """Wait for what is being written, and try once more what could not be."""
        self._writer.shutdown()
        late, self._late = self._late, []
        for write in late:
            self._attempt(write)

    def _attempt(self, write: Callable[[], None]) -> None:
        try:
            write()
        except Exception as error:
            log.warning("a trial's end can't be written to MLflow now: %s", " ".join(str(error).split())[:200])
            self._late.append(write)


def _short(dimension: dict[str, Any]) -> str:
    """A dimension in one line."""
    if dimension["type"] == "categorical":
        return ", ".join(str(choice) for choice in dimension["choices"])
    how = [" log"] if dimension.get("log") else [f" step {dimension['step']}"] if dimension.get("step") else []
    return f"{dimension['type']} {dimension['low']:g} to {dimension['high']:g}" + "".join(how)
