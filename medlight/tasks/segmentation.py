"""Segmentation of 2D images and 3D scans."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, cast

import torch
from monai.inferers.utils import sliding_window_inference
from torch import Tensor

from medlight.errors import UsageError
from medlight.networks import spatial_size
from medlight.tasks.base import Batch, Kind, Signature, Spec, Task, labelled
from medlight.tasks.deployable import activate
from medlight.tasks.metrics import case_scores, mean
from medlight.tasks.rows import Row

SCORES = ("dice", "hd95", "nsd")


class SegmentationTask(Task):
    """Give every voxel one of the labels.

    network: default MONAI's DynUNet with residual blocks, planned from the patch size.
    loss: on logits and a label map (B, 1, ...) of class indices. Default Dice + cross-entropy; the Dice part leaves the
        background out, is taken over each sample alone (so that two ranks equal one) and averaged.
    nsd_tolerance_mm: surface distance up to which a surface point counts as right.
    overlap: share of the window by which neighbouring windows overlap at validation, test and prediction.
    window_batch: windows a forward pass at validation and test.

    Validation and test work on whole cases by sliding window (the size of the training patch, gaussian weights): the
    windows' probabilities are averaged, not their logits. ``val/loss`` is the loss of these averaged probabilities.
    Logged: ``val/loss``, ``val/dice``, ``val/hd95`` (mm), ``val/nsd`` and each of the three with ``/<label>``; the same
    under ``test/``. A label's value is the mean over the cases that count for it (the rule for empty masks is in
    medlight.tasks.metrics), the overall value the mean over the labels but the background.
    """

    monitor: ClassVar[str] = "val/dice"
    mode: ClassVar[Literal["min", "max"]] = "max"
    kind: ClassVar[Kind] = "segmentation"
    default_network: ClassVar[Spec] = {"class_path": "monai.networks.nets.DynUNet", "init_args": {"res_block": True}}

    def __init__(
        self,
        nsd_tolerance_mm: float = 1.0,
        overlap: float = 0.5,
        window_batch: int = 4,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        if not 0 <= overlap < 1:
            raise UsageError(f"model.overlap: {overlap} is no share; write a number from 0 to below 1")
        if window_batch < 1:
            raise UsageError(f"model.window_batch: {window_batch} is too small; write a whole number of at least 1")

    @property
    def outputs(self) -> list[str]:
        """Names of the labels, the background's first."""
        return [str(label["name"]) for label in self.data["labels"]]

    @classmethod
    def metric_names(cls, data: Signature | None) -> list[str]:
        """Return the names of the metrics; those of single labels only where the data is known."""
        labels = [str(label["name"]) for label in data["labels"] if label["value"] != 0] if data else []
        scores = ["loss"] + [name for score in SCORES for name in (score, *(f"{score}/{label}" for label in labels))]
        return ["train/loss", "train/loss_step"] + [f"{stage}/{score}" for stage in ("val", "test") for score in scores]

    def default_loss(self) -> Spec:
        """Dice + cross-entropy."""
        arguments = {"softmax": True, "to_onehot_y": True, "include_background": False}
        return {"class_path": "monai.losses.DiceCELoss", "init_args": arguments}

    def logits_shape(self, size: list[int]) -> tuple[int, ...]:
        """One channel a label, on the image's own grid."""
        return (len(self.outputs), *size)

    def class_index(self, label: Tensor) -> Tensor:
        """Turn label values (as in the files) into positions in the list of labels, which is what networks put out."""
        values = [int(entry["value"]) for entry in self.data["labels"]]
        if values == list(range(len(values))):
            return label
        table = torch.zeros(max(values) + 1, dtype=torch.long, device=label.device)
        table[values] = torch.arange(len(values), device=label.device)
        return table[label.long()]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of the labelled samples of a batch of patches."""
        return self.training_loss(batch, "label")

    def target(self, batch: Batch) -> Tensor:
        """Return the label maps (B, 1, ...) as class indices."""
        return self.class_index(batch["label"])

    def predict_case(self, batch: Batch) -> Tensor:
        """Return float32 probabilities (B, L, ...) of whole cases by sliding window."""
        window = self.window()

        def probabilities(image: Tensor) -> Tensor:
            return activate(self(image), self.activation)

        with self.evaluating():
            found = sliding_window_inference(
                batch["image"],
                window["size"],
                int(self.hparams["window_batch"]),
                probabilities,
                overlap=window["overlap"],
                mode=window["mode"],
            )
        return cast(Tensor, found)

    def score(self, batch: Batch) -> list[Row]:
        """Return a row for each labelled case: loss, Dice, HD95 (mm) and NSD, over all labels and by label."""
        has = labelled(batch, "label")
        if not any(has):
            return []
        probabilities, target = self.predict_case(batch), self.target(batch)
        return [self._row(batch, probabilities, target, index) for index, known in enumerate(has) if known]

    def _row(self, batch: Batch, probabilities: Tensor, target: Tensor, index: int) -> Row:
        one = slice(index, index + 1)
        # A softmax of log-probabilities gives the probabilities back: the loss sees what the windows agreed on.
        loss = self.compute_loss([probabilities[one].clamp_min(1e-7).log()], target[one])
        scores = case_scores(
            probabilities[index].argmax(dim=0).cpu().numpy(),
            target[index, 0].cpu().numpy(),
            range(1, len(self.outputs)),
            batch["spacing"][index].tolist(),
            float(self.hparams["nsd_tolerance_mm"]),
        )
        row: Row = {"case_id": int(batch["case_id"][index]), "loss": float(loss)}
        for position, score in enumerate(SCORES):
            by_label = {f"{score}/{self.outputs[value]}": found[position] for value, found in scores.items()}
            row |= {score: mean(by_label.values())} | by_label
        return row

    def summary(self, rows: list[Row]) -> dict[str, float]:
        """Return the mean loss, and Dice, HD95 and NSD by label and over the labels."""
        metrics = {"loss": mean(row["loss"] for row in rows)}
        for score in SCORES:
            names = [f"{score}/{label}" for label in self.outputs[1:]]
            by_label = {name: mean(row.get(name, math.nan) for row in rows) for name in names}
            metrics |= {score: mean(by_label.values())} | by_label
        return metrics

    def window(self) -> dict[str, Any]:
        """Return how whole cases are covered: ``size`` in voxels, ``overlap`` (share of the size), ``mode``."""
        return {"size": spatial_size(self.data), "overlap": float(self.hparams["overlap"]), "mode": "gaussian"}
