from __future__ import annotations

import lightning as L
import numpy as np
import pytest
import torch
from scipy import ndimage

from medlight.errors import UsageError
from medlight.tasks import CopyPasteSegmentation, load
from medlight.tasks.copy_paste import draw_box, largest_components, mix
from tests.tasks.blobs import DYNUNET, trainer
from tests.tasks.few import FewBlobs, Stop, around


@pytest.mark.parametrize("size", [(9, 12), (9, 6, 7), (1, 3, 5)])
def test_a_box_has_two_thirds_of_each_side_and_lies_anywhere(size):
    corners = set()
    for _ in range(60):
        found = np.argwhere(draw_box(torch.Size(size)).numpy())
        low, high = found.min(0), found.max(0)
        assert ((high - low + 1) == [max(1, 2 * n // 3) for n in size]).all()
        assert len(found) == np.prod(high - low + 1)
        corners.add(tuple(low))
    assert len(corners) > 4
    torch.manual_seed(5)
    first = draw_box(torch.Size(size))
    torch.manual_seed(5)
    assert torch.equal(first, draw_box(torch.Size(size)))


@pytest.mark.parametrize(("few", "many"), [(2, 2), (2, 5), (3, 1), (1, 4)])
def test_mixed_images_voxel_by_voxel(few, many):
    image, other = torch.rand(few, 2, 6, 5, 4), torch.rand(many, 2, 6, 5, 4)
    label, guess = torch.randint(0, 3, (few, 1, 6, 5, 4)), torch.randint(0, 3, (many, 1, 6, 5, 4))
    box = draw_box(image.shape[2:])
    mixed, answer, true = mix(image, label, other, guess, box)
    pairs = max(few, many)
    assert len(mixed) == len(answer) == len(true) == pairs
    for p in range(pairs):
        inside_is_unlabelled = p < (pairs + 1) // 2
        for voxel in np.ndindex(6, 5, 4):
            unlabelled = bool(box[voxel]) == inside_is_unlabelled
            source, truth = (other[p % many], guess[p % many]) if unlabelled else (image[p % few], label[p % few])
            assert torch.equal(mixed[(p, slice(None), *voxel)], source[(slice(None), *voxel)])
            assert answer[(p, 0, *voxel)] == truth[(0, *voxel)]
            assert bool(true[(p, 0, *voxel)]) != unlabelled


def test_of_each_label_the_largest_part_is_kept():
    labels = torch.zeros(2, 1, 12, 12, dtype=torch.long)
    labels[0, 0, :3, :3], labels[0, 0, 3, 3], labels[0, 0, 8:10, 8] = 1, 1, 1  # (3, 3) touches by a corner
    labels[0, 0, 6, 0], labels[0, 0, 10:, 3:6] = 2, 2
    found = largest_components(labels)
    expected = labels.clone()
    expected[0, 0, 8:10, 8], expected[0, 0, 6, 0] = 0, 0
    assert torch.equal(found, expected)
    noisy = torch.randint(0, 3, (1, 1, 10, 10, 6))
    kept = largest_components(noisy)
    for value in (1, 2):
        _, parts = ndimage.label((kept == value)[0, 0].numpy(), structure=np.ones((3, 3, 3)))
        assert parts == 1
    assert (kept[kept > 0] == noisy[kept > 0]).all()


def test_labels_before_the_switch_and_the_teachers_answers_after_it():
    seen = []

    class Look(L.Callback):
        def on_train_start(self, trainer, module):
            teach, run = module.teach, module.run_network

            def watched(image):
                seen.append("teacher")
                return teach(image)

            module.teach = watched
            module.run_network = lambda image: seen.append(len(image)) or run(image)

        def on_validation_start(self, trainer, module):
            del module.teach, module.run_network

    task = CopyPasteSegmentation(network=DYNUNET, pretraining=2)
    fit = trainer(max_epochs=1, callbacks=[Look()])
    fit.fit(task, FewBlobs(dims=2, steps=4))
    assert [entry for entry in seen if entry == "teacher"] == ["teacher"] * 2
    assert seen[:2] == [2, 2]
    assert set(fit.callback_metrics) <= set(task.logged_metrics())


def test_hidden_labels_are_not_read_and_only_the_student_learns():
    data = FewBlobs()
    task = CopyPasteSegmentation(network=DYNUNET, data=data.signature(), pretraining=0)
    task.configure_model()
    task.log, task.trainer = lambda *_, **__: None, trainer()
    batch = next(iter(data.train_dataloader()))
    task.train()
    torch.manual_seed(3)
    loss = task.training_step(batch, 0)
    loss.backward()
    assert all(p.grad is None for p in task.teacher.parameters())
    assert all(p.grad is not None for p in task.network.parameters())
    batch["label"][2:] = 1
    torch.manual_seed(3)
    assert torch.equal(task.training_step(batch, 0), loss)


def test_a_fit_that_was_cut_goes_on_to_the_last_bit(tmp_path):
    def run(folder, *extra, start=None):
        torch.manual_seed(0)
        task = CopyPasteSegmentation(network=DYNUNET, pretraining=4)
        fit = trainer(max_epochs=3, callbacks=around(*extra), enable_checkpointing=True, default_root_dir=folder)
        fit.fit(task, FewBlobs(), ckpt_path=start, weights_only=True if start else None)
        return task.state_dict()

    whole = run(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="power"):
        run(tmp_path / "cut", Stop(2))
    again = run(tmp_path / "cut", start=tmp_path / "cut" / "checkpoints" / "last.ckpt")
    assert all(torch.equal(value, again[name]) for name, value in whole.items())
    loaded = load(tmp_path / "cut" / "checkpoints" / "best.ckpt")
    assert type(loaded) is CopyPasteSegmentation


class One(FewBlobs):
    labelled, unlabelled = 1, 3


class OneCase(FewBlobs):
    def signature(self) -> dict:
        whole = super().signature()
        return {**whole, "few_labels": {**whole["few_labels"], "labelled": 1}}


def test_what_makes_no_sense_is_refused():
    for wrong in ({"pretraining": -1}, {"alpha": -0.5}, {"loss": {"class_path": "torch.nn.CrossEntropyLoss"}}):
        with pytest.raises(UsageError, match=f"model.{next(iter(wrong))}"):
            CopyPasteSegmentation(**wrong)
    with pytest.raises(UsageError, match=r"labelled_per_batch: .* at least 2"):
        trainer().fit(CopyPasteSegmentation(network=DYNUNET), One())
    with pytest.raises(UsageError, match=r"data\.labelled: .* at least 2"):
        trainer().fit(CopyPasteSegmentation(network=DYNUNET), OneCase())
