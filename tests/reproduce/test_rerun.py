"""A recorded run comes out the same again, to the last bit; where the world is another, that is said first."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import nibabel as nib
import pytest
import torch
import yaml
from mlflow import MlflowClient

from medlight.cli.main import main
from medlight.errors import UsageError
from medlight.launch.resolve import parse
from medlight.reproduce import differences, likeness, plan, recorded, rerun
from medlight.reproduce.recorded import Recorded
from medlight.tracking.manifest import data_fingerprint
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


def test_a_bundle_that_was_made_of_it_later_is_no_part_of_a_run(copy: Path) -> None:
    run_id = json.loads((copy / "fit.json").read_text())["run_id"]
    before = likeness.curves(run_id)
    client(copy).log_metric(run_id, "export/dice", 0.99)
    assert "export/dice" in client(copy).get_run(run_id).data.metrics
    assert likeness.curves(run_id) == before


def test_a_checkpoint_altered_since_the_fit_is_told_and_nothing_is_called_identical_to_it(copy: Path) -> None:
    best = artifacts(copy) / "checkpoints/best.ckpt"
    content = torch.load(best, weights_only=True)
    content["state_dict"][next(iter(content["state_dict"]))].view(-1)[0] += 1
    torch.save(content, best)
    medlight(copy, "rerun", "tiny", "--json", "rerun.json")
    (row,) = (row for row in read(copy)["differences"] if row["what"] == "best checkpoint")
    assert (row["now"], row["matters"]) == (hashlib.sha256(best.read_bytes()).hexdigest()[:12], False)
    assert row["note"].startswith("altered since the fit")
    assert (read(copy)["verdict"], read(copy)["same_weights"]) == ("within tolerance", False)


def test_labels_are_hidden_of_the_cases_of_which_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = studies.mean_teacher(tmp_path)
    data: Any
    _, data, _ = parse(config).build()
    data.prepare_data()
    found = data_fingerprint(data)
    said = {
        "run_id": "",
        "name": "",
        "study": "",
        "tags": {},
        "metrics": {},
        "config": config,
        "resumes": [],
        "diff": "",
    }
    labelled, splitless = data.labelled_ids[0], {**found, "labelled": None}
    for number in range(20):  # until the draw, which is by names, is another
        for folder in ("images", "labels"):
            Path(folder, f"{labelled}.nii.gz").rename(Path(folder, f"renamed_{number}.nii.gz"))
        labelled = f"renamed_{number}"
        drawn = rerun._data(Recorded(**said, manifest={"data": splitless}))[0]
        if data_fingerprint(drawn)["labelled"] != found["labelled"]:
            break
    again, split = rerun._data(Recorded(**said, manifest={"data": found}))
    assert again.labelled_ids == (labelled,)
    assert data_fingerprint(again) == found
    assert split is not None
    (row,) = differences.of_choice(found["labelled"], split.labelled_today)
    assert (row.recorded, row.now, row.matters) == ("1", "1, 1 of them others", False)
    for folder in ("images", "labels"):
        Path(folder, f"{labelled}.nii.gz").unlink()
    with pytest.raises(UsageError, match="none of the run's labelled cases"):
        rerun._data(Recorded(**said, manifest={"data": found}))


def test_a_run_that_was_killed_and_resumed_comes_out_the_same_in_one_go(tmp_path: Path) -> None:
    config = studies.segmentation(tmp_path)
    config["trainer"]["max_epochs"] = 12
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    for count in range(2):
        resume = ["--resume"] if count else []
        command = [sys.executable, "-m", "medlight", "fit", "-c", "fit.yaml", *resume]
        process = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"})
        deadline = time.monotonic() + 300
        while _epochs(tmp_path) < 2 + 3 * count and time.monotonic() < deadline:
            time.sleep(0.02)
        process.kill()
        assert process.wait() < 0, "it ended before it was killed"
    medlight(tmp_path, "fit", "-c", "fit.yaml", "--resume", "--json", "fit.json")
    names = {file.name for file in artifacts(tmp_path).glob("manifest*")}
    assert names == {"manifest.json", "manifest-resumed-1.json", "manifest-resumed-2.json"}
    medlight(tmp_path, "rerun", "tiny", "--json", "rerun.json")
    assert differing(tmp_path) == {"resume": ("cut and resumed 2 times", "in one go", False)}
    assert (read(tmp_path)["verdict"], read(tmp_path)["same_weights"]) == ("identical", True)


def _epochs(folder: Path) -> int:
    """How many epochs a fit's last checkpoint has behind it."""
    for file in folder.glob("mlruns/artifacts/*/artifacts/checkpoints/last.ckpt"):
        return int(torch.load(file, weights_only=True, map_location="cpu")["epoch"]) + 1
    return 0


def test_each_resume_is_looked_at(copy: Path) -> None:
    content = json.loads((artifacts(copy) / "manifest.json").read_text())
    warm = json.loads(json.dumps(content))
    warm["code"] = {name: digest for name, digest in content["code"].items() if "prepare" not in name}
    warm["code"]["medlight.another"] = "0"

    def said(*resumes: dict[str, Any], old: dict[str, Any] | None = None) -> tuple[str, bool]:
        for file in artifacts(copy).glob("manifest-resumed*"):
            file.unlink()
        for number, again in enumerate(resumes, 1):
            (artifacts(copy) / f"manifest-resumed-{number}.json").write_text(json.dumps(again))
        if old is not None:
            (artifacts(copy) / "manifest-resumed.json").write_text(json.dumps(old))
        (row,) = rerun._of_resume(recorded.read("tiny"))
        return row.recorded, row.matters

    assert said(warm) == ("cut and resumed", False), "fewer modules are imported where the store is there"
    other = {**warm, "code": {**warm["code"], "medlight.tasks.base": "0"}}
    assert said(warm, other, warm) == ("cut and resumed 3 times with other code", True)
    assert said(*[warm] * 11) == ("cut and resumed 11 times", False)
    assert said(warm, old=other) == ("cut and resumed 2 times with other code", True), "of an older medlight"
    run_id = json.loads((copy / "fit.json").read_text())["run_id"]
    assert "medlight.tasks.base" in plan.difference(run_id, content["data"]["digest"])
    plan.difference.cache_clear()


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
