"""Tiny data modules held in memory, with the batch keys of medlight.data."""

from __future__ import annotations

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

LABELS = [{"value": 0, "name": "background"}, {"value": 1, "name": "core"}, {"value": 2, "name": "rim"}]


def rank_and_world(module: L.LightningDataModule) -> tuple[int, int]:
    return (module.trainer.global_rank, module.trainer.world_size) if module.trainer else (0, 1)


def blob(index: int, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """A ball in a shell somewhere in noise; the image's value tells the label."""
    draws = torch.Generator().manual_seed(index)
    centre = [n * (0.35 + 0.3 * torch.rand(1, generator=draws).item()) for n in shape]
    axes = torch.meshgrid(*[torch.arange(n) for n in shape], indexing="ij")
    radius = sum((a - c) ** 2 for a, c in zip(axes, centre, strict=True)).sqrt() / min(shape)
    label = ((radius < 0.35).long() + (radius < 0.35).long() * (radius > 0.2).long())[None]
    image = label.float() + 0.2 * torch.randn(label.shape, generator=draws)
    return {
        "image": image,
        "label": label,
        "case_id": torch.tensor(index),
        "spacing": torch.tensor([1.0, 1.5, 2.0]),
        "is_labelled": torch.tensor(True),
    }


class Blobs(L.LightningDataModule):
    """Segmentation: every rank takes its share of each global batch, and every world-th validation case."""

    def __init__(self, dims: int = 3, batch: int = 4, steps: int = 3, cases: int = 5, size: int = 16) -> None:
        super().__init__()
        self.dims, self.batch, self.steps, self.cases, self.size = dims, batch, steps, cases, size

    def signature(self) -> dict:
        return {
            "spatial_dims": self.dims,
            "channels": ["image"],
            "labels": LABELS,
            "classes": [],
            "multilabel": False,
            "preparation": {"spacing": None},
            "normalise": [],
            "patch_size": [self.size] * self.dims,
        }

    def train_dataloader(self) -> DataLoader:
        rank, world = rank_and_world(self)
        share = self.batch // world
        draws = [step * self.batch + rank * share + place for step in range(self.steps) for place in range(share)]
        return DataLoader([blob(draw, (self.size,) * self.dims) for draw in draws], batch_size=share)

    def val_dataloader(self) -> DataLoader:
        rank, world = rank_and_world(self)
        shape = (self.size + 5, self.size, self.size - 3)[: self.dims]
        return DataLoader([blob(100 + case, shape) for case in range(self.cases)][rank::world], batch_size=1)

    test_dataloader = val_dataloader


class Pictures(L.LightningDataModule):
    """Classification: the class is the picture's brightness; multi-label: of its two halves."""

    def __init__(
        self, classes: int = 3, multilabel: bool = False, dims: int = 2, cases: int = 24, size: int = 12
    ) -> None:
        super().__init__()
        self.classes, self.multilabel, self.dims, self.cases, self.size = classes, multilabel, dims, cases, size

    def signature(self) -> dict:
        return {
            "spatial_dims": self.dims,
            "channels": ["image"],
            "labels": [],
            "classes": [f"class {index}" for index in range(self.classes)],
            "multilabel": self.multilabel,
            "preparation": {"spacing": None},
            "normalise": [],
            "patch_size": [self.size] * self.dims,
        }

    def picture(self, index: int) -> dict[str, Tensor]:
        draws = torch.Generator().manual_seed(index)
        image = 0.3 * torch.randn(1, *[self.size] * self.dims, generator=draws)
        if self.multilabel:
            target = torch.randint(0, 2, (self.classes,), generator=draws).float()
            image[:, : self.size // 2] += 2 * target[0]
            image[:, self.size // 2 :] += 2 * target[1]
        else:
            target = torch.tensor(index % self.classes)
            image += target
        return {"image": image, "target": target, "case_id": torch.tensor(index)}

    def _loader(self, first: int) -> DataLoader:
        rank, world = rank_and_world(self)
        share = range(first, first + self.cases)[rank::world]
        return DataLoader([self.picture(index) for index in share], batch_size=8)

    def train_dataloader(self) -> DataLoader:
        return self._loader(0)

    def val_dataloader(self) -> DataLoader:
        return self._loader(1000)

    test_dataloader = val_dataloader


DYNUNET = {
    "class_path": "monai.networks.nets.DynUNet",
    "init_args": {"filters": [4, 8, 8], "res_block": True, "deep_supervision": True},
}
CNN = {
    "class_path": "monai.networks.nets.ResNet",
    "init_args": {
        "block": "basic",
        "layers": [1, 1, 1, 1],
        "block_inplanes": [4, 8, 8, 8],
        "norm": ["group", {"num_groups": 2}],
    },
}


def trainer(**settings) -> L.Trainer:
    quiet = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "max_epochs": 2,
    }
    return L.Trainer(**quiet | settings)
