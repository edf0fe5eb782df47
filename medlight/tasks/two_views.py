"""What learning from two views of a sample has, whatever the loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from medlight.errors import UsageError
from medlight.tasks.base import Batch
from medlight.tasks.pretraining import PretrainingTask


class TwoViewsTask(PretrainingTask):
    """Compare two views of each sample; a subclass says by what loss.

    The loss takes two tensors (B, D), one a view: vectors that a projection head makes of the features. The head is
    left out of fine-tuning. ``val/loss`` is the same loss over all validation samples of all ranks at once (the loss's
    method ``local``, where it has one), on two views that are the same at each validation.

    projection: sizes of the projection head's layers, ReLU between them; ``None`` takes the task's default.
    """

    needs_views: ClassVar[int] = 2
    default_projection: ClassVar[tuple[int, ...]]
    projection_norm: ClassVar[bool]

    def __init__(self, projection: list[int] | None = None, **common: Any) -> None:
        super().__init__(**common)
        check_sizes(self.sizes, "model.projection")

    @property
    def sizes(self) -> list[int]:
        """Sizes of the projection head's layers."""
        return list(self.hparams["projection"] or self.default_projection)

    def setup(self, stage: str) -> None:
        """Take the data's signature; before a fit, refuse batches in which a sample has nothing to differ from."""
        super().setup(stage)
        trainer: Any = self.trainer
        size = getattr(trainer.datamodule, "batch_size", None)
        if stage == "fit" and size is not None and size * trainer.world_size < 2:
            name = type(self).__name__
            raise UsageError(f"data.batch_size: {size} is too small; {name} compares samples, so write at least 2")

    def configure_heads(self, width: int) -> None:
        """Build the projection head."""
        self.projection = projector(width, self.sizes, self.projection_norm)

    def learn(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the loss of two views, and the features of both."""
        views = two_views(batch)
        features = self.encode(views.flatten(0, 1))
        vectors = self.projection(features).float().unflatten(0, (len(views), 2))
        assert self.loss is not None
        with torch.autocast(vectors.device.type, enabled=False):
            return self.loss(vectors[:, 0], vectors[:, 1]), features

    def measure(self, batch: Batch) -> Batch:
        """Return the vectors (B, 2, D) of the two views."""
        views = two_views(batch)
        return {"vectors": self.projection(self.encode(views.flatten(0, 1))).unflatten(0, (len(views), 2))}

    def measured_loss(self, parts: Batch) -> Tensor:
        """Return the loss over all samples at once."""
        loss: Any = self.loss
        found: Tensor = getattr(loss, "local", loss)(*parts["vectors"].unbind(1))
        return found


def two_views(batch: Batch) -> Tensor:
    """Return the views (B, 2, C, ...) of a batch; UsageError where there are others."""
    views = batch.get("views")
    if views is None or views.shape[1] != 2:
        found = "none" if views is None else str(views.shape[1])
        raise UsageError(f"data.views: found {found}, need two (medlight.data.PretrainingDataModule)")
    return views


def projector(width: int, sizes: Sequence[int], norm: bool) -> nn.Sequential:
    """Return linear layers with ReLU (after batch normalisation where ``norm``) between them, of these sizes."""
    layers: list[nn.Module] = []
    for inner in sizes[:-1]:
        layers += [nn.Linear(width, inner, bias=not norm), *([nn.BatchNorm1d(inner)] if norm else []), nn.ReLU()]
        width = inner
    return nn.Sequential(*layers, nn.Linear(width, sizes[-1], bias=not norm))


def check_sizes(sizes: Sequence[int], key: str) -> None:
    """Raise UsageError where these are no sizes of layers."""
    if not sizes or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in sizes):
        raise UsageError(f"{key}: {list(sizes)} are no sizes of layers; write whole numbers, as [512, 128]")
