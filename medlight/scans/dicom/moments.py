"""When a frame was taken, and what else tells it from others at its place."""

from __future__ import annotations

import datetime
import math
import re

from pydicom import Dataset

from medlight.scans.dicom import elements
from medlight.scans.dicom.elements import TAG, perhaps, text
from medlight.scans.dicom.frames import ChannelKey, Vector

_DAY = 86_400_000.0
_GE_MARK = 100_000  # GE adds a multiple of this to a b-value that was given by hand
_CLOCK = re.compile(r"(\d\d):?(\d\d):?(\d\d(?:\.\d{1,6})?)?")


def moments(dataset: Dataset, is_mr: bool) -> tuple[float | None, ...]:
    """What may tell volumes in time apart, in the order of ``frames.MOMENTS``."""
    return (
        perhaps(dataset, TAG.TemporalPositionIdentifier),
        perhaps(dataset, TAG.FrameReferenceTime),
        perhaps(dataset, TAG.TriggerTime),
        milliseconds(text(dataset, TAG.AcquisitionDateTime))
        or milliseconds(text(dataset, TAG.AcquisitionDate) + text(dataset, TAG.AcquisitionTime)),
        _ge_direction(dataset) if is_mr else None,
    )


def milliseconds(written: str) -> float | None:
    """A date and time of DICOM (``YYYYMMDDHHMMSS.FFFFFF``, the date may be missing) in milliseconds."""
    written = written.replace(" ", "")
    days = 0
    if len(written) >= 12 and written[:8].isdigit():
        try:
            days = datetime.date(int(written[:4]), int(written[4:6]), int(written[6:8])).toordinal()
        except ValueError:
            return None
        written = written[8:]
    clock = _CLOCK.match(written)
    if clock is None:
        return None
    hours, minutes, seconds = int(clock[1]), int(clock[2]), float(clock[3] or 0)
    return days * _DAY + (hours * 3600 + minutes * 60 + seconds) * 1000


def channel(dataset: Dataset, is_mr: bool) -> ChannelKey:
    """The key of a classic single-frame object. Times are settled when a volume's frames are known."""
    acquisition = whole(perhaps(dataset, TAG.AcquisitionNumber))
    if not is_mr:
        return ChannelKey(acquisition=acquisition)
    b_value = _b_value(dataset)
    return ChannelKey(
        b_value=b_value,
        gradient=_gradient(dataset) if b_value else None,
        echo_time_ms=perhaps(dataset, TAG.EchoTime),
        acquisition=acquisition,
    )


def whole(number: float | None) -> int | None:
    """A whole number, None where it is none."""
    return int(number) if number is not None and number == int(number) else None


def direction(parts: tuple[float | None, ...] | None) -> Vector | None:
    """A gradient's direction as a unit vector; None where it has no length or isn't whole."""
    if parts is None or len(parts) != 3 or any(part is None or not math.isfinite(part) for part in parts):
        return None
    x, y, z = (float(part or 0) for part in parts)
    length = math.sqrt(x * x + y * y + z * z)
    return (x / length, y / length, z / length) if length > 1e-6 else None


def _b_value(dataset: Dataset) -> float | None:
    """By the standard's element, else by those of Siemens, Philips and GE."""
    for at in (TAG.DiffusionBValue, elements.SIEMENS_B, elements.PHILIPS_B):
        found = perhaps(dataset, at)
        if found is not None:
            return found
    found = perhaps(dataset, elements.GE_B)
    return None if found is None else found % _GE_MARK


def _ge_direction(dataset: Dataset) -> float | None:
    """A number that differs where GE's gradient does: it stands in the picture's own frame, and isn't turned here."""
    parts = [perhaps(dataset, at) for at in elements.GE_GRADIENT]
    if any(part is None for part in parts):
        return None
    return sum(round(part or 0, 4) * weight for part, weight in zip(parts, (1.0, 1e4, 1e8), strict=True))


def _gradient(dataset: Dataset) -> Vector | None:
    """In the patient's frame; GE writes it in the picture's own, which is left alone."""
    for at in (TAG.DiffusionGradientOrientation, elements.SIEMENS_GRADIENT):
        try:
            found = direction(elements.numbers(dataset, at)) if perhaps(dataset, at) is not None else None
        except ValueError:
            found = None
        if found:
            return found
    return direction(tuple(perhaps(dataset, at) for at in elements.PHILIPS_GRADIENT))
