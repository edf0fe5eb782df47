"""What methods with a teacher share: a network that is the average of the trained one over time, and both evaluated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from medlight.errors import UsageError
from medlight.tasks.base import Batch, Signature, Task
from medlight.tasks.classification import SCORES, ClassificationTask
from medlight.tasks.metrics import mean
from medlight.tasks.rows import Row
from medlight.tasks.segmentation import SegmentationTask

STUDENT = "student/"


class TeacherTask(Task):
    """The trained network (the student) and its exponential moving average (the teacher).

    decay: of the average. Update n (counted from 0) uses ``min(decay, 1 - 1 / (n + 1))``, so that the first weights,
        which have learnt nothing, are soon forgotten (Tarvainen and Valpola, NeurIPS 2017).

    The average is updated after each optimiser step, buffers included; it is in the checkpoint. While training the
    teacher's batch norm uses the statistics of what it sees, as in the paper, but keeps none of them: its running
    statistics are averages of the student's. What is validated, tested, predicted with and exported is the teacher;
    the student's scores stand beside it under ``student/``.
    """

    compares_voxels: ClassVar[bool] = False  # of the two views, so that these may not be moved apart
    student_scores: ClassVar[tuple[str, ...]] = ()
    train_metrics: ClassVar[tuple[str, ...]] = ()

    def __init__(self, decay: float = 0.99, **common: Any) -> None:
        super().__init__(**common)
        if not 0 <= decay < 1:
            raise UsageError(f"model.decay: {decay} is no share; write a number from 0 to below 1")
        self.teacher: AveragedModel | None = None
        self._student_answers = False

    @classmethod
    def metric_names(cls, data: Signature | None) -> list[str]:
        """Return the names of the metrics, the student's among them."""
        names, beside = super().metric_names(data), []
        for name in names:
            stage, _, score = name.partition("/")
            if stage != "train" and score.split("/")[0] in cls.student_scores:
                beside.append(f"{stage}/{STUDENT}{score}")
        return names + beside + [f"train/{name}" for name in cls.train_metrics]

    # Building.

    def setup(self, stage: str) -> None:
        """Take the data's signature; before a fit, check that the data are what the method learns from."""
        super().setup(stage)
        if stage == "fit":
            trainer: Any = self.trainer
            self.check_training_data(trainer.datamodule)
            self.check_callbacks(trainer.callbacks)

    def check_callbacks(self, callbacks: Iterable[Any]) -> None:
        """Raise UsageError where the weights would be averaged twice."""
        if any(isinstance(callback, WeightAveraging) for callback in callbacks):
            raise UsageError(f"trainer.callbacks: {type(self).__name__} averages the weights itself; drop the EMA")

    def check_training_data(self, data: Any) -> None:
        """Raise UsageError, in one line, where a data module has no two views or nothing unlabelled."""
        name, mend = type(self).__name__, "use medlight.data.FewLabelsDataModule"
        if len(getattr(data, "views", ())) != 2:
            raise UsageError(f"data.views: {name} needs two views of each sample; {mend} and list two")
        if self.compares_voxels and data.views_move:
            raise UsageError(f"data.views: {name} compares their voxels; move spatial transforms to data.augment")
        few = data.signature().get("few_labels") or {}
        if not few.get("unlabelled") or not few.get("labelled_per_batch"):
            raise UsageError(f"data: {name} needs unlabelled cases in its batches; {mend} with labelled_per_batch")

    def configure_model(self) -> None:
        """Build the student, and the teacher as its copy."""
        if self.network is not None:
            return
        super().configure_model()
        assert self.network is not None
        with torch.random.fork_rng(devices=[]):
            copied = self.build_network()  # not deepcopy: see deployable()
        copied.load_state_dict(self.network.state_dict())
        if self.hparams["channels_last"]:
            copied = copied.to(memory_format=self._layout())
        self.teacher = AveragedModel(copied, multi_avg_fn=averaging(float(self.hparams["decay"])), use_buffers=True)
        self.teacher.requires_grad_(False)
        for module in self.teacher.modules():
            if isinstance(module, _BatchNorm):
                module.track_running_stats = False  # in training use the batch's and keep none; else the averaged ones

    # Training.

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step the optimiser, then move the teacher; not called for batches whose gradients are only gathered."""
        super().optimizer_step(*args, **kwargs)
        assert self.teacher is not None
        assert self.network is not None
        self.teacher.update_parameters(self.network)

    def teach(self, image: Tensor) -> Tensor:
        """Return the teacher's logits (B, L, ...), with its dropout while training, and without gradients."""
        with torch.no_grad(), self._answering(self._teacher):
            return self.run_network(image)[0]

    def known(self, batch: Batch) -> int:
        """Return how many samples, the first of the batch, are labelled."""
        return int(batch["is_labelled"].sum())

    def supervised_loss(self, heads: list[Tensor], batch: Batch, known: int) -> Tensor:
        """Return and log the loss of the labelled samples over all heads; 0 (with gradients) where there are none."""
        if not known:
            return torch.stack([head.sum() for head in heads]).sum() * 0.0
        loss = self.compute_loss([head[:known] for head in heads], self.target(batch)[:known])
        self.log_train_loss(loss.detach(), known)
        return loss

    def log_train(self, **values: Tensor | float) -> None:
        """Log what a method watches while training, as the mean over the epoch and all ranks."""
        for name, value in values.items():
            self.log(f"train/{name}", value, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)

    # Answering.

    @property
    def _teacher(self) -> nn.Module:
        assert self.teacher is not None, "configure_model() comes first"
        return self.teacher.module

    @property
    def _speaker(self) -> nn.Module | None:
        return self.network if self._student_answers else self._teacher

    @contextmanager
    def _answering(self, network: nn.Module | None) -> Iterator[None]:
        """Let another network answer in the place of the trained one."""
        kept, self.network = self.network, network
        try:
            yield
        finally:
            self.network = kept

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Run the teacher (or the student, in its turn) in evaluation mode and without gradients."""
        with self._answering(self._speaker), super().evaluating():
            yield

    def forward(self, image: Tensor) -> Tensor:
        """Return the teacher's logits (B, L, ...) for images (B, C, ...)."""
        with self._answering(self._speaker):
            return super().forward(image)

    def deployable(self) -> nn.Module:
        """Return a copy of the teacher with activation, and normalisation where no channel needs scan statistics."""
        self.configure_model()
        with self._answering(self._teacher):
            return super().deployable()

    # Scoring.

    def score(self, batch: Batch) -> list[Row]:
        """Return a row for each labelled case: the teacher's results, and the student's under ``student/``."""
        rows = super().score(batch)
        if not rows:
            return rows
        self._student_answers = True
        try:
            beside = self.student_rows(batch)
        finally:
            self._student_answers = False
        return [
            row | {STUDENT + name: value for name, value in other.items()}
            for row, other in zip(rows, beside, strict=True)
        ]

    def student_rows(self, batch: Batch) -> list[Row]:
        """Return the student's results for each labelled case of a batch."""
        raise NotImplementedError

    def summary(self, rows: list[Row]) -> dict[str, float]:
        """Return the epoch's metrics of the teacher, and those of the student under ``student/``."""
        cut = [{key.removeprefix(STUDENT): row[key] for key in row if key.startswith(STUDENT)} for row in rows]
        theirs = super().summary([row | own for row, own in zip(rows, cut, strict=True)])
        beside = {f"{STUDENT}{name}": theirs[name] for name in theirs if name.split("/")[0] in self.student_scores}
        return super().summary(rows) | beside


