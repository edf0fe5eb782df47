"""Normalisation: one piece of code for training, export and prediction.

Each normaliser is a clip and an affine map, found from the statistics of a whole prepared scan (see statistics.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from medlight.config import import_class, nearest
from medlight.errors import UsageError
from medlight.prepare.statistics import PERCENTILES

Stats = Mapping[str, Any]


@dataclass(frozen=True)
class Scaling:
    """``(clip(x, low, high) - shift) / scale``."""

    low: float
    high: float
    shift: float
    scale: float

    def apply(self, array: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return the array (any shape) scaled, as float32."""
        scaled = array.astype(np.float32)
        if isfinite(self.low) or isfinite(self.high):
            np.clip(scaled, self.low, self.high, out=scaled)
        scaled -= np.float32(self.shift)
        scaled /= np.float32(self.scale)
        return scaled


class Normaliser:
    """What all normalisers share. No data class itself, or jsonargparse would take none of its subclasses for it."""

    per_voxel: ClassVar[bool] = False  # whether it needs no statistics of the scan, so that it can go into a graph

    def scaling(self, stats: Stats) -> Scaling:
        """Return the scaling for one channel with these statistics."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Return the spec that `normaliser_from` reads."""
        return {"class_path": f"medlight.prepare.{type(self).__name__}", "init_args": dict(vars(self))}


@dataclass(frozen=True)
class ZScore(Normaliser):
    """Mean 0 and standard deviation 1, over all voxels or over those that are not 0 (a skull-stripped scan)."""

    nonzero: bool = False

    def scaling(self, stats: Stats) -> Scaling:
        """Return the scaling; a constant scan is only shifted."""
        chosen = stats["nonzero"] if self.nonzero else stats
        return Scaling(-inf, inf, chosen["mean"], chosen["std"] if chosen["std"] > 1e-8 else 1.0)


@dataclass(frozen=True)
class Window(Normaliser):
    """The values from ``low`` to ``high`` (HU for CT) become 0 to 1; what is outside is clipped."""

    low: float
    high: float
    per_voxel: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (isfinite(self.low) and isfinite(self.high) and self.low < self.high):
            raise UsageError(f"Window: low {self.low} must lie below high {self.high}")

    def scaling(self, stats: Stats | None = None) -> Scaling:
        """Return the scaling; it is the same for every scan."""
        return Scaling(self.low, self.high, self.low, self.high - self.low)


@dataclass(frozen=True)
class NamedWindow(Normaliser):
    """A window by name (lung, bone, brain, soft-tissue, ...: `scans.window.PRESETS`), or as ``CENTRE/WIDTH``, in HU.

    Its values become 0 to 1 as LINEAR_EXACT says (DICOM PS3.3 C.11.2.1.3.2). Raises UsageError for an unknown name.
    """

    name: str
    per_voxel: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.scaling()

    def scaling(self, stats: Stats | None = None) -> Scaling:
        """Return the scaling; it is the same for every scan."""
        from medlight.scans.window import window

        found = window(self.name)
        low = found.centre - found.width / 2
        return Scaling(low, low + found.width, low, found.width)


@dataclass(frozen=True)
class Percentile(Normaliser):
    """The values from one percentile of the scan to another become 0 to 1; what is outside is clipped.

    The percentiles are those that the store keeps: 0, 0.5, 1, 2, 5, 25, 50, 75, 95, 98, 99, 99.5, 100.
    """

    low: float = 0.5
    high: float = 99.5

    def __post_init__(self) -> None:
        kept = ("0", *(f"{p:g}" for p in PERCENTILES), "100")
        for name in ("low", "high"):
            text = f"{getattr(self, name):g}"
            if text not in kept:
                raise UsageError(f"Percentile.{name}: {text} is not kept; choose one of {', '.join(kept)}")
        if self.low >= self.high:
            raise UsageError(f"Percentile: low {self.low} must lie below high {self.high}")

    def scaling(self, stats: Stats) -> Scaling:
        """Return the scaling; a constant scan is only shifted."""
        table = {"0": stats["min"], "100": stats["max"], **stats["percentiles"]}
        low, high = table[f"{self.low:g}"], table[f"{self.high:g}"]
        return Scaling(low, high, low, high - low if high - low > 1e-8 else 1.0)


def normaliser_from(spec: Mapping[str, Any]) -> Normaliser:
    """Build the normaliser that `Normaliser.to_dict` described."""
    cls = import_class(spec["class_path"], "normalise.class_path")
    if not (isinstance(cls, type) and issubclass(cls, Normaliser)):
        known = [f"medlight.prepare.{c.__name__}" for c in (ZScore, Window, NamedWindow, Percentile)]
        raise UsageError(f"normalise: {spec['class_path']} is no normaliser{nearest(spec['class_path'], known)}")
    return cls(**(spec.get("init_args") or {}))
