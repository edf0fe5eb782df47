"""Fine-tuning that feels the rounding of INT8, for where quantisation after training alone loses too much."""

from __future__ import annotations

from typing import Any

import lightning as L
from torch import nn

from medlight.errors import UsageError
from medlight.networks.rounding import rounded


class QuantizationAware(L.Callback):
    """Rounds the task's network to INT8 in every forward pass of a fit; validation sees it rounded too.

    Begin with trained weights (``model.init_args.pretrained``) and a learning rate of about a tenth of theirs; some
    hundred steps do. Checkpoints hold plain fp32 weights.
    """

    def __init__(self) -> None:
        self._rounded: Any = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to round."""
        network = getattr(pl_module, "network", None)
        if not isinstance(network, nn.Module):
            raise UsageError(
                f"trainer.callbacks: QuantizationAware: {type(pl_module).__name__} has no network to round"
            )
        self._rounded = rounded(network)
        self._rounded.__enter__()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave the network as it was; a fit that fails is not torn down."""
        self._end()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Leave the network as it was, with the weights that it has learnt."""
        self._end()

    def _end(self) -> None:
        if self._rounded is not None:
            self._rounded.__exit__(None, None, None)
            self._rounded = None
