"""Tiny data modules with labelled and unlabelled samples and two views, with the batch keys of medlight.data."""

from __future__ import annotations

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from medlight.callbacks import Checkpoint, StepSeed
from tests.tasks.blobs import Blobs, Pictures, blob, rank_and_world


def with_views(sample: dict[str, Tensor], draw: int, labelled: bool) -> dict[str, Tensor]:
    """Two noisy views; an unlabelled sample's label is hidden as the data modules hide it."""
    draws = torch.Generator().manual_seed(10_000 + draw)
    image = sample["image"]
    views = torch.stack([image + 0.1 * torch.randn(image.shape, generator=draws) for _ in range(2)])
    hidden = {} if labelled else {"label": torch.zeros_like(sample["label"])} if "label" in sample else {}
    hidden |= {"target": torch.tensor(-1)} if "target" in sample and not labelled else {}
    return sample | hidden | {"views": views, "is_labelled": torch.tensor(labelled)}


class Few:
    """What a task asks of a data module with few labels."""

    labelled, unlabelled, views_move = 2, 2, False
    views = ((), ())

    def signature(self) -> dict:
        counts = {"labelled": 3, "unlabelled": 5, "labelled_per_batch": self.labelled}
        return {**super().signature(), "few_labels": counts}

    def sample(self, draw: int) -> dict[str, Tensor]:
        raise NotImplementedError

    def train_dataloader(self) -> DataLoader:
        """Every rank's batches begin with its share of the labelled draws, which are the same for any world."""
        rank, world = rank_and_world(self)
        few, many = self.labelled // world, self.unlabelled // world
        samples = []
        for step in range(self.steps):
            own = [step * self.labelled + rank * few + place for place in range(few)]
            rest = [500 + step * self.unlabelled + rank * many + place for place in range(many)]
            samples += [with_views(self.sample(draw), draw, draw < 500) for draw in own + rest]
        return DataLoader(samples, batch_size=few + many)


class FewBlobs(Few, Blobs):
    """Segmentation."""

    def sample(self, draw: int) -> dict[str, Tensor]:
        return blob(draw, (self.size,) * self.dims)


class FewPictures(Few, Pictures):
    """Classification."""

    labelled, unlabelled, steps = 4, 6, 3

    def sample(self, draw: int) -> dict[str, Tensor]:
        return self.picture(draw)


class Stop(L.Callback):
    """Ends a fit as a crash would, when an epoch begins."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, trainer, module, outputs, batch, number) -> None:
        if trainer.current_epoch == self.epoch:
            raise RuntimeError("the power is gone")


def around(*extra: L.Callback) -> list[L.Callback]:
    """What a fit always has: seeds by step, checkpoints."""
    return [StepSeed(7), *extra, Checkpoint(monitor="val/loss", mode="min")]
