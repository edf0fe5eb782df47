"""One object's header: parsed in bounded time and memory, compared with the size of its pixel data, cut into frames."""

from __future__ import annotations

import io
import sys
import zlib
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, Literal

from pydicom import Dataset, FileDataset
from pydicom.filereader import read_dataset, read_partial
from pydicom.tag import BaseTag
from pydicom.uid import UID

from medlight.errors import MedlightError
from medlight.scans.dicom.archive import MOST_BYTES, check_memory, open_place, reason_of, size_of, title
from medlight.scans.dicom.elements import TAG, TAGS, number, perhaps, text, vector
from medlight.scans.dicom.frames import Frame, Place
from medlight.scans.dicom.moments import channel, moments
from medlight.scans.dicom.mosaic import is_mosaic, tiles
from medlight.scans.dicom.multiframe import enhanced, is_enhanced, plain
from medlight.scans.dicom.pixel_size import check_size

__all__ = ["TAGS", "Header", "UnreadableError", "frames_of", "header_of", "parse", "unreadable"]

Kind = Literal["image", "seg", "rtstruct", "other"]

# What a header may take. Each empty item costs four reads and 1.5 KiB in pydicom: a bomb of them ends at some 800 MiB.
# 20,000 frames of a Philips series take 1.2 million.
_READS = 2_000_000
_ELEMENTS = 20_000  # at the top level; real headers have some hundreds
_VALUE_BYTES = 512 << 20  # functional groups of a long series; all else is far shorter
_HEAD_BYTES = 64 << 20  # of a packed object, when only its header is wanted
_PIECE = 1 << 20

_SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
_STRUCTURES = "1.2.840.10008.5.1.4.1.1.481.3"
_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
# PS3.3 C.7.3.1.1.1, those that make images and those beside them; any other word may be anything, and is not repeated.
_MODALITIES = (
    " AR ASMT AU BDUS BI BMD CFM CR CT CTPROTOCOL DG DMS DOC DX ECG EEG EMG EOG EPS ES FID GM HC HD IO IOL IVOCT "
    "IVUS KER KO LEN LS M3D MG MR NM OAM OCT OP OPM OPR OPT OPTBSV OPTENF OPV OSS OT PA PLAN POS PR PT PX REG RESP "
    "RF RG RTDOSE RTIMAGE RTINTENT RTPLAN RTRAD RTRECORD RTSEGANN RTSTRUCT RWV SEG SM SMR SR SRF STAIN TEXTUREMAP "
    "TG US VA XA XAPROTOCOL XC "
)
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


class UnreadableError(MedlightError):
    """An object that can't be read, with what it says of the series it belongs to: that series lacks a slice."""

    place: Place
    cause: str = ""
    series_uid: str = ""
    sop_uid: str = ""
    modality: str = ""


def unreadable(place: Place, cause: str, dataset: Dataset | None = None) -> UnreadableError:
    """The error for an object, which names the file; ``dataset``: what was read of it."""
    error = UnreadableError(f"{title(place)}: {cause}")
    error.place, error.cause = place, cause
    if dataset is not None:
        error.series_uid, error.modality = text(dataset, TAG.SeriesInstanceUID), _modality(dataset)
        error.sop_uid = text(dataset, TAG.SOPInstanceUID)
    return error


class _RefusedError(Exception):
    """A header that is made to take time and memory."""


class _PackedError(Exception):
    """The data set is deflated (PS3.5 A.5): pydicom asks for all bytes that are left."""


class _Metered(io.BufferedReader):
    """A file whose reads are counted, and bounded each."""

    def __init__(self, raw: Any, most: int) -> None:
        super().__init__(raw, 1 << 14)
        self.reads, self.most = 0, most

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if size is None or size < 0:
            raise _PackedError
        if self.reads > _READS or size > self.most:
            raise _RefusedError("a header that is too long to be true")
        return super().read(size)


