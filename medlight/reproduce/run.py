"""A study's runs, from what is there already to the last figure; interrupted at any moment, it goes on from there."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout

from medlight.config import Config
from medlight.errors import UsageError
from medlight.launch import slots, workers
from medlight.launch.workers import Ended, Job, Report, Worker
from medlight.reproduce import plan
from medlight.reproduce.expected import Budget, Study
from medlight.reproduce.plan import Item, Standing
from medlight.tracking import store
from medlight.tracking.identity import scrub
from medlight.tracking.manifest import config_digest

TARGET = "medlight.reproduce.job.fit_and_test"
LOGS = Path("mlruns") / "logs"
LOCKS = Path("mlruns") / "locks"


@dataclass
class Outcome:
    """What became of an item: ``state`` is done, failed, waiting (not reached) or left (a seed that was not asked)."""

    item: Item
    state: str = "waiting"
    run_id: str | None = None
    minutes: float = 0.0
    reason: str = ""


class Watcher(Protocol):
    """Who is told how a study goes."""

    def planned(self, outcomes: list[Outcome], workers: int) -> None:
        """What is there and what is to be done."""

    def started(self, item: Item, action: str, note: str) -> None:
        """A run was started; ``note`` says why one that is there does not count."""

    def progress(self, item: Item, share: float) -> None:
        """A run got so far (0 to 1)."""

    def ended(self, outcome: Outcome) -> None:
        """A run ended, or could not be started."""


@dataclass
class _Running:
    outcome: Outcome
    config: Config
    worker: Worker
    epochs: int


@dataclass
class Runs:
    """The loop over a study's runs.

    Args:
        asked: how many seeds are to be run; those of ``outcomes`` beyond are only looked up.
        parent: the study's own run.
    """

    study: Study
    budget: Budget
    outcomes: list[Outcome]
    asked: int
    parent: str
    count: int
    watcher: Watcher
    target: str = TARGET
    _slots: list[_Running | None] = field(default_factory=list)

    def run(self) -> None:
        """Until nothing is left to do.

        Raises: KeyboardInterrupt after SIGINT or SIGTERM, when every run has been stopped and can be resumed.
        """
        self._slots = [None] * self.count
        try:
            with slots.stoppable() as stop:
                self._loop(stop)
        finally:
            self._stop()

    def _loop(self, stop: threading.Event) -> None:
        self.watcher.planned(self.outcomes, self.count)
        while True:
            if stop.is_set():
                raise KeyboardInterrupt
            self._fill()
            running = [slot for slot in self._slots if slot]
            if not running:
                return
            workers.wait([slot.worker for slot in running], workers.WATCH)
            for index, slot in enumerate(self._slots):
                if slot:
                    self._look(index, slot)

    def _fill(self) -> None:
        """Start what can be started in free slots."""
        for index in (index for index, slot in enumerate(self._slots) if slot is None):
            for outcome in self._ready():
                self._begin(index, outcome)
                if self._slots[index]:
                    break

    def _ready(self) -> Iterator[Outcome]:
        busy = {slot.outcome.item.name for slot in self._slots if slot}
        for outcome in self.outcomes:
            item = outcome.item
            if outcome.state != "waiting" or item.name in busy or item.seed >= self.asked:
                continue
            first = self._first(item)
            if first is not None and first.state == "failed":
                outcome.state, outcome.reason = "failed", f"{first.item.name} failed, from which it starts"
                self.watcher.ended(outcome)
            elif first is None or first.state == "done":
                yield outcome

    def _first(self, item: Item) -> Outcome | None:
        """The outcome that an item starts from."""
        same = (o for o in self.outcomes if o.item.seed == item.seed and o.item.variant == item.after)
        return next(same, None)

    def _begin(self, index: int, outcome: Outcome) -> None:
        """Start an item, unless it is found done."""
        item = outcome.item
        first = self._first(item)
        config = item.started_from(first.run_id if first else None)
        found = _standing(item, config)
        outcome.run_id, outcome.minutes = found.run_id, found.minutes
        if found.action == "done":
            outcome.state = "done"
            return
        plan.set_aside(found.obsolete)
        logs = (LOGS / f"{self.study.name}-reproduce").absolute()
        logs.mkdir(parents=True, exist_ok=True)
        tags = {"medlight.variant": item.variant, "medlight.seed": str(item.seed), "medlight.budget": self.budget}
        tags |= {"medlight.data_digest": item.data_digest, "medlight.minutes_before": f"{found.minutes:.3f}"}
        launch = {"study": item.study, "name": item.name, "parent": self.parent, "tags": tags}
        stem = f"{item.name}-{self.budget}"
        arguments = {
            "config": config,
            "launch": {**launch, "resume": found.action == "resume"},
            "config_file": str(logs / f"{stem}.yaml"),
            "fitted": found.run_id if found.action == "test" else None,
            "tested": item.tested,
            "minutes": found.minutes,
        }
        environment = slots.devices(config, index)
        job = Job(self.target, arguments, logs / f"{stem}.log", slots.threads(self.count), environment)
        epochs = config["trainer"]["max_epochs"] or 0
        self._slots[index] = _Running(outcome, config, Worker(job), epochs)
        self.watcher.started(item, found.action, found.note)

    def _look(self, index: int, slot: _Running) -> None:
        match slot.worker.poll():
            case Report() as report:
                slot.worker.answer(False)
                if slot.epochs > 0:
                    self.watcher.progress(slot.outcome.item, min(1.0, (report.step + 1) / slot.epochs))
            case Ended() as ended:
                slot.worker.close()
                self._slots[index] = None
                self._end(slot, ended)

    def _end(self, slot: _Running, ended: Ended) -> None:
        outcome = slot.outcome
        if ended.reason is None:
            outcome.state = "done"
            outcome.run_id, outcome.minutes = ended.result["run_id"], ended.result["minutes"]
        else:
            outcome.state, outcome.reason = "failed", ended.reason
            self._close(slot, "failed", scrub(ended.reason)[:500], "FAILED")
        self.watcher.ended(outcome)

    def _stop(self) -> None:
        """End what runs; the same command goes on with it."""
        for index, slot in enumerate(self._slots):
            if slot:
                slot.worker.close()
                self._slots[index] = None
                self._close(slot, "stopped", "", "KILLED")

    def _close(self, slot: _Running, state: str, reason: str, status: str) -> None:
        """Say in its MLflow run that a process of the study is no more."""
        digest = config_digest(slot.config)
        for run in store.unfinished(self.study.name, slot.outcome.item.name, digest):
            if run.data.tags.get("medlight.state") == "running":
                store.client().set_tag(run.info.run_id, "medlight.state", state)
                store.client().set_tag(run.info.run_id, "medlight.reason", reason)
            store.client().set_terminated(run.info.run_id, status)


def settle_known(study: Study, outcomes: list[Outcome]) -> None:
    """Find what is there already, in the order in which variants start from each other."""
    by_name = {(o.item.variant, o.item.seed): o for o in outcomes}
    for outcome in outcomes:
        item = outcome.item
        first = by_name.get((item.after, item.seed)) if item.after else None
        if first is not None and first.state != "done":
            continue
        found = _standing(item, item.started_from(first.run_id if first else None))
        if found.action == "done":
            outcome.state, outcome.run_id, outcome.minutes = "done", found.run_id, found.minutes


def _standing(item: Item, config: Config) -> Standing:
    """What there is of an item; a run whose process is being killed just now is waited for."""
    for attempt in range(20):
        try:
            return plan.standing(item, config, store.runs_of(item.study, "fit"))
        except UsageError:
            if attempt == 19:
                raise
            time.sleep(0.5)
    raise AssertionError


@contextmanager
def alone(study: Study) -> Iterator[None]:
    """Hold the study's lock.

    Raises: UsageError where another process works on the study.
    """
    LOCKS.mkdir(parents=True, exist_ok=True)
    lock = FileLock(LOCKS / f"reproduce-{study.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(f"study {study.name}: another medlight reproduce works on it in this folder") from None
    try:
        yield
    finally:
        lock.release()


def prepared(study: Study, budget: Budget, seeds: int, workers_: int) -> list[Outcome]:
    """Every run of the study, checked and with its data prepared; nothing is started or recorded yet."""
    planned = plan.items(study, budget, seeds)
    environment: dict[str, Any] = slots.devices(planned[0].config, 0)
    return [Outcome(item) for item in plan.inspected(study, planned, environment)]
