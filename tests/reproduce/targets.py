"""What tests put into fits."""

from __future__ import annotations

from typing import Any

import lightning as L


class Explodes(L.Callback):
    """Ends a fit with an error."""

    def on_train_epoch_start(self, *_: Any) -> None:
        raise RuntimeError("bang")
