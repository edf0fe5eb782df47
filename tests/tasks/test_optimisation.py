from __future__ import annotations

import lightning as L
import pytest
import torch

from medlight.errors import UsageError
from medlight.tasks import SegmentationTask
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