class TeacherSegmentation(TeacherTask, SegmentationTask):
    """Segmentation with a teacher; of the student only the Dice is taken (surface distances are slow)."""

    compares_voxels: ClassVar[bool] = True
    student_scores: ClassVar[tuple[str, ...]] = ("dice",)

    def student_rows(self, batch: Batch) -> list[Row]:
        """Return the student's Dice of each labelled case, by label and over the labels."""
        predicted, target = self.predict_case(batch).argmax(dim=1), self.target(batch)[:, 0]
        rows = []
        for index in torch.nonzero(batch.get("is_labelled", torch.ones(len(target)))).flatten().tolist():
            by_label = {
                f"dice/{name}": dice(predicted[index] == value, target[index] == value)
                for value, name in enumerate(self.outputs)
                if value
            }
            rows.append({"dice": mean(by_label.values())} | by_label)
        return rows


class TeacherClassification(TeacherTask, ClassificationTask):
    """Classification with a teacher."""

    student_scores: ClassVar[tuple[str, ...]] = SCORES

    def student_rows(self, batch: Batch) -> list[Row]:
        """Return the student's loss and probabilities of each labelled case."""
        left_out = ("case_id", "target")
        rows = ClassificationTask.score(self, batch)
        return [{name: row[name] for name in row if name.split("/")[0] not in left_out} for row in rows]


def averaging(decay: float) -> Any:
    """Return the function that moves lists of tensors: torch's average, with the decay warmed up."""

    def move(kept: Any, current: Any, updates: Tensor | int) -> None:
        get_ema_multi_avg_fn(min(decay, 1 - 1 / (int(updates) + 1)))(kept, current, updates)

    return move


def dice(prediction: Tensor, truth: Tensor) -> float:
    """Return the Dice of two masks; NaN where both are empty (the rule of medlight.tasks.metrics)."""
    size = int(prediction.sum()) + int(truth.sum())
    return 2 * int((prediction & truth).sum()) / size if size else float("nan")
