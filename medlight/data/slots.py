"""Shared memory for batches of one shape, made once and written to in turn.

A DataLoader makes new shared memory for each tensor of each batch; mapping and filling its pages takes a third of the
time in which a worker makes a patch. Here worker processes inherit a few places to write to, and the process that
trains copies a batch out of its place before it asks for the next one.
"""

from __future__ import annotations

import math
import mmap
import multiprocessing
from typing import Any

import numpy as np
import torch
from torch.utils.data import get_worker_info

from medlight.data.loader import PREFETCH, Sample, collate

_SPARE = 2  # one batch that has been handed over and is being copied, and one to be on the safe side


class Slots:
    """Places for the batches of each worker; works where workers are forked.

    Args:
        workers: number of worker processes.
        like: for each key its shape ``(B, ...)`` and type.
    """

    def __init__(self, workers: int, like: dict[str, tuple[tuple[int, ...], torch.dtype]]) -> None:
        self.count = PREFETCH + _SPARE  # a worker is never more than PREFETCH batches ahead
        self.tensors = {key: _shared((workers, self.count, *shape), dtype) for key, (shape, dtype) in like.items()}
        self.turn = 0

    def collate(self, samples: list[Sample]) -> dict[str, Any]:
        """Stack samples; in a worker into its next place, and say which that is."""
        worker = get_worker_info()
        if worker is None or any(len(samples) != tensor.shape[2] for tensor in self.tensors.values()):
            return collate(samples)
        place = (worker.id, self.turn % self.count)
        self.turn += 1
        for key, tensor in self.tensors.items():
            torch.stack([sample[key] for sample in samples], out=tensor[place])
        rest = [{key: value for key, value in sample.items() if key not in self.tensors} for sample in samples]
        return {**collate(rest), "slot": np.array(place)}

    def fetch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the batch with copies of what was written to its place, the label map as int64."""
        if "slot" not in batch:
            return batch
        worker, turn = batch.pop("slot").tolist()
        found = {key: tensor[worker, turn] for key, tensor in self.tensors.items()}
        return {**{key: tensor.long() if key == "label" else tensor.clone() for key, tensor in found.items()}, **batch}


def can_share() -> bool:
    """Whether workers inherit memory, and batches needn't go to a GPU from pinned memory."""
    return multiprocessing.get_start_method() == "fork" and not torch.cuda.is_available()


def _shared(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Memory that forked processes share; no file in /dev/shm, whose size is often small in a container."""
    return torch.frombuffer(mmap.mmap(-1, max(math.prod(shape) * dtype.itemsize, 1)), dtype=dtype).view(shape)
