"""One object's header as a data set: parsed in bounded time and memory, its length compared with its pixel data."""

from __future__ import annotations

import io
import zlib
from typing import Any, BinaryIO

from pydicom import Dataset, FileDataset
from pydicom.filereader import read_dataset, read_partial
from pydicom.tag import BaseTag
from pydicom.uid import UID

from medlight.errors import MedlightError
from medlight.scans.dicom.archive import MOST_BYTES, check_memory, open_place, reason_of, size_of
from medlight.scans.dicom.elements import TAG, TAGS, text
from medlight.scans.dicom.frames import Place
from medlight.scans.dicom.pixel_size import PixelElement, check_size, is_pixels
from medlight.scans.dicom.skim import TooShortError, skim
from medlight.scans.dicom.unreadable import unreadable

# What an odd header may take; well-formed ones are skimmed, however long. Each empty item costs four reads and 1.5 KiB
# in pydicom: a bomb of them ends at some 200 MiB. A frame of an enhanced object takes some 60 reads.
_READS = 500_000
_ELEMENTS = 20_000  # at the top level; real headers have some hundreds
_VALUE_BYTES = 512 << 20  # functional groups of a long series; all else is far shorter
_HEAD_BYTES = 64 << 20  # of a packed object, when only its header is wanted
_PIECE = 1 << 20
_SKIMMED = (1 << 15, 1 << 20, 1 << 26)  # bytes at the start of a file that hold most headers, all but a few, any
_WANTED = {int(tag): tag for tag in TAGS}


class _RefusedError(Exception):
    """A header that is made to take time and memory."""


class _PackedError(Exception):
    """The data set is deflated (PS3.5 A.5): pydicom asks for all bytes that are left."""


class _Metered(io.BufferedReader):
    """A file whose reads are counted, and bounded each. short: one found fewer bytes than asked for; spent: no more."""

    name = ""  # pydicom asks for one, and a zip's member in memory has none

    def __init__(self, raw: Any, most: int) -> None:
        super().__init__(raw, 1 << 14)
        self.reads, self.most, self.short, self.spent = 0, most, False, False

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if size is None or size < 0:
            raise _PackedError
        if self.reads > _READS or size > self.most:
            self.spent = True
            raise _RefusedError
        data = super().read(size)
        self.short |= 0 < len(data) < size
        return data


def parse(place: Place, pixels: bool = False) -> Dataset:
    """Parse an object. pixels: all of it; else the elements of ``TAGS``, up to the pixel data, whose size is checked.

    Without pixels there need be no file meta information in what is returned; the checks are the same.

    Raises UnreadableError (a MedlightError) that names the file and the cause: no DICOM, cut off, pixel data that can't
    hold what Rows, Columns and NumberOfFrames say, a header that is made to take time or memory.
    """
    try:
        size = size_of(place)
        check_memory(place, size if pixels else 0)
        with open_place(place, MOST_BYTES if pixels else _HEAD_BYTES) as stream:
            dataset, element = _header(stream, place, size)
            if pixels:
                stream.seek(0)
                dataset, _ = _bounded(stream, place, size, pixels)
                if is_pixels(element) and not any(at in dataset for at in _PIXELS):  # pydicom gives up without a word
                    raise unreadable(place, "cut off within its pixel data; copy it again", dataset)
    except MedlightError:
        raise
    except RecursionError:
        raise unreadable(place, "its sequences are nested too deep to be true") from None
    except MemoryError:
        raise unreadable(place, "its header takes more memory than there is") from None
    except Exception as error:  # whatever the bytes make pydicom raise
        raise unreadable(place, f"can't be read as DICOM ({reason_of(error)}); copy it again or remove it") from None
    return dataset


def _header(stream: BinaryIO, place: Place, size: int) -> Found:
    """The elements that are looked at, checked. Raises UnreadableError."""
    raw = stream.raw if isinstance(stream, io.BufferedReader) else stream
    dataset, element = _skimmed(raw, size) or _bounded(stream, place, size, pixels=False)
    if not text(dataset, TAG.SOPClassUID) and not text(dataset, TAG.Modality) and TAG.Rows not in dataset:
        raise unreadable(place, "says neither what it is nor how big; it may be cut off or of another encoding")
    if TAG.Rows in dataset or _is_image(dataset) or is_pixels(element):
        try:
            check_size(dataset, element)
        except ValueError as error:
            raise unreadable(place, str(error), dataset) from None
    elif not UID(text(dataset, TAG.SOPClassUID)).is_valid:
        raise unreadable(place, "its SOPClassUID (0008,0016) is no UID; copy it again", dataset)
    return dataset, element


def _bounded(stream: BinaryIO, place: Place, size: int, pixels: bool) -> Found:
    """Any data set, by pydicom, in bounded time and memory."""
    raw = stream.raw if isinstance(stream, io.BufferedReader) else stream
    file = _Metered(raw, MOST_BYTES if pixels else _VALUE_BYTES)
    try:
        return _parsed(file, place, size, pixels)
    except Exception as error:  # of ours pydicom may make one of its own
        if file.spent or isinstance(error, _RefusedError):
            raise unreadable(place, "a header that is too long to be true") from None
        raise
    finally:
        file.detach()  # the stream is its opener's


def _is_image(dataset: Dataset) -> bool:
    """Whether the class of an object is one of images, whether or not there is one in it."""
    return "Image Storage" in UID(text(dataset, TAG.SOPClassUID)).name


Found = tuple[Dataset, PixelElement]


def _skimmed(raw: Any, size: int) -> Found | None:
    """A well-formed header by the quick way."""
    for most in _SKIMMED:
        raw.seek(0)
        data = raw.read(most)
        try:
            found = skim(data, _WANTED)
        except TooShortError:
            if size > most:
                continue
            found = None
        break
    raw.seek(0)
    if found is None:
        return None
    elements, syntax, at = found
    return Dataset(elements), PixelElement(data[at : at + 12], size - at, syntax)


def _parsed(file: _Metered, place: Place, size: int, pixels: bool) -> Found:
    """Any header, by pydicom."""
    stop = None if pixels else _Stop()
    wanted: Any = None if pixels else list(TAGS)
    try:
        dataset: Dataset = read_partial(file, stop_when=stop, force=True, specific_tags=wanted)
        rest = file
    except _PackedError:
        dataset, rest, size = _inflated(file, place, stop, wanted)
    syntax = getattr(dataset, "file_meta", {}).get("TransferSyntaxUID")
    at, short = rest.tell(), rest.short
    start = rest.read(12)
    if not pixels and (at > size or (short and not start)):
        raise unreadable(place, "cut off within its header; copy it again", dataset)
    return dataset, PixelElement(start, size - at, None if syntax is None else str(syntax))


class _Stop:
    """Stops at the pixel data, and refuses a header with more elements than any has."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, tag: BaseTag, vr: str | None, length: int) -> bool:
        self.seen += 1
        if self.seen > _ELEMENTS:
            raise _RefusedError
        return tag in _PIXELS


_PIXELS = frozenset(map(BaseTag, (0x7FE00008, 0x7FE00009, 0x7FE00010)))


def _inflated(file: _Metered, place: Place, stop: Any, wanted: Any) -> tuple[Dataset, _Metered, int]:
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
