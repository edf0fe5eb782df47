"""The way of a batch from a worker to the process that trains.

Each tensor goes through shared memory of its own, whose set-up and page faults cost more than most transforms do. So
label maps travel in the smallest type that holds them, and small things as arrays in the message itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, default_collate

from medlight.data.sampler import DrawSampler

Sample = dict[str, Any]
Batch = dict[str, torch.Tensor]
PREFETCH = 4  # batches that a worker may be ahead: enough to ride out a slow step or a busy machine


def collate(samples: list[Sample]) -> dict[str, Any]:
    """Stack tensors and arrays, each by its kind."""
    first = samples[0]
    return {
        key: (default_collate if isinstance(first[key], torch.Tensor) else np.stack)([s[key] for s in samples])
        for key in first
    }


def with_wide_labels(batch: Batch) -> Batch:
    """Return the batch with its label map as int64, which losses want."""
    return {**batch, "label": batch["label"].long()} if "label" in batch else batch


class SampleLoader(DataLoader[Sample]):
    """A DataLoader whose batches are dicts of tensors, label maps as int64.

    Where memory is pinned, label maps stay narrow: `ScanDataModule` widens them once they are on the device.
    It tells Lightning where in an epoch it stands, so that a fit resumed in mid-epoch goes on with the next batch.
    """

    fetch: Callable[[dict[str, Any]], dict[str, Any]] | None = None  # gets what didn't come with the message
    _delivered = 0
    _resume: tuple[int, int] = (-1, 0)  # epoch, and how many of its batches are done

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        epoch, done = self._resume
        self._resume = (-1, 0)
        self._delivered = done if epoch == self._epoch() else 0
        if isinstance(self.sampler, DrawSampler):
            self.sampler.done = self._delivered
        for batch in super().__iter__():
            self._delivered += 1
            yield self._complete(self.fetch(batch) if self.fetch else batch)

    def _epoch(self) -> int:
        return getattr(self.sampler, "epoch", 0)

    def state_dict(self) -> dict[str, int]:
        """Epoch, and how many of its batches were taken."""
        return {"epoch": self._epoch(), "batches": self._delivered}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on there, if the next epoch to be read is that one."""
        self._resume = (state["epoch"], state["batches"])

    def _complete(self, batch: dict[str, Any]) -> Batch:
        tensors = {k: v if isinstance(v, torch.Tensor) else torch.from_numpy(v) for k, v in batch.items()}
        return tensors if self.pin_memory else with_wide_labels(tensors)
