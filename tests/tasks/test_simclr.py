from __future__ import annotations

import pytest
import torch

from medlight.errors import UsageError
from medlight.losses import NTXent
from medlight.tasks import SegmentationTask, SimCLRTask, load
from medlight.tasks.truth import class_of
from tests.tasks.blobs import CNN, DYNUNET, Pictures, trainer
from tests.tasks.views import BlobViews, PictureViews

ADAM = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 3e-3}}


def fitted(task, data, **settings):
    torch.manual_seed(0)
    fit = trainer(**settings)
    fit.fit(task, data)
    return fit


@pytest.mark.parametrize(("dims", "multilabel"), [(2, False), (3, False), (2, True)])
def test_learns_and_logs_what_it_declares(dims, multilabel):
    data = PictureViews(dims=dims, multilabel=multilabel, steps=6)
    task = SimCLRTask(network=CNN, optimizer=ADAM, neighbours=5)
    fit = fitted(task, data, max_epochs=12)
    found = dict(fit.callback_metrics)
    fit.test(task, data, verbose=False)
    assert set(found) | set(fit.callback_metrics) == set(task.logged_metrics())
    assert found["train/loss"] < torch.log(torch.tensor(15.0))  # what vectors without sense would give
    assert 1 <= found["val/effective_rank"] <= 8
    assert task.case_metrics == []
    if not multilabel:
        assert found["val/probe_accuracy"] > 0.7
        assert found["val/knn_accuracy"] > 0.7


def test_patches_of_scans_with_a_segmentation_network(tmp_path):
    data = BlobViews()
    task = SimCLRTask(network=DYNUNET, optimizer=ADAM)
    fit = fitted(task, data)
    assert set(fit.callback_metrics) | {f"test/{n[4:]}" for n in fit.callback_metrics if n[:4] == "val/"} == set(
        task.logged_metrics()
    )
    frozen = [name for name, p in task.network.named_parameters() if not p.requires_grad]
    assert frozen
    assert not any(name.startswith(("input_block", "downsamples", "bottleneck")) for name in frozen)

    fit.save_checkpoint(tmp_path / "last.ckpt")
    torch.manual_seed(1)
    weights = {"weights": str(tmp_path / "last.ckpt"), "least": 0.4}
    begun = SegmentationTask(network=DYNUNET, data=data.signature(), pretrained=weights)
    begun.configure_model()
    assert set(frozen) <= set(begun.pretrained_report.missing)  # a decoder that learnt nothing is not said to be loaded
    sizes = {name: p.numel() for name, p in begun.network.named_parameters()}
    learnt = sum(size for name, size in sizes.items() if name not in frozen)
    assert begun.pretrained_report.share == pytest.approx(learnt / sum(sizes.values()))
    now, then = dict(begun.network.named_parameters()), dict(task.network.named_parameters())
    for name in sizes:
        if name.endswith("conv.weight"):
            assert torch.equal(now[name], then[name]) == (name not in frozen), name


def test_the_class_of_a_patch_is_its_largest_label():
    data = {"labels": [{"value": 0, "name": "b"}, {"value": 3, "name": "x"}, {"value": 7, "name": "y"}], "classes": []}
    label = torch.zeros(4, 1, 4, 4, dtype=torch.long)
    label[0, 0, 0], label[0, 0, 1, :2] = 3, 7
    label[1, 0, 0], label[1, 0, 1:3] = 3, 7
    label[3] = 7
    batch = {"image": label.float(), "label": label, "is_labelled": torch.tensor([True, True, True, False])}
    assert class_of(batch, {**data, "multilabel": False}).tolist() == [1, 2, 0, -1]


def test_labels_have_no_part_in_what_is_learnt():
    class Turned(PictureViews):
        def picture(self, index):
            return {**super().picture(index), "target": torch.tensor((index // 7) % 3)}

    class Hidden(PictureViews):
        def picture(self, index):
            return {**super().picture(index), "target": torch.tensor(-1), "is_labelled": torch.tensor(False)}

    tasks = []
    for data in (PictureViews(), Turned(), Hidden(), PictureViews(multilabel=False, classes=2)):
        torch.manual_seed(1)
        task = SimCLRTask(network=CNN, optimizer=ADAM)
        fitted(task, data, gradient_clip_val=0.1)
        tasks.append(task)
    for other in tasks[1:3]:
        for name, value in tasks[0].network.state_dict().items():
            assert torch.equal(value, other.network.state_dict()[name]), name
    assert not torch.equal(tasks[0].probe.weight, tasks[1].probe.weight)
    assert not tasks[2].probe.weight.any()


def test_a_resumed_fit_ends_as_one_that_was_not_cut(tmp_path):
    whole = SimCLRTask(network=CNN, optimizer=ADAM)
    fitted(whole, PictureViews(), max_epochs=4)
    cut = SimCLRTask(network=CNN, optimizer=ADAM)
    first = fitted(cut, PictureViews(), max_epochs=2)
    first.save_checkpoint(tmp_path / "last.ckpt")
    rest = SimCLRTask(network=CNN, optimizer=ADAM)
    trainer(max_epochs=4).fit(rest, PictureViews(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, rest.state_dict()[name]), name


def test_a_checkpoint_comes_back_and_is_no_deployable(tmp_path):
    task = SimCLRTask(network=CNN, optimizer=ADAM, temperature=0.3, projection=[16, 4])
    fit = fitted(task, PictureViews())
    fit.save_checkpoint(tmp_path / "last.ckpt")
    back = load(tmp_path / "last.ckpt")
    assert isinstance(back, SimCLRTask)
    assert back.hparams["temperature"] == back.loss.temperature == 0.3
    image = torch.randn(2, 1, 12, 12)
    task.eval()
    assert torch.equal(back.encode(image), task.encode(image))
    for refused in (back.deployable, back.signature):
        with pytest.raises(UsageError, match="fine-tune it"):
            refused()


def test_a_step_is_the_bare_loop():
    data = PictureViews()
    torch.manual_seed(0)
    task = SimCLRTask(network=CNN, data=data.signature())
    task.configure_model()
    task.log = lambda *args, **kwargs: None
    batch = next(iter(data.train_dataloader()))
    features = []
    task.network.fc.register_forward_pre_hook(lambda _, args: features.append(args[0]))
    task.network(torch.cat([batch["views"][:, 0], batch["views"][:, 1]]))
    expected = NTXent(0.2)(*task.projection(features[0]).chunk(2))
    torch.testing.assert_close(task.training_step(batch, 0), expected)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"temperature": 0.0}, "model.temperature"),
        ({"projection": [0]}, "model.projection"),
        ({"neighbours": 0}, "model.neighbours"),
        ({"probe_lr": 0.0}, "model.probe_lr"),
    ],
)
def test_senseless_settings_are_refused(given, said):
    with pytest.raises(UsageError, match=said):
        SimCLRTask(**given)


def test_data_without_views_are_refused():
    with pytest.raises(UsageError, match="PretrainingDataModule with 2 views"):
        trainer().fit(SimCLRTask(network=CNN), Pictures())
