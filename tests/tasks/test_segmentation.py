from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss

from medlight.errors import UsageError
from medlight.tasks import SegmentationTask
from tests.tasks.blobs import DYNUNET, Blobs, blob, trainer

SCHEDULERS = "torch.optim.lr_scheduler."


def ready(data: Blobs | None = None, **arguments) -> SegmentationTask:
    torch.manual_seed(0)
    task = SegmentationTask(**{"network": DYNUNET, "data": (data or Blobs()).signature()} | arguments)
    task.configure_model()
    return task


def batch(*indices: int, shape: tuple[int, ...] = (16, 16, 16)) -> dict:
    return torch.utils.data.default_collate([blob(index, shape) for index in indices])


@pytest.mark.parametrize("dims", [2, 3])
def test_learns_and_logs_what_it_declares(dims):
    task = SegmentationTask(network=DYNUNET, optimizer={"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}})
    assert "val/dice" in task.logged_metrics()
    fit, data = trainer(max_epochs=20, check_val_every_n_epoch=20), Blobs(dims=dims)
    torch.manual_seed(0)
    fit.fit(task, data)
    assert fit.callback_metrics["val/dice"] > 0.5
    logged = set(fit.callback_metrics)
    fit.test(task, data, verbose=False)
    assert logged | set(fit.callback_metrics) == set(task.logged_metrics())
    assert task.metric_names(data.signature()) == task.logged_metrics()


def test_rows_agree_with_the_means():
    fit, task = trainer(max_epochs=1), SegmentationTask(network=DYNUNET)
    fit.fit(task, Blobs())
    assert [row["case_id"] for row in task.case_metrics] == [100, 101, 102, 103, 104]
    for name in ("loss", "dice/core", "hd95/rim", "nsd/core", "dice", "hd95"):
        assert fit.callback_metrics[f"val/{name}"].item() == pytest.approx(
            np.mean([row[name] for row in task.case_metrics]), rel=1e-5
        )
    assert all(type(value) in (int, float) for row in task.case_metrics for value in row.values())


def test_a_class_that_no_case_has_is_nan_and_left_out_of_the_mean():
    task = ready()
    task.predict_case = lambda batch: torch.nn.functional.one_hot(batch["label"][:, 0], 3).movedim(-1, 1).float()
    seen = batch(0)
    seen["label"] = (seen["label"] > 0).long()
    summary = task.summary(task.score(seen))
    assert math.isnan(summary["dice/rim"])
    assert (summary["dice"], summary["nsd"], summary["hd95"]) == (1.0, 1.0, 0.0)


def test_whole_cases_equal_monais_sliding_window():
    task = ready()
    seen = batch(0, shape=(21, 30, 16))
    with torch.no_grad():
        expected = sliding_window_inference(
            seen["image"], [16, 16, 16], 1, lambda x: task.network.eval()(x).softmax(1), overlap=0.5, mode="gaussian"
        )
    assert torch.allclose(task.predict_case(seen), expected, atol=1e-6)


def test_prediction_leaves_training_mode_and_gradients_alone():
    task = ready().train()
    found = task.predict_case(batch(0))
    assert task.network.training
    assert not found.requires_grad
    assert torch.allclose(found.sum(1), torch.ones(()), atol=1e-5)


def test_a_case_smaller_than_the_window_keeps_its_shape():
    assert ready().predict_case(batch(0, shape=(9, 20, 5))).shape == (1, 3, 9, 20, 5)


def test_validation_loss_is_the_loss_of_the_averaged_probabilities():
    task = ready()
    seen = batch(0)
    with torch.no_grad():
        logits = task.network.eval()(seen["image"])
    loss = DiceCELoss(softmax=True, to_onehot_y=True, include_background=False)(logits, seen["label"])
    assert task.score(seen)[0]["loss"] == pytest.approx(loss.item(), rel=1e-4)


def test_deep_supervision_weighs_coarser_heads_less():
    task = ready()
    seen = batch(0, 1)
    heads = task.run_network(seen["image"])
    assert len(heads) == 2
    one = DiceCELoss(softmax=True, to_onehot_y=True, include_background=False)
    expected = one(heads[0], seen["label"]) + 0.5 * one(heads[1], seen["label"])
    assert task.compute_loss(heads, seen["label"]).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("SegResNetDS", {"init_filters": 8, "dsdepth": 3, "norm": "instance"}),
        ("BasicUNetPlusPlus", {"features": [4, 4, 8, 8, 8, 4], "deep_supervision": True}),
        ("MedNeXt", {"init_filters": 4, "deep_supervision": True, "kernel_size": 3}),
        ("UNet", {"channels": [4, 8], "strides": [2]}),
    ],
)
def test_other_networks_heads_train(name, arguments):
    task = ready(Blobs(size=32), network={"class_path": f"monai.networks.nets.{name}", "init_args": arguments})
    loss = task.compute_loss(
        task.run_network(batch(0, shape=(32, 32, 32))["image"]), batch(0, shape=(32, 32, 32))["label"]
    )
    loss.backward()
    assert torch.isfinite(loss)
    assert all(parameter.grad is not None for parameter in task.parameters())


