from __future__ import annotations

import copy
import json
import math

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging

from medlight.cli.main import main
from medlight.errors import UsageError
from medlight.tasks import MeanTeacherClassification, MeanTeacherSegmentation, SegmentationTask, load
from tests.launch import study
from tests.tasks.blobs import CNN, DYNUNET, blob, trainer
from tests.tasks.few import FewBlobs, FewPictures, Stop, around

NORMED = copy.deepcopy(DYNUNET)
NORMED["init_args"] |= {"norm_name": ["batch", {"track_running_stats": True}], "dropout": 0.2}
SGD = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05, "momentum": 0.9}}


class Watch(L.Callback):
    """Keeps the student and the teacher after every batch."""

    def __init__(self) -> None:
        self.students, self.teachers, self.updates = [], [], []

    def on_train_start(self, trainer, module) -> None:
        self.on_train_batch_end(trainer, module)

    def on_train_batch_end(self, trainer, module, *rest) -> None:
        self.students.append({k: v.clone() for k, v in module.network.state_dict().items()})
        self.teachers.append({k: v.clone() for k, v in module.teacher.module.state_dict().items()})
        self.updates.append(int(module.teacher.n_averaged))


def fitted(task, data, **settings):
    torch.manual_seed(0)
    fit = trainer(**settings)
    fit.fit(task, data)
    return fit


@pytest.mark.parametrize("gathered", [1, 2])
def test_the_teacher_is_the_plain_formula_after_each_optimiser_step(gathered):
    watch = Watch()
    task = MeanTeacherSegmentation(network=NORMED, decay=0.6, optimizer=SGD)
    fitted(task, FewBlobs(steps=4), max_epochs=1, callbacks=[watch], accumulate_grad_batches=gathered)
    assert watch.updates == ([0, 1, 2, 3, 4] if gathered == 1 else [0, 0, 1, 1, 2])
    for name, begun in watch.students[0].items():
        if not begun.is_floating_point():
            continue
        expected = begun.double()
        for batch in range(gathered, 5, gathered):
            n = batch // gathered - 1
            decay = min(0.6, 1 - 1 / (n + 1))
            expected = decay * expected + (1 - decay) * watch.students[batch][name].double()
            assert torch.allclose(watch.teachers[batch][name].double(), expected, atol=1e-6), (name, batch)
    assert any("running_mean" in name for name in watch.students[0])


def test_gradients_reach_the_student_only_and_the_labels_of_others_do_nothing():
    data = FewBlobs(dims=2)
    task = MeanTeacherSegmentation(network=DYNUNET, data=data.signature(), ramp_up=0, consistency=3.0)
    task.configure_model()
    task.trainer = trainer()
    task.log = lambda *_, **__: None
    batch = next(iter(data.train_dataloader()))
    task.train()
    loss = task.training_step(batch, 0)
    loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in task.teacher.parameters())
    assert all(p.grad is not None for p in task.network.parameters())
    heads = task.run_network(batch["views"][:, 0])
    soft, guess = heads[0][2:].softmax(1), task.teacher.module(batch["views"][2:, 1])[:, 0].softmax(1)
    apart = sum(float(((soft - guess) ** 2)[:, c].mean()) for c in range(3)) / 3
    supervised = task.compute_loss([head[:2] for head in heads], batch["label"][:2])
    assert float(loss) == pytest.approx(float(supervised) + 3.0 * apart, rel=1e-5)
    batch["label"][2:] = 2
    assert torch.equal(task.training_step(batch, 0), loss)


def test_the_weight_rises_over_the_steps():
    logged = []

    class Weights(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, number):
            logged.append(module.weight())

    task = MeanTeacherSegmentation(network=DYNUNET, consistency=2.0)
    fitted(task, FewBlobs(dims=2, steps=5), max_epochs=2, callbacks=[Weights()])
    assert logged == pytest.approx([2 * math.exp(-5 * (1 - min(s, 4) / 4) ** 2) for s in range(10)])


@pytest.mark.parametrize("dims", [2, 3])
def test_both_are_measured_and_the_teacher_is_what_leaves(tmp_path, dims):
    task, data = MeanTeacherSegmentation(network=NORMED, optimizer=SGD), FewBlobs(dims=dims)
    fit = fitted(task, data)
    found = {name: float(value) for name, value in fit.callback_metrics.items()}
    assert set(found) <= set(task.logged_metrics())
    assert {"val/dice", "val/student/dice", "val/student/dice/rim", "train/consistency"} <= set(found)
    assert "val/student/hd95" not in found
    seen = torch.utils.data.default_collate([blob(3, (16,) * dims)])
    alone = {}
    for name, network in (("teacher", task.teacher.module), ("student", task.network)):
        plain = SegmentationTask(network=NORMED, data=data.signature())
        plain.configure_model()
        plain.network.load_state_dict(network.state_dict())
        alone[name] = plain
        measured = trainer().validate(plain, data, verbose=False)[0]
        prefix = "student/" if name == "student" else ""
        assert found[f"val/{prefix}dice"] == pytest.approx(measured["val/dice"], abs=1e-6)
    assert found["val/dice"] != found["val/student/dice"]
    row, theirs = task.score(seen)[0], alone["student"].score(seen)[0]
    assert row["student/dice/core"] == pytest.approx(theirs["dice/core"], nan_ok=True)
    fit.save_checkpoint(tmp_path / "a.ckpt")
    loaded = load(tmp_path / "a.ckpt")
    expected = alone["teacher"].predict_case(seen)
    assert torch.equal(loaded.predict_case(seen), expected)
    assert torch.equal(task.predict_case(seen), expected)
    with torch.no_grad():
        assert torch.equal(loaded(seen["image"]), alone["teacher"].eval()(seen["image"]))
        assert torch.allclose(loaded.deployable()(seen["image"]), loaded(seen["image"]).softmax(1), atol=1e-6)
    assert trainer().test(loaded, data, verbose=False)[0]["test/student/dice"] == pytest.approx(
        found["val/student/dice"], abs=1e-6
    )


