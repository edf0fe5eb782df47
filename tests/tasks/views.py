"""Tiny data of pre-training held in memory, with the batch keys of medlight.data.PretrainingDataModule."""

from __future__ import annotations

import torch
import torchio as tio
from torch import Tensor
from torch.utils.data import DataLoader

from tests.tasks.blobs import Blobs, Pictures, blob, rank_and_world

NOISE = tio.RandomNoise()


def with_views(sample: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    image = sample["image"]
    gains = 0.8 + 0.4 * torch.rand(2, generator=draws)
    noise = 0.1 * torch.randn(2, *image.shape, generator=draws)
    return {**sample, "views": torch.stack([image * gain + n for gain, n in zip(gains, noise, strict=True)])}


class PictureViews(Pictures):
    views = ([NOISE], [NOISE])  # as `with_views` makes them

    def __init__(self, steps: int = 3, batch: int = 8, **settings) -> None:
        super().__init__(**settings)
        self.steps, self.batch = steps, batch

    def train_dataloader(self) -> DataLoader:
        rank, world = rank_and_world(self)
        share = self.batch // world
        draws = [step * self.batch + rank * share + place for step in range(self.steps) for place in range(share)]
        return DataLoader([with_views(self.picture(draw), draw) for draw in draws], batch_size=share)

    def _loader(self, first: int) -> DataLoader:
        rank, world = rank_and_world(self)
        share = range(first, first + self.cases)[rank::world]
        return DataLoader([with_views(self.picture(index), index) for index in share], batch_size=5)

    def train_bank_dataloader(self) -> DataLoader:
        return self._loader(0)


class BlobViews(Blobs):
    """Patches of scans; the second of each case is empty."""

    views = ([NOISE], [NOISE])  # as `with_views` makes them

    def train_dataloader(self) -> DataLoader:
        loader = super().train_dataloader()
        samples = [with_views(one, int(one["case_id"])) for one in loader.dataset]
        return DataLoader(samples, batch_size=loader.batch_size)

    def val_dataloader(self) -> DataLoader:
        rank, world = rank_and_world(self)
        samples = [blob(100 + case, (self.size,) * self.dims) for case in range(self.cases)]
        empty = [{**one, "label": one["label"] * 0, "image": one["image"] * 0} for one in samples]
        both = [with_views(one, i) for i, one in enumerate(samples + empty)]
        return DataLoader(both[rank::world], batch_size=4)

    test_dataloader = train_bank_dataloader = val_dataloader
