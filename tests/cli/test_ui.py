"""``medlight ui``: the right store, a free port, and nothing left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

from medlight.cli import ui
from medlight.cli.main import main
from tests.cli.serving import serving
from tests.compare.recorded import Recorder


@pytest.fixture
def store(workdir: Path) -> Recorder:
    recorder = Recorder(workdir)
    recorder.run("a-run")
    return recorder


def tree(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    parent = psutil.Process(process.pid)
    return [parent, *parent.children(recursive=True)]


def gone(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=15)[1]


def test_it_serves_this_folder_on_a_free_port_and_leaves_no_process(store, workdir):
    with socket.socket() as busy:
        busy.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            busy.bind(("127.0.0.1", ui.DEFAULT_PORT))
            busy.listen()
        except OSError:
            pass  # somebody else has it: as good
        with serving(workdir) as (url, process, said):
            text = said.read_text()
            assert f"port {ui.DEFAULT_PORT} is taken by another program" in text
            assert f"hippocampus: {url}/#/experiments/{store.experiment}/runs?workflowType=machine_learning" in text
            body = b'{"experiment_ids": ["%s"]}' % store.experiment.encode()
            request = urllib.request.Request(
                f"{url}/api/2.0/mlflow/runs/search", body, {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=60) as answer:
                assert b"a-run" in answer.read()
            processes = tree(process)
            assert len(processes) <= 4  # ours, mlflow's launcher, one worker (and its resource tracker)
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
            assert gone(processes)
            assert "MLflow UI ended" in said.read_text()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(url.rsplit(":", 1)[1]))) != 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_ends_leave_no_process_either(store, workdir, number):
    with serving(workdir) as (_, process, _):
        processes = tree(process)
        process.send_signal(number)
        process.wait(30)
        assert gone(processes)


def test_ctrl_c_while_it_starts(store, workdir):
    process = subprocess.Popen([sys.executable, "-m", "medlight", "ui", "--port", "0"], cwd=workdir)
    deadline = time.monotonic() + 60
    while len(tree(process)) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    processes = tree(process)
    process.send_signal(signal.SIGINT)
    process.wait(30)
    assert gone(processes)


def test_a_server_that_dies_is_told_in_one_line(store, workdir, capsys):
    (workdir / "mlruns" / "mlflow.db").write_bytes(b"this is no database" * 100)
    assert main(["ui", "--port", "0"]) == 1
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    assert "does not answer" in error


def test_a_server_of_its_own_is_only_named(workdir, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example.org:5000")
    assert main(["ui"]) == 0
    assert "http://mlflow.example.org:5000" in capsys.readouterr().out


def test_a_folder_without_runs(workdir, capsys):
    assert main(["ui"]) == 2
    assert "start one with medlight fit" in capsys.readouterr().err
    assert list(workdir.iterdir()) == []


def test_ports_and_hosts_that_cannot_be(store, capsys):
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        taken = busy.getsockname()[1]
        calls = {
            ("--port", str(taken)): "taken by another program",
            ("--port", "70000"): "choose one from 1024 to 65535",
            ("--host", "203.0.113.7"): "no such address on this machine",
            ("--host", "no.such.host.invalid"): "no such address on this machine",
        }
        for arguments, said in calls.items():
            assert main(["ui", *arguments]) == 2, arguments
            assert said in capsys.readouterr().err


def test_only_this_machine_by_default_and_its_own_names_beyond(monkeypatch):
    assert ui._allowed("127.0.0.1", 5000) == []
    hosts, origins = ui._allowed("0.0.0.0", 8080)[1::2]
    assert f"{socket.gethostname()}:8080" in hosts.split(",")
    assert f"http://{socket.gethostname()}:8080" in origins.split(",")
    assert "*" not in hosts
    monkeypatch.setenv("MLFLOW_SERVER_ALLOWED_HOSTS", "me.example.org")
    assert ui._allowed("0.0.0.0", 8080) == []
    assert os.environ["MLFLOW_SERVER_ALLOWED_HOSTS"] == "me.example.org"
