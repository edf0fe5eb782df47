"""Which sample comes when: draws are numbered once for the whole fit, whatever the workers, ranks and restarts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset, DistributedSampler

Order = Callable[[int], int]  # from a draw to the index of its case


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
        for step in range(self.done, self.steps):
            yield from self._of_step(self.epoch * self.steps + step)

    def _of_step(self, step: int) -> Iterator[int]:
        """Draws that this rank takes in a step, counted over the whole fit."""
        first = (step * self.world + self.rank) * self.batch_size
        return iter(range(first, first + self.batch_size))


class MixedSampler(DrawSampler):
    """A DrawSampler for batches of two kinds of cases, as `Mixed` tells them apart.

    The first ``labelled * world`` draws of a step are labelled ones. Each rank's batch begins with ``labelled`` of
    them, and the others are its share of the rest: over all ranks a step has the draws that one process would take.
    """

    def __init__(self, steps: int, batch_size: int, labelled: int, rank: int = 0, world: int = 1) -> None:
        super().__init__(steps, batch_size, rank, world)
        self.labelled = labelled

    def _of_step(self, step: int) -> Iterator[int]:
        others = self.batch_size - self.labelled
        start = step * self.batch_size * self.world
        first = start + self.rank * self.labelled
        second = start + self.world * self.labelled + self.rank * others
        return chain(range(first, first + self.labelled), range(second, second + others))


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
def _order(seed: int, turn: int, count: int, stream: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng([seed, turn, count, stream]).permutation(count)


def case_of(seed: int, draw: int, count: int, stream: int = 0) -> int:
    """Index of the case that a draw takes from ``count`` cases: each run of ``count`` draws has every case once.

    stream: another number gives another order.
    """
    return int(_order(seed, draw // count, count, stream)[draw % count])


@dataclass(frozen=True)
class InTurn:
    """Cases in turn, each turn in an order of its own."""

    seed: int
    cases: Sequence[int]
    stream: int = 0

    def __call__(self, draw: int) -> int:
        """Index of a draw's case."""
        return self.cases[case_of(self.seed, draw, len(self.cases), self.stream)]


@dataclass(frozen=True)
class Mixed:
    """Labelled and unlabelled cases, each kind in turn.

    first: labelled draws at the beginning of each step. together: draws of a step, both over all ranks.
    """

    labelled: InTurn
    unlabelled: InTurn
    first: int
    together: int

    def __call__(self, draw: int) -> int:
        """Index of a draw's case."""
        step, place = divmod(draw, self.together)
        if place < self.first:
            return self.labelled(step * self.first + place)
        return self.unlabelled(step * (self.together - self.first) + place - self.first)
