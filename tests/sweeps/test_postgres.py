"""A study in PostgreSQL, which two sweeps share; one of them is killed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from medlight.errors import UsageError
from medlight.sweeps import rows, study, sweep
from medlight.sweeps.show import Terminal
from medlight.sweeps.spec import load
from medlight.tracking import store
from tests.sweeps.study import sweep_yaml, write
from tests.sweeps.test_sweep import LR, ROOT, all_gone, wait_for

pytestmark = pytest.mark.slow


def initdb() -> str | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return str(found[-1]) if found else shutil.which("initdb")


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """A private server on a loopback port; PostgreSQL refuses to run as root."""
    program = initdb()
    if program is None:
        pytest.skip("no PostgreSQL: apt-get install postgresql")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = Path(os.environ.get("TMPDIR", "/tmp")) / f"medlight-postgres-{os.getpid()}-{port}"
    folder.mkdir()
    user = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}
    if user:
        shutil.chown(folder, "postgres", "postgres")
    quiet = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": "/", **user}
    control = str(Path(program).with_name("pg_ctl"))
    subprocess.run([program, "-D", f"{folder}/data", "-U", "me", "-A", "trust", "--no-sync"], **quiet)
    options = f"-h 127.0.0.1 -p {port} -k {folder} -F"
    subprocess.run([control, "-D", f"{folder}/data", "-o", options, "-l", f"{folder}/log", "-w", "start"], **quiet)
    try:
        yield f"postgresql://me@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([control, "-D", f"{folder}/data", "-m", "immediate", "stop"], **quiet)
        shutil.rmtree(folder)


def test_two_sweeps_share_a_study_and_one_takes_over_from_the_other(workdir, url, monkeypatch):
    monkeypatch.setattr(study, "HEARTBEAT", 1)
    monkeypatch.setattr(study, "SILENT", 3)
    file = write(Path.cwd(), sweep_yaml(name="shared", space=LR, trials=5, workers=2, storage=url))
    command = [sys.executable, "-m", "tests.sweeps.script", "sweep.yaml", "slow", "", url]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
    pids = wait_for("pid-1", "pid-2")
    read = load(file, [], {})
    with pytest.raises(UsageError, match="was started before"):
        start(read)
    time.sleep(4)
    found = study.named("shared", url)
    assert study.revive(found, study.database(url)) == []  # it is alive: nobody takes its trials
    process.kill()
    process.wait()
    assert all_gone(pids)
    Path("quick").touch()
    outcome = start(read, resume=True)
    assert [row.state for row in outcome.rows].count("complete") == 5
    interrupted = [row for row in outcome.rows if row.state == "failed"]
    assert [row.number for row in interrupted] == [1, 2]
    assert all(row.reason == study.INTERRUPTED for row in interrupted)
    again = {row.retry_of: row.params for row in outcome.rows if row.retry_of is not None}
    assert again == {row.number: row.params for row in interrupted}
    assert len(store.runs_of("tiny", "sweep")) == 1
    assert rows.best(study.named("tiny-shared", url))


def start(read, resume: bool = False) -> sweep.Outcome:
    from rich.console import Console

    with Terminal(Console(), read.trials, ["val/dice"]) as terminal:
        return sweep.run(read, terminal, resume=resume, target="tests.sweeps.targets.slow")
