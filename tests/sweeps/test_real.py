"""Sweeps of real (tiny) fits, by the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medlight.cli.main import main
from medlight.deploy.bundle import Bundle
from medlight.tracking import store
from tests.sweeps.study import UNET, sweep_yaml, write

LR = {"model.optimizer.lr": {"type": "float", "low": 1e-3, "high": 1e-1, "log": True}}
NETS = {
    "unet": {**UNET, "space": {"num_res_units": {"type": "int", "low": 0, "high": 1}}},
    "basic": {  # too deep for these patches: its trials fail
        "class_path": "monai.networks.nets.BasicUNet",
        "init_args": {"features": [4, 4, 8, 8, 8, 4]},
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("real")


@pytest.fixture(autouse=True)
def _inside(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MEDLIGHT_DATA"):
        monkeypatch.delenv(name, raising=False)


def run(name: str, *arguments: str, **changes) -> tuple[int, dict]:
    file = write(Path.cwd(), sweep_yaml(name=name, **changes))
    code = main(["sweep", "-c", str(file), "--json", f"{name}.json", *arguments])
    return code, json.loads(Path(f"{name}.json").read_text())


def test_a_sweep_over_two_networks_is_one_parent_with_comparable_children():
    space = {"model.network": {"type": "categorical", "choices": NETS}, **LR}
    sampler = {"class_path": "optuna.samplers.GridSampler"}
    sampler["init_args"] = {
        "search_space": {
            "model.network": ["unet", "basic"],
            "model.network.unet.num_res_units": [1],
            **{k: [0.01] for k in LR},
        }
    }
    code, content = run("nets", "--trials", "2", "--workers", "2", space=space, sampler=sampler)
    assert code == 0
    trials = {trial["params"]["model.network"]: trial for trial in content["trials"]}
    assert trials["unet"]["state"] == "complete"
    assert trials["basic"]["state"] == "failed"
    assert "Expected more than 1 spatial element" in trials["basic"]["reason"]
    children = {run.info.run_id: run for run in store.children(content["run_id"])}
    good, bad = children[trials["unet"]["run_id"]], children[trials["basic"]["run_id"]]
    assert (good.info.status, good.data.tags["medlight.state"]) == ("FINISHED", "complete")
    assert (bad.info.status, bad.data.tags["medlight.state"]) == ("FAILED", "failed")
    assert "Expected more than 1 spatial element" in bad.data.tags["medlight.reason"]
    assert good.data.tags["medlight.kind"] == "trial"
    assert good.data.tags["medlight.trial"] == str(trials["unet"]["number"])
    assert good.data.params["space.model.network"] == "unet"
    assert good.data.params["space.model.network.unet.num_res_units"] == "1"
    parent = store.find_run(content["run_id"])
    assert parent.data.tags["medlight.best_run"] == good.info.run_id
    assert parent.data.metrics["best/val/dice"] == pytest.approx(trials["unet"]["values"][0])
    assert trials["unet"]["values"][0] == pytest.approx(max(history(good.info.run_id, "val/dice")))


def history(run_id: str, metric: str) -> list[float]:
    return [point.value for point in store.client().get_metric_history(run_id, metric)]


def test_a_pruned_fit_ends_after_its_first_validation_and_says_so():
    pruner = {"class_path": "optuna.pruners.ThresholdPruner", "init_args": {"lower": 2.0}}
    code, content = run("pruned", "--trials=1", "--trainer.max_epochs=5", space=LR, pruner=pruner)
    assert code == 1
    assert [trial["state"] for trial in content["trials"]] == ["pruned"]
    (child,) = store.children(content["run_id"])
    assert (child.info.status, child.data.tags["medlight.state"]) == ("FINISHED", "pruned")
    assert len(history(child.info.run_id, "val/dice")) == 1


def test_precision_is_settled_once_for_all_trials():
    code, content = run("settled", "--trials=2", "--trainer.max_epochs=1", "--precision=auto", space=LR)
    assert code == 0
    tags = [child.data.tags for child in store.children(content["run_id"])]
    assert len({each["medlight.precision"] for each in tags}) == 1
    assert {each["medlight.precision_reason"] for each in tags} == {"as configured"}


@pytest.mark.slow
def test_a_trial_may_be_a_fit_of_two_processes():
    ranks = ("--data.split.val=0.5", "--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_epochs=1")
    code, content = run("ranks", "--trials=1", *ranks, space=LR)
    assert code == 0, content
    assert [trial["state"] for trial in content["trials"]] == ["complete"]
    assert len(store.children(content["run_id"])) == 1


def test_the_best_trial_becomes_a_bundle(capsys: pytest.CaptureFixture[str]) -> None:
    space = {"model.network": {"type": "categorical", "choices": {"unet": UNET}}, **LR}
    code, content = run("leaving", "--trials", "1", space=space, export={"to": ["onnx", "openvino"]})
    assert code == 0
    (trial,) = content["trials"]
    (folder,) = Path.cwd().glob("*-leaving-bundle")
    bundle = Bundle.load(folder)
    assert bundle.run_id == trial["run_id"]
    assert [model.name for model in bundle.models] == ["onnxruntime-fp32", "openvino-fp32"]
    file = write(Path.cwd(), sweep_yaml(name="wrong", space=space, export={"to": ["coreml"]}))
    assert main(["sweep", "-c", str(file), "--trials", "1"]) == 2
    assert "export: --to coreml: no such target" in capsys.readouterr().err
