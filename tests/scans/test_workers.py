"""Work in processes: results in order, and a job that kills its process is known by name."""

from __future__ import annotations

import os

import pytest

from medlight.scans.workers import KilledError, mapped, surviving


def work(number):
    if number < 0:
        os._exit(1)
    return number**2


@pytest.mark.parametrize(("workers", "chunk"), [(0, 1), (1, 1), (2, 1), (2, 3), (8, 100)])
def test_results_come_in_order(workers, chunk):
    assert list(mapped(work, range(10), workers, chunk)) == [n**2 for n in range(10)]
    assert list(mapped(work, [], workers, chunk)) == []


def test_a_job_that_kills_its_process_stops_no_other():
    with pytest.raises(KilledError, match="workers"):
        list(mapped(work, [1, -1, 2], 2))
    assert list(surviving(work, [1, 2, -1, 3, -2, 4], 2, lambda job: f"died of {job}")) == [
        1, 4, "died of -1", 9, "died of -2", 16,
    ]  # fmt: skip
    assert list(surviving(work, [-1], 2, str)) == ["-1"]
    assert list(surviving(work, [3], 1, str)) == [9]
