"""The logger alone: order, limits, batches, resuming, ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch.utilities import rank_zero_only

from medlight.tracking import store
from medlight.tracking.delivery import Delivery
from medlight.tracking.identity import scrub
from medlight.tracking.logger import MLflowLogger
from medlight.tracking.spool import Spool
from medlight.tracking.system import SystemMetrics


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logger")


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    for name in ("MLFLOW_TRACKING_URI", "MEDLIGHT_RUN_ID", "MEDLIGHT_RUN_DIR"):
        monkeypatch.delenv(name, raising=False)
    return folder


def points(logger: MLflowLogger, key: str) -> list[tuple[int, float]]:
    return sorted((m.step, m.value) for m in store.client().get_metric_history(logger.run_id, key))


def test_run_is_described(here: Path) -> None:
    logger = MLflowLogger("study", "name", kind="trial", parent="p" * 32, tags={"extra": "1"})
    tags = store.find_run(logger.run_id).data.tags
    expected = {"medlight.kind": "trial", "medlight.study": "study", "medlight.name": "name", "extra": "1"}
    assert expected.items() <= tags.items()
    assert tags["mlflow.parentRunId"] == "p" * 32
    assert tags["medlight.pid"] == str(os.getpid())
    assert logger.local_dir == here / "mlruns" / "artifacts" / logger.run_id / "artifacts"


def test_each_step_of_a_metric_once_in_batches(here: Path) -> None:
    logger = MLflowLogger("study", "batches")
    for step in range(1500):
        logger.log_metrics({"a": step / 7, "b": -step}, step)
    logger.log_metrics({"a": 5.0}, 3)
    logger.log_metrics({"c": 1.0, "nan": float("nan")})  # no step: the last one
    assert logger.flush()
    assert points(logger, "a") == [(step, step / 7) for step in range(1500)]
    assert points(logger, "c") == [(3, 1.0)]
    assert points(logger, "nan")[0][1] != points(logger, "nan")[0][1]
    assert not logger.spool.journal.exists()


def test_threads_lose_nothing(here: Path) -> None:
    logger = MLflowLogger("study", "threads")
    logger._sender.interval = 0.01

    def work(key: str) -> None:
        for step in range(400):
            logger.log_metrics({key: step}, step)

    workers = [threading.Thread(target=work, args=(key,)) for key in "abc"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert logger.flush(30)
    assert all(points(logger, key) == [(step, float(step)) for step in range(400)] for key in "abc")


def test_params_tags_texts_pictures_datasets(here: Path, tmp_path: Path) -> None:
    logger = MLflowLogger("study", "kinds")
    logger.log_params({f"p{i}": i for i in range(230)} | {"long": "x" * 9000, "k" * 300: 1})
    logger.set_tags({"t": 1, "medlight.reason": "CaseError: /data/DOE^JANE/scan 1.nii.gz: empty"})
    logger.log_text("hello", "notes/deep/a.txt")
    (tmp_path / "b.txt").write_text("b")
    logger.log_artifact(tmp_path / "b.txt", "files")
    (tmp_path / "b.txt").write_text("changed later")
    logger.log_image(np.zeros((20, 30, 3), np.uint8), "val/case 1", 7)
    logger.log_dataset({"name": "d", "digest": "1", "source_type": "code", "source": "{}", "profile": "{}"}, "training")
    logger.finalize("success")
    run = store.find_run(logger.run_id)
    assert len(run.data.params) == 232
    assert len(run.data.params["long"]) == 6000
    assert "DOE" not in run.data.tags["medlight.reason"]
    assert store.artifact(logger.run_id, "notes/deep/a.txt").read_text() == "hello"
    assert store.artifact(logger.run_id, "files/b.txt").read_text() == "b"
    images = [item.path for item in store.client().list_artifacts(logger.run_id, "images")]
    assert sorted(path.rpartition(".")[2] for path in images) == ["png", "webp"]
    assert all(path.startswith("images/val~case 1+step+7+") for path in images)
    assert run.data.tags["mlflow.loggedImages"]
    assert run.inputs.dataset_inputs[0].dataset.name == "d"
    assert run.info.status == "FINISHED"
    assert not list((here / "mlruns" / "spool").iterdir())


def test_what_is_refused_does_not_block_the_rest(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    logger = MLflowLogger("study", "refused")
    logger.log_params({"p": 1})
    logger.log_params({"p": 2})  # a parameter can't change
    logger.log_metrics({"a": 1.0}, 0)
    assert logger.flush()
    assert points(logger, "a") == [(0, 1.0)]
    assert "refused a params" in caplog.text


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")]
)
def test_status_after_an_exception(here: Path, error: type[BaseException], status: str) -> None:
    logger = MLflowLogger("study", "status")
    try:
        raise error
    except BaseException:
        logger.finalize("failed")
    assert store.find_run(logger.run_id).info.status == status


def test_resumed_run_takes_each_step_once(here: Path) -> None:
    first = MLflowLogger("study", "resumed")
    for step in range(10):
        first.log_metrics({"a": step}, step)
    first.log_image(np.zeros((9, 9, 3), np.uint8), "k", 3)
    first.finalize("failed")
    second = MLflowLogger("study", "resumed", run_id=first.run_id)
    assert store.find_run(first.run_id).info.status == "RUNNING"
    for step in range(5, 15):
        second.log_metrics({"a": step}, step)
    second.log_image(np.zeros((9, 9, 3), np.uint8), "k", 3)
    second.finalize("success")
    assert points(second, "a") == [(step, float(step)) for step in range(15)]
    assert len(store.client().list_artifacts(first.run_id, "images")) == 2


def test_answer_lost_on_the_way_is_not_sent_twice(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store takes the points, and the connection breaks before it can say so."""
    logger = MLflowLogger("study", "ambiguous")
    client = store.client()
    real, calls = client.log_batch, []

    def breaks(run_id: str, **kwargs: object) -> None:
        calls.append(kwargs)
        real(run_id, **kwargs)
        if len(calls) == 1:
            raise ConnectionResetError("gone")

    monkeypatch.setattr(client, "log_batch", breaks)
    logger.log_metrics({"a": 1.0}, 0)
    logger.flush()
    logger.log_metrics({"a": 2.0}, 1)
    assert logger._sender.drain(20, patient=True)
    assert points(logger, "a") == [(0, 1.0), (1, 2.0)]
    assert sum(len(call.get("metrics", [])) for call in calls) == 2


