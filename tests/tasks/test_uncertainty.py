from __future__ import annotations

import copy
import math

import lightning as L
import pytest
import torch

from medlight.errors import UsageError
from medlight.tasks import UncertaintyAwareSegmentation
from tests.tasks.blobs import DYNUNET, trainer
from tests.tasks.few import FewBlobs, Stop, around

DROPOUT = copy.deepcopy(DYNUNET)
DROPOUT["init_args"]["dropout"] = 0.3


def built(**own):
    data = FewBlobs(dims=2)
    task = UncertaintyAwareSegmentation(network=DYNUNET, data=data.signature(), **own)
    task.configure_model()
    task.log = lambda *_, **__: None
    return task.train(), next(iter(data.train_dataloader()))


def test_the_threshold_rises_from_three_quarters_to_the_whole_of_ln_c():
    seen = []

    class Look(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, number):
            seen.append(module.threshold())

    task = UncertaintyAwareSegmentation(network=DYNUNET, passes=1)
    fit = trainer(max_epochs=1, callbacks=[Look()])
    fit.fit(task, FewBlobs(dims=2, steps=5))
    expected = [(0.75 + 0.25 * math.exp(-5 * (1 - step / 5) ** 2)) * math.log(3) for step in range(5)]
    assert seen == pytest.approx(expected)
    assert 0 <= fit.callback_metrics["train/sure"] <= 1
    assert set(fit.callback_metrics) <= set(task.logged_metrics())


def test_only_voxels_of_which_the_teacher_is_sure_count():
    task, batch = built(passes=3)
    image, logits = batch["views"][2:, 1], torch.randn(2, 3, 16, 16, requires_grad=True)
    answers = []
    task.teach = lambda image: answers.append(8 * torch.randn(2, 3, 16, 16)) or answers[-1]
    task.threshold = lambda: 0.75 * math.log(3)
    found = task.distance(logits, image)
    assert len(answers) == 4
    mean = torch.stack([answer.softmax(1) for answer in answers[1:]]).mean(0)
    sure = -(mean * mean.log()).sum(1, keepdim=True) < 0.75 * math.log(3)
    assert 0 < int(sure.sum()) < sure.numel()
    square = (logits.softmax(1) - answers[0].softmax(1)) ** 2
    assert float(found) == pytest.approx(float(square[sure.expand_as(square)].mean()), rel=1e-4)
    found.backward()
    assert (logits.grad.abs().sum(1, keepdim=True)[~sure] == 0).all()


def test_passes_differ_by_dropout_and_by_noise_alone_without_it():
    task, batch = built()
    image = batch["views"][2:, 1]
    assert torch.equal(task.teach(image), task.teach(image)), "no dropout: the same answer"
    seen = []
    teach = task.teach
    task.teach = lambda image: seen.append(image) or teach(image)
    task.threshold = lambda: 1.0
    task.distance(torch.randn(2, 3, 16, 16), image)
    noise = torch.stack([passed - image for passed in seen[1:]])
    assert torch.equal(seen[0], image)
    assert len(noise) == 8
    assert float(noise.abs().max()) <= 0.2 + 1e-6
    assert 0.08 < float(noise.std()) < 0.1
    data = FewBlobs(dims=2)
    other = UncertaintyAwareSegmentation(network=DROPOUT, data=data.signature())
    other.configure_model()
    other.train()
    assert not torch.equal(other.teach(image), other.teach(image))


def test_a_fit_that_was_cut_goes_on_to_the_last_bit(tmp_path):
    def run(folder, *extra, start=None):
        torch.manual_seed(0)
        task = UncertaintyAwareSegmentation(network=DROPOUT, passes=2)
        fit = trainer(max_epochs=3, callbacks=around(*extra), enable_checkpointing=True, default_root_dir=folder)
        fit.fit(task, FewBlobs(dims=2), ckpt_path=start, weights_only=True if start else None)
        return task.state_dict()

    whole = run(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="power"):
        run(tmp_path / "cut", Stop(1))
    again = run(tmp_path / "cut", start=tmp_path / "cut" / "checkpoints" / "last.ckpt")
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_what_makes_no_sense_is_refused():
    with pytest.raises(UsageError, match=r"model\.passes"):
        UncertaintyAwareSegmentation(passes=0)
    with pytest.raises(UsageError, match="set max_epochs"):
        UncertaintyAwareSegmentation(ramp_up=3).check_optimizers(endless=True)
