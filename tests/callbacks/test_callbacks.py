"""The callbacks around a fit, each by what it leaves behind."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import EMAWeightAveraging
from PIL import Image

from medlight.callbacks import CaseTable, Checkpoint, RunRecord, StepSeed, Throughput, ValidationImages
from medlight.callbacks.best import Best
from medlight.callbacks.images import due
from medlight.callbacks.step_seed import derived, seed_all
from medlight.errors import MedlightError, UsageError
from medlight.prepare.case import Label
from medlight.tracking import store
from medlight.tracking.logger import MLflowLogger
from tests.callbacks.tiny import TinyData, TinyTask

CONFIG = {
    "seed_everything": 7,
    "model": {"network": {"class_path": "monai.networks.nets.UNet", "init_args": {"channels": [4, 8]}}},
    "data": {"path": "/data/DOE^JANE/scans", "name": None},
}


def train(*callbacks: L.Callback, task: L.LightningModule | None = None, data: Any = None, **options: Any) -> L.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = L.Trainer(**{**quiet, "max_epochs": 3, "log_every_n_steps": 2, "callbacks": list(callbacks), **options})
    trainer.fit(task or TinyTask(), datamodule=data or TinyData())
    return trainer


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A recorded fit with everything on, and then a test."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        logger = MLflowLogger("tiny", "all")
        checkpoint = Checkpoint("val/loss", "min")
        trainer = train(StepSeed(1), RunRecord(CONFIG), CaseTable(), Throughput(), checkpoint, logger=logger)
        metrics = dict(checkpoint.best_metrics)
        trainer.test(ckpt_path="best", datamodule=TinyData(), verbose=False)
        run = store.find_run(logger.run_id)
        curves = {k: store.client().get_metric_history(run.info.run_id, k) for k in run.data.metrics}
        yield SimpleNamespace(run=run, curves=curves, folder=logger.local_dir, best=metrics, checkpoint=checkpoint)


def test_record(finished: Any) -> None:
    run, folder = finished.run, finished.folder
    assert run.info.status == "FINISHED"
    assert yaml.safe_load((folder / "config.yaml").read_text()) == CONFIG
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["seed"] == 7
    assert manifest["precision"] == "32-true"
    assert len(manifest["data"]["cases"]) == 12
    assert run.data.params["model.network.class_path"] == "monai.networks.nets.UNet"
    assert run.data.params["model.network.init_args.channels"] == "[4, 8]"
    assert run.data.params["data.path"] == "scans"
    assert run.data.tags["medlight.state"] == "complete"
    assert run.data.tags["medlight.monitor"] == "val/loss"
    assert run.inputs.dataset_inputs[0].dataset.digest == manifest["data"]["digest"]


def test_curves(finished: Any) -> None:
    steps = {key: sorted(m.step for m in points) for key, points in finished.curves.items()}
    assert steps["train/loss"] == steps["val/loss"] == steps["train/samples_per_s"] == [5, 11, 17]
    assert steps["train/loss_step"] == [1, 3, 5, 7, 9, 11, 13, 15, 17]
    assert set(steps["lr"]) >= {0, 1, 3, 5, 6, 7}
    assert steps["test/loss"] == [18]
    assert any(key.startswith("system/cpu") for key in steps)
    assert all(0 <= m.value <= 1 for m in finished.curves["train/data_wait_share"])
    assert all(len(s) == len(set(s)) for s in steps.values())


def test_case_table(finished: Any) -> None:
    rows = list(csv.DictReader((finished.folder / "cases.csv").open()))
    assert list(rows[0]) == ["case_id", "split", "epoch", "error"]
    assert [row["case_id"] for row in rows if row["split"] == "val"] == [f"case{i:02d}" for i in range(12)]
    assert sum(row["split"] == "test" for row in rows) == 12
    losses = sorted(finished.curves["val/loss"], key=lambda m: m.step)
    best = min(range(3), key=lambda epoch: losses[epoch].value)
    assert {row["epoch"] for row in rows if row["split"] == "val"} == {str(best)}


def test_best_checkpoint(finished: Any) -> None:
    losses = [m.value for m in finished.curves["val/loss"]]
    assert finished.checkpoint.best_score == pytest.approx(min(losses))
    assert finished.best["val/loss"] == pytest.approx(min(losses))
    assert "train/loss" in finished.best
    best = torch.load(finished.folder / "checkpoints" / "best.ckpt", weights_only=True)
    assert Path(finished.checkpoint.best_model_path) == finished.folder / "checkpoints" / "best.ckpt"
    assert best["global_step"] == 6 * (1 + losses.index(min(losses)))


def test_best_holds_the_weights_that_were_measured(workdir: Path) -> None:
    """With averaged weights, too: measure the file again and get the same value."""

    class Exact(TinyTask):
        def _measure(self, batch: Any, stage: str) -> None:
            self.log(f"{stage}/loss", ((self.net(batch["image"])[:, 0] - batch["target"]) ** 2).mean())

    checkpoint = Checkpoint("val/loss", "min")
    train(EMAWeightAveraging(decay=0.8), checkpoint, task=Exact(), logger=False, default_root_dir=workdir)
    task = Exact()
    task.load_state_dict(torch.load(checkpoint.best_model_path, weights_only=True)["state_dict"])
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    measured = trainer.validate(task, datamodule=TinyData(), verbose=False)
    assert measured[0]["val/loss"] == pytest.approx(checkpoint.best_score, abs=1e-6)


def test_unknown_monitor_names_those_there_are(workdir: Path) -> None:
    with pytest.raises(
        UsageError, match=r"'val/lose' is not logged \(did you mean 'val/loss'\?\); logged: .*train/loss"
    ):
        train(Checkpoint("val/lose", "min"), logger=False, default_root_dir=workdir)


def test_a_training_metric_can_be_monitored(workdir: Path) -> None:
    class Falling(TinyTask):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            self.log("train/score", (1.0, 0.5, 0.2)[self.current_epoch], on_step=False, on_epoch=True)
            return loss

    checkpoint = Checkpoint("train/score", "min")
    train(checkpoint, task=Falling(), logger=False, default_root_dir=workdir)
    assert checkpoint.best_score == pytest.approx(0.2)
    assert torch.load(checkpoint.best_model_path, weights_only=True)["global_step"] == 18


def test_a_fit_without_validation_fails_and_keeps_its_last_state(workdir: Path) -> None:
    checkpoint = Checkpoint("val/loss", "min")
    with pytest.raises(MedlightError, match="before its first validation"):
        train(checkpoint, task=Unscheduled(), logger=False, default_root_dir=workdir, limit_val_batches=0)
    assert checkpoint.best_model_path == ""
    assert [file.name for file in workdir.rglob("*.ckpt")] == ["last.ckpt"]


@pytest.mark.parametrize("monitor", ["val/loss", "val_loss"])
def test_a_metric_of_validation_is_waited_for(workdir: Path, monitor: str) -> None:
    class Named(Unscheduled):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log(monitor, 1.0)

    checkpoint = Checkpoint(monitor, "min")
    train(checkpoint, task=Named(), default_root_dir=workdir, check_val_every_n_epoch=2)
    assert torch.load(checkpoint.best_model_path, weights_only=True)["global_step"] == 12


@pytest.mark.parametrize(("mode", "better"), [("min", 0.5), ("max", 2.0)])
def test_best_and_not_a_number(mode: Any, better: float) -> None:
    best = Best("m", mode)
    trainer: Any = SimpleNamespace(callback_metrics={}, world_size=1)
    verdicts = []
    for value in (float("nan"), 1.0, float("nan"), 1.0, better):
        trainer.callback_metrics["m"] = torch.tensor(value)
        verdicts.append(best.improved(trainer))
    assert verdicts == [True, True, False, False, True]


def test_failed_fit_says_why_without_names(workdir: Path) -> None:
    class Broken(TinyTask):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            raise RuntimeError("/data/DOE^JANE/7.nii.gz: no such file\nmore")

    logger = MLflowLogger("tiny", "broken")
    with pytest.raises(RuntimeError):
        train(RunRecord(CONFIG), Checkpoint("val/loss", "min"), task=Broken(), logger=logger)
    run = store.find_run(logger.run_id)
    assert run.info.status == "FAILED"
    assert run.data.tags["medlight.state"] == "failed"
    assert run.data.tags["medlight.reason"] == "RuntimeError: <file>: no such file"


def test_seeds_depend_on_everything() -> None:
    keys = {
        derived(s, "train", step, batch, rank)
        for s in (0, 1)
        for step in range(5)
        for batch in (0, 1)
        for rank in (0, 1)
    }
    assert len(keys) == 40
    draws = []
    for _ in range(2):
        seed_all(3, "train", 10, 0, 0)
        draws.append((torch.rand(()).item(), random.random(), np.random.rand()))
    assert draws[0] == draws[1]


class Unscheduled(TinyTask):
    """Without a schedule that looks at the validation."""

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters())


class Segmenter(TinyTask):
    """Predicts the sign of a volume."""

    def predict_case(self, batch: Any) -> torch.Tensor:
        positive = (batch["image"] > 0).float()
        return torch.cat([1 - positive, positive], 1)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.net(torch.ones(2, 8)).mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", 1.0)


class Volumes(L.LightningDataModule):
    """Four cases of one batch each."""

    labels = (Label(0, "background"), Label(2, "tissue"))

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        self.case_ids = ["a", "b^x", "c", "d"]

    def train_dataloader(self) -> Any:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(4, 1, *self.shape, generator=generator)
        cases = [
            {"image": image, "label": (image > 0).long() * 2, "case_id": torch.tensor(i), "spacing": torch.ones(3)}
            for i, image in enumerate(images)
        ]
        return torch.utils.data.DataLoader(cases, batch_size=1)  # type: ignore[arg-type]

    val_dataloader = train_dataloader


@pytest.mark.parametrize("shape", [(12, 14, 10), (16, 20)])
def test_pictures(workdir: Path, shape: tuple[int, ...]) -> None:
    logger = MLflowLogger("tiny", "pictures")
    train(
        ValidationImages(2),
        task=Segmenter(),
        data=Volumes(shape),
        logger=logger,
        enable_checkpointing=False,
        max_epochs=5,
    )
    files = [item.path for item in store.client().list_artifacts(logger.run_id, "images")]
    keys = {tuple(path.removeprefix("images/").split("+")[:3:2]) for path in files}
    assert keys == {(f"val~{case}", str(step)) for case in ("a", "b_x") for step in (4, 8, 16, 20)}  # epochs 1, 2, 4, 5
    with Image.open(store.artifact(logger.run_id, next(f for f in files if f.endswith(".png")))) as image:
        assert min(image.size) >= 100


def test_pictures_stay_few() -> None:
    def drawn(epoch: int) -> bool:
        state = SimpleNamespace(fn="fit")
        trainer: Any = SimpleNamespace(
            sanity_checking=False, state=state, current_epoch=epoch, max_epochs=1000, max_steps=-1, global_step=epoch
        )
        return due(trainer)

    assert [epoch + 1 for epoch in range(1000) if drawn(epoch)] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000]