def test_a_classifier_learns_with_its_teacher():
    task = MeanTeacherClassification(network=CNN)
    fit = fitted(task, FewPictures(), max_epochs=6)
    found = {name: float(value) for name, value in fit.callback_metrics.items()}
    assert set(found) <= set(task.logged_metrics())
    assert {"val/student/auroc", "val/student/ece", "val/auroc"} <= set(found)
    assert found["val/student/auroc"] > 0.6


def test_a_fit_that_was_cut_goes_on_to_the_last_bit(tmp_path):
    def run(folder, *extra, start=None):
        torch.manual_seed(0)
        task = MeanTeacherSegmentation(network=NORMED)
        fit = trainer(max_epochs=3, callbacks=around(*extra), enable_checkpointing=True, default_root_dir=folder)
        fit.fit(task, FewBlobs(), ckpt_path=start, weights_only=True if start else None)
        return task, fit

    whole, first = run(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="power"):
        run(tmp_path / "cut", Stop(2))
    again, second = run(tmp_path / "cut", start=tmp_path / "cut" / "checkpoints" / "last.ckpt")
    assert whole.state_dict().keys() == again.state_dict().keys()
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert {k: float(v) for k, v in first.callback_metrics.items()} == {
        k: float(v) for k, v in second.callback_metrics.items()
    }


class Without(FewBlobs):
    views = ()


class Moving(FewBlobs):
    views_move = True


class AllLabelled(FewBlobs):
    def signature(self) -> dict:
        return super().signature() | {"few_labels": {"labelled": 8, "unlabelled": 0, "labelled_per_batch": None}}


@pytest.mark.parametrize(
    ("data", "said"),
    [(Without(), "needs two views"), (Moving(), "compares their voxels"), (AllLabelled(), "needs unlabelled cases")],
)
def test_data_it_cant_learn_from_are_refused(data, said):
    with pytest.raises(UsageError, match=said) as caught:
        trainer().fit(MeanTeacherSegmentation(network=DYNUNET), data)
    assert "\n" not in str(caught.value)


def test_what_makes_no_sense_is_refused():
    with pytest.raises(UsageError, match="averages the weights itself"):
        trainer(callbacks=[EMAWeightAveraging()]).fit(MeanTeacherSegmentation(network=DYNUNET), FewBlobs())
    for wrong in ({"decay": 1.0}, {"consistency": -1.0}, {"ramp_up": -1}):
        with pytest.raises(UsageError, match=f"model.{next(iter(wrong))}"):
            MeanTeacherSegmentation(**wrong)
    with pytest.raises(UsageError, match=r"model\.ramp_up"):
        MeanTeacherSegmentation().check_optimizers(endless=True)


def written(**few) -> dict:
    """A fit as a user writes it, on real files."""
    config = study.config(max_epochs=2)
    config["model"]["class_path"] = "medlight.tasks.MeanTeacherSegmentation"
    noise = {"class_path": "torchio.RandomNoise", "init_args": {"std": [0, 0.1]}}
    config["data"]["class_path"] = "medlight.data.FewLabelsDataModule"
    own = {"labelled": 2, "labelled_per_batch": 1, "views": [[noise], [noise]]}
    config["data"]["init_args"] |= own | few
    return config


def test_a_whole_fit_its_test_and_its_bundle(workdir, capsys):
    config = written()
    config["data"]["init_args"]["split"]["init_args"]["test"] = 0.17
    study.write(workdir, config)
    assert main(["fit", "-c", "fit.yaml", "--json", "out.json"]) == 0
    (curves,) = study.curves(workdir).values()
    assert {"val/dice", "val/student/dice"} <= set(curves)
    run = json.loads((workdir / "out.json").read_text())["run_id"]
    assert main(["test", run, "--json", "test.json"]) == 0
    assert "test/student/dice" in json.loads((workdir / "test.json").read_text())["metrics"]
    (best,) = workdir.glob("mlruns/artifacts/*/artifacts/checkpoints/best.ckpt")
    task, image = load(best), torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        assert torch.equal(task(image), task.teacher.module(image))


@pytest.mark.parametrize(
    ("few", "said"),
    [
        ({"views": []}, "data.views: MeanTeacherSegmentation needs two views"),
        ({"views": [[], [{"class_path": "torchio.RandomAffine"}]]}, "move spatial transforms to data.augment"),
        ({"labelled_per_batch": None}, "needs unlabelled cases in its batches"),
    ],
)
def test_wrong_data_are_refused_before_a_run_is_made(workdir, capsys, few, said):
    study.write(workdir, written(**few))
    assert main(["fit", "-c", "fit.yaml"]) == 2
    shown = capsys.readouterr().err.strip()
    assert said in shown
    assert len(shown.splitlines()) == 1
    assert not list(workdir.glob("mlruns/artifacts/*"))
