"""Fine-tuning that feels the rounding of INT8, for where quantisation after training alone loses too much."""

from __future__ import annotations

from typing import Any

import lightning as L
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from medlight.errors import UsageError
from medlight.networks.rounding import Rounding, rounded

_KEY = "trainer.callbacks: QuantizationAware"


class QuantizationAware(L.Callback):
    """Rounds the task's network to INT8 in every second training batch of a fit, and in validation.

    The other batches see it in fp32: a bundle has both models, of the same weights, and its INT8 must be near its fp32.
    Trained with nothing but the rounding, the weights are those of a good INT8 network and of a worse fp32 one. For the
    same reason batch norms keep the statistics that they have, as the graph does; their weights are trained.

    So begin with trained weights (``model.init_args.pretrained``), and a learning rate of about a tenth of theirs; some
    hundred steps do. Checkpoints hold plain fp32 weights. It is worth it where post-training rounding loses much (one
    channel far larger than the others of its layer, say); where it loses next to nothing there is nothing to gain.

    Tasks with a teacher are refused: what they deploy is an average that no step corrects. Their runs are fine weights
    to begin with, of which the teacher's are taken.
    """

    def __init__(self) -> None:
        self._rounded: Any = None
        self._rounding: Rounding | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Raise UsageError where the trained network is not the one that is deployed."""
        if stage != "fit":
            return
        name = type(pl_module).__name__
        if getattr(pl_module, "kind", "") not in ("segmentation", "classification"):
            raise UsageError(f"{_KEY}: {name} has no network that is deployed; mend: leave it out")
        if hasattr(pl_module, "teacher"):
            raise UsageError(
                f"{_KEY}: {name} deploys its teacher, which is not what is trained; mend: fit SegmentationTask or "
                "ClassificationTask with its run as model.init_args.pretrained"
            )

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to round."""
        network: Any = pl_module.network
        self._rounded = rounded(network)
        self._rounding = self._rounded.__enter__()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Round every second batch; statistics of batch norms stay (a validation puts them back to training)."""
        assert self._rounding is not None
        self._rounding.on = trainer.fit_loop.total_batch_idx % 2 == 0  # an epoch may be one batch
        for norm in _norms(pl_module):
            norm.eval()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Round whatever comes between the batches."""
        assert self._rounding is not None
        self._rounding.on = True

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave the network as it was; a fit that fails is not torn down."""
        self._end(pl_module)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Leave the network as it was, with the weights that it has learnt."""
        self._end(pl_module)

    def _end(self, pl_module: L.LightningModule) -> None:
        if self._rounded is not None:
            self._rounded.__exit__(None, None, None)
            self._rounded = None
            for norm in _norms(pl_module):
                norm.train(pl_module.training)


def _norms(pl_module: L.LightningModule) -> list[nn.Module]:
    network: Any = pl_module.network
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]
