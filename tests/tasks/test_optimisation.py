from __future__ import annotations

import lightning as L
import pytest
import torch

from medlight.errors import UsageError
from medlight.tasks import SegmentationTask
from medlight.tasks.groups import grouped
from tests.tasks.blobs import DYNUNET, Blobs, trainer

SCHEDULERS = "torch.optim.lr_scheduler."


class Rates(L.Callback):
    """The learning rate that each step was taken with."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


def rates(scheduler: dict | None, epochs: int = 4, **settings) -> list[float]:
    watch = Rates()
    optimizer = {"class_path": "torch.optim.SGD", "init_args": {"lr": 1.0}}
    task = SegmentationTask(network=DYNUNET, optimizer=optimizer, scheduler=scheduler)
    task.score = lambda batch: [{"case_id": 0, "loss": 1.0}]
    trainer(max_epochs=epochs, callbacks=[watch], **settings).fit(task, Blobs(dims=2, steps=3))
    return watch.seen


def test_polynomial_falls_to_zero_over_the_whole_fit():
    seen = rates({"class_path": SCHEDULERS + "PolynomialLR", "init_args": {"power": 0.9}})
    assert seen == pytest.approx([(1 - step / 12) ** 0.9 for step in range(12)])


def test_cosine_by_epochs():
    seen = rates({"class_path": SCHEDULERS + "CosineAnnealingLR", "interval": "epoch"})
    expected = [(1 + torch.cos(torch.tensor(torch.pi * epoch / 4)).item()) / 2 for epoch in range(4)]
    assert seen == pytest.approx([rate for rate in expected for _ in range(3)])


def test_a_written_length_is_kept():
    seen = rates({"class_path": SCHEDULERS + "PolynomialLR", "init_args": {"total_iters": 6}})
    assert seen[6:] == [0.0] * 6


def test_warm_up_rises_in_a_line_and_then_the_schedule_begins():
    seen = rates({"class_path": SCHEDULERS + "PolynomialLR", "warmup": 3})
    assert seen[:3] == pytest.approx([0.25, 0.5, 0.75])
    assert seen[3:] == pytest.approx([1 - step / 9 for step in range(9)])


def test_one_cycle_and_accumulation_count_optimiser_steps():
    seen = rates({"class_path": SCHEDULERS + "OneCycleLR", "init_args": {"max_lr": 2.0}}, accumulate_grad_batches=3)
    assert max(seen) == pytest.approx(2.0, rel=0.2)
    assert seen[0] == seen[1] == seen[2] < seen[3]


def test_steps_by_epoch_are_the_default_for_a_schedule_without_a_length():
    seen = rates({"class_path": SCHEDULERS + "StepLR", "init_args": {"step_size": 2, "gamma": 0.1}})
    assert seen == pytest.approx([1.0] * 6 + [0.1] * 6)


def test_plateau_watches_the_tasks_monitor():
    spec = {"class_path": SCHEDULERS + "ReduceLROnPlateau", "init_args": {"patience": 0, "factor": 0.5}}
    assert rates(spec | {"monitor": "val/loss"}) == pytest.approx([1.0] * 6 + [0.5] * 3 + [0.25] * 3)
    task = SegmentationTask(network=DYNUNET, scheduler=spec)
    trainer(max_epochs=4, check_val_every_n_epoch=2, limit_val_batches=1).fit(task, Blobs(dims=2))
    entry = task.trainer.lr_scheduler_configs[0]
    assert (entry.monitor, entry.frequency, entry.scheduler.mode) == ("val/dice", 2, "max")


def test_a_schedule_needs_an_end():
    with pytest.raises(UsageError, match="max_epochs or max_steps"):
        rates({"class_path": SCHEDULERS + "PolynomialLR"}, epochs=-1, max_time="00:00:00:05")


def test_what_the_optimiser_refuses_is_one_line():
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": -1}}
    with pytest.raises(UsageError, match=r"AdamW.*[Ii]nvalid learning rate"):
        trainer().fit(SegmentationTask(network=DYNUNET, optimizer=optimizer), Blobs(dims=2))


def test_lightnings_own_helpers_work_with_a_task(tmp_path):
    from lightning.pytorch.callbacks import EarlyStopping, GradientAccumulationScheduler

    stop = EarlyStopping("val/dice", mode="max", patience=1, min_delta=2.0)
    fit = trainer(
        max_epochs=9,
        gradient_clip_val=0.1,
        callbacks=[stop, GradientAccumulationScheduler({0: 2})],
        default_root_dir=tmp_path,
    )
    fit.fit(SegmentationTask(network=DYNUNET), Blobs(dims=2))
    assert fit.current_epoch < 4


# Groups of parameters.

ADAM = "torch.optim.AdamW"


def grouped_task(scheduler: dict | None = None, network: dict = DYNUNET, **beside) -> SegmentationTask:
    optimizer = {"class_path": ADAM, "init_args": {"lr": 1.0}, **beside}
    task = SegmentationTask(network=network, optimizer=optimizer, scheduler=scheduler, data=Blobs(dims=2).signature())
    task.configure_model()
    return task


def groups_of(task: SegmentationTask) -> dict[str, dict]:
    names = {id(parameter): name for name, parameter in task.named_parameters()}
    groups = task.configure_optimizers().param_groups
    found = {group["name"]: {**group, "params": [names[id(p)] for p in group["params"]]} for group in groups}
    assert sorted(n for g in found.values() for n in g["params"]) == sorted(names.values())
    return found


def test_groups_have_settings_of_their_own_and_the_last_that_fits_counts():
    groups = [
        {"match": "network.*", "lr": 0.5},
        {"match": "network.input_block*", "lr": 0.25, "weight_decay": 0.0},
        {"match": "network.output_block*"},
    ]
    found = groups_of(grouped_task(groups=groups))
    assert {name: group["lr"] for name, group in found.items()} == {
        "network": 0.5,
        "network.input_block": 0.25,
        "network.output_block": 1.0,
    }
    assert found["network.input_block"]["weight_decay"] == 0.0
    assert found["network"]["weight_decay"] == 0.01
    assert all("output_block" in name for name in found["network.output_block"]["params"])


def test_layer_decay_falls_from_the_last_layer_to_the_first():
    resnet = {
        "class_path": "medlight.networks.efficientnet_lite.EfficientNetLite0UNet",
        "init_args": {"strides": [1] * 5},
    }
    found = groups_of(grouped_task(network=resnet, layer_decay=0.5))
    # stem, 16 blocks, the decoder's one block, the head
    assert [group["lr"] for group in found.values()] == [0.5 ** (len(found) - 1 - n) for n in range(len(found))]
    assert all("_blocks.0." in name for name in found["layer01"]["params"])
    assert set(found["layer00"]["params"]) == {
        f"network.encoder.{n}" for n in ("_conv_stem.weight", "_bn0.weight", "_bn0.bias")
    }
    assert found[f"layer{len(found) - 1:02d}"]["params"] == ["network.head.weight", "network.head.bias"]


def test_groups_and_layer_decay_together_and_along_a_schedule():
    poly = {"class_path": SCHEDULERS + "PolynomialLR", "init_args": {"total_iters": 10}}
    optimizer = {
        "class_path": "torch.optim.SGD",
        "init_args": {"lr": 1.0},
        "groups": [{"match": "network.output*", "lr": 2.0}],
        "layer_decay": 0.5,
    }
    task = SegmentationTask(network=DYNUNET, optimizer=optimizer, scheduler=poly)
    task.score = lambda batch: [{"case_id": 0, "loss": 1.0}]
    run = trainer(max_epochs=1)
    run.fit(task, Blobs(dims=2, steps=5))
    rates = {group["name"]: group["lr"] for group in run.optimizers[0].param_groups}
    last = max(int(name[5:]) for name in rates if name.startswith("layer"))
    assert rates[f"layer{last:02d}"] == pytest.approx(0.5)
    assert rates["layer00"] == pytest.approx(0.5 * 0.5**last)
    assert next(rate for name, rate in rates.items() if name.startswith("network.output")) in (
        pytest.approx(1.0),
        pytest.approx(0.5),
    )


@pytest.mark.parametrize(
    ("beside", "said"),
    [
        ({"group": []}, "did you mean 'groups'"),
        ({"layer_deacy": 0.7}, "did you mean 'layer_decay'"),
        ({"layer_decay": 1.5}, "above 0, at most 1"),
        ({"layer_decay": "0.5"}, "above 0, at most 1"),
        ({"groups": {"match": "x"}}, "write a list"),
        ({"groups": [{"lr": 1}]}, "needs match"),
        ({"groups": [{"match": "*", "wieght_decay": 0}]}, "did you mean 'weight_decay'"),
        ({"groups": [{"match": "*", "lr": "fast"}]}, "is no learning rate"),
        ({"groups": [{"match": "*", "lr": -1}]}, "is no learning rate"),
    ],
)
def test_wrong_groups_are_refused_at_construction(beside, said):
    with pytest.raises(UsageError, match=said):
        SegmentationTask(optimizer={"class_path": ADAM, **beside})


def test_a_pattern_that_fits_nothing_is_refused_before_the_start():
    task = grouped_task(groups=[{"match": "network.input_blok*", "lr": 0.1}])
    with pytest.raises(UsageError, match=r"model\.optimizer: groups\[0\].match: no .* mean 'network\.input_block'"):
        task.check_optimizers()


def test_a_network_without_blocks_has_no_layers():
    names = ("network.first.weight", "network.second.weight", "probe.0.weight", "probe.1.weight")
    parameters = {name: torch.nn.Parameter(torch.zeros(1)) for name in names}
    with pytest.raises(UsageError, match="no numbered blocks"):
        grouped({"layer_decay": 0.5}, parameters, 1.0)


def test_a_schedule_that_levels_the_groups_is_refused():
    cycle = {"class_path": SCHEDULERS + "OneCycleLR", "init_args": {"max_lr": 1.0}}
    task = grouped_task(cycle, groups=[{"match": "network.output*", "lr": 0.1}])
    with pytest.raises(UsageError, match="the same learning rate"):
        task.check_optimizers()
    grouped_task(
        {**cycle, "init_args": {"max_lr": [1.0, 0.1]}}, groups=[{"match": "network.output*", "lr": 0.1}]
    ).check_optimizers()


def test_dotted_paths_reach_groups_and_layer_decay():
    from medlight import config

    whole = {
        "model": {"class_path": "x.Y", "init_args": {"optimizer": {"class_path": ADAM, "groups": [{"match": "*"}]}}}
    }
    assert config.set_path(whole, "model.optimizer.groups.0.lr", 2)["model"]["init_args"]["optimizer"]["groups"] == [
        {"match": "*", "lr": 2}
    ]
    decayed = config.set_path(whole, "model.optimizer.layer_decay", 0.5)
    assert decayed["model"]["init_args"]["optimizer"]["layer_decay"] == 0.5
    network = {"network": {"class_path": "x.Net", "init_args": {}}}
    assert config.set_path(network, "network.groups", 3) == {
        "network": {"class_path": "x.Net", "init_args": {"groups": 3}}
    }
