"""The export at the end of a fit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest

import medlight.deploy.export as export_module
from medlight.callbacks.checkpoint import Checkpoint
from medlight.callbacks.export import Export, metrics
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


def test_a_failed_export_does_not_undo_a_fit(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **options: Any) -> None:
        raise MedlightError("the network can't be exported to ONNX")

    monkeypatch.setattr(export_module, "export_onnx", broken)
    with pytest.warns(UserWarning, match="the export failed: the network can't be exported"):
        result = fit({**recorded.config, "name": "unexportable"}, Launch())
    tags = store.client().get_run(result.run_id).data.tags
    assert result.state == tags["medlight.state"] == "complete"
    assert tags["medlight.export"] == "failed"


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
