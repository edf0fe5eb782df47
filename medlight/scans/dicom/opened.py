"""An object ready for decoding: its header in memory; uncompressed pixels stay in their file until they are wanted."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy.typing as npt
from pydicom import Dataset, uid
from pydicom.dataset import FileMetaDataset
from pydicom.tag import BaseTag

from medlight.scans.dicom.elements import TAG, TAGS, tag
from medlight.scans.dicom.frames import Place
from medlight.scans.dicom.parsing import parse
from medlight.scans.dicom.pixel_size import PixelElement, check_size
from medlight.scans.dicom.skim import TooShortError, skim

KEYWORDS = {"PixelData": 0x7FE00010, "FloatPixelData": 0x7FE00008, "DoubleFloatPixelData": 0x7FE00009}
_BY_BYTES = {struct.pack("<2H", number >> 16, number & 0xFFFF): keyword for keyword, number in KEYWORDS.items()}
# How much of a file is read for its header: most end within the first, Siemens' private headers within the second;
# 4 MiB of nothing but empty items make a data set of some 800.
_HEADS = (1 << 14, 1 << 18, 1 << 22)
_UNDEFINED = 0xFFFFFFFF
_COLOURS = tuple(f"{colour}PaletteColorLookupTable" for colour in ("Red", "Green", "Blue"))
# What pixels, values, windows and SUV are made of, and geometry: the rest of a header is stepped over.
_WANTED = {
    int(at): at
    for at in (
        *TAGS,
        *map(
            tag,
            (
                *("PlanarConfiguration", "BitsStored", "HighBit", "PixelRepresentation"),
                *("PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept", "RescaleType"),
                *("DoseGridScaling", "ModalityLUTSequence"),
                *(name + kind for name in _COLOURS for kind in ("Descriptor", "Data")),
                *(f"Segmented{name}Data" for name in _COLOURS),
                *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
                *("Units", "CorrectedImage", "DecayCorrection", "RadiopharmaceuticalInformationSequence"),
                *("PatientWeight", "SeriesDate", "SeriesTime", "FrameOfReferenceUID"),
            ),
        ),
        *map(BaseTag, (0x00090010, 0x0009100D, 0x70530010, 0x70531000, 0x70531009)),  # GE's and Philips' for SUV
    )
}


@dataclass(frozen=True, slots=True)
class Span:
    """Uncompressed pixels in a file."""

    path: Path
    start: int
    length: int

    def __len__(self) -> int:
        return self.length

    def read(self, offset: int, count: int) -> bytes:
        """Bytes from an offset on."""
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.start + offset)
            return file.read(count)

    def read_into(self, offset: int, target: npt.NDArray[Any]) -> None:
        """Fill an array that is contiguous. Raises ValueError where the file has become shorter."""
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.start + offset)
            if file.readinto(target.view("u1").reshape(-1)) != target.nbytes:  # type: ignore[arg-type]
                raise ValueError("was changed while it was read")


Data = bytes | bytearray | memoryview | Span


@dataclass(frozen=True, eq=False, slots=True)
class Opened:
    """dataset: only to be read, its file meta information may be shared. keyword: of the element with ``data``."""

    dataset: Dataset
    keyword: str = ""
    data: Data = b""

    @property
    def in_memory(self) -> int:
        """About how many bytes of the file it holds."""
        return self.data.start if isinstance(self.data, Span) else len(self.data)


def opened(place: Place) -> Opened:
    """Parse an object for decoding.

    Most of the time that pydicom takes for a file goes into elements that nobody asks for, and much of the system's
    into memory for pixels. Where a file is ordinary and uncompressed, the elements that count are picked out, and its
    pixels stay where they are. All else is read by ``parse``, which raises UnreadableError; its checks are made here.
    """
    if not place.member:
        try:
            found = _ordinary(place.path)
        except Exception:  # whatever it is: ``parse`` says what is wrong
            found = None
        if found is not None:
            return found
    return held(parse(place, pixels=True))


def held(dataset: Dataset) -> Opened:
    """A data set that was parsed with its pixels."""
    for keyword in KEYWORDS:
        if keyword in dataset:
            data = dataset[keyword].value
            return Opened(dataset, keyword, data if isinstance(data, bytes | bytearray | memoryview) else b"")
    return Opened(dataset)


def _ordinary(path: Path) -> Opened | None:
    """An uncompressed object in a file by PS3.10; None where there is anything unusual about it."""
    data, found = b"", None
    with path.open("rb", buffering=0) as file:
        for most in _HEADS:
            data += file.read(most - len(data))
            try:
                found = skim(data, _WANTED)
            except TooShortError:
                continue
            break
        size = file.seek(0, io.SEEK_END)
    if found is None:
        return None
    elements, syntax, at = found
    dataset, meta = Dataset(elements), _meta(syntax)
    head = data[at : at + 12]
    start = at + (8 if syntax == uid.ImplicitVRLittleEndian else 12)
    length = int.from_bytes(data[start - 4 : start], "little")
    needed = (TAG.Rows, TAG.Columns, TAG.SOPClassUID)
    if meta is None or length == _UNDEFINED or any(one not in dataset for one in needed) or head[:4] not in _BY_BYTES:
        return None
    check_size(dataset, PixelElement(head, size - at, syntax))
    dataset.file_meta = meta
    dataset.set_original_encoding(syntax == uid.ImplicitVRLittleEndian, True)
    return Opened(dataset, _BY_BYTES[head[:4]], Span(path, start, length))


@lru_cache(maxsize=2)
def _meta(syntax: str) -> FileMetaDataset | None:
    """File meta information with no more than a transfer syntax; None where pixels aren't stored as they are."""
    if syntax not in (uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian):
        return None
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = uid.UID(syntax)
    return meta