def test_losses_are_float32_under_autocast():
    task, seen = ready(), batch(0)
    types = []
    task.loss.loss.register_forward_hook(lambda module, inputs, output: types.extend([inputs[0].dtype, output.dtype]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        heads = task.run_network(seen["image"])
        assert heads[0].dtype == torch.bfloat16
        task.compute_loss(heads, seen["label"])
    assert set(types) == {torch.float32}


def test_labels_with_gaps_take_their_place_in_the_list():
    data = Blobs().signature() | {"labels": [{"value": v, "name": n} for v, n in ((0, "no"), (2, "b"), (4, "d"))]}
    assert ready(data=None).class_index(torch.tensor([0, 1, 2])).tolist() == [0, 1, 2]
    task = SegmentationTask(network=DYNUNET, data=data)
    assert task.class_index(torch.tensor([[0, 4], [2, 0]])).tolist() == [[0, 2], [1, 0]]
    assert task.outputs == ["no", "b", "d"]


def test_unlabelled_samples_do_not_count():
    task, seen = ready(), batch(0, 1)
    task.log = lambda *args, **kwargs: None
    seen["is_labelled"] = torch.tensor([True, False])
    alone = {name: value[:1] for name, value in seen.items()}
    assert task.training_step(seen, 0).item() == pytest.approx(task.training_step(alone, 0).item(), rel=1e-5)
    assert len(task.score(seen)) == 1
    none = seen | {"is_labelled": torch.tensor([False, False])}
    loss = task.training_step(none, 0)
    loss.backward()
    assert loss.item() == 0
    assert task.score(none) == []


def test_channels_last_computes_the_same():
    seen = batch(0)
    usual, moved = ready(), ready(channels_last=True)
    weight = next(p for p in moved.network.parameters() if p.ndim == 5 and p.shape[1] > 1)
    assert weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert torch.allclose(usual.eval()(seen["image"]), moved.eval()(seen["image"]), atol=1e-5)


def test_default_network_is_planned_from_the_patch():
    task = SegmentationTask(data=Blobs(size=16).signature())
    network = task.build_network()
    assert type(network).__name__ == "DynUNet"
    assert network.strides == [[1, 1, 1], [2, 2, 2], [2, 2, 2]]
    assert "ResBlock" in type(network.input_block).__name__


def spec(class_path: str, **init_args) -> dict:
    return {"class_path": class_path, "init_args": init_args}


NETS, PLATEAU = "monai.networks.nets.", spec(SCHEDULERS + "ReduceLROnPlateau")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"network": spec(NETS + "DynUNett")}, r"model\.init_args\.network\.class_path.*'DynUNet'"),
        ({"network": spec(NETS + "UNet", chanels=[4])}, r"network\.init_args\.chanels.*'channels'"),
        ({"network": spec(NETS + "resnet18", widen_facter=2)}, "'widen_factor'"),
        ({"network": spec(NETS + "UNet", act=torch.nn.ReLU())}, r"init_args\.act: write ReLU"),
        ({"loss": spec("monai.losses.DiceCELos")}, r"model\.init_args\.loss.*'DiceCELoss'"),
        ({"optimizer": spec("torch.optim.AdamW", rl=1)}, r"optimizer\.init_args\.rl.*'lr'"),
        ({"optimizer": "AdamW"}, "expected class_path and init_args"),
        ({"scheduler": PLATEAU | {"warm_up": 3}}, r"warm_up.*'warmup'"),
        ({"scheduler": PLATEAU | {"interval": "steps"}}, "'steps' is neither"),
        ({"scheduler": PLATEAU | {"warmup": 3}}, "can't be warmed up"),
        ({"scheduler": PLATEAU | {"monitor": "val/dise"}}, r"'val/dise'.*'val/dice'"),
    ],
)
def test_wrong_specs_are_refused_at_construction(arguments, text):
    with pytest.raises(UsageError, match=text) as error:
        SegmentationTask(**arguments)
    assert "\n" not in str(error.value)


def test_a_monitor_of_an_unknown_label_is_refused_before_the_first_step():
    scheduler = {"class_path": SCHEDULERS + "ReduceLROnPlateau", "monitor": "val/dice/cor"}
    task = SegmentationTask(network=DYNUNET, scheduler=scheduler)
    with pytest.raises(UsageError, match="did you mean 'val/dice/core'"):
        trainer().fit(task, Blobs())


@pytest.mark.parametrize(
    ("network", "text"),
    [
        (spec(NETS + "DynUNet", filters=[4, 8, 8], strides=[1, 2, 2]), "DynUNet can't take images of 18x18x18"),
        (
            spec(NETS + "UNet", channels=[4, 8], strides=[2], out_channels=5),
            r"UNet gives \[5, 18, 18, 18\].*not \[3, 18",
        ),
        (spec(NETS + "DynUNet", filters=[4, 8, 8], strides=[2, 1, 1]), r"gives \[3, 9, 9, 9\]"),
    ],
)
def test_a_network_that_does_not_suit_the_data_is_refused_before_the_first_step(network, text):
    with pytest.raises(UsageError, match=text) as error:
        trainer().fit(SegmentationTask(network=network), Blobs(size=18))
    assert "\n" not in str(error.value)


def test_no_data_is_said_in_one_line():
    with pytest.raises(UsageError, match="does not know its data"):
        SegmentationTask(network=DYNUNET).configure_model()


def test_constructor_stays_small():
    from medlight.config import arguments

    assert len(arguments(SegmentationTask)[0]) <= 12
