"""The export at the end of a fit."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

import medlight.deploy.export as export_module
from medlight.callbacks.checkpoint import Checkpoint
from medlight.callbacks.export import Export, metrics
from medlight.cli.main import main
from medlight.config import Config, set_path
from medlight.deploy.bundle import Bundle
from medlight.errors import MedlightError
from medlight.launch.fit import Launch, fit
from medlight.tasks import load
from medlight.tracking import store
from tests.deploy.recorded import Recorded, recorded_fit
from tests.deploy.trained import segmentation


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorded]:
    with recorded_fit(tmp_path_factory.mktemp("recorded")) as made:
        yield made


def test_the_callback_left_a_checked_bundle_in_the_run(recorded: Recorded) -> None:
    bundle = Bundle.load(store.artifact(recorded.run_id, "bundle"))
    assert bundle.run_id == recorded.run_id
    assert bundle.parity["passed"]
    assert bundle.parity["cases"] == 1
    assert store.artifact(recorded.run_id, "bundle/parity.json").is_file()
    assert recorded.tags()["medlight.export"] == "complete"
    assert recorded.tags()["medlight.state"] == "complete"
    assert recorded.metrics()["export/max_abs_diff"] < 1e-4
    assert "export/dice_diff" in recorded.metrics()
    assert recorded.tags()["medlight.model"] == "models:/exports-tiny/1"
    (version,) = store.client().search_model_versions("name = 'exports-tiny'")
    assert version.run_id == recorded.run_id


def test_a_wrong_callback_is_refused_before_the_fit() -> None:
    with pytest.raises(MedlightError, match="no such target"):
        Export(to=["onnx", "coreml"])
    with pytest.raises(MedlightError, match=r"Export\.cases"):
        Export(cases=0)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MedlightError("the network can't be exported to ONNX"), "the network can't be exported to ONNX"),
        (RuntimeError("CUDA out of memory\nTried to allocate"), "RuntimeError: CUDA out of memory"),
        (OSError("/scans/DOE_JOHN.nii.gz: cannot be read"), "OSError: <file>: cannot be read"),
    ],
    ids=["ours", "torch's", "of a file"],
)
def test_a_failed_export_does_not_undo_a_fit(
    error: Exception,
    said: str,
    recorded: Recorded,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(export_module, "export_onnx", broken)
    result = fit({**recorded.config, "name": "unexportable"}, Launch())
    assert exports(capsys) == [f"failed: {said}"]
    tags = store.client().get_run(result.run_id).data.tags
    assert result.state == tags["medlight.state"] == "complete"
    assert tags["medlight.export"] == "failed"


class Branching(torch.nn.Module):
    """Which way it takes depends on what it sees: ONNX gets one of them, and torch.export refuses."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.layer = torch.nn.Conv3d(in_channels, out_channels, 3, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        found = self.layer(image)
        return found if found.mean() < 1e6 else 2 * found


def branching(config: Config, to: list[str]) -> Config:
    callback = {"class_path": "medlight.callbacks.export.Export", "init_args": {"cases": 1, "to": to}}
    network = {"class_path": "tests.callbacks.test_export.Branching"}
    config = set_path({**config, "name": "branching"}, "model.init_args.network", network)
    return set_path(config, "trainer.callbacks", [callback])


