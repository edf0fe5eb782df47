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


def mapped(work: Callable[[Job], Result], jobs: Sequence[Job], workers: int, chunk: int = 1) -> Iterator[Result]:
    """Yield ``work(job)`` for each job, in order.

    workers: fresh processes (a fork would copy whatever threads run here); below 2, or for one chunk of jobs, this one
    does it all. Raises MedlightError where a process was killed.
    """
    count = min(workers, -(-len(jobs) // chunk))
    if count < 2:
        yield from map(work, jobs)
        return
    with ProcessPoolExecutor(count, multiprocessing.get_context("spawn")) as pool:
        try:
            yield from pool.map(work, jobs, chunksize=chunk)
        except BrokenProcessPool:
            raise MedlightError("a worker process was killed (out of memory?); mend: fewer --workers") from None
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
