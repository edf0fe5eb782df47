from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from medlight.errors import MedlightError, UsageError
from medlight.launch import workers
from medlight.launch.workers import Ended, Job, Report, Worker, run, wait

TARGETS = "tests.launch.targets"


def finish(worker: Worker) -> Ended:
    while not isinstance(event := worker.poll(), Ended):
        if isinstance(event, Report):
            worker.answer(False)
        wait([worker], 0.1)
    worker.close()
    return event


def gone(pid: int, seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


@pytest.fixture(autouse=True, scope="module")
def _warm() -> None:
    workers.warm_up()


def test_a_job_gets_its_arguments_folder_environment_and_threads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(Job(f"{TARGETS}.echo", {"a": 1}, threads=3, log=tmp_path / "logs" / "0.log"))
    assert result["a"] == 1
    assert result["threads"] == "3"
    assert result["cwd"] == str(tmp_path)
    assert result["pid"] != os.getpid()
    assert (tmp_path / "logs" / "0.log").read_text() == "a line of output\n"


def test_a_job_sees_the_callers_environment_of_now(monkeypatch):
    monkeypatch.setenv("SET_AFTER_THE_SERVER", "yes")
    assert run(Job(f"{TARGETS}.environment", {"name": "SET_AFTER_THE_SERVER"})) == "yes"
    slot = Job(f"{TARGETS}.environment", {"name": "CUDA_VISIBLE_DEVICES"}, environment={"CUDA_VISIBLE_DEVICES": "1"})
    assert run(slot) == "1"


def test_torch_computes_after_the_fork_with_the_threads_asked_for():
    one = run(Job(f"{TARGETS}.matmul", {"size": 300}, threads=1))
    two = run(Job(f"{TARGETS}.matmul", {"size": 300}, threads=2))
    assert (one[0], two[0]) == (1, 2)
    assert one[1] == pytest.approx(two[1], rel=1e-3)


def test_a_warm_server_starts_a_job_in_under_a_second():
    run(Job(f"{TARGETS}.echo"))
    started = time.monotonic()
    run(Job(f"{TARGETS}.echo"))
    assert time.monotonic() - started < 1.0


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("value", "ValueError: no such luck"),
        ("usage", "key: wrong"),
        ("case", "case a: unreadable"),
        ("exit", "ended with exit code 3 and no result"),
        ("kill", "killed by signal 9 (SIGKILL, as the kernel does where the machine's memory runs out)"),
        ("segv", "killed by signal 11 (SIGSEGV)"),
    ],
)
def test_a_failed_job_says_why_in_one_line(kind, reason, tmp_path):
    ended = finish(Worker(Job(f"{TARGETS}.fail", {"kind": kind}, log=tmp_path / "log")))
    assert ended.result is None
    assert ended.reason is not None
    assert ended.reason.startswith(reason)
    assert ended.usage == (kind == "usage")
    if kind == "value":
        assert "Traceback" in (tmp_path / "log").read_text()


def test_run_raises_the_jobs_reason(tmp_path):
    with pytest.raises(UsageError, match="key: wrong"):
        run(Job(f"{TARGETS}.fail", {"kind": "usage"}, log=tmp_path / "log"))
    with pytest.raises(MedlightError, match="no such luck"):
        run(Job(f"{TARGETS}.fail", {"kind": "value"}, log=tmp_path / "log"))


def test_a_job_over_its_memory_limit_is_killed_and_the_reason_has_both_figures():
    worker = Worker(Job(f"{TARGETS}.hungry", {"gb": 3.0}, memory_limit=1.5))
    started = time.monotonic()
    ended = finish(worker)
    assert time.monotonic() - started < 10
    assert ended.reason is not None
    assert "over its limit of 1.5 GB" in ended.reason
    assert float(ended.reason.split()[1]) >= 1.5  # two decimals are told


def test_shared_and_mapped_pages_do_not_count_as_a_jobs_own(tmp_path):
    file = tmp_path / "store"
    np.zeros(1_500_000_000, np.uint8).tofile(file)
    assert run(Job(f"{TARGETS}.mapped", {"file": str(file)}, memory_limit=1.5)) == 0.0


def test_reports_are_answered_one_by_one():
    worker = Worker(Job(f"{TARGETS}.reports", {"steps": 5}))
    seen = []
    while not isinstance(event := worker.poll(), Ended):
        if isinstance(event, Report):
            seen.append((event.step, event.metrics["val/dice"]))
            worker.answer(event.step == 2)
        wait([worker], 0.1)
    worker.close()
    assert seen == [(0, 0.0), (1, 0.1), (2, 0.2)]
    assert event.result == [False, False, True]


def test_killing_a_job_takes_its_own_processes_with_it(tmp_path):
    worker = Worker(Job(f"{TARGETS}.sleeper", {"pids": str(tmp_path / "pids")}))
    pids = wait_for_pids(tmp_path / "pids")
    worker.close()
    assert all(gone(pid) for pid in pids)


def test_jobs_die_with_a_parent_that_was_killed(tmp_path):
    code = (
        "import sys, time\n"
        "from medlight.launch import workers\n"
        "workers.warm_up(['medlight.launch.workers'])\n"
        "w = workers.Worker(workers.Job('tests.launch.targets.sleeper', {'pids': sys.argv[1]}))\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "pids")])
    pids = wait_for_pids(tmp_path / "pids")
    server = psutil.Process(parent.pid).children()
    parent.kill()
    parent.wait()
    assert all(gone(pid) for pid in [*pids, *(process.pid for process in server)])


def wait_for_pids(file: Path) -> list[int]:
    for _ in range(200):
        if file.exists() and len(file.read_text().split()) == 2:
            return [int(pid) for pid in file.read_text().split()]
        time.sleep(0.05)
    raise AssertionError("the job did not start")
