"""The life of trials, with targets that train nothing; real fits are in test_real.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import psutil
import pytest
import yaml
from rich.console import Console

from medlight.errors import UsageError
from medlight.sweeps import rows, study, sweep
from medlight.sweeps.show import Terminal
from medlight.sweeps.spec import load
from medlight.tracking import store
from tests.sweeps.study import UNET, sweep_yaml, write

ROOT = Path(__file__).parents[2]
LR = {"model.optimizer.lr": {"type": "float", "low": 1e-3, "high": 1e-1, "log": True}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """One folder for all: its scans are prepared and its MLflow tables made once."""
    return tmp_path_factory.mktemp("sweeps")


@pytest.fixture(autouse=True)
def _inside(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MEDLIGHT_DATA"):
        monkeypatch.delenv(name, raising=False)


def start(name: str, target: str, resume: bool = False, **changes) -> sweep.Outcome:
    file = write(Path.cwd(), sweep_yaml(**{"name": name, "space": LR, **changes}))
    read = load(file, [], {})
    with Terminal(Console(), read.trials, [each.metric for each in read.objectives]) as terminal:
        return sweep.run(read, terminal, resume=resume, target=f"tests.sweeps.targets.{target}")


def states(outcome: sweep.Outcome) -> list[str]:
    return [row.state for row in outcome.rows]


def test_every_trial_ends_and_the_best_is_recorded():
    outcome = start("plain", "good", trials=5)
    assert states(outcome) == ["complete"] * 5
    values = [row.values[0] for row in outcome.rows]
    assert outcome.best == [values.index(max(values))]
    run = store.find_run(outcome.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["medlight.kind"] == "sweep"
    assert run.data.tags["medlight.state"] == "complete"
    assert run.data.tags["medlight.best_trial"] == str(outcome.best[0])
    assert run.data.metrics["best/val/dice"] == pytest.approx(max(values))
    assert run.data.params["space.model.optimizer.lr"] == "float 0.001 to 0.1 log"
    assert yaml.safe_load(store.artifact(outcome.run_id, "space.yaml").read_text()) == LR
    assert len(store.artifact(outcome.run_id, "trials.csv").read_text().splitlines()) == 6
    for name in ("history", "importance"):
        assert store.artifact(outcome.run_id, f"images/{name}.png").stat().st_size > 5000


def test_one_worker_repeats_a_sweep_exactly():
    first = start("again-a", "good", sampler={"class_path": "optuna.samplers.TPESampler"}, seed=5)
    second = start("again-b", "good", sampler={"class_path": "optuna.samplers.TPESampler"}, seed=5)
    assert [row.params for row in first.rows] == [row.params for row in second.rows]
    other = start("again-c", "good", sampler={"class_path": "optuna.samplers.TPESampler"}, seed=6)
    assert [row.params for row in first.rows] != [row.params for row in other.rows]


def test_the_sweep_goes_on_past_failed_killed_and_memory_hungry_trials(capsys):
    outcome = start("bad", "one_bad", trials=6, workers=2, memory_limit_gb=2.0)
    assert states(outcome) == ["complete", "failed", "failed", "failed", "failed", "complete"]
    reasons = [row.reason for row in outcome.rows]
    assert reasons[1] == "RuntimeError: the network fell over"
    assert reasons[2].startswith("killed by signal 9 (SIGKILL")
    assert "over its limit of 2 GB" in reasons[3]
    assert reasons[4] == "val/dice is not a number at its best epoch"
    assert "Traceback" in Path("mlruns/logs/tiny-bad/1.log").read_text()
    assert "trial 1 failed" in capsys.readouterr().out


def test_a_hopeless_trial_is_pruned():
    pruner = {"class_path": "optuna.pruners.MedianPruner", "init_args": {"n_startup_trials": 2, "n_warmup_steps": 2}}
    outcome = start("pruned", "declining", trials=4, pruner=pruner)
    assert states(outcome) == ["complete", "complete", "pruned", "pruned"]
    assert Path("stopped-2").read_text() == "2"


def test_without_a_pruner_nothing_is_pruned():
    assert states(start("unpruned", "declining", trials=4)) == ["complete"] * 4


def test_several_objectives_have_a_front():
    objectives = [{"metric": "val/dice", "direction": "maximize"}, {"metric": "val/loss", "direction": "minimize"}]
    outcome = start("front", "good", trials=5, objectives=objectives)
    assert all(len(row.values) == 2 for row in outcome.rows)
    assert 1 <= len(outcome.best) <= 5
    run = store.find_run(outcome.run_id)
    assert len(run.data.tags["medlight.best_trial"].split(",")) == len(outcome.best)
    assert store.artifact(outcome.run_id, "images/front.png").exists()


def test_a_grid_ends_the_sweep_when_it_is_used_up():
    grid = {"class_path": "optuna.samplers.GridSampler"}
    grid["init_args"] = {"search_space": {"model.optimizer.lr": [0.001, 0.01, 0.1]}}
    outcome = start("grid", "good", trials=9, sampler=grid)
    assert sorted(row.params["model.optimizer.lr"] for row in outcome.rows) == [0.001, 0.01, 0.1]


def test_two_workers_run_at_the_same_time_with_their_threads():
    outcome = start("together", "timed", trials=2, workers=2, threads=1)
    assert states(outcome) == ["complete"] * 2
    (a0, a1, threads), (b0, b1, _) = (map(float, Path(f"time-{n}").read_text().split()) for n in (0, 1))
    assert max(a0, b0) < min(a1, b1)
    assert threads == 1


def test_a_sweep_is_not_started_twice_by_mistake():
    start("twice", "good", trials=1)
    with pytest.raises(UsageError, match=r"tiny-twice was started before \(1 of 2 trials ended\); .*--resume"):
        start("twice", "good", trials=2)
    with pytest.raises(UsageError, match="--resume: space changed since"):
        start(
            "twice",
            "good",
            resume=True,
            trials=2,
            space={**LR, "seed_everything": {"type": "int", "low": 0, "high": 9}},
        )
    assert states(start("twice", "good", resume=True, trials=3)) == ["complete"] * 3
    with pytest.raises(UsageError, match="--resume: sweep tiny-never was never started"):
        start("never", "good", resume=True)


def launched(name: str, *more: str) -> subprocess.Popen:
    write(Path.cwd(), sweep_yaml(name=name, space=LR, trials=4, workers=2))
    command = [sys.executable, "-m", "tests.sweeps.script", "sweep.yaml", "slow", *more]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(*names: str) -> list[int]:
    for _ in range(600):
        if all(Path(name).exists() and Path(name).read_text() for name in names):
            return [int(Path(name).read_text()) for name in names]
        time.sleep(0.1)
    raise AssertionError(f"no {names}")


def clear() -> None:
    for file in (*Path.cwd().glob("pid-*"), Path("quick")):
        file.unlink(missing_ok=True)


def all_gone(pids: list[int]) -> bool:
    for _ in range(600):  # the server takes its leave like any program, in its own time
        if not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids):
            return True
        time.sleep(0.05)
    return False


def test_a_killed_sweep_leaves_no_orphan_and_resumes_to_its_end():
    clear()
    process = launched("killed")
    pids = wait_for("pid-1", "pid-2")
    server = [child.pid for child in psutil.Process(process.pid).children()]
    process.kill()
    process.wait()
    assert all_gone(pids + server)
    Path("quick").touch()
    outcome = start("killed", "slow", resume=True, trials=4, workers=2)
    assert states(outcome) == ["complete", "failed", "failed", "complete", "complete", "complete"]
    again = {row.retry_of: row for row in outcome.rows if row.retry_of is not None}
    for number in (1, 2):
        assert outcome.rows[number].reason == study.INTERRUPTED
        assert again[number].params == outcome.rows[number].params
    assert len([run for run in store.runs_of("tiny", "sweep") if run.data.tags["medlight.name"] == "killed"]) == 1
    assert store.find_run(outcome.run_id).info.status == "FINISHED"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_sweep_ends_its_trials_and_says_so(number):
    clear()
    name = f"stopped-{number.name.lower()}"
    process = launched(name)
    pids = wait_for("pid-1", "pid-2")
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert all_gone(pids)
    found = study.named(f"tiny-{name}", None)
    table = rows.rows(found)
    assert [row.state for row in table] == ["complete", "failed", "failed", "waiting", "waiting"]
    assert store.find_run(found.user_attrs["run_id"]).info.status == "KILLED"
    Path("quick").touch()
    outcome = start(name, "slow", resume=True, trials=4, workers=2)
    assert states(outcome).count("complete") == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"space": {"model.optimzer.lr": LR["model.optimizer.lr"]}}, "did you mean 'model.optimizer.lr'"),
        ({"objectives": [{"metric": "val/dcie", "direction": "maximize"}]}, "did you mean 'val/dice'"),
        ({"objectives": [{"metric": "val/dice/labl 1", "direction": "maximize"}]}, "did you mean 'val/dice/label 1'"),
        (
            {"space": {"data.batch_size": {"type": "float", "low": 1.5, "high": 2}}},
            "space.data.batch_size: .*batch_size",
        ),
        (
            {"space": {"model.network": {"type": "categorical", "choices": {"u": {**UNET, "class_path": "monai.X"}}}}},
            "space.model.network.choices.u.class_path: monai has no class 'X'",
        ),
    ],
)
def test_what_is_wrong_is_refused_before_a_study_exists(changes, words):
    before = sorted(Path("mlruns").glob("optuna/*.log"))
    with pytest.raises(UsageError, match=words) as error:
        start("refused", "good", **changes)
    assert "\n" not in str(error.value)
    assert [
        file for file in sorted(Path("mlruns").glob("optuna/*.log")) if file not in before and file.stat().st_size
    ] == []


def test_status_shows_trials_and_reasons_and_writes_json(capsys):
    from medlight.cli.main import main

    start("shown", "one_bad", trials=2)
    capsys.readouterr()
    assert main(["sweep", "status", "shown", "--json", "shown.json"]) == 0
    shown = capsys.readouterr().out
    assert "RuntimeError: the network fell over" in shown
    assert "model.optimizer.lr=" in shown
    content = json.loads(Path("shown.json").read_text())
    assert [trial["state"] for trial in content["trials"]] == ["complete", "failed"]
    assert main(["sweep", "status", "shwon"]) == 2
    assert "did you mean" in capsys.readouterr().err


def test_samplers_and_pruners_of_the_file_are_optunas():
    read = load(write(Path.cwd(), sweep_yaml(sampler={"class_path": "optuna.samplers.QMCSampler"})), [], {})
    assert isinstance(read.build_sampler(), optuna.samplers.QMCSampler)
