"""Fit SimCLR on one or two processes and write down what each of them ended with: RANKS FOLDER."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from medlight.tasks import SimCLRTask
from tests.ranks import end_together
from tests.tasks.blobs import DYNUNET, trainer
from tests.tasks.views import BlobViews


def main(ranks: int, folder: Path) -> None:
    torch.manual_seed(0)
    data = BlobViews(cases=5)
    optimizer = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05, "momentum": 0.9}}
    task = SimCLRTask(network=DYNUNET, optimizer=optimizer, data=data.signature(), projection=[16, 8], neighbours=3)
    task.configure_model()
    start = {name: value.clone() for name, value in task.state_dict().items()}
    fit = trainer(devices=ranks, strategy="ddp" if ranks > 1 else "auto", gradient_clip_val=1.0)
    fit.fit(task, data)
    metrics = {name: float(value) for name, value in fit.callback_metrics.items()}
    found = {"start": start, "weights": task.state_dict(), "metrics": metrics}
    torch.save(found, folder / f"fit-{ranks}-{fit.global_rank}.pt")
    end_together()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
