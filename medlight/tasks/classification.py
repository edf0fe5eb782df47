"""Classification of whole images and scans."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from medlight.tasks.base import Batch, Kind, Signature, Spec, Task, labelled
from medlight.tasks.class_metrics import class_scores
from medlight.tasks.deployable import Activation, activate
from medlight.tasks.metrics import mean
from medlight.tasks.rows import Row

SCORES = ("loss", "auroc", "accuracy", "f1", "ece")


class ClassificationTask(Task):
    """Give every case one of the classes, or, where the data is multi-label, any of them.

    network: default MONAI's 18-layer ResNet.
    loss: on logits (B, L); default cross-entropy (target (B,) of class indices; a binary task is one of two classes),
        or binary cross-entropy where the data is multi-label (target (B, L) of 0 and 1).

    Logged: ``val/loss``, ``val/auroc``, ``val/accuracy``, ``val/f1``, ``val/ece`` over all cases of all ranks together
    (defined in medlight.tasks.class_metrics); the same under ``test/``.
    """

    monitor: ClassVar[str] = "val/auroc"
    mode: ClassVar[Literal["min", "max"]] = "max"
    kind: ClassVar[Kind] = "classification"
    default_network: ClassVar[Spec] = {"class_path": "monai.networks.nets.resnet18", "init_args": {}}

    @property
    def outputs(self) -> list[str]:
        """Names of the classes."""
        return [str(name) for name in self.data["classes"]]

    @property
    def multilabel(self) -> bool:
        """Whether a case can have several classes."""
        return bool(self.data["multilabel"])

    @property
    def activation(self) -> Activation:
        """Softmax over exclusive classes, sigmoid for each of several."""
        return "sigmoid" if self.multilabel else "softmax"

    @classmethod
    def metric_names(cls, data: Signature | None) -> list[str]:
        """Return the names of the metrics."""
        return ["train/loss", "train/loss_step"] + [f"{stage}/{score}" for stage in ("val", "test") for score in SCORES]

    def default_loss(self) -> Spec:
        """Cross-entropy."""
        name = "BCEWithLogitsLoss" if self.multilabel else "CrossEntropyLoss"
        return {"class_path": f"torch.nn.{name}", "init_args": {}}

    def logits_shape(self, size: list[int]) -> tuple[int, ...]:
        """One number a class."""
        return (len(self.outputs),)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of the labelled cases of a batch."""
        return self.training_loss(batch, "target")

    def target(self, batch: Batch) -> Tensor:
        """Return class indices (B,), or 0 and 1 as floats (B, L) where the data is multi-label."""
        return batch["target"].float() if self.multilabel else batch["target"].long()

    def predict_case(self, batch: Batch) -> Tensor:
        """Return float32 probabilities (B, L)."""
        with self.evaluating():
            return activate(self(batch["image"]), self.activation)

    def score(self, batch: Batch) -> list[Row]:
        """Return a row for each labelled case: loss, ``target``, ``predicted`` and the probability of every class.

        Multi-label: ``target/<class>`` and ``predicted/<class>``.
        """
        has = labelled(batch, "target")
        if not any(has):
            return []
        with self.evaluating():
            logits, target = self(batch["image"]), self.target(batch)
        probabilities = activate(logits, self.activation).cpu()
        rows = []
        for index in (index for index, known in enumerate(has) if known):
            one = slice(index, index + 1)
            row: Row = {"case_id": int(batch["case_id"][index])}
            row |= {"loss": float(self.compute_loss([logits[one]], target[one]))}
            rows.append(row | self._answer(probabilities[index], target[index].cpu()))
        return rows

    def _answer(self, probabilities: Tensor, target: Tensor) -> Row:
        names, numbers = self.outputs, probabilities.tolist()
        row: Row = {f"probability/{name}": number for name, number in zip(names, numbers, strict=True)}
        if not self.multilabel:
            return {"target": int(target), "predicted": int(probabilities.argmax())} | row
        truths = {f"target/{name}": int(value) for name, value in zip(names, target.tolist(), strict=True)}
        answers = {f"predicted/{name}": int(number >= 0.5) for name, number in zip(names, numbers, strict=True)}
        return truths | answers | row

    def summary(self, rows: list[Row]) -> dict[str, float]:
        """Return the loss's mean and the scores of all cases together."""
        names = self.outputs
        probabilities = torch.tensor([[row[f"probability/{name}"] for name in names] for row in rows])
        targets = [[row[f"target/{name}"] for name in names] if self.multilabel else row["target"] for row in rows]
        loss = mean(row["loss"] for row in rows)
        return {"loss": loss} | class_scores(probabilities, torch.tensor(targets), self.multilabel)
