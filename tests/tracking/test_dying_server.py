"""A tracking server that dies in the middle of a fit."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from medlight.errors import MedlightError
from medlight.tracking import store
from medlight.tracking.logger import MLflowLogger
from tests.callbacks.processes import curves, curves_in, differences, fit, start
from tests.tracking.server import Server

LENGTH = ["--epochs", "8"]
SLOW = [*LENGTH, "--pause", "0.15"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert fit(folder, *LENGTH) == 0
    return folder


def wait_for(condition: object, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def running(server: Server, folder: Path) -> str:
    """Wait until the server has a value of the run in a folder; returns its id."""
    file = folder / "run_id"
    wait_for(lambda: file.exists() and len(file.read_text()) == 32)
    wait_for(lambda: MlflowClient(server.uri).get_run(file.read_text()).data.metrics)
    return file.read_text()


def artifacts(client: MlflowClient, run_id: str) -> set[str]:
    return {item.path for place in (None, "checkpoints") for item in client.list_artifacts(run_id, place)}


@pytest.mark.slow
def test_fit_goes_on_and_every_point_arrives(server: Server, undisturbed: Path, tmp_path: Path) -> None:
    process = start(tmp_path, *LENGTH, "--pause", "0.7", MLFLOW_TRACKING_URI=server.uri)
    run_id = running(server, tmp_path)
    server.kill()
    time.sleep(3)
    assert process.is_alive()
    assert (tmp_path / "mlruns" / "spool" / f"{run_id}.jsonl").exists()
    server.start()
    process.join(60)
    assert process.exitcode == 0
    store_of = MlflowClient(server.uri)
    assert differences(curves_in(undisturbed), curves(server.uri, run_id)) == []
    assert store_of.get_run(run_id).info.status == "FINISHED"
    assert {"cases.csv", "config.yaml", "checkpoints/best.ckpt", "checkpoints/last.ckpt"} <= artifacts(store_of, run_id)
    assert not (tmp_path / "mlruns" / "spool" / f"{run_id}.jsonl").exists()


@pytest.mark.slow
def test_server_that_stays_away_gets_it_at_the_next_start(server: Server, undisturbed: Path, tmp_path: Path) -> None:
    process = start(tmp_path, *SLOW, MLFLOW_TRACKING_URI=server.uri)
    run_id = running(server, tmp_path)
    server.kill()
    process.join(90)
    assert process.exitcode == 0
    server.start()
    assert MlflowClient(server.uri).get_run(run_id).info.status == "RUNNING"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert store.deliver_leftovers() == 0
    assert differences(curves_in(undisturbed), curves(server.uri, run_id)) == []
    store_of = MlflowClient(server.uri)
    assert store_of.get_run(run_id).info.status == "FINISHED"
    assert {"cases.csv", "config.yaml", "checkpoints/best.ckpt", "checkpoints/last.ckpt"} <= artifacts(store_of, run_id)


@pytest.mark.slow
def test_both_die(server: Server, undisturbed: Path, tmp_path: Path) -> None:
    environment = {"MLFLOW_TRACKING_URI": server.uri}
    death = ["--die", "on_train_batch_end", "--count", "27"]
    process = start(tmp_path, *SLOW, *death, **environment)
    run_id = running(server, tmp_path)
    server.kill()
    process.join(90)
    assert process.exitcode == -signal.SIGKILL
    server.start()
    assert fit(tmp_path, *LENGTH, "--run-id", run_id, **environment) == 0
    assert differences(curves_in(undisturbed), curves(server.uri, run_id)) == []


def test_absent_server_is_said_at_the_start(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    with pytest.raises(MedlightError, match=r"127\.0\.0\.1:9 can't be used.*start the server") as caught:
        MLflowLogger("study", "name")
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
