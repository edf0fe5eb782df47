from __future__ import annotations

import torch

from medlight.tasks import VICRegTask, load
from tests.tasks.blobs import CNN, trainer
from tests.tasks.views import PictureViews

ADAM = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 3e-3}}


def test_learns_without_negatives_and_does_not_collapse(tmp_path):
    torch.manual_seed(0)
    task, fit = VICRegTask(network=CNN, optimizer=ADAM, projection=[32, 16]), trainer(max_epochs=8)
    fit.fit(task, PictureViews(steps=6, batch=12))
    found = dict(fit.callback_metrics)
    assert {name for name in task.logged_metrics() if not name.startswith("test/")} == set(found)
    assert found["val/effective_rank"] > 1.2
    assert found["val/knn_accuracy"] > 0.5  # chance: a third
    fit.save_checkpoint(tmp_path / "last.ckpt")
    assert isinstance(load(tmp_path / "last.ckpt"), VICRegTask)


def test_weights_of_the_terms_are_the_losses_own():
    loss = {"class_path": "medlight.losses.VICReg", "init_args": {"covariance": 5.0}}
    task = VICRegTask(network=CNN, loss=loss, data=PictureViews().signature())
    task.configure_model()
    assert task.loss.covariance == 5.0
