"""Which class a sample has, for looking at features."""

from __future__ import annotations

import torch
from torch import Tensor

from medlight.tasks.base import Batch, Signature, labelled
from medlight.tasks.representation import UNKNOWN


def class_count(data: Signature) -> int:
    """Return how many classes the samples of a data set have: its classes or labels; 0 where a sample has several."""
    if data["classes"]:
        return 0 if data["multilabel"] else len(data["classes"])
    return len(data["labels"]) if len(data["labels"]) > 1 else 0


def class_of(batch: Batch, data: Signature) -> Tensor:
    """Return the class (B,) of each sample: its target, or the label with most voxels (not background); -1 unknown."""
    key = "target" if data["classes"] else "label"
    unknown = torch.full((len(batch["image"]),), UNKNOWN, device=batch["image"].device)
    if key not in batch or not class_count(data):
        return unknown
    found = batch["target"].long() if data["classes"] else _largest_label(batch["label"], data)
    known = torch.tensor(labelled(batch, key), device=unknown.device)
    return torch.where(known, found, unknown)


def _largest_label(label: Tensor, data: Signature) -> Tensor:
    values = [int(entry["value"]) for entry in data["labels"]]
    voxels = torch.stack([(label == value).flatten(1).sum(dim=1) for value in values[1:]], dim=1)
    return torch.where(voxels.amax(dim=1) > 0, voxels.argmax(dim=1) + 1, 0)
