"""One object's header: what grouping asks of it as a whole, and its frames."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Literal

from pydicom import Dataset

from medlight.scans.dicom.archive import reason_of
from medlight.scans.dicom.elements import TAG, TAGS, number, perhaps, text, vector
from medlight.scans.dicom.frames import Frame, Place
from medlight.scans.dicom.moments import channel, moments
from medlight.scans.dicom.mosaic import is_mosaic, tiles
from medlight.scans.dicom.multiframe import enhanced, is_enhanced, plain
from medlight.scans.dicom.parsing import parse
from medlight.scans.dicom.unreadable import UnreadableError, modality, unreadable

__all__ = ["TAGS", "Header", "UnreadableError", "frames_of", "header_of", "parse", "unreadable"]

Kind = Literal["image", "seg", "rtstruct", "other"]

_SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
_STRUCTURES = "1.2.840.10008.5.1.4.1.1.481.3"
_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
_FACTS = {
    "series_number": TAG.SeriesNumber,
    "thickness_mm": TAG.SliceThickness,
    "tilt_tag_degrees": TAG.GantryDetectorTilt,
    "field_strength_t": TAG.MagneticFieldStrength,
    "peak_kv": TAG.KVP,
    "repetition_time_ms": TAG.RepetitionTime,
    "flip_angle_degrees": TAG.FlipAngle,
}


@dataclass(frozen=True, slots=True)
class Header:
    """What grouping asks of a whole object. modality: a term of the standard, or empty. facts: numbers, no text."""

    series_uid: str
    modality: str
    kind: Kind
    facts: tuple[tuple[str, float], ...] = ()


def header_of(dataset: Dataset) -> Header:
    """What grouping asks of a whole object."""
    facts = ((name, perhaps(dataset, at)) for name, at in _FACTS.items())
    known = tuple((name, found) for name, found in facts if found is not None)
    return Header(text(dataset, TAG.SeriesInstanceUID), modality(dataset), _kind(dataset), known)


def _kind(dataset: Dataset) -> Kind:
    sop_class = text(dataset, TAG.SOPClassUID)
    if sop_class in _SEGMENTATIONS:
        return "seg"
    if sop_class == _STRUCTURES:
        return "rtstruct"
    return "image" if TAG.Rows in dataset and TAG.Columns in dataset else "other"


def frames_of(dataset: Dataset, place: Place) -> list[Frame]:
    """Cut an object into frames: one; those of a multi-frame object in the order they are stored; a mosaic's tiles.

    An object that is no image, and a slide of pathology, is one frame with no place. Raises UnreadableError where what
    the header says of its frames makes no sense.
    """
    try:
        base = _base(dataset, place)
        if _kind(dataset) != "image" or text(dataset, TAG.SOPClassUID) == _SLIDE:
            return [replace(base, position=None, along_row=None, along_column=None)]
        count = _count(dataset)
        if is_enhanced(dataset):
            return enhanced(dataset, count, base)
        if is_mosaic(dataset):
            return tiles(dataset, base)
        return [base] if count == 1 else plain(dataset, count, base)
    except ValueError as error:
        raise unreadable(place, str(error), dataset) from None
    except RecursionError:
        raise unreadable(place, "its sequences are nested too deep to be true", dataset) from None
    except Exception as error:  # whatever the bytes of a sequence make pydicom raise
        raise unreadable(place, f"can't be read as DICOM ({reason_of(error)})", dataset) from None


def _count(dataset: Dataset) -> int:
    said = number(dataset, TAG.NumberOfFrames)
    if said is not None and (said < 1 or said != int(said)):
        raise ValueError(f"NumberOfFrames (0028,0008) is {said:g}")
    return 1 if said is None else int(said)


def _base(dataset: Dataset, place: Place) -> Frame:
    """What an object says of all its frames."""
    orientation = vector(dataset, TAG.ImageOrientationPatient, 6)
    is_mr = text(dataset, TAG.Modality) == "MR"
    return Frame(
        place,
        text(dataset, TAG.SOPInstanceUID),
        (int(number(dataset, TAG.Rows) or 0), int(number(dataset, TAG.Columns) or 0)),
        spacing=_spacing(dataset),
        position=vector(dataset, TAG.ImagePositionPatient, 3),  # type: ignore[arg-type]
        along_row=orientation[:3] if orientation else None,  # type: ignore[arg-type]
        along_column=orientation[3:] if orientation else None,  # type: ignore[arg-type]
        thickness=perhaps(dataset, TAG.SliceThickness) or None,
        tilt_tag=perhaps(dataset, TAG.GantryDetectorTilt),
        instance=int(perhaps(dataset, TAG.InstanceNumber) or 0),
        channel=channel(dataset, is_mr),
        interval=perhaps(dataset, TAG.SpacingBetweenSlices) or None,
        moments=moments(dataset, is_mr),
        variant=sys.intern("\\".join((text(dataset, TAG.ImageType).upper(), text(dataset, TAG.ConvolutionKernel)))),
        colours=3 if _is_coloured(dataset) else 1,
    )


def _is_coloured(dataset: Dataset) -> bool:
    palette = text(dataset, TAG.PhotometricInterpretation).upper() == "PALETTE COLOR"
    return palette or perhaps(dataset, TAG.SamplesPerPixel) == 3


def _spacing(dataset: Dataset) -> tuple[float, float] | None:
    """Between rows and between columns: at the patient if said, else at the detector (PS3.3 10.7.1)."""
    for at in (TAG.PixelSpacing, TAG.ImagerPixelSpacing, TAG.NominalScannedPixelSpacing):
        found = vector(dataset, at, 2)
        if found and min(found) > 0:
            return found[0], found[1]
    return None
