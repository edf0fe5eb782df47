"""Learning by telling views of one sample from those of others."""

from __future__ import annotations

from typing import Any, ClassVar

from medlight.errors import UsageError
from medlight.tasks.base import Spec
from medlight.tasks.two_views import TwoViewsTask


class SimCLRTask(TwoViewsTask):
    """SimCLR (Chen et al., ICML 2020): two views of a sample shall be nearer to each other than to all other samples.

    A view is compared with the whole batch, that of all ranks together: large ones help. The loss is
    `medlight.losses.NTXent`; ``train/loss`` of random vectors is about the logarithm of twice the batch.

    temperature: of the loss, above 0. The rest as for TwoViewsTask (projection: default [512, 128], no normalisation,
    so that ranks give what one process gives) and PretrainingTask.
    """

    default_projection: ClassVar[tuple[int, ...]] = (512, 128)
    projection_norm: ClassVar[bool] = False

    def __init__(self, temperature: float = 0.2, **common: Any) -> None:
        super().__init__(**common)
        if not temperature > 0:
            raise UsageError(f"model.temperature: {temperature} must be above 0")

    def default_loss(self) -> Spec:
        """NT-Xent over the samples of all ranks."""
        return {"class_path": "medlight.losses.NTXent", "init_args": {"temperature": self.hparams["temperature"]}}
