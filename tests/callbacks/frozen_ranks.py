"""Fit with frozen layers on one or two processes and write down the weights of every epoch: RANKS FOLDER."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import lightning as L
import torch

from medlight.callbacks import Freeze
from medlight.tasks import SegmentationTask
from tests.ranks import end_together
from tests.tasks.blobs import Blobs, trainer

NETWORK = {
    "class_path": "monai.networks.nets.DynUNet",
    "init_args": {"filters": [4, 8, 8], "kernel_size": [3] * 3, "strides": [1, 2, 2], "upsample_kernel_size": [2, 2]},
}


class States(L.Callback):
    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seen.append(copy.deepcopy(pl_module.state_dict()))

    on_train_end = on_train_epoch_start


def main(ranks: int, folder: Path) -> None:
    torch.manual_seed(0)
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}}
    states = States()
    freeze = Freeze({"network.input_block*": None, "network.downsamples*": 1})
    run = trainer(
        devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
        callbacks=[freeze, states],
        gradient_clip_val=1.0,
        accumulate_grad_batches=2,
        max_epochs=2,
    )
    run.fit(SegmentationTask(network=NETWORK, optimizer=optimizer), Blobs(dims=2, steps=4))
    torch.save(states.seen, folder / f"{ranks}-{run.global_rank}.pt")
    end_together()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
