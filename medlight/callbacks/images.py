"""Pictures of validation cases: what the network says over what is true."""

from __future__ import annotations

from typing import Any

import lightning as L
import numpy as np
import torch

from medlight.callbacks.case_table import recorded_ids
from medlight.scans.picture import panel
from medlight.tracking.logger import MLflowLogger


class ValidationImages(L.Callback):
    """Logs pictures of the first cases: prediction filled, truth outlined; key ``val/<case id>``, with the step.

    Drawn after epochs 1, 2, 4, 8, ... and after the last: enough to see a fit learn, and a long one does not write
    thousands. Each costs one more prediction of the case.

    Args:
        count: how many cases.
    """

    def __init__(self, count: int = 2) -> None:
        self.count = count

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw here, where averaged weights are in place if a callback averages."""
        logger = trainer.logger
        if not isinstance(logger, MLflowLogger) or not logger.active or batch_idx >= self.count or not due(trainer):
            return
        task: Any = pl_module
        if "label" not in batch or not hasattr(task, "predict_case"):
            return
        with torch.no_grad():
            probabilities = task.predict_case(batch)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        for index in range(min(len(probabilities), self.count - batch_idx)):
            picture = draw(batch, probabilities, index, tuple(data.labels))
            case = recorded_ids(data)[int(batch["case_id"][index])]
            name = "".join(c if c.isalnum() or c in "_-. " else "_" for c in case)  # what MLflow allows in a key
            logger.log_image(picture, f"val/{name}", trainer.global_step)


def due(trainer: L.Trainer) -> bool:
    """Whether pictures are drawn in this validation."""
    if trainer.sanity_checking or trainer.state.fn != "fit":
        return False
    done = trainer.current_epoch + 1
    steps_over = 0 < trainer.max_steps <= trainer.global_step
    return done & (done - 1) == 0 or done == trainer.max_epochs or steps_over


def draw(batch: dict[str, torch.Tensor], probabilities: torch.Tensor, index: int, labels: tuple[Any, ...]) -> Any:
    """Return the picture of one case of a batch: its first channel, the likeliest label filled, the truth outlined."""
    image = batch["image"][index, 0].float().cpu().numpy()
    values = np.array([0, *(label.value for label in labels if label.value)])
    if probabilities.shape[1] > 1:
        found = values[probabilities[index].argmax(0).cpu().numpy()]
    else:  # one output: the probability of the one label
        found = (probabilities[index, 0] > 0.5).cpu().numpy() * values[-1]
    truth = batch["label"][index, 0].cpu().numpy()
    if image.ndim == 2:
        image, found, truth = image[..., None], found[..., None], truth[..., None]
    spacing = tuple(float(s) for s in batch["spacing"][index]) if "spacing" in batch else (1.0, 1.0, 1.0)
    return panel(image, spacing, [(found, "fill"), (truth, "outline")], labels)
