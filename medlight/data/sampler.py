"""Which sample comes when: draws are numbered once for the whole fit, whatever the workers, ranks and restarts."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset, DistributedSampler


class DrawSampler(DistributedSampler[object]):
    """Yields this rank's draw numbers of one epoch: whole numbers that name a sample, and with the seed determine it.

    Draw ``(epoch * steps + step) * batch_size * world + rank * batch_size + position``: with the same effective batch
    the same draws make up a step for any number of ranks, and an epoch's draws don't depend on earlier epochs.
    Lightning calls ``set_epoch`` before each epoch, after a resume too. Derived from DistributedSampler because
    that is how Lightning knows that ranks are taken care of.
    """

    def __init__(self, steps: int, batch_size: int, rank: int = 0, world: int = 1) -> None:
        self.steps = steps
        self.batch_size = batch_size
        self.rank = rank
        self.world = world
        self.epoch = 0
        self.done = 0  # steps of this epoch that are to be left out, after a resume

    def __len__(self) -> int:
        return self.steps * self.batch_size

    def __iter__(self) -> Iterator[int]:
        together = self.batch_size * self.world
        first = self.epoch * self.steps * together + self.rank * self.batch_size
        for step in range(self.done, self.steps):
            yield from range(first + step * together, first + step * together + self.batch_size)


class ShareSampler(DistributedSampler[object]):
    """Yields indices ``rank, rank + world, ...`` of a data set: every case once over all ranks, none twice."""

    def __init__(self, dataset: Dataset[object], rank: int = 0, world: int = 1) -> None:
        self.indices = range(rank, len(dataset), world)  # type: ignore[arg-type]
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)


@lru_cache(maxsize=8)
def _order(seed: int, turn: int, count: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng([seed, turn, count]).permutation(count)


def case_of(seed: int, draw: int, count: int) -> int:
    """Index of the case that a draw takes from ``count`` cases: each run of ``count`` draws has every case once."""
    return int(_order(seed, draw // count, count)[draw % count])
