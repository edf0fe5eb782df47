"""How a weight rises from almost nothing to its full value."""

from __future__ import annotations

import math


def sigmoid_ramp_up(step: int, length: int) -> float:
    """Return ``exp(-5 (1 - t)^2)`` for ``t = step / length``, from 0.0067 at step 0 to 1 at ``length`` and after.

    The shape is that of Laine and Aila, Temporal Ensembling (ICLR 2017). A length of 0 is no ramp: 1 at once.
    """
    t = min(max(step / length, 0.0), 1.0) if length > 0 else 1.0
    return math.exp(-5.0 * (1.0 - t) ** 2)
