"""Runs in the store: made once, found by what a person types."""

from __future__ import annotations

import multiprocessing
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.entities import Metric

from medlight.errors import MedlightError, UsageError
from medlight.tracking import store


def run_in(study: str, name: str, **tags: str) -> str:
    tags = {"medlight.study": study, "medlight.name": name, "medlight.kind": "fit", **tags}
    return str(store.client().create_run(store.experiment_id(study), run_name=name, tags=tags).info.run_id)


def first_start(folder: str) -> str:
    os.chdir(folder)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    return store.experiment_id("raced")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    (folder / "mlruns").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        store.experiment_id("hippo")
    return folder


@pytest.fixture
def here(shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(shared)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return shared


def test_default_place(here: Path) -> None:
    run = store.client().get_run(run_in("hippo", "place"))
    assert (here / "mlruns" / "mlflow.db").is_file()
    assert store.local_path(run.info.artifact_uri) == here / "mlruns" / "artifacts" / run.info.run_id / "artifacts"


def test_plain_folder_is_refused(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "file:./mlruns")
    with pytest.raises(UsageError, match="sqlite:///"):
        store.tracking_uri()


def test_racing_first_starts(workdir: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        ids = pool.map(first_start, [str(workdir)] * 3, chunksize=1)
    assert len(set(ids)) == 1
    with sqlite3.connect(workdir / "mlruns" / "mlflow.db") as tables:
        assert tables.execute("select count(*) from experiments where name = 'raced'").fetchone() == (1,)


def test_found_by_id_prefix_and_name(here: Path) -> None:
    run_id = run_in("hippo", "dynunet-lr3")
    assert store.find_run(run_id).info.run_id == run_id
    assert store.resolve_run(run_id[:12]) == run_id
    assert store.resolve_run("dynunet-lr3") == run_id
    with pytest.raises(UsageError, match="did you mean 'dynunet-lr3'"):
        store.find_run("dynunet-lr4")
    with pytest.raises(UsageError, match="did you mean 'dynunet-lr3'"):
        store.find_run("DynUNet")  # a part of the name
    with pytest.raises(UsageError, match="first 4 letters are needed"):
        store.find_run(run_id[:3])
    with pytest.raises(UsageError, match=r"no run '0+' in .*the newest are dynunet-lr3"):
        store.find_run("0" * 32)
    with pytest.raises(UsageError, match=rf"did you mean '{run_id}'"):
        store.find_run(run_id[:-1] + ("0" if run_id[-1] != "0" else "1"))
    with pytest.raises(UsageError, match="no run"):
        store.find_run("it's")


def test_ambiguous_name_lists_the_runs(here: Path) -> None:
    ids = [run_in("hippo", "twice", **{"medlight.state": state}) for state in ("failed", "stopped")]
    with pytest.raises(UsageError, match="means 2 runs") as caught:
        store.find_run("twice")
    said = str(caught.value)
    for run_id, state in zip(ids, ("failed", "stopped"), strict=True):
        assert re.search(rf"{run_id[:12]} of hippo, {state}, \d{{4}}-\d\d-\d\d \d\d:\d\d", said)
    for _ in range(5):
        run_in("hippo", "twice")
    with pytest.raises(UsageError, match="means 7 runs") as caught:
        store.find_run("twice")
    assert str(caught.value).count(" of hippo, ") == 5
    assert "\n" not in str(caught.value)


def test_of_one_name_the_run_that_ended_well_is_meant(here: Path) -> None:
    run_in("hippo", "again", **{"medlight.state": "failed"})
    done = run_in("hippo", "again", **{"medlight.state": "complete"})
    run_in("hippo", "again", **{"medlight.state": "stopped"})
    assert store.resolve_run("again") == done
    other = run_in("liver", "again", **{"medlight.state": "complete"})
    with pytest.raises(UsageError, match="means 2 runs") as caught:
        store.find_run("again")
    assert done[:12] in str(caught.value)
    assert f"{other[:12]} of liver" in str(caught.value)


def test_asking_for_a_run_makes_no_store(workdir: Path) -> None:
    with pytest.raises(UsageError, match="no runs here yet"):
        store.find_run("any")
    assert list(workdir.iterdir()) == []


def test_children_and_the_best_of_them(here: Path) -> None:
    parent = run_in("hippo", "sweep", **{"medlight.kind": "sweep"})
    ids = [run_in("hippo", f"t{i}", **{"mlflow.parentRunId": parent, "medlight.kind": "trial"}) for i in range(3)]
    for run_id, values in zip(ids, ([0.1, 0.2], [0.9, 0.3], [0.5, float("nan")]), strict=True):
        points = [Metric("val/dice", value, 1000 + step, step) for step, value in enumerate(values)]
        store.client().log_batch(run_id, metrics=points)
    assert [run.info.run_id for run in store.children(parent)] == ids
    assert store.best_child(parent, "val/dice", "max").info.run_id == ids[1]  # by its best step, not by its last
    assert store.best_child(parent, "val/dice", "min").info.run_id == ids[0]
    with pytest.raises(UsageError, match="did you mean 'val/dice'"):
        store.best_child(parent, "val/dise", "max")
    assert {run.info.run_id for run in store.runs_of("hippo", "trial")} == set(ids)
    assert store.runs_of("no such study") == []


def test_unfinished_is_of_the_same_configuration(here: Path) -> None:
    run_id = run_in("hippo", "mine", **{"medlight.config_digest": "abc"})
    done = run_in("hippo", "mine", **{"medlight.config_digest": "abc"})
    store.client().set_terminated(done, "FINISHED")
    assert [run.info.run_id for run in store.unfinished("hippo", "mine", "abc")] == [run_id]
    assert store.unfinished("hippo", "mine", "other") == []
    store.client().set_terminated(run_id, "KILLED")
    assert [run.info.run_id for run in store.unfinished("hippo", "mine", "abc")] == [run_id]


def test_is_alive(here: Path) -> None:
    mine = run_in("hippo", "alive", **store.process_tags())
    assert store.is_alive(store.find_run(mine))
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    dead = {**store.process_tags(), "medlight.pid": str(child.pid)}
    child.wait()
    assert not store.is_alive(store.find_run(run_in("hippo", "dead", **dead)))
    reused = {**store.process_tags(), "medlight.process_start": "12.0"}  # the number belongs to another process now
    assert not store.is_alive(store.find_run(run_in("hippo", "reused", **reused)))
    elsewhere = run_in("hippo", "elsewhere", **{**store.process_tags(), "medlight.host": "another"})
    assert store.is_alive(store.find_run(elsewhere))  # it started just now
    store.client().set_terminated(mine, "KILLED")
    assert not store.is_alive(store.find_run(mine))


def test_artifact(here: Path, tmp_path: Path) -> None:
    run_id = run_in("hippo", "files")
    (tmp_path / "a.txt").write_text("a")
    store.client().log_artifact(run_id, str(tmp_path / "a.txt"), "deep")
    assert store.artifact(run_id, "deep/a.txt").read_text() == "a"
    with pytest.raises(MedlightError, match=r"no artifact 'b\.txt'"):
        store.artifact(run_id, "b.txt")


def test_deleted_experiment(here: Path) -> None:
    store.client().delete_experiment(store.experiment_id("gone"))
    with pytest.raises(UsageError, match="was deleted; mlflow experiments restore"):
        store.experiment_id("gone")
