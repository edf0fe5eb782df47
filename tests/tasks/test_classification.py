from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from medlight.tasks import ClassificationTask
from medlight.tasks.class_metrics import class_scores
from tests.tasks.blobs import CNN, Pictures, trainer

ADAM = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.02}}


@pytest.mark.parametrize(("classes", "multilabel", "dims"), [(2, False, 2), (3, False, 3), (2, True, 2)])
def test_learns_and_logs_what_it_declares(classes, multilabel, dims):
    data = Pictures(classes=classes, multilabel=multilabel, dims=dims)
    task, fit = ClassificationTask(network=CNN, optimizer=ADAM), trainer(max_epochs=12, check_val_every_n_epoch=12)
    torch.manual_seed(0)
    fit.fit(task, data)
    assert fit.callback_metrics["val/auroc"] > 0.8
    logged = set(fit.callback_metrics)
    fit.test(task, data, verbose=False)
    assert logged | set(fit.callback_metrics) == set(task.logged_metrics())
    assert [row["case_id"] for row in task.case_metrics] == list(range(1000, 1024))


def test_rows_hold_the_answer_and_its_probabilities():
    data = Pictures(classes=3)
    task = ClassificationTask(network=CNN, data=data.signature())
    task.configure_model()
    seen = next(iter(data.val_dataloader()))
    probabilities, rows = task.predict_case(seen), task.score(seen)
    assert probabilities.shape == (8, 3)
    for index, row in enumerate(rows):
        assert row["target"] == int(seen["target"][index])
        assert row["predicted"] == int(probabilities[index].argmax())
        assert row["probability/class 1"] == pytest.approx(probabilities[index, 1].item(), abs=1e-6)
        expected = torch.nn.functional.cross_entropy(probabilities[index].log(), seen["target"][index])
        assert row["loss"] == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("multilabel", [False, True])
def test_unlabelled_cases_do_not_count(multilabel):
    data = Pictures(multilabel=multilabel)
    task = ClassificationTask(network=CNN, data=data.signature())
    task.configure_model()
    task.network.eval()  # this network takes statistics over the batch otherwise
    task.log = lambda *args, **kwargs: None
    seen = next(iter(data.val_dataloader()))
    alone = {name: value[:5] for name, value in seen.items()}
    seen["is_labelled"] = torch.arange(8) < 5
    seen["target"][5:] = float("nan") if multilabel else -1
    assert len(task.score(seen)) == 5
    assert task.training_step(seen, 0).item() == pytest.approx(task.training_step(alone, 0).item(), rel=1e-5)


def test_class_weights_are_written_as_a_list():
    loss = {"class_path": "torch.nn.CrossEntropyLoss", "init_args": {"weight": [1, 2, 3]}}
    task = ClassificationTask(network=CNN, loss=loss, data=Pictures(classes=3).signature())
    task.configure_model()
    logits, target = torch.randn(4, 3), torch.tensor([0, 1, 2, 2])
    expected = torch.nn.functional.cross_entropy(logits, target, weight=torch.tensor([1.0, 2.0, 3.0]))
    assert task.compute_loss([logits], target).item() == pytest.approx(expected.item())


def test_the_default_network_takes_pictures_and_volumes():
    for dims in (2, 3):
        task = ClassificationTask(data=Pictures(dims=dims).signature())
        assert task.build_network().eval()(torch.randn(1, 1, *[28] * dims)).shape == (1, 3)


def ece_by_hand(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    """Guo et al. 2017, equation 3."""
    total = 0.0
    for low in range(bins):
        inside = (confidence > low / bins) & (confidence <= (low + 1) / bins)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return total


@pytest.mark.parametrize("classes", [2, 4])
def test_exclusive_classes_against_scikit_learn(classes):
    draws = np.random.default_rng(classes)
    target = draws.integers(0, classes, 200)
    logits = draws.normal(size=(200, classes)) + 1.5 * np.eye(classes)[target]
    probabilities = torch.tensor(logits).softmax(1).numpy()
    found = class_scores(torch.tensor(probabilities), torch.tensor(target), multilabel=False)
    predicted = probabilities.argmax(1)
    score = probabilities[:, 1] if classes == 2 else probabilities
    assert found["auroc"] == pytest.approx(roc_auc_score(target, score, multi_class="ovr", average="macro"), abs=1e-6)
    assert found["accuracy"] == pytest.approx(accuracy_score(target, predicted))
    assert found["f1"] == pytest.approx(f1_score(target, predicted, average="macro"))
    assert found["ece"] == pytest.approx(ece_by_hand(probabilities.max(1), predicted == target), abs=1e-6)


def test_several_classes_at_once_against_scikit_learn():
    draws = np.random.default_rng(0)
    target = draws.integers(0, 2, (150, 3))
    probabilities = 1 / (1 + np.exp(-(draws.normal(size=(150, 3)) + 2 * target - 1)))
    found = class_scores(torch.tensor(probabilities), torch.tensor(target), multilabel=True)
    predicted = (probabilities >= 0.5).astype(int)
    assert found["auroc"] == pytest.approx(roc_auc_score(target, probabilities, average="macro"), abs=1e-6)
    assert found["accuracy"] == pytest.approx((predicted == target).mean())
    assert found["f1"] == pytest.approx(f1_score(target, predicted, average="macro"))
    assert found["ece"] == pytest.approx(ece_by_hand(probabilities.ravel(), target.ravel()), abs=1e-6)


def test_a_class_without_cases_is_left_out():
    probabilities = torch.tensor([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.2, 0.7, 0.1]])
    found = class_scores(probabilities, torch.tensor([0, 1, 0]), multilabel=False)
    assert found["auroc"] == pytest.approx((0.5 + 0.5) / 2)  # one of two pairs is in order, for either class
    assert found["f1"] == pytest.approx((2 / 3 + 2 / 3) / 2)
    alone = class_scores(probabilities, torch.tensor([0, 0, 0]), multilabel=False)
    assert math.isnan(alone["auroc"])
    assert alone["accuracy"] == pytest.approx(1 / 3)


def test_no_cases_at_all_is_nan():
    assert all(math.isnan(value) for value in class_scores(torch.zeros(0, 2), torch.zeros(0), False).values())
