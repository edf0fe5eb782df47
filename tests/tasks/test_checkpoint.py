from __future__ import annotations

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging

from medlight.errors import MedlightError, UsageError
from medlight.tasks import ClassificationTask, SegmentationTask, load
from tests.tasks.blobs import CNN, DYNUNET, Blobs, Pictures, blob, trainer


class Own(SegmentationTask):
    """A user's task with an argument of its own."""

    def __init__(self, sharpness: float = 1.0, **rest) -> None:
        super().__init__(**rest)


def test_a_checkpoint_describes_itself(tmp_path):
    task, fit = SegmentationTask(network=DYNUNET, nsd_tolerance_mm=2), trainer(max_epochs=1)
    fit.fit(task, Blobs())
    fit.save_checkpoint(tmp_path / "a.ckpt")
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert content["medlight"]["class_path"] == "medlight.tasks.segmentation.SegmentationTask"
    assert content["hyper_parameters"]["data"] == Blobs().signature()
    found = load(tmp_path / "a.ckpt")
    assert type(found) is SegmentationTask
    assert not found.training
    assert found.hparams["nsd_tolerance_mm"] == 2
    seen = torch.utils.data.default_collate([blob(3, (16, 16, 16))])
    assert torch.equal(found.predict_case(seen), task.predict_case(seen))
    assert found.score(seen) == task.score(seen)


def test_a_users_class_comes_back(tmp_path):
    fit = trainer(max_epochs=1)
    fit.fit(Own(sharpness=3.0, network=DYNUNET), Blobs(dims=2))
    fit.save_checkpoint(tmp_path / "a.ckpt")
    found = load(tmp_path / "a.ckpt")
    assert type(found).__name__ == "Own"
    assert found.hparams["sharpness"] == 3.0


def test_losses_with_weights_of_their_own_come_back(tmp_path):
    loss = {"class_path": "torch.nn.CrossEntropyLoss", "init_args": {"weight": [1, 2, 3]}}
    fit = trainer(max_epochs=1)
    fit.fit(ClassificationTask(network=CNN, loss=loss), Pictures())
    fit.save_checkpoint(tmp_path / "a.ckpt")
    assert load(tmp_path / "a.ckpt").loss.loss.weight.tolist() == [1, 2, 3]


def test_averaged_weights_are_the_ones_that_load(tmp_path):
    task = SegmentationTask(network=DYNUNET)
    average = EMAWeightAveraging(decay=0.9)
    saved = {}

    class Save(L.Callback):
        def on_validation_end(self, trainer, module):
            trainer.save_checkpoint(tmp_path / "a.ckpt")
            saved.update({k: v.clone() for k, v in module.state_dict().items()})

    fit = trainer(max_epochs=2, callbacks=[average, Save()])
    fit.fit(task, Blobs())
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    found = load(tmp_path / "a.ckpt").state_dict()
    for name, value in found.items():
        assert torch.equal(value, content["state_dict"][name])
        assert torch.equal(saved[name], content["current_model_state"][name])
    assert any(not torch.equal(value, saved[name]) for name, value in found.items())
    assert fit.callback_metrics["val/dice"] == pytest.approx(
        trainer().validate(load(tmp_path / "a.ckpt"), Blobs(), verbose=False)[0]["val/dice"], abs=1e-6
    )


@pytest.mark.parametrize("schedule", ["PolynomialLR", "OneCycleLR", "ReduceLROnPlateau"])
def test_resuming_goes_on_from_weights_optimiser_and_schedule(tmp_path, schedule):
    scheduler = {"class_path": f"torch.optim.lr_scheduler.{schedule}"}
    scheduler |= {"init_args": {"max_lr": 0.1}} if schedule == "OneCycleLR" else {}
    scheduler |= {"warmup": 2} if schedule == "PolynomialLR" else {}

    class Save(L.Callback):
        def on_validation_end(self, trainer, module):
            if trainer.current_epoch == 1:
                trainer.save_checkpoint(tmp_path / "a.ckpt")

    torch.manual_seed(0)
    task = SegmentationTask(network=DYNUNET, scheduler=scheduler)
    trainer(max_epochs=4, callbacks=[Save()]).fit(task, Blobs(dims=2))
    again = SegmentationTask(network=DYNUNET, scheduler=scheduler)
    trainer(max_epochs=4).fit(again, Blobs(dims=2), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert task.optimizers().param_groups[0]["lr"] == again.optimizers().param_groups[0]["lr"]
    for name, value in task.state_dict().items():
        assert torch.allclose(value, again.state_dict()[name], atol=1e-6)


def test_what_is_no_checkpoint_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"none\.ckpt: no such checkpoint"):
        load(tmp_path / "none.ckpt")
    (tmp_path / "text.ckpt").write_text("hello")
    with pytest.raises(MedlightError, match=r"text\.ckpt"):
        load(tmp_path / "text.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(MedlightError, match=r"other\.ckpt: not a checkpoint of a medlight task"):
        load(tmp_path / "other.ckpt")
