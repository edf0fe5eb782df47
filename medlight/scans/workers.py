"""The same work on many things, in this process or in several, results in order."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from medlight.errors import MedlightError

Job = TypeVar("Job")
Result = TypeVar("Result")


class KilledError(MedlightError):
    """A worker process died: out of memory, or a decoder that broken bytes bring down."""


def mapped(work: Callable[[Job], Result], jobs: Sequence[Job], workers: int, chunk: int = 1) -> Iterator[Result]:
    """Yield ``work(job)`` for each job, in order.

    workers: fresh processes (a fork would copy whatever threads run here); below 2, or for one chunk of jobs, this one
    does it all. Raises KilledError where a process was killed.
    """
    count = min(workers, -(-len(jobs) // chunk))
    if count < 2:
        yield from map(work, jobs)
        return
    with ProcessPoolExecutor(count, multiprocessing.get_context("spawn")) as pool:
        try:
            yield from pool.map(work, jobs, chunksize=chunk)
        except BrokenProcessPool:
            raise KilledError("a worker process was killed (out of memory?); mend: fewer --workers") from None
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def surviving(
    work: Callable[[Job], Result], jobs: Sequence[Job], workers: int, died: Callable[[Job], Result]
) -> Iterator[Result]:
    """Yield ``work(job)`` for each job, in order, and ``died(job)`` for one that kills its process.

    Once a process was killed, what is left is done one by one, each in a process of its own: so it is known at which.
    workers: below 2 there is no process but this one, which a job may take along.
    """
    done = 0
    if len(jobs) != 1 or workers < 2:
        try:
            for result in mapped(work, jobs, workers):
                done += 1
                yield result
        except KilledError:
            pass
    for job in jobs[done:]:
        try:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                result = pool.submit(work, job).result()
        except BrokenProcessPool:
            result = died(job)
        yield result
