"""Fit a tiny task on one or two processes and write down what each of them ended with: DEVICES KIND FOLDER."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from medlight.tasks import ClassificationTask, MeanTeacherSegmentation, SegmentationTask
from tests.ranks import end_together
from tests.tasks.blobs import CNN, DYNUNET, Blobs, Pictures, trainer
from tests.tasks.few import FewBlobs


def main(devices: int, kind: str, folder: Path) -> None:
    torch.manual_seed(0)
    optimizer = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05, "momentum": 0.9}}
    if kind == "segmentation":
        task, data = SegmentationTask(network=DYNUNET, optimizer=optimizer), Blobs(cases=5)
    elif kind == "mean_teacher":
        task, data = MeanTeacherSegmentation(network=DYNUNET, optimizer=optimizer), FewBlobs(cases=5)
    else:
        task, data = ClassificationTask(network=CNN, optimizer=optimizer), Pictures(cases=15)
    strategy = "ddp" if devices > 1 else "auto"
    fit = trainer(devices=devices, strategy=strategy, num_sanity_val_steps=1, gradient_clip_val=1.0)
    fit.fit(task, data)
    found = {
        "weights": task.state_dict(),
        "metrics": {name: float(value) for name, value in fit.callback_metrics.items()},
        "rows": task.case_metrics,
    }
    torch.save(found, folder / f"{kind}-{devices}-{fit.global_rank}.pt")
    end_together()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
