from __future__ import annotations

import json

import pytest
import torch

from medlight.tasks import ClassificationTask, SegmentationTask
from tests.tasks.blobs import CNN, DYNUNET, Blobs, Pictures

WINDOW = {"class_path": "medlight.prepare.Window", "init_args": {"low": -100, "high": 300}}
ZSCORE = {"class_path": "medlight.prepare.ZScore", "init_args": {}}


def test_segmentation_with_the_window_inside():
    data = Blobs().signature() | {
        "channels": ["ct", "late"],
        "normalise": [WINDOW, WINDOW | {"init_args": {"low": 0, "high": 50}}],
    }
    task = SegmentationTask(network=DYNUNET, data=data)
    module = task.deployable()
    image = torch.randn(2, 2, 16, 16, 16) * 300
    scaled = torch.stack([(image[:, 0].clip(-100, 300) + 100) / 400, image[:, 1].clip(0, 50) / 50], dim=1)
    with torch.no_grad():
        expected = task.network.eval()(scaled).softmax(1)
        assert torch.allclose(module(image), expected, atol=1e-6)
    assert not module.training
    assert task.signature()["normalise_in_graph"] is True


@pytest.mark.parametrize("normalise", [[ZSCORE], []])
def test_what_needs_the_whole_scan_stays_outside(normalise):
    task = SegmentationTask(network=DYNUNET, data=Blobs().signature() | {"normalise": normalise})
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        assert torch.allclose(task.deployable()(image), task.eval()(image).softmax(1), atol=1e-6)
    assert task.signature()["normalise_in_graph"] is False


def test_signatures_are_plain():
    task = SegmentationTask(network=DYNUNET, data=Blobs().signature())
    found = task.signature()
    assert json.loads(json.dumps(found)) == found
    assert found["outputs"] == ["background", "core", "rim"]
    assert found["window"] == {"size": [16, 16, 16], "overlap": 0.5, "mode": "gaussian"}
    assert (found["task"], found["activation"]) == ("segmentation", "softmax")


def test_classifiers():
    for multilabel, activation in ((False, "softmax"), (True, "sigmoid")):
        task = ClassificationTask(network=CNN, data=Pictures(multilabel=multilabel).signature())
        image = torch.randn(2, 1, 12, 12)
        with torch.no_grad():
            found, logits = task.deployable()(image), task.eval()(image)
        assert torch.allclose(found, logits.sigmoid() if multilabel else logits.softmax(1), atol=1e-6)
        assert (task.signature()["task"], task.signature()["activation"]) == ("classification", activation)


def test_the_copy_is_its_own():
    task = SegmentationTask(network=DYNUNET, data=Blobs().signature())
    task.configure_model()
    task.run_network(torch.randn(2, 1, 16, 16, 16))  # DynUNet keeps its heads from now on
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    module = task.deployable()
    assert torch.rand(1) == expected
    with torch.no_grad():
        next(module.parameters()).zero_()
    assert next(task.parameters()).abs().sum() > 0


def test_half_precision_weights_come_out_as_float32():
    task = SegmentationTask(network=DYNUNET, data=Blobs().signature())
    task.configure_model()
    task.network.to(torch.bfloat16)
    module = task.deployable()
    assert module(torch.randn(1, 1, 16, 16, 16)).dtype == torch.float32
