"""Windows: which part of a scan's values is shown between black and white (DICOM PS3.3 C.11.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from medlight.errors import UsageError

Function = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]
Greys = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Window:
    """A centre and a width in the scan's own values (HU for CT), and the curve between."""

    centre: float
    width: float
    function: Function = "LINEAR"


# Usual windows for CT, in HU (Murphy A, Baba Y et al., "Windowing (CT)", Radiopaedia.org, rID 52108).
PRESETS = {
    "lung": Window(-600, 1500),
    "mediastinum": Window(50, 350),
    "soft-tissue": Window(50, 400),
    "liver": Window(30, 150),
    "bone": Window(400, 1800),
    "brain": Window(40, 80),
    "subdural": Window(75, 215),
    "stroke": Window(40, 40),
    "temporal-bone": Window(600, 2800),
    "spine": Window(50, 250),
}


def window(name: str) -> Window:
    """Return a preset by name, or a window written as ``CENTRE/WIDTH``. Raises UsageError for anything else."""
    if name in PRESETS:
        return PRESETS[name]
    try:
        centre, width = (float(part) for part in name.split("/"))
    except ValueError:
        known = ", ".join(PRESETS)
        raise UsageError(f"{name!r} is no window; give CENTRE/WIDTH (40/400), or one of {known}") from None
    _check(width, "LINEAR")
    return Window(centre, width)


def apply_window(array: npt.NDArray[Any], centre: float, width: float, function: Function = "LINEAR") -> Greys:
    """Map values to 0 (black) to 1 (white), any shape, as float32.

    LINEAR (C.11.2.1.2.1) is meant for whole numbers: a width of 1 is a threshold, and the ramp is one narrower than
    that of LINEAR_EXACT (C.11.2.1.3.2). SIGMOID is C.11.2.1.3.1. Values that are not numbers become 0. Raises
    UsageError for a width below 1 (LINEAR) or not above 0.
    """
    _check(width, function)
    values = np.asarray(array, dtype=np.float64)
    match function:
        case "LINEAR":
            grey = _ramp(values, centre - 0.5, width - 1)
        case "LINEAR_EXACT":
            grey = _ramp(values, centre, width)
        case "SIGMOID":
            grey = expit(4 * (values - centre) / width)
    return np.nan_to_num(grey, nan=0.0).astype(np.float32)


def _ramp(values: npt.NDArray[np.float64], middle: float, width: float) -> npt.NDArray[np.float64]:
    if width == 0:
        return (values > middle).astype(np.float64)
    return np.clip((values - middle) / width + 0.5, 0, 1)


def _check(width: float, function: Function) -> None:
    least = "at least 1" if function == "LINEAR" else "above 0"
    if not (width >= 1 if function == "LINEAR" else width > 0):
        raise UsageError(f"a {function} window's width is {least}, got {width:g}")


def apply_lut(array: npt.NDArray[Any], first: int, values: npt.NDArray[np.integer[Any]], bits: int) -> Greys:
    """Map values to 0 to 1 by a VOI LUT (C.11.2.1.1): ``first`` is the value of the first entry, entries have ``bits``.

    Values before the first and after the last entry take those; fractions are rounded to the nearest entry.
    """
    index = np.clip(np.rint(np.nan_to_num(np.asarray(array, dtype=np.float64))) - first, 0, len(values) - 1)
    return (np.asarray(values, dtype=np.float32) / np.float32(2**bits - 1))[index.astype(np.int64)]