def test_leftovers_of_a_dead_process_are_delivered(here: Path) -> None:
    logger = MLflowLogger("study", "left")
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    spool = Path("mlruns/spool")
    owner = {"op": "owner", "run_id": logger.run_id, "uri": logger.uri, "pid": child.pid, "started": 1.0}
    lines = [owner, {"op": "metrics", "points": [["a", 1.0, 1000, 0]]}, {"op": "status", "status": "KILLED", "time": 9}]
    text = "\n".join(json.dumps(line) for line in lines) + '\n{"op": "metr'  # torn by the crash
    (spool / f"{logger.run_id}.jsonl").write_text(text)
    assert store.deliver_leftovers() == 0
    assert points(logger, "a") == [(0, 1.0)]
    assert store.find_run(logger.run_id).info.status == "KILLED"
    assert not (spool / f"{logger.run_id}.jsonl").exists()


def test_journal_of_a_living_process_is_left_alone(here: Path) -> None:
    spool = Spool("f" * 32, store.tracking_uri(), store.spool_dir())
    spool.put({"op": "tags", "values": {"a": "1"}})
    assert store.deliver_leftovers() == 0
    assert spool.journal.exists()
    assert Spool("f" * 32, store.tracking_uri(), store.spool_dir(), again=True).pending == 1  # its next life takes it
    spool.journal.unlink()


def test_other_ranks_write_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zero = MLflowLogger("study", "ranks")
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    monkeypatch.setenv("MEDLIGHT_RUN_ID", zero.run_id)
    before = len(store.runs())
    other = MLflowLogger("study", "ranks")
    assert (other.run_id, other.local_dir) == (zero.run_id, zero.local_dir)
    other.log_metrics({"a": 1.0}, 0)
    other.log_params({"a": 1})
    other.set_tags({"b": 1})
    other.log_text("a", "a.txt")
    other.log_image(np.zeros((2, 2, 3), np.uint8), "k", 0)
    other.log_artifact(here / "mlruns" / "mlflow.db")
    assert other.flush()
    other.finalize("success")
    assert len(store.runs()) == before
    assert store.find_run(zero.run_id).info.status == "RUNNING"


def test_system_metrics_go_the_same_way(here: Path) -> None:
    logger = MLflowLogger("study", "system")
    monitor = SystemMetrics(logger)
    monitor.start()
    monitor.finish()
    logger.finalize("success")
    keys = store.find_run(logger.run_id).data.metrics
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= keys.keys()


def test_delivery_asks_only_when_it_must(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = MLflowLogger("study", "asks")
    monkeypatch.setattr(store.client(), "get_metric_history", lambda *_: pytest.fail("asked"))
    Delivery(logger.run_id, logger.uri, ask=False).send({"op": "metrics", "points": [["a", 1.0, 1000, 0]]})


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("CaseError: /data/DOE^JANE/scan.nii.gz: empty", "CaseError: <file>: empty"),
        ("ValueError: DOE_JANE.nii has 3 voxels", "ValueError: <file> has 3 voxels"),
        ("RuntimeError: shape (3, 4) in medlight.tasks.Task", "RuntimeError: shape (3, 4) in medlight.tasks.Task"),
        ("no val/dice/left, no val/DOE", "no val/dice/left, no <file>"),
        ("CaseError: scans/Doe, Jane (1970)/ser 1: ct-12ab: gap: 2 mm", "CaseError: <file>: ct-12ab: gap: 2 mm"),
        ("Doe Jane.nii.gz: is empty", "<file>: is empty"),
    ],
)
def test_scrub(text: str, clean: str) -> None:
    assert scrub(text) == clean


def test_a_file_being_written_stays_while_the_last_of_the_queue_is_delivered(here: Path) -> None:
    logger = MLflowLogger("study", "promised")
    assert logger.flush()
    logger.spool.put({"op": "tags", "values": {"a": "1"}})
    promised = logger.spool.keep("text.txt")  # by the fit's thread, which has not written it yet
    assert logger.spool.attempt()  # by the thread that sends: nothing is left in the queue
    promised.write_text("kept")
    logger.spool.put({"op": "artifact", "file": str(promised), "folder": None})
    assert logger.spool.attempt()
    assert store.artifact(logger.run_id, "text.txt").read_text() == "kept"
    assert not logger.spool.files.exists()
