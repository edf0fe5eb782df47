"""Single values out of a pydicom data set, from the bytes as they lie: pydicom's own conversion takes far longer."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Any

from pydicom import Dataset
from pydicom.datadict import dictionary_keyword, dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.tag import BaseTag

_BINARY = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "UV": "Q", "SV": "q", "FL": "f", "FD": "d", "AT": "H", "OW": "H"}
_TEXT_BYTES = 1024  # no text that is looked at here may be longer (PS3.5 6.2)
_ITEMS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")
# A functional group that is looked at holds a handful of numbers; its neighbours may be long, and are not opened.
_GROUP_BYTES, _GROUP_ITEMS = 1 << 18, 1 << 10


def tag(keyword: str) -> BaseTag:
    """The tag of a keyword of the standard."""
    found = tag_for_keyword(keyword)
    assert found is not None, keyword
    return BaseTag(found)


class TAG:
    """The elements that are looked at; a class, so that a wrong name is seen before it is asked for."""

    Rows = tag("Rows")
    Columns = tag("Columns")
    NumberOfFrames = tag("NumberOfFrames")
    SamplesPerPixel = tag("SamplesPerPixel")
    BitsAllocated = tag("BitsAllocated")
    PhotometricInterpretation = tag("PhotometricInterpretation")
    SOPClassUID = tag("SOPClassUID")
    SOPInstanceUID = tag("SOPInstanceUID")
    SeriesInstanceUID = tag("SeriesInstanceUID")
    Modality = tag("Modality")
    ImageType = tag("ImageType")
    InstanceNumber = tag("InstanceNumber")
    SeriesNumber = tag("SeriesNumber")
    ConvolutionKernel = tag("ConvolutionKernel")
    ImagePositionPatient = tag("ImagePositionPatient")
    ImageOrientationPatient = tag("ImageOrientationPatient")
    PixelSpacing = tag("PixelSpacing")
    ImagerPixelSpacing = tag("ImagerPixelSpacing")
    NominalScannedPixelSpacing = tag("NominalScannedPixelSpacing")
    SliceThickness = tag("SliceThickness")
    SpacingBetweenSlices = tag("SpacingBetweenSlices")
    GantryDetectorTilt = tag("GantryDetectorTilt")
    GridFrameOffsetVector = tag("GridFrameOffsetVector")
    AcquisitionNumber = tag("AcquisitionNumber")
    TemporalPositionIdentifier = tag("TemporalPositionIdentifier")
    TriggerTime = tag("TriggerTime")
    FrameReferenceTime = tag("FrameReferenceTime")
    AcquisitionDateTime = tag("AcquisitionDateTime")
    AcquisitionDate = tag("AcquisitionDate")
    AcquisitionTime = tag("AcquisitionTime")
    FrameTime = tag("FrameTime")
    FrameTimeVector = tag("FrameTimeVector")
    EchoTime = tag("EchoTime")
    RepetitionTime = tag("RepetitionTime")
    FlipAngle = tag("FlipAngle")
    MagneticFieldStrength = tag("MagneticFieldStrength")
    KVP = tag("KVP")
    DiffusionBValue = tag("DiffusionBValue")
    DiffusionGradientOrientation = tag("DiffusionGradientOrientation")
    SharedFunctionalGroupsSequence = tag("SharedFunctionalGroupsSequence")
    PerFrameFunctionalGroupsSequence = tag("PerFrameFunctionalGroupsSequence")
    DetectorInformationSequence = tag("DetectorInformationSequence")


class GROUP:
    """Functional groups of enhanced multi-frame objects (PS3.3 C.7.6.16) and what is looked at in them."""

    PlanePosition = tag("PlanePositionSequence")
    PlaneOrientation = tag("PlaneOrientationSequence")
    PixelMeasures = tag("PixelMeasuresSequence")
    FrameContent = tag("FrameContentSequence")
    TemporalPosition = tag("TemporalPositionSequence")
    Diffusion = tag("MRDiffusionSequence")
    DiffusionDirection = tag("DiffusionGradientDirectionSequence")
    Echo = tag("MREchoSequence")
    Cardiac = tag("CardiacSynchronizationSequence")
    FrameTypes = tuple(map(tag, ("MRImageFrameTypeSequence", "CTImageFrameTypeSequence", "PETFrameTypeSequence")))
    StackID = tag("StackID")
    TemporalPositionIndex = tag("TemporalPositionIndex")
    TemporalPositionTimeOffset = tag("TemporalPositionTimeOffset")
    FrameAcquisitionNumber = tag("FrameAcquisitionNumber")
    FrameAcquisitionDateTime = tag("FrameAcquisitionDateTime")
    EffectiveEchoTime = tag("EffectiveEchoTime")
    TriggerDelay = tag("NominalCardiacTriggerDelayTime")
    FrameType = tag("FrameType")
    ComplexImageComponent = tag("ComplexImageComponent")


# Private elements, each with the creator that must stand at the head of its block (PS3.5 7.8.1) and its own VR.
SIEMENS_B, SIEMENS_GRADIENT = BaseTag(0x0019100C), BaseTag(0x0019100E)
GE_B, GE_GRADIENT = BaseTag(0x00431039), tuple(map(BaseTag, (0x001910BB, 0x001910BC, 0x001910BD)))
PHILIPS_B, PHILIPS_GRADIENT = BaseTag(0x20011003), tuple(map(BaseTag, (0x200510B0, 0x200510B1, 0x200510B2)))
CSA_IMAGE = BaseTag(0x00291010)
PRIVATE: Mapping[int, tuple[str, str]] = {
    SIEMENS_B: ("SIEMENS MR HEADER", "IS"),
    SIEMENS_GRADIENT: ("SIEMENS MR HEADER", "FD"),
    GE_B: ("GEMS_PARM_01", "IS"),
    **dict.fromkeys(GE_GRADIENT, ("GEMS_ACQU_01", "DS")),
    PHILIPS_B: ("Philips Imaging DD 001", "FL"),
    **dict.fromkeys(PHILIPS_GRADIENT, ("Philips MR Imaging DD 001", "FL")),
    CSA_IMAGE: ("SIEMENS CSA HEADER", "OB"),
}


def creator_tag(private: int) -> BaseTag:
    """Where the name of a private element's block stands."""
    return BaseTag((private & 0xFFFF0000) | 0x10)


