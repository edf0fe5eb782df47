"""One loss and its gradient by one or two gloo processes, each with its share of the batch: RANKS LOSS FOLDER."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import distributed, multiprocessing, nn

import medlight.losses
from tests.ranks import end_together


def work(rank: int, ranks: int, name: str, folder: Path) -> None:
    store = f"file://{folder}/store-{name}-{ranks}"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks)
    torch.manual_seed(0)
    model = nn.Linear(6, 5, dtype=torch.float64)
    trained = nn.parallel.DistributedDataParallel(model) if ranks > 1 else model
    images = torch.randn(2, 8, 6, dtype=torch.float64)
    first, second = images[:, rank * 8 // ranks : (rank + 1) * 8 // ranks]
    loss = getattr(medlight.losses, name)()(*trained(torch.cat([first, second])).chunk(2))
    loss.backward()
    torch.save({"loss": loss.detach(), "gradient": model.weight.grad}, folder / f"{name}-{ranks}-{rank}.pt")
    end_together()


if __name__ == "__main__":
    count, loss, out = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    multiprocessing.spawn(work, (count, loss, out), nprocs=count)
