from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from medlight.errors import UsageError
from medlight.tasks import FixMatchTask, load
from tests.tasks.blobs import CNN, trainer
from tests.tasks.few import FewPictures, Stop, around


def test_the_loss_is_the_papers():
    data = FewPictures()
    task = FixMatchTask(network=CNN, data=data.signature(), unlabelled_weight=2.0)
    task.configure_model()
    logged = {}
    task.log = lambda name, value, **_: logged.setdefault(name, float(value))
    batch = next(iter(data.train_dataloader()))
    task.eval()  # in training, batch norm would see another batch here
    weak, strong = (task.network(batch["views"][:, view]) for view in (0, 1))
    sure, target = weak[4:].softmax(1).max(1)
    threshold = float(sure.sort().values[2:4].mean())
    task.hparams["threshold"] = threshold
    loss = task.training_step(batch, 0)
    picked = (sure >= threshold).nonzero().flatten().tolist()
    assert len(picked) == 3
    unlabelled = sum(float(F.cross_entropy(strong[4 + i][None], target[i][None])) for i in picked) / 6
    supervised = float(F.cross_entropy(weak[:4], batch["target"][:4]))
    assert float(loss) == pytest.approx(supervised + 2 * unlabelled, rel=1e-4)
    assert logged["train/confident"] == pytest.approx(len(picked) / 6)
    assert sum(value for name, value in logged.items() if name.startswith("train/pseudo/")) == pytest.approx(0.5)
    loss.backward()
    assert all(p.grad is None for p in task.teacher.parameters())
    assert all(p.grad is not None for p in task.network.parameters())


def test_it_learns_the_average_leaves_and_views_may_move(tmp_path):
    torch.manual_seed(0)
    data = FewPictures(cases=12)
    data.views_move = True
    task, fit = FixMatchTask(network=CNN, decay=0.8, threshold=0.6), trainer(max_epochs=12)
    fit.fit(task, data)
    found = {name: float(value) for name, value in fit.callback_metrics.items()}
    assert set(found) <= set(task.logged_metrics())
    assert found["val/auroc"] > 0.7
    assert {"train/confident", "train/pseudo/class 1", "val/student/auroc"} <= set(found)
    fit.save_checkpoint(tmp_path / "a.ckpt")
    image = data.picture(3)["image"][None]
    loaded = load(tmp_path / "a.ckpt")
    with torch.no_grad():
        assert torch.equal(loaded(image), task.teacher.module.eval()(image))


def test_a_fit_that_was_cut_goes_on_to_the_last_bit(tmp_path):
    def run(folder, *extra, start=None):
        torch.manual_seed(0)
        task = FixMatchTask(network=CNN, threshold=0.5)
        fit = trainer(max_epochs=3, callbacks=around(*extra), enable_checkpointing=True, default_root_dir=folder)
        fit.fit(task, FewPictures(), ckpt_path=start, weights_only=True if start else None)
        return task.state_dict()

    whole = run(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="power"):
        run(tmp_path / "cut", Stop(1))
    again = run(tmp_path / "cut", start=tmp_path / "cut" / "checkpoints" / "last.ckpt")
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_what_makes_no_sense_is_refused():
    for wrong in ({"threshold": 1.5}, {"unlabelled_weight": -1.0}, {"decay": -0.1}):
        with pytest.raises(UsageError, match=f"model.{next(iter(wrong))}"):
            FixMatchTask(**wrong)
    with pytest.raises(UsageError, match="exclusive classes"):
        trainer().fit(FixMatchTask(network=CNN), FewPictures(multilabel=True))
