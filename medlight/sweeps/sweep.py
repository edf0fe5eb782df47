"""The sweep: hands trials to worker processes until as many as planned have ended."""

from __future__ import annotations

import hashlib
import json
import math
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import optuna
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from medlight.config import Config
from medlight.errors import UsageError, one_line
from medlight.launch import slots, workers
from medlight.launch.workers import Ended, Job, Report, Worker
from medlight.sweeps import rows, space, study
from medlight.sweeps.record import Record
from medlight.sweeps.rows import Row
from medlight.sweeps.spec import Sweep
from medlight.tracking.identity import scrub

TARGET = "medlight.sweeps.trial.fit_trial"
PREPARE = "medlight.sweeps.trial.prepare"
LOGS = Path("mlruns") / "logs"
OTHERS = 2.0  # seconds between two looks at trials that other machines run


class Watcher(Protocol):
    """Who is told of the sweep's progress."""

    def started(self, number: int, params: dict[str, Any]) -> None:
        """A trial was started."""

    def ended(self, row: Row, best: list[float] | None) -> None:
        """A trial ended; the best values so far."""

    def note(self, text: str) -> None:
        """Something else that a person wants to know."""


@dataclass(frozen=True)
class Outcome:
    """A finished sweep."""

    run_id: str
    rows: list[Row]
    best: list[int]


@dataclass
class _Running:
    trial: optuna.Trial
    worker: Worker
    params: dict[str, Any]
    launch: dict[str, Any]


def run(sweep: Sweep, watcher: Watcher, *, resume: bool = False, target: str = TARGET) -> Outcome:
    """Run a sweep to its end, or the rest of it.

    Raises: UsageError before anything starts; KeyboardInterrupt after SIGINT or SIGTERM, when all trials have been
        stopped and can be resumed.
    """
    workers.warm_up((*workers.PRELOAD, "medlight.sweeps.trial"))
    resolved = _checked(sweep)
    identity = sweep.identity(resolved)
    with study.opened(sweep.full_name, sweep.storage) as storage:
        existing = _existing(storage, sweep, identity, resume)
        settled = _prepared(sweep, resolved, existing)
        found = existing or _create(storage, sweep, identity, settled)
        found.sampler = sweep.build_sampler(len(found.get_trials(deepcopy=False)))
        found.pruner = sweep.build_pruner()
        record = Record(sweep, found.user_attrs.get("run_id"))
        found.set_user_attr("run_id", record.run_id)
        record.start(resolved, hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16])
        loop = _Loop(sweep, {**resolved, **settled}, found, storage, record, watcher, target)
        try:
            with slots.stoppable() as stop:
                loop.run(stop)
        except BaseException as error:
            record.killed(one_line(error))
            raise
        record.finish(found)
        return Outcome(record.run_id, rows.rows(found), [trial.number for trial in rows.best(found)])


def _checked(sweep: Sweep) -> Config:
    """The resolved fit configuration, once every end of the space was seen to fit into it."""
    from medlight.launch.resolve import resolve

    resolved = resolve(sweep.config)
    space.check_paths(sweep.space, resolved, str(sweep.fit_file))
    for key, config in space.corners(sweep.space, resolved):
        try:
            resolve(config)
        except UsageError as error:
            raise UsageError(f"{key}: {error}") from None
    return resolved


def _existing(storage: BaseStorage, sweep: Sweep, identity: dict[str, str], resume: bool) -> optuna.Study | None:
    """The study to go on with; None for a new one."""
    found = study.find(storage, sweep.full_name)
    if found is None or (not resume and not found.get_trials(deepcopy=False)):
        if resume:
            raise UsageError(f"--resume: sweep {sweep.full_name} was never started; start it without")
        if found is not None:  # it was stopped before its first trial
            optuna.delete_study(study_name=sweep.full_name, storage=storage)
        return None
    if not resume:
        count = len(study.ended(found))
        raise UsageError(
            f"sweep {sweep.full_name} was started before ({count} of {sweep.trials} trials ended); "
            f"go on with it by --resume, or give another --name"
        )
    before = found.user_attrs.get("identity", {})
    changed = [part for part in identity if before.get(part) != identity[part]]
    if changed:
        raise UsageError(
            f"--resume: {', '.join(changed)} changed since sweep {sweep.full_name} was started; "
            f"change it back, or give another --name"
        )
    return found


