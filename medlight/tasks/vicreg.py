"""Learning from two views without negatives."""

from __future__ import annotations

from typing import ClassVar

from medlight.tasks.base import Spec
from medlight.tasks.two_views import TwoViewsTask


class VICRegTask(TwoViewsTask):
    """VICReg (Bardes et al., ICLR 2022): two views of a sample shall be the same, dimensions varied and independent.

    No sample is pushed away from another, so small batches do. The loss is `medlight.losses.VICReg`, its weights are
    arguments of ``loss``. The rest as for TwoViewsTask (projection, the paper's expander: default [512, 512, 512] with
    batch normalisation; on several GPUs set ``trainer.sync_batchnorm``) and PretrainingTask.
    """

    default_projection: ClassVar[tuple[int, ...]] = (512, 512, 512)
    projection_norm: ClassVar[bool] = True

    def default_loss(self) -> Spec:
        """VICReg with the weights of the paper."""
        return {"class_path": "medlight.losses.VICReg", "init_args": {}}