def test_a_network_that_one_target_refuses(
    recorded: Recorded, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """It can be exported without that target; with it, the fit is complete and both ways of exporting are tagged."""
    (tmp_path / "fit.yaml").write_text(json.dumps(branching(recorded.config, ["onnx", "torch"])))
    assert main(["fit", "-c", str(tmp_path / "fit.yaml")]) == 0
    said = capsys.readouterr()
    (line,) = [line for line in said.err.splitlines() if line.startswith("export ")]
    assert line.startswith("export    failed: torch-fp32 can't be made of this network: GuardOnDataDependentSymNode: ")
    assert line.endswith("; mend: leave torch out")
    assert "Traceback" not in said.err
    assert "export: failed" in said.out
    run_id = said.out.split()[1].rstrip(":")

    def tags() -> dict[str, str]:
        return dict(store.client().get_run(run_id).data.tags)

    assert (tags()["medlight.state"], tags()["medlight.export"]) == ("complete", "failed")
    assert main(["export", run_id, str(tmp_path / "out"), "--threads", "1"]) == 0
    assert tags()["medlight.export"] == "complete"
    assert main(["export", run_id, str(tmp_path / "two"), "--to", "onnx,torch", "--threads", "1"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("medlight export: torch-fp32 can't be made of this network: GuardOnDataDependentSymNode")
    assert tags()["medlight.export"] == "failed"
    assert not (tmp_path / "two").exists()


def test_the_traceback_of_a_failed_export_is_for_debug(
    recorded: Recorded, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "fit.yaml").write_text(json.dumps(branching(recorded.config, ["onnx", "torch"])))
    assert main(["fit", "-c", str(tmp_path / "fit.yaml"), "--debug"]) == 0
    said = capsys.readouterr().err
    assert "export    failed: torch-fp32" in said
    assert "GuardOnDataDependentSymNode" in said.partition("Traceback")[2]


def test_what_an_export_has_to_tell_is_told_once(recorded: Recorded, tmp_path: Path) -> None:
    """In a process of its own, as a user runs it: Lightning's loggers are quiet there."""
    to = {"to": ["onnx", "openvino"], "precision": ["fp32", "int8"], "cases": 1}
    callback = {"class_path": "tests.callbacks.test_export.Sensitive", "init_args": to}
    config = set_path({**recorded.config, "name": "told"}, "trainer.callbacks", [callback])
    (tmp_path / "fit.yaml").write_text(json.dumps(config))
    words = [sys.executable, "-m", "medlight", "fit", "-c", str(tmp_path / "fit.yaml")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=True)
    kept, differ = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("export ")]
    assert re.fullmatch(r"export    model_int8\.onnx: \d+ of \d+ layers stay in float32, for INT8 costs .*", kept)
    assert differ.startswith("export    probabilities differ from torch by up to ")


class Sensitive(Export):
    """All layers in INT8 are said to lose too much, so some stay in float32."""

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        export_module._distance = doubtful(export_module._distance)  # in this process, which ends with the fit
        super().on_fit_end(trainer, pl_module)


def doubtful(real: Any) -> Any:
    def distance(graph: Path, batches: Any) -> Any:
        measured, asked = real(graph, batches), []

        def counted(file: Path) -> float:
            asked.append(file)
            return float(measured(file)) if len(asked) > 1 else 1.0

        return counted

    return distance


def exports(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What a fit said of its export."""
    lines = capsys.readouterr().err.splitlines()
    return [line.removeprefix("export    ") for line in lines if line.startswith("export ")]


def test_differences_of_dice_and_auroc_are_metrics() -> None:
    figures: dict[str, Any] = {"max_abs_diff": 1e-6, "mean_abs_diff": 1e-7, "dice_diff": 0.25, "auroc_diff": None}
    expected = {"export/max_abs_diff": 1e-6, "export/mean_abs_diff": 1e-7, "export/dice_diff": 0.25}
    assert metrics(figures) == expected
    assert metrics(figures | {"dice_diff": None, "auroc_diff": 0.125})["export/auroc_diff"] == 0.125
    int8 = {"max_abs_diff": 0.5, "score_diff": 0.003, "auroc_diff": 0.003}
    assert metrics({"models": {"openvino-int8": int8}})["export/openvino-int8/score_diff"] == 0.003


def test_the_callback_works_without_a_logger(tmp_path: Path) -> None:
    trained = segmentation(tmp_path)
    task = load(trained.checkpoint)
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        callbacks=[Export(), Checkpoint("val/dice", "max")],
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    trainer.fit(task, trained.data)
    assert Bundle.load(tmp_path / "bundle").parity["passed"]