def _create(storage: BaseStorage, sweep: Sweep, identity: dict[str, str], settled: Config) -> optuna.Study:
    directions: list[Any] = [objective.direction for objective in sweep.objectives]
    created = optuna.create_study(study_name=sweep.full_name, storage=storage, directions=directions)
    metrics = [objective.metric for objective in sweep.objectives]
    for key, value in {"identity": identity, "settled": settled, "metrics": metrics}.items():
        created.set_user_attr(key, value)
    return created


def _prepared(sweep: Sweep, resolved: Config, existing: optuna.Study | None) -> Config:
    """Data prepared, objectives checked; precision and memory format settled for all trials."""
    if existing and "settled" in existing.user_attrs:
        return dict(existing.user_attrs["settled"])
    tasks = {config["model"]["class_path"]: config for _, config in space.corners(sweep.space, resolved)}
    tasks.pop(resolved["model"]["class_path"], None)
    arguments = {"configs": [resolved, *tasks.values()], "objectives": sweep.objectives}
    job = Job(PREPARE, arguments, threads=threads(sweep), environment=slots.devices(resolved, 0))
    return dict(workers.run(job))


def threads(sweep: Sweep) -> int:
    """CPU threads of one trial: as written, else an equal share of the cores."""
    return sweep.threads or slots.threads(sweep.workers)


