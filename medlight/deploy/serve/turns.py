"""One prediction at a time, a few that wait, and an end to one that nobody waits for any more."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from medlight.deploy.runtime.predictor import Progress

Work = Callable[[Progress], Any]


class BusyError(Exception):
    """As many wait as may."""


class StoppedError(Exception):
    """Nobody waits for the result any more: the client has gone, or the server ends."""


class Job:
    """A prediction that waits for its turn or has it. future: its result, or what it raised."""

    def __init__(self) -> None:
        self.future: Future[Any] = Future()
        self._stopped = threading.Event()

    def stop(self) -> None:
        """End it: at once where it has not begun, else after the window that it is at."""
        self._stopped.set()

    def progress(self, done: int, total: int) -> None:
        """What the predictor calls after each window. Raises StoppedError where it is to end."""
        if self._stopped.is_set():
            raise StoppedError


class Turns:
    """Jobs in the order they came, one at a time. waiting: how many may wait behind the one that runs."""

    def __init__(self, waiting: int = 8) -> None:
        self._most = 1 + waiting
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="prediction")
        self._lock = threading.Lock()
        self._places = 0
        self._jobs: set[Job] = set()
        self._ended = False

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold one of the places while an upload comes in and is predicted; BusyError where all are taken."""
        with self._lock:
            if self._places >= self._most:
                raise BusyError
            self._places += 1
        try:
            yield
        finally:
            with self._lock:
                self._places -= 1

    @property
    def taken(self) -> int:
        """How many places are held."""
        return self._places

    def submit(self, work: Work) -> Job:
        """Line up; ``work`` is called with what is to be told of progress."""
        job = Job()
        with self._lock:
            self._jobs.add(job)
            if self._ended:
                job.stop()
                job.future.set_exception(StoppedError())
                return job
            self._pool.submit(self._run, job, work)
        return job

    def _run(self, job: Job, work: Work) -> None:
        try:
            job.progress(0, 1)
            result = work(job.progress)
        except BaseException as error:  # whoever waits is told
            job.future.set_exception(error)
        else:
            job.future.set_result(result)
        finally:
            with self._lock:
                self._jobs.discard(job)

    def end(self) -> None:
        """Stop all jobs and wait for the one that runs; jobs that come later are stopped before they begin."""
        with self._lock:
            self._ended = True
            for job in self._jobs:
                job.stop()
        self._pool.shutdown(wait=True)
