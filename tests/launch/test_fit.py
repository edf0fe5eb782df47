"""A fit as a user starts it: what it leaves behind, that it goes on after kill -9, and that two ranks make one run."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from medlight.cli.main import main
from medlight.launch import settle
from medlight.launch.precision import Choice
from tests.launch import study

SCHEDULER = "lightning.pytorch.callbacks.GradientAccumulationScheduler"
CHANGING = f"[{{class_path: {SCHEDULER}, init_args: {{scheduling: {{0: 3}}}}}}]"


def medlight(folder: Path, *arguments: str, **kwargs: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("MEDLIGHT_DATA", None)
    command = [str(Path(sys.executable).with_name("medlight")), *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, stdout=pipe, stderr=subprocess.STDOUT)


def finished(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def unfinished(folder: Path) -> bool:
    """Whether the folder's one run was cut; a signal may also arrive just after its end."""
    client = MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    return run.info.status != "FINISHED"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one fit that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    study.write(folder, study.config(max_epochs=6))
    finished(medlight(folder, "fit", "-c", "fit.yaml", "--json", "out.json"))
    return folder


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with fake scans and fit.yaml, and no run yet."""
    study.write(tmp_path, study.config(max_epochs=6))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEDLIGHT_DATA", raising=False)
    return tmp_path


def test_a_fit_leaves_everything_under_its_stable_names(whole: Path) -> None:
    result = json.loads((whole / "out.json").read_text())
    client = MlflowClient(f"sqlite:///{whole}/mlruns/mlflow.db")
    run = client.get_run(result["run_id"])
    assert run.info.status == "FINISHED"
    tags = run.data.tags
    assert tags["medlight.kind"] == "fit"
    assert tags["medlight.study"] == "blobs"
    assert tags["medlight.state"] == "complete"
    assert tags["medlight.precision"] == "32-true"
    assert {"train/loss", "val/dice", "val/dice/label 1", "val/hd95", "val/nsd"} <= set(run.data.metrics)
    assert "model.network.channels" in " ".join(run.data.params).replace(".init_args", "")
    files = whole / "mlruns" / "artifacts" / result["run_id"] / "artifacts"
    for name in ("config.yaml", "manifest.json", "cases.csv", "checkpoints/best.ckpt", "checkpoints/last.ckpt"):
        assert (files / name).is_file(), name
    assert list((files / "images").glob("*.png"))
    assert run.inputs.dataset_inputs
    manifest = json.loads((files / "manifest.json").read_text())
    assert manifest["seed"] == 3


def test_the_best_checkpoint_measures_again_what_the_run_says(
    whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(whole)
    monkeypatch.delenv("MEDLIGHT_DATA", raising=False)
    result = json.loads((whole / "out.json").read_text())
    assert main(["validate", result["run_id"], "--json", "again.json"]) == 0
    again = json.loads((whole / "again.json").read_text())["metrics"]
    assert again["val/dice"] == pytest.approx(result["metrics"]["val/dice"], abs=1e-6)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_killed_at_a_random_step_it_goes_on_as_if_nothing_had_been(whole: Path, tmp_path: Path, how: int) -> None:
    slow = study.config(max_epochs=6)
    slow["data"]["init_args"]["workers"] = 1
    study.write(tmp_path, slow)
    process = medlight(tmp_path, "fit", "-c", "fit.yaml")
    last = tmp_path / "mlruns" / "artifacts"
    end = time.monotonic() + 120
    while not list(last.glob("*/artifacts/checkpoints/last.ckpt")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.02)
    time.sleep(random.random() * 0.5)
    process.send_signal(how)
    process.communicate(timeout=60)
    if unfinished(tmp_path):
        finished(medlight(tmp_path, "fit", "-c", "fit.yaml", "--resume"))
    assert not unfinished(tmp_path)
    (undisturbed,) = study.curves(whole).values()
    (resumed,) = study.curves(tmp_path).values()
    assert resumed.keys() == undisturbed.keys()
    for name, points in undisturbed.items():
        assert [step for step, _ in resumed[name]] == [step for step, _ in points], name
        assert [value for _, value in resumed[name]] == pytest.approx([value for _, value in points], abs=1e-6), name


def test_two_ranks_make_one_run_with_one_process_s_curve(tmp_path: Path) -> None:
    alone, both = tmp_path / "alone", tmp_path / "both"
    config = study.config(max_epochs=2)
    del config["model"]["init_args"]["network"]["init_args"]["dropout"]
    study.write(alone, config)
    half = json.loads(json.dumps(config))
    half["data"]["init_args"]["batch_size"] = 1
    half["trainer"].update({"strategy": "ddp", "devices": 2})
    study.write(both, half)
    finished(medlight(alone, "fit", "-c", "fit.yaml"))
    finished(medlight(both, "fit", "-c", "fit.yaml"))
    (one,), (two,) = study.curves(alone).values(), study.curves(both).values()
    for name in ("val/dice", "val/loss", "val/hd95"):
        assert [v for _, v in two[name]] == pytest.approx([v for _, v in one[name]], rel=2e-3, abs=2e-3), name


def test_resume_with_nothing_to_resume_is_a_wrong_call(
    whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(whole)
    monkeypatch.delenv("MEDLIGHT_DATA", raising=False)
    assert main(["fit", "-c", "fit.yaml", "--resume"]) == 2
    assert "no unfinished run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-c", "nothing.yaml"], "no such file"),
        (["-c", "fit.yaml", "--trainer.max_epoch=3"], "did you mean 'max_epochs'"),
        (["-c", "fit.yaml", "--trainr.max_epochs=3"], "did you mean 'trainer'"),
        (["-c", "fit.yaml", "--data.source.images=image"], "did you mean 'images'"),
        (
            [
                "-c",
                "fit.yaml",
                '--trainer.callbacks=[{"class_path": "lightning.pytorch.callbacks.EarlyStopping",'
                ' "init_args": {"monitor": "val/dise"}}]',
            ],
            "did you mean 'val/dice'",
        ),
        (["-c", "fit.yaml", "--model.optimizer.lr=fast"], "model.optimizer.lr: 'fast' is no float"),
        (["-c", "fit.yaml", "--model.optimizer.lr=-1"], "model.optimizer: torch.optim.AdamW: Invalid learning rate"),
        (["-c", "fit.yaml", "--model.optimizer.lr=.nan"], "model.optimizer.lr: nan is no finite number"),
        (
            ["-c", "fit.yaml", "--model.scheduler={class_path: torch.optim.lr_scheduler.StepLR}"],
            "model.scheduler: torch.optim.lr_scheduler.StepLR: ",
        ),
        (["-c", "fit.yaml", "--trainer.max_epochs=-1"], "a schedule needs an end"),
        (["-c", "fit.yaml", "--data.split.val=0"], "data.split: no validation cases"),
        (["-c", "fit.yaml", "--trainer.strategy=ddp", "--trainer.devices=5"], "5 ranks, but 2 validation cases"),
        (["-c", "fit.yaml", "--trainer.accelerator=gpuu"], "trainer: "),
        (["-c", "fit.yaml", "--model.network.channels=[8,-16]"], "model.network: monai.networks.nets.UNet: "),
        (["-c", "fit.yaml", "--json", "fit.yaml/out.json"], "--json fit.yaml/out.json"),
        (["-c", "fit.yaml", "--name=../../y"], "name: '../../y' can't name a folder"),
        (["-c", "fit.yaml", "--study=../x"], "study: '../x' can't name a folder"),
        (["-c", "fit.yaml", "--name=.."], "name: '..' can't name a folder"),
        (["-c", "fit.yaml", "--name="], "--name: is empty; write --name=VALUE"),
        (["-c", "fit.yaml", "--study='  '"], "study: ' ' can't name a folder"),
        (["-c", "fit.yaml", "--name=-lead"], "name: '-lead' can't name a folder"),
        (["-c", "fit.yaml", "--trainer.val_check_interval=0"], "trainer.val_check_interval: 0 validates nothing"),
        (["-c", "fit.yaml", "--trainer.check_val_every_n_epoch=0"], "trainer.check_val_every_n_epoch: 0 validates"),
        (["-c", "fit.yaml", "--trainer.gradient_clip_val=-1"], "trainer.gradient_clip_val: -1"),
        (["-c", "fit.yaml", "--seed_everything=4294967296"], "seed_everything: 4294967296 is no seed"),
        pytest.param(
            ["-c", "fit.yaml", "--trainer.accelerator=gpu", "--precision=auto"],
            "trainer: No supported gpu backend",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
        (["-c", "fit.yaml", "--trainer.accumulate_grad_batches=-1"], "trainer.accumulate_grad_batches: -1 trains"),
        (["-c", "fit.yaml", "--trainer.accelerator=tpu", "--precision=auto"], "trainer: Requirement 'torch_xla"),
        (["-c", "fit.yaml", "--trainer.accelerator=quantum", "--precision=auto"], "trainer: You selected an invalid"),
        (["-c", "fit.yaml", "--trainer.accumulate_grad_batches=0"], "trainer.accumulate_grad_batches: 0 trains"),
        (["-c", "fit.yaml", "--trainer.overfit_batches=2"], "trainer.overfit_batches: each step draws new samples"),
        (["-c", "fit.yaml", "--trainer.max_steps=0"], "trainer.max_steps: 0 trains nothing"),
        (["-c", "fit.yaml", "--trainer.limit_train_batches=0"], "trainer.limit_train_batches: 0 trains nothing"),
        (["-c", "fit.yaml", "--trainer.limit_val_batches=0"], "trainer.limit_val_batches: with 0 there is no"),
        (["-c", "fit.yaml", "--trainer.check_val_every_n_epoch=9"], "trainer.check_val_every_n_epoch: with 9"),
    ],
)
def test_wrong_input_is_refused_before_a_run_is_made(
    whole: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(whole)
    monkeypatch.delenv("MEDLIGHT_DATA", raising=False)
    before = len(study.curves(whole))
    assert main(["fit", *arguments]) == 2
    shown = capsys.readouterr().err.strip()
    assert said in shown
    assert len(shown.splitlines()) == 1
    assert len(study.curves(whole)) == before


def test_a_test_without_test_cases_is_a_wrong_call(
    whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(whole)
    monkeypatch.delenv("MEDLIGHT_DATA", raising=False)
    run_id = json.loads((whole / "out.json").read_text())["run_id"]
    assert main(["test", run_id]) == 2
    assert "data.split: no test cases; give the split some, e.g. data.split.test=0.2" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["validate", "export"])
def test_a_checkpoint_that_was_altered_since_the_fit_is_refused(
    whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    monkeypatch.chdir(whole)
    monkeypatch.delenv("MEDLIGHT_DATA", raising=False)
    run_id = json.loads((whole / "out.json").read_text())["run_id"]
    best = whole / "mlruns" / "artifacts" / run_id / "artifacts" / "checkpoints" / "best.ckpt"
    before = best.read_bytes()
    shutil.copy(best.with_name("last.ckpt"), best)  # a checkpoint like any other, but not that one
    try:
        assert main([command, run_id]) == 1
        assert "best.ckpt was altered since its digest was recorded" in capsys.readouterr().err
        assert not (whole / "tiny-bundle").exists()
        best.unlink()
        for _ in range(2):
            assert main([command, run_id]) == 1
            assert "its checkpoints/best.ckpt is gone; mend: restore it" in capsys.readouterr().err
            best.mkdir(exist_ok=True)
        best.rmdir()
    finally:
        best.write_bytes(before)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--trainer.max_steps=3"], "3 steps end before the first validation, at step 4"),
        (["--trainer.max_steps=6", "--trainer.check_val_every_n_epoch=2"], "6 steps end before"),
        (["--trainer.max_steps=1", "--trainer.accumulate_grad_batches=3"], "1 steps end before"),
        (
            ["--trainer.max_epochs=2", "--trainer.check_val_every_n_epoch=null", "--trainer.val_check_interval=9"],
            "2 epochs end before the first validation, at step 9",
        ),
        (
            [
                *("--trainer.max_steps=3", "--trainer.check_val_every_n_epoch=null"),
                *("--trainer.val_check_interval=8", "--trainer.accumulate_grad_batches=3"),
            ],
            "3 steps end before the first validation, at step 4",
        ),
        (["--trainer.val_check_interval=99"], "trainer.val_check_interval: 99, but an epoch has 4 batches"),
        (
            ["--trainer.max_steps=1", "--trainer.limit_train_batches=2"],
            "1 steps end before the first validation, at step 2",
        ),
    ],
)
def test_a_fit_that_would_end_before_its_first_validation_does_not_train(
    alone: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(["fit", "-c", "fit.yaml", *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not (alone / "mlruns" / "mlflow.db").exists() or not study.runs(alone)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--trainer.max_steps=4"],
        ["--trainer.max_steps=2", f"--trainer.callbacks={CHANGING}"],
        ["--trainer.max_steps=2", "--trainer.accumulate_grad_batches=3"],
        ["--trainer.max_steps=2", "--trainer.val_check_interval=2"],
        ["--trainer.max_epochs=2", "--trainer.check_val_every_n_epoch=null", "--trainer.val_check_interval=8"],
    ],
)
def test_a_fit_that_validates_in_its_last_step_trains(alone: Path, arguments: list[str]) -> None:
    assert main(["fit", "-c", "fit.yaml", *arguments]) == 0
    assert list(alone.glob("mlruns/artifacts/*/artifacts/checkpoints/best.ckpt"))


def test_a_fit_whose_time_is_up_before_its_first_validation_fails_and_says_so(
    alone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "-c", "fit.yaml", "--trainer.max_time=00:00:00:00"]) == 1
    assert "before its first validation" in capsys.readouterr().err
    (tags,) = [run.data.tags for run in study.runs(alone)]
    assert tags["medlight.state"] == "failed"
    assert tags["medlight.reason"].endswith(": the best epoch is the one of the best val/dice")


def test_a_loss_that_is_no_number_ends_the_fit_and_its_weights_begin_none(
    alone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "-c", "fit.yaml", "--model.optimizer.lr=1e30"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert "medlight fit: the loss is no finite number after step" in said[-1]
    (run,) = study.runs(alone)
    assert run.info.status == "FAILED"
    assert "the loss is no finite number" in run.data.tags["medlight.reason"]

    assert main(["fit", "-c", "fit.yaml", "--trainer.max_epochs=1", "--name=sound"]) == 0
    (best,) = alone.glob("mlruns/artifacts/*/artifacts/checkpoints/best.ckpt")
    content = torch.load(best, weights_only=True)
    broken = next(name for name in content["state_dict"] if name.startswith("network.") and name.endswith("weight"))
    content["state_dict"][broken].view(-1)[0] = torch.nan
    torch.save(content, alone / "broken.ckpt")
    capsys.readouterr()
    assert main(["fit", "-c", "fit.yaml", "--name=next", "--model.pretrained=broken.ckpt"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert f"holds weights that are no finite numbers ({broken.removeprefix('network.')})" in said[-1]
    assert len(study.runs(alone)) == 2


def test_what_auto_came_to_is_told_and_compared(
    alone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["fit", "-c", "fit.yaml", "--precision=auto", "--channels_last=auto", "--trainer.max_epochs=1"]
    for name, precision in (("one", "32-true"), ("two", "bf16-mixed")):
        monkeypatch.setattr(settle, "choose", lambda *_, took=precision: Choice(took, False, "as timed"))
        assert main([*arguments, f"--name={name}"]) == 0
        assert f"precision {precision} (as timed)" in capsys.readouterr().err.splitlines()
    assert main(["compare", "one", "two"]) == 0
    said = capsys.readouterr().out
    assert "precision" in said
    assert "32-true" in said
    assert "bf16-mixed" in said
    assert "channels_last" not in said


def test_a_run_is_found_by_a_name_with_an_apostrophe(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "-c", "fit.yaml", "--name=O'Brien", "--trainer.max_epochs=1"]) == 0
    assert main(["validate", "O'Brien"]) == 0
    assert main(["validate", "fit.yaml"]) == 2
    assert "fit.yaml: is a file, no run" in capsys.readouterr().err


def test_what_is_no_checkpoint_is_named(
    whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(whole)
    (whole / "junk.ckpt").write_bytes(b"junk")
    assert main(["test", "junk.ckpt", "-c", "fit.yaml"]) == 1
    said = capsys.readouterr().err
    assert "junk.ckpt: not a checkpoint" in said
    assert "weights_only" not in said


def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    study.write(tmp_path, study.config(max_epochs=500))
    process = medlight(tmp_path, "fit", "-c", "fit.yaml")
    end = time.monotonic() + 120
    while not list((tmp_path / "mlruns" / "artifacts").glob("*/artifacts/checkpoints/last.ckpt")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert output.splitlines()[-1] == "medlight fit: interrupted; the same command with --resume goes on"