class _Loop:
    """The trials' life, from the question to Optuna to the answer it gets."""

    def __init__(
        self,
        sweep: Sweep,
        config: Config,
        found: optuna.Study,
        storage: BaseStorage,
        record: Record,
        watcher: Watcher,
        target: str,
    ) -> None:
        self.sweep, self.config, self.study, self.storage = sweep, config, found, storage
        self.record, self.watcher, self.target = record, watcher, target
        self.slots: list[_Running | None] = [None] * sweep.workers
        self.beaten_at = 0.0
        self.planned_at = -math.inf
        self.planned = 0
        self.exhausted = False
        found.stop = self._exhaust  # type: ignore[method-assign]  # samplers call it; Optuna's own wants its own loop

    def run(self, stop: threading.Event) -> None:
        """Until as many trials as planned have ended."""
        try:
            self._revive()
            while not stop.is_set():
                if not self._fill() and not any(self.slots) and not self._others():
                    return
                running = [slot for slot in self.slots if slot]
                workers.wait([slot.worker for slot in running], workers.WATCH)
                for index, slot in enumerate(self.slots):
                    if slot:
                        self._look(index, slot)
                self._beat()
            raise KeyboardInterrupt
        finally:
            self._stop()

    def _fill(self) -> bool:
        """Start trials in free slots; whether any was started."""
        any_started = False
        for index, slot in enumerate(self.slots):
            if slot is None and self._wanted() > 0:
                self._start(index)
                any_started = True
        return any_started

    def _wanted(self) -> int:
        """How many trials are to be started still (looked up again at least every two seconds)."""
        if self.exhausted:
            return 0
        if time.monotonic() - self.planned_at > OTHERS:
            running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            self.planned = self.sweep.trials - len(study.ended(self.study)) - len(running)
            self.planned_at = time.monotonic()
        return self.planned

    def _exhaust(self) -> None:
        """What a sampler calls that has nothing left to try (a grid)."""
        self.exhausted = True

    def _others(self) -> bool:
        """Whether trials run elsewhere: they are waited for, since their machine may die."""
        return bool(self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))

    def _start(self, index: int) -> None:
        trial = self.study.ask()
        study.claim(self.storage, trial)
        self.planned_at = -math.inf
        config = space.suggest(self.sweep.space, self.config, trial)
        name = f"{self.sweep.name}-{trial.number:03d}"
        logs = (LOGS / self.sweep.full_name).absolute()
        logs.mkdir(parents=True, exist_ok=True)
        tags = {"medlight.trial": str(trial.number), "medlight.sweep": self.sweep.full_name}
        launch = {"study": self.sweep.study, "name": name, "parent": self.record.run_id, "tags": tags}
        job = Job(
            self.target,
            {"config": {**config, "name": name}, "launch": launch, "config_file": str(logs / f"{trial.number}.yaml")},
            log=logs / f"{trial.number}.log",
            threads=threads(self.sweep),
            environment=slots.devices(config, index),
            memory_limit=self.sweep.memory_limit_gb,
        )
        self.slots[index] = _Running(trial, Worker(job), dict(trial.params), launch)
        self.watcher.started(trial.number, trial.params)

    def _look(self, index: int, slot: _Running) -> None:
        match slot.worker.poll():
            case Report() as report:
                slot.worker.answer(self._hopeless(slot.trial, report))
            case Ended() as ended:
                slot.worker.close()
                self.slots[index] = None
                self._tell(slot, ended)

    def _hopeless(self, trial: optuna.Trial, report: Report) -> bool:
        """Whether the pruner gives a trial up after this report."""
        metric = self.sweep.objectives[0].metric
        if self.sweep.pruner is None or metric not in report.metrics:
            return False
        trial.report(report.metrics[metric], report.step)
        return bool(trial.should_prune())

    def _tell(self, slot: _Running, ended: Ended) -> None:
        trial, result = slot.trial, ended.result or {}
        reason = ended.reason or ""
        run_id = str(result.get("run_id") or self.record.child(trial.number))
        if reason and not run_id:
            run_id = self.record.stillborn(slot.launch)
        values: list[float] | None = None
        if not reason and result["state"] != "pruned":
            values, reason = self._values(result["metrics"])
        trial.set_user_attr("run_id", run_id)
        trial.set_user_attr("reason", scrub(reason))
        if reason:
            self.study.tell(trial, state=TrialState.FAIL)
        elif values is None:
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, values)
        self.planned_at = -math.inf
        self._announce(trial.number, reason)

    def _values(self, metrics: dict[str, float]) -> tuple[list[float] | None, str]:
        """The objectives' values, or the reason why there are none."""
        for objective in self.sweep.objectives:
            value = metrics.get(objective.metric)
            if value is None or math.isnan(value):
                return (
                    None,
                    f"{objective.metric} is {'not a number' if value is not None else 'missing'} at its best epoch",
                )
        return [float(metrics[objective.metric]) for objective in self.sweep.objectives], ""

    def _announce(self, number: int, reason: str) -> None:
        """Record a trial's end, and tell it; only the terminal gets a reason with the files that it names."""
        row = rows.row(self.study.get_trials(deepcopy=False)[number])
        best = rows.best(self.study)
        self.record.ended(row)
        self.record.progress(self.study, len(study.ended(self.study)))
        self.watcher.ended(replace(row, reason=reason), best[0].values if len(best) == 1 else None)

    def _revive(self) -> None:
        """Queue again what died with its sweep."""
        for trial in study.revive(self.study, self.storage):
            self.watcher.note(f"trial {trial.number} was interrupted; it is tried again")
            self.record.ended(rows.row(self.study.get_trials(deepcopy=False)[trial.number]))
        self.planned_at = -math.inf

    def _beat(self) -> None:
        """Keep this machine's trials alive in a database, and look after those of dead machines."""
        if time.monotonic() - self.beaten_at < study.HEARTBEAT or not self.sweep.storage:
            return
        self.beaten_at = time.monotonic()
        for slot in self.slots:
            if slot:
                study.beat(self.storage, slot.trial)
        self._revive()

    def _stop(self) -> None:
        """End the running trials; they are tried again on a resume."""
        for index, slot in enumerate(self.slots):
            if slot:
                slot.worker.close()
                self.slots[index] = None
                study.interrupt(self.study, self.study.get_trials(deepcopy=False)[slot.trial.number])
                self.record.ended(rows.row(self.study.get_trials(deepcopy=False)[slot.trial.number]))
