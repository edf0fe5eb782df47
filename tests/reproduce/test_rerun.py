"""A recorded run comes out the same again, to the last bit; where the world is another, that is said first."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import nibabel as nib
import pytest
import yaml
from mlflow import MlflowClient

from medlight.cli.main import main
from tests.data import fake
from tests.reproduce import studies


def medlight(folder: Path, *arguments: str, code: int = 0, **environment: str) -> str:
    """Run the command in a process of its own; returns its output."""
    command = [sys.executable, "-m", "medlight", *arguments]
    surroundings = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    surroundings.pop("MEDLIGHT_DATA", None)
    done = subprocess.run(command, cwd=folder, env=surroundings, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def fitted(folder: Path, config: dict[str, Any]) -> str:
    """Write a configuration and fit it; returns the run's id."""
    folder.mkdir(exist_ok=True)
    (folder / "fit.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    medlight(folder, "fit", "-c", "fit.yaml", "--json", "fit.json")
    return str(json.loads((folder / "fit.json").read_text())["run_id"])


def read(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "rerun.json").read_text()))


def client(folder: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")


@pytest.mark.parametrize("name", ["segmentation", "classification", "simclr", "mean_teacher"])
def test_a_run_comes_out_the_same_to_the_last_bit(name: str, tmp_path: Path) -> None:
    run_id = fitted(tmp_path, getattr(studies, name)(tmp_path))
    if name != "simclr":
        medlight(tmp_path, "test", run_id)
    # As many threads as the run had, whatever this process would take.
    said = medlight(tmp_path, "rerun", run_id[:8], "--json", "rerun.json", OMP_NUM_THREADS="2")
    assert "code, packages, machine and data are as recorded" in said
    found = read(tmp_path)
    assert found["verdict"] == "identical"
    assert found["same_weights"]
    metrics = {row["metric"]: row for row in found["metrics"]}
    assert {"train/loss", "lr"} < metrics.keys()
    assert all(row["verdict"] == "identical" and row["largest"] == 0 for row in metrics.values())
    assert any(metric.startswith("test/") for metric in metrics) == (name != "simclr")
    # By a reader of our own: the values themselves, of the two runs that there are.
    curves = {}
    for run in (run_id, found["rerun"]):
        data = client(tmp_path).get_run(run).data
        clocks = ("system/", "train/samples_per_s", "train/data_wait_share")
        names = [metric for metric in data.metrics if not metric.startswith(clocks)]
        curves[run] = {m: [(p.step, p.value) for p in client(tmp_path).get_metric_history(run, m)] for m in names}
    assert curves[run_id] == curves[found["rerun"]]
    assert len(curves[run_id]["train/loss_step"]) > 4
    tags = client(tmp_path).get_run(found["rerun"]).data.tags
    assert tags["medlight.rerun_of"] == run_id
    assert tags["medlight.name"] == "tiny-rerun"
    assert tags["medlight.config_digest"] == client(tmp_path).get_run(run_id).data.tags["medlight.config_digest"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one fit."""
    folder = tmp_path_factory.mktemp("whole")
    fitted(folder, studies.segmentation(folder))
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, to be spoilt, artifacts and all."""
    folder = tmp_path / "copy"
    shutil.copytree(whole, folder)
    with closing(sqlite3.connect(folder / "mlruns/mlflow.db")) as base, base:
        for table, column in (("runs", "artifact_uri"), ("experiments", "artifact_location")):
            base.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (str(whole), str(folder)))
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MEDLIGHT_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(folder)
    return folder


def artifacts(folder: Path) -> Path:
    run_id = json.loads((folder / "fit.json").read_text())["run_id"]
    return Path(client(folder).get_run(run_id).info.artifact_uri.removeprefix("file://"))


def differing(folder: Path) -> dict[str, tuple[str, str, bool]]:
    return {row["what"]: (row["recorded"], row["now"], row["matters"]) for row in read(folder)["differences"]}


def stopped(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Ask for a rerun that is refused for what differs; returns what was said."""
    assert main(["rerun", "tiny", "--json", "rerun.json"]) == 1
    shown = capsys.readouterr()
    assert len(shown.err.splitlines()) == 1
    assert "--anyway" in shown.err
    assert read(folder)["verdict"] == "stopped"
    assert len(client(folder).search_runs([e.experiment_id for e in client(folder).search_experiments()])) == 1
    return shown.out


def edit(folder: Path, change: Any, name: str = "manifest.json") -> None:
    """Change what the run recorded."""
    file = artifacts(folder) / name
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_other_versions_and_another_machine_stop_it(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def change(content: dict[str, Any]) -> None:
        content["environment"]["packages"] |= {"torch": "1.0", "rich": "1.0"}
        content["environment"]["hardware"]["cpu"] = "Another 9000"
        content["environment"]["threads"]["torch"] = 4096

    edit(copy, change)
    said = stopped(copy, capsys)
    found = differing(copy)
    assert found["torch"][0] == "1.0"
    assert found["processor"][0] == "Another 9000"
    assert found["threads"][0] == "4096"
    assert all(found[name][2] for name in ("torch", "processor", "threads"))
    assert found["other packages"][2] is False
    assert said.index("torch") < said.index("other packages"), "what matters comes first"


def test_changed_code_stops_it_by_name(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(copy, lambda content: content["code"].update({"medlight.data.seeding": "0", "medlight.data.gone": "1"}))
    assert "medlight.data.seeding" in stopped(copy, capsys)
    assert differing(copy)["medlight"][1] == "2 changed"


def test_packages_that_compute_nothing_do_not(copy: Path) -> None:
    edit(copy, lambda content: content["environment"]["packages"].update({"rich": "1.0", "pytest": "1.0"}))
    assert main(["rerun", "tiny", "--json", "rerun.json"]) == 0
    assert read(copy)["verdict"] == "identical"


def test_data_are_compared_case_by_case(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = copy / "images/case_03.nii.gz"
    scan = nib.load(file)
    nib.save(nib.Nifti1Image(scan.get_fdata() + 1, scan.affine), file)
    said = stopped(copy, capsys)
    rows = [(row["recorded"], row["now"], row["matters"]) for row in read(copy)["differences"] if row["what"] == "data"]
    assert rows == [("6 cases", "1 gone", True), ("6 cases", "1 more", False)], "runs call it by its content"
    assert "case_03" not in said, "the file's name stays out"


def test_changed_targets_are_noticed(tmp_path: Path) -> None:
    config = studies.classification(tmp_path)
    rows = [{"id": f"a{i}", "image": f"images/case_0{i}.nii.gz", "target": i % 2} for i in range(6)]
    fake.folders(tmp_path, cases=6, shape=(12, 12, 1))
    table = fake.manifest(tmp_path / "cases.csv", rows)
    given = config["data"]["init_args"]
    given["source"] = {"class_path": "medlight.prepare.Manifest", "init_args": {"path": "cases.csv"}}
    given |= {"split": {"class_path": "medlight.prepare.RandomSplit", "init_args": {"val": 0.34}}, "batch_size": 2}
    config["trainer"]["max_epochs"] = 1
    fitted(tmp_path, config)
    fake.manifest(table, [{**row, "target": 1 - int(str(row["target"]))} for row in rows])
    assert "--anyway" in medlight(tmp_path, "rerun", "tiny", "--json", "rerun.json", code=1)
    assert differing(tmp_path).keys() == {"targets"}


def test_a_renamed_scan_is_the_same_case_and_the_split_is_the_recorded_one(copy: Path) -> None:
    for folder in ("images", "labels"):
        (copy / folder / "case_00.nii.gz").rename(copy / folder / "zebra.nii.gz")
        shutil.copy(copy / folder / "case_01.nii.gz", copy / folder / "copy.nii.gz")
    assert main(["rerun", "tiny", "--json", "rerun.json"]) == 0
    assert read(copy)["verdict"] == "identical"
    found = differing(copy)
    assert found["split"][2] is False
    assert found["data"] == ("6 cases", "1 more", False)


def test_absent_data_are_named_whatever_is_asked_for(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "images").rename(copy / "elsewhere")
    assert main(["rerun", "tiny", "--anyway"]) == 2
    shown = capsys.readouterr()
    assert "not usable" in shown.out
    assert "images: looked for" in shown.err


def test_anyway_goes_on_and_judges_each_metric(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = yaml.safe_load((artifacts(copy) / "config.yaml").read_text())
    config["seed_everything"] = config["data"]["init_args"]["seed"] = 4
    (artifacts(copy) / "config.yaml").write_text(yaml.safe_dump(config))
    edit(copy, lambda content: content["environment"].update(python="3.1"))
    assert main(["rerun", "tiny", "--anyway", "--json", "rerun.json"]) == 1
    found = read(copy)
    assert found["verdict"] == "different"
    assert not found["same_weights"]
    verdicts = {row["metric"]: row["verdict"] for row in found["metrics"]}
    assert verdicts["lr"] == "identical"
    assert verdicts["train/loss"] == "different"
    assert "tolerance: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ({"medlight.kind": "sweep"}, "no fit but 'sweep'"),
        ({"medlight.kind": "export"}, "no fit but 'export'"),
        ({"medlight.state": "failed"}, "is failed"),
        ({"medlight.state": "stopped"}, "--resume"),
        ({"medlight.state": "pruned"}, "is pruned"),
    ],
)
def test_runs_without_an_end_are_refused(
    copy: Path, tags: dict[str, str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = json.loads((copy / "fit.json").read_text())["run_id"]
    for key, value in tags.items():
        client(copy).set_tag(run_id, key, value)
    assert main(["rerun", run_id]) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert len(shown.splitlines()) == 1


def test_a_run_that_recorded_too_little_is_refused(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (artifacts(copy) / "manifest.json").unlink()
    assert main(["rerun", "tiny"]) == 2
    assert "has no manifest.json" in capsys.readouterr().err


def test_an_unknown_run_is_refused(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rerun", "nobody"]) == 2
    assert not (workdir / "mlruns").exists()
    assert len(capsys.readouterr().err.splitlines()) == 1