def parse(place: Place, pixels: bool = False) -> Dataset:
    """Parse an object. pixels: all of it; else the elements of ``TAGS``, up to the pixel data, whose size is checked.

    Raises UnreadableError (a MedlightError) that names the file and the cause: no DICOM, cut off, pixel data that can't
    hold what Rows, Columns and NumberOfFrames say, a header that is made to take time or memory.
    """
    try:
        size = size_of(place)
        check_memory(place, size if pixels else 0)
        with open_place(place, MOST_BYTES if pixels else _HEAD_BYTES) as stream:
            dataset = _parse(stream, place, size, pixels)
    except MedlightError:
        raise
    except RecursionError:
        raise unreadable(place, "its sequences are nested too deep to be true") from None
    except MemoryError:
        raise unreadable(place, "its header takes more memory than there is") from None
    except Exception as error:  # whatever the bytes make pydicom raise
        raise unreadable(place, f"can't be read as DICOM ({reason_of(error)}); copy it again or remove it") from None
    return dataset


def _parse(stream: BinaryIO, place: Place, size: int, pixels: bool) -> Dataset:
    raw = stream.raw if isinstance(stream, io.BufferedReader) else stream
    most = MOST_BYTES if pixels else _VALUE_BYTES
    stop = None if pixels else _Stop()
    wanted: Any = None if pixels else list(TAGS)
    with _Metered(raw, most) as file:
        try:
            dataset: Dataset = read_partial(file, stop_when=stop, force=True, specific_tags=wanted)
            rest: BinaryIO = file
        except _PackedError:
            dataset, rest, size = _inflated(file, place, stop, wanted)
        if not text(dataset, TAG.SOPClassUID) and not text(dataset, TAG.Modality) and TAG.Rows not in dataset:
            raise unreadable(place, "says neither what it is nor how big; it may be cut off or of another encoding")
        if not pixels and (TAG.Rows in dataset or "Image Storage" in UID(text(dataset, TAG.SOPClassUID)).name):
            try:
                check_size(dataset, rest, size)
            except ValueError as error:
                raise unreadable(place, str(error), dataset) from None
    return dataset


class _Stop:
    """Stops at the pixel data, and refuses a header with more elements than any has."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, tag: BaseTag, vr: str | None, length: int) -> bool:
        self.seen += 1
        if self.seen > _ELEMENTS:
            raise _RefusedError("a header that is too long to be true")
        return tag in _PIXELS


_PIXELS = frozenset(map(BaseTag, (0x7FE00008, 0x7FE00009, 0x7FE00010)))


def _inflated(file: _Metered, place: Place, stop: Any, wanted: Any) -> tuple[Dataset, BinaryIO, int]:
    """Parse an object whose data set is deflated, as far as memory allows: the header alone needs little of it."""
    start = file.tell()
    file.seek(0)
    head = read_partial(io.BytesIO(file.read(start)), force=True)
    most = _HEAD_BYTES if stop else MOST_BYTES
    unpacker, data = zlib.decompressobj(-zlib.MAX_WBITS), bytearray()
    while not unpacker.eof and len(data) < most and (piece := file.read(_PIECE)):
        data += unpacker.decompress(piece, most - len(data))
        check_memory(place, len(data))
    whole = unpacker.eof
    if not stop and not whole:
        raise unreadable(place, "deflated data that is cut off, or takes too much memory", head)
    inner = _Metered(io.BytesIO(data), most)
    found = read_dataset(inner, False, True, stop_when=stop, specific_tags=wanted)
    dataset = FileDataset(place.path, found, head.preamble, head.file_meta, is_implicit_VR=False)
    return dataset, inner, len(data) if whole else MOST_BYTES


def header_of(dataset: Dataset) -> Header:
    """What grouping asks of a whole object."""
    facts = ((name, perhaps(dataset, at)) for name, at in _FACTS.items())
    known = tuple((name, found) for name, found in facts if found is not None)
    return Header(text(dataset, TAG.SeriesInstanceUID), _modality(dataset), _kind(dataset), known)


def _modality(dataset: Dataset) -> str:
    said = text(dataset, TAG.Modality).upper()
    return said if f" {said} " in _MODALITIES else ""


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
    )


def _spacing(dataset: Dataset) -> tuple[float, float] | None:
    """Between rows and between columns: at the patient if said, else at the detector (PS3.3 10.7.1)."""
    for at in (TAG.PixelSpacing, TAG.ImagerPixelSpacing, TAG.NominalScannedPixelSpacing):
        found = vector(dataset, at, 2)
        if found and min(found) > 0:
            return found[0], found[1]
    return None