TAGS: tuple[BaseTag, ...] = tuple(
    sorted({*(value for value in vars(TAG).values() if isinstance(value, BaseTag)), *map(BaseTag, PRIVATE)})
) + tuple(sorted({creator_tag(private) for private in PRIVATE}))


def value(dataset: Dataset, at: BaseTag) -> tuple[str, Any]:
    """The value representation and the value, as bytes where pydicom has not looked at it yet; ``""`` where absent."""
    element: Any = dataset._dict.get(at)  # get_item makes a new tag of each key, which takes longer than all the rest
    if element is None or element.value is None:
        return "", b""
    if not isinstance(element, RawDataElement):
        return str(element.VR), element.value
    kind = element.VR
    if kind is None or kind == "UN":
        kind = PRIVATE[at][1] if at in PRIVATE else "LO" if at.is_private_creator else dictionary_VR(at)
    return kind, element.value if element.is_little_endian else _turned(kind, element.value)


def _turned(kind: str, data: bytes) -> bytes:
    """Big endian to little endian."""
    size = struct.calcsize(_BINARY[kind]) if kind in _BINARY else 1
    return b"".join(data[at : at + size][::-1] for at in range(0, len(data), size)) if size > 1 else data


def numbers(dataset: Dataset, at: BaseTag) -> tuple[float, ...]:
    """All numbers of an element; none where it is absent or empty. Raises ValueError where one is no finite number."""
    kind, data = value(dataset, at)
    if not kind or _blank(data):
        return ()
    try:
        found = _numbers(kind, data)
    except (ValueError, TypeError, struct.error, OverflowError):
        raise ValueError(f"{name(at)} holds no number") from None
    if not all(map(math.isfinite, found)):
        raise ValueError(f"{name(at)} is not finite")
    return found


def _blank(data: Any) -> bool:
    return data is None or (isinstance(data, bytes | str) and (not data or data.isspace()))


def _numbers(kind: str, data: Any) -> tuple[float, ...]:
    if not isinstance(data, bytes):
        return tuple(map(float, data)) if hasattr(data, "__iter__") and not isinstance(data, str) else (float(data),)
    code = _BINARY.get(kind)
    if code is None:
        return tuple(map(float, data.rstrip(b" \0").split(b"\\")))
    count = len(data) // struct.calcsize(code)
    return struct.unpack(f"<{count}{code}", data[: count * struct.calcsize(code)])


def number(dataset: Dataset, at: BaseTag) -> float | None:
    """The first number of an element, None where there is none."""
    found = numbers(dataset, at)
    return found[0] if found else None


def vector(dataset: Dataset, at: BaseTag, length: int) -> tuple[float, ...] | None:
    """As many numbers as asked for, None where the element is absent. Raises ValueError where there are others."""
    found = numbers(dataset, at)
    if found and len(found) != length:
        raise ValueError(f"{name(at)} holds {len(found)} numbers in place of {length}")
    return found or None


def perhaps(dataset: Dataset, at: BaseTag) -> float | None:
    """A number that may be left out: None where it is absent, nonsense, or a private one in someone else's block."""
    if at in PRIVATE and not text(dataset, creator_tag(at)).startswith(PRIVATE[at][0]):
        return None
    try:
        return number(dataset, at)
    except ValueError:
        return None


def text(dataset: Dataset, at: BaseTag) -> str:
    """The text of an element as ASCII, several values joined by a backslash as they are written; empty where absent."""
    _, data = value(dataset, at)
    if isinstance(data, bytes):
        return data[:_TEXT_BYTES].decode("ascii", "replace").strip(" \0")
    if isinstance(data, str):
        return data.strip()
    return "\\".join(map(str, data)) if hasattr(data, "__iter__") else str(data)


def first(dataset: Dataset, at: BaseTag) -> Dataset:
    """The first item of a sequence that holds a few numbers; an empty data set where there is none.

    Raises ValueError where it is longer than any such sequence.
    """
    element: Any = dataset._dict.get(at)
    if element is None or not element.value:
        return _EMPTY
    if isinstance(element, RawDataElement):
        if len(element.value) > _GROUP_BYTES or items_in(element.value) > _GROUP_ITEMS:
            raise ValueError(f"{name(at)} is too long to be true")
        element = dataset[at]
    return element.value[0] if element.VR == "SQ" and element.value else _EMPTY


def items_in(data: bytes) -> int:
    """The most items that the bytes of a sequence can hold, at all depths."""
    return max(map(data.count, _ITEMS))


def name(at: BaseTag) -> str:
    """An element as a person calls it."""
    keyword = f"({at.group:04X},{at.element:04X})" if at.is_private else dictionary_keyword(at)
    return f"{keyword} ({at.group:04X},{at.element:04X})" if not at.is_private else keyword


_EMPTY = Dataset()
