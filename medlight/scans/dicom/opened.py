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
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag

from medlight.scans.dicom.elements import TAG
from medlight.scans.dicom.frames import Place
from medlight.scans.dicom.header import parse

KEYWORDS = {"PixelData": 0x7FE00010, "FloatPixelData": 0x7FE00008, "DoubleFloatPixelData": 0x7FE00009}
_PIXELS = {BaseTag(number): keyword for keyword, number in KEYWORDS.items()}
# How much of a file is read for its header: most end within the first, Siemens' private headers within the second;
# 4 MiB of nothing but empty items make a data set of some 800.
_HEADS = (1 << 14, 1 << 18, 1 << 22)
_LONG = (b"OB", b"OW", b"UN", b"UT", b"SQ")  # value representations with a length of 32 bits (PS3.5 7.1.2)
_UNDEFINED = 0xFFFFFFFF


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

    Most of pydicom's time for a file goes into its preamble, its file meta information, and the ways in which they may
    be wrong; much of the system's goes into memory for pixels. Where a file is ordinary and uncompressed, its data set
    is read by itself, up to the pixels. All else is read by ``parse``, which raises UnreadableError.
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
    with path.open("rb", buffering=0) as file:
        data = b""
        for most in _HEADS:
            data += file.read(most - len(data))
            found = _parsed(data)
            if found is None:
                return None
            dataset, start, keyword = found
            if keyword or len(data) < most:
                break
        size = file.seek(0, io.SEEK_END)
    if not keyword or start > len(data) or TAG.Rows not in dataset or TAG.SOPClassUID not in dataset:
        return None
    length = struct.unpack_from("<I", data, start - 4)[0]
    if length == _UNDEFINED or start + length > size:
        return None
    return Opened(dataset, keyword, Span(path, start, length))


def _parsed(data: bytes) -> tuple[Dataset, int, str] | None:
    """The data set as far as the pixels, where these begin, and their keyword, empty where they were not reached."""
    if data[128:132] != b"DICM":
        return None
    at, syntax = 132, b""
    while data[at : at + 2] == b"\x02\0":
        if data[at + 4 : at + 6] in _LONG:
            start, length = at + 12, struct.unpack_from("<I", data, at + 8)[0]
        else:
            start, length = at + 8, struct.unpack_from("<H", data, at + 6)[0]
        if data[at + 2 : at + 4] == b"\x10\0":
            syntax = data[start : start + length]
        at = start + length
    meta = _meta(syntax.rstrip(b" \0"))
    implicit = meta is not None and meta.TransferSyntaxUID == uid.ImplicitVRLittleEndian
    if meta is None or data[at : at + 2] != b"\x08\0" or data[at + 4 : at + 6].isalpha() == implicit:
        return None
    stream, reached = io.BytesIO(data), []

    def stop(tag: BaseTag, vr: str | None, length: int) -> bool:
        if tag in _PIXELS:
            reached.append(_PIXELS[tag])
        return bool(reached)

    stream.seek(at)
    dataset = read_dataset(stream, implicit, True, stop_when=stop)
    dataset.file_meta = meta
    return dataset, stream.tell() + (8 if implicit else 12), reached[0] if reached else ""


@lru_cache(maxsize=2)
def _meta(syntax: bytes) -> FileMetaDataset | None:
    """File meta information with no more than a transfer syntax; None where it isn't little endian, or compressed."""
    known = uid.UID(syntax.decode("ascii", "replace"))
    if known not in (uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian):
        return None
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = known
    return meta
