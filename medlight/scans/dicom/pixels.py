"""Stored pixels: from the bytes of an object to the integers in it, one frame at a time (PS3.5, sections 8 and A.4).

The faults found here are ValueErrors of one sentence without the file's name: the caller knows the file.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from pydicom import Dataset, uid
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels.decoders.base import get_decoder

from medlight.scans.dicom import isolated
from medlight.scans.dicom.opened import KEYWORDS, Data, Span, held

Pixels = npt.NDArray[Any]
Buffer = bytes | bytearray | memoryview

# The fastest of the decoders in the base install, for each encoding; of the others some lose bits (Pillow with 12).
PLUGINS = {
    uid.JPEGBaseline8Bit: "pillow",
    uid.JPEGExtended12Bit: "pillow",
    uid.JPEGLossless: "gdcm",
    uid.JPEGLosslessSV1: "gdcm",
    uid.JPEGLSLossless: "pyjpegls",
    uid.JPEGLSNearLossless: "pyjpegls",
    uid.JPEG2000Lossless: "pylibjpeg",
    uid.JPEG2000: "pylibjpeg",
    uid.HTJ2KLossless: "pylibjpeg",
    uid.HTJ2KLosslessRPCL: "pylibjpeg",
    uid.HTJ2K: "pylibjpeg",
    uid.RLELossless: "pylibjpeg",
}
_SAFE = (uid.JPEGBaseline8Bit, uid.RLELossless)  # broken frames do no more to their decoders than raise an error
_NATIVE = (
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
)
_PHOTOMETRIC = (
    "MONOCHROME1",
    "MONOCHROME2",
    "PALETTE COLOR",
    "RGB",
    "YBR_FULL",
    "YBR_FULL_422",
    "YBR_ICT",
    "YBR_RCT",
)
_FLOATS = {"FloatPixelData": "f4", "DoubleFloatPixelData": "f8"}
# A frame larger than any detector or tile: what claims more is a bomb. 16,384 squared.
MOST_PIXELS = 2**28
# The widest JPEG frames are 65,535 pixels a side; the markers that open a frame, but for DHT, JPG and DAC (T.81, B.1).
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}


@dataclass(frozen=True, slots=True)
class Layout:
    """How the pixels of an object are stored: the Image Pixel module (PS3.3 C.7.6.3), checked.

    allocated, stored: bits a sample. high: the highest bit in use. planar: 1 where colours are stored plane by plane.
    keyword: the element that holds the pixels.
    """

    syntax: str
    rows: int
    columns: int
    samples: int
    frames: int
    allocated: int
    stored: int
    high: int
    signed: bool
    photometric: str
    planar: int
    keyword: str

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of a decoded frame, in this machine's byte order."""
        return np.dtype(_FLOATS.get(self.keyword) or f"{'i' if self.signed else 'u'}{max(1, self.allocated // 8)}")

    @property
    def range(self) -> tuple[int, int]:
        """The least and the greatest integer that the stored bits hold."""
        return (-(2 ** (self.stored - 1)), 2 ** (self.stored - 1) - 1) if self.signed else (0, 2**self.stored - 1)

    @property
    def encapsulated(self) -> bool:
        """Whether the pixels are compressed."""
        return self.syntax not in _NATIVE

    @property
    def bits(self) -> int:
        """Bits of all frames, uncompressed; YBR_FULL_422 stores two colour samples for two pixels."""
        samples = 2 if self.photometric == "YBR_FULL_422" and not self.encapsulated else self.samples
        return self.frames * self.rows * self.columns * samples * self.allocated


def layout(dataset: Dataset, keyword: str = "") -> Layout:
    """Check the Image Pixel module of an object with pixels. Raises ValueError for what is missing or impossible.

    keyword: of the element that holds the pixels, where they aren't in the data set.
    """
    keyword = keyword or next((keyword for keyword in KEYWORDS if keyword in dataset), "")
    if not keyword:
        raise ValueError("has no pixel data (7FE0,0010), or it was cut off")
    allocated = _integer(dataset, "BitsAllocated")
    is_float = keyword != "PixelData"
    stored = allocated if is_float else _integer(dataset, "BitsStored", allocated)
    high = _integer(dataset, "HighBit", stored - 1)
    found = Layout(
        syntax=syntax(dataset),
        rows=_integer(dataset, "Rows"),
        columns=_integer(dataset, "Columns"),
        samples=_integer(dataset, "SamplesPerPixel", 1),
        frames=max(1, _integer(dataset, "NumberOfFrames", 1)),
        allocated=allocated,
        stored=stored,
        high=high if stored - 1 <= high < allocated else stored - 1,
        signed=_integer(dataset, "PixelRepresentation", 0) == 1,
        photometric=str(dataset.get("PhotometricInterpretation") or "MONOCHROME2").strip(),
        planar=_integer(dataset, "PlanarConfiguration", 0),
        keyword=keyword,
    )
    _check(found)
    return found


def syntax(dataset: Dataset) -> str:
    """The transfer syntax of an object, by its UID; of a bare data set by how it was read."""
    meta = getattr(dataset, "file_meta", None)
    said = str((meta or {}).get("TransferSyntaxUID") or "")
    if said:
        return said
    implicit, little = dataset.original_encoding
    if little is False:
        return str(uid.ExplicitVRBigEndian)
    return str(uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian)


def _integer(dataset: Dataset, keyword: str, default: int | None = None) -> int:
    try:
        value = dataset.get(keyword)
        if value is None or value == "":
            value = default
        return int(value)
    except Exception:
        raise ValueError(f"{keyword} is missing or is no whole number") from None


def _check(found: Layout) -> None:
    if found.syntax not in _NATIVE and found.syntax not in PLUGINS:
        raise ValueError(f"is encoded as {uid.UID(found.syntax).name}, which is not read here; transcode it")
    if not (0 < found.rows <= 65535 and 0 < found.columns <= 65535) or found.rows * found.columns > MOST_PIXELS:
        raise ValueError(f"claims {found.rows} x {found.columns} pixels a frame")
    sizes = (8, 16, 32, 64) if found.keyword == "PixelData" else (8 * found.dtype.itemsize,)
    if found.allocated not in sizes and (found.allocated, found.samples) != (1, 1):
        raise ValueError(f"allocates {found.allocated} bits a sample (BitsAllocated), which is not read here")
    if not 1 <= found.stored <= found.allocated:
        raise ValueError(f"stores {found.stored} bits in {found.allocated} (BitsStored, BitsAllocated)")
    if found.samples not in (1, 3) or found.planar not in (0, 1):
        raise ValueError(f"has {found.samples} samples a pixel (planar configuration {found.planar}); 1 or 3 are read")
    if found.photometric not in _PHOTOMETRIC:
        raise ValueError("has a photometric interpretation that is not read here")
    if (found.samples == 1) != (found.photometric in _PHOTOMETRIC[:3]):
        raise ValueError(f"has {found.samples} samples a pixel, and {found.photometric} needs another number")


class Read(Protocol):
    """Gives the stored values of a frame, in ``out`` where that can be done at no cost."""

    def __call__(self, index: int, out: Pixels | None = None) -> Pixels:
        """Return ``(rows, columns)``, or ``(rows, columns, 3)`` in RGB."""


def frames(dataset: Dataset, found: Layout, data: Data | None = None) -> Read:
    """Give a function from a frame's index to its stored values; the pixels are not decoded before it is called.

    data: the pixels, where they aren't in the data set.

    What it returns is of ``found.dtype``, and read-only where it is the object's own memory. YBR becomes RGB (PS3.3
    C.7.6.3.1.2); palettes are left as indices. It may be called from several threads; its ``out`` is a contiguous array
    of the frame's shape and type. Raises ValueError where the pixel data is shorter or longer than the header says, or
    can't be decoded.
    """
    if data is None:
        data = held(dataset).data
    if not len(data):
        raise ValueError("has no pixel data (7FE0,0010), or it was cut off")
    if not found.encapsulated:
        _check_length(len(data), found)
    order: Literal["<", ">"] = ">" if found.syntax == uid.ExplicitVRBigEndian else "<"
    words = order == ">" and found.allocated == 8  # bytes that may be written as words
    if isinstance(data, Span):
        if found.samples == 1 and found.allocated > 1:
            span = data
            return lambda index, out=None: _from_file(span, found, index, out)
        data = data.read(0, len(data))
    buffer = data
    if found.encapsulated:
        parts = _encoded(dataset, bytes(buffer), found)
        decode = decoded if found.syntax in _SAFE else isolated.decoded
        return lambda index, out=None: decode(parts[index], found)
    if found.allocated == 1:
        return lambda index, out=None: _bits(buffer, found, index)
    if found.samples > 1 or words:
        vr = dataset[found.keyword].VR if words else "OW"
        return lambda index, out=None: _by_pydicom(buffer, found, index, pixel_vr=vr)
    return lambda index, out=None: _native(buffer, found, index, order)


def _check_length(length: int, found: Layout) -> None:
    """Uncompressed pixels have one right length, with a zero byte to make it even (PS3.5 8.1.1)."""
    expected = -(-found.bits // 8)
    if length not in (expected, expected + expected % 2):
        than = "shorter" if length < expected else "longer"
        said = f"{found.frames} frames of {found.rows} x {found.columns}"
        raise ValueError(f"has pixel data of {length} bytes, {than} than the {expected} that the header says ({said})")


def _from_file(span: Span, found: Layout, index: int, out: Pixels | None) -> Pixels:
    """One frame of uncompressed, little-endian numbers, read to where it belongs."""
    kind = found.dtype.newbyteorder("<")
    if out is None or out.dtype != kind or out.shape != (found.rows, found.columns):
        out = np.empty((found.rows, found.columns), kind)
    span.read_into(index * out.nbytes, out)
    return _without_unused_bits(out, found, out)


def _native(buffer: Buffer, found: Layout, index: int, order: Literal["<", ">"]) -> Pixels:
    """One frame of uncompressed integers or floats, bits outside BitsStored dropped."""
    size = found.rows * found.columns
    kind = found.dtype.newbyteorder(order)
    flat = np.frombuffer(buffer, kind, count=size, offset=index * size * kind.itemsize)
    return _without_unused_bits(flat.astype(found.dtype, copy=False).reshape(found.rows, found.columns), found)


def _bits(buffer: Buffer, found: Layout, index: int) -> Pixels:
    """One frame of single bits, which may begin and end within a byte (PS3.5 8.1.1); pydicom loses its end."""
    size = found.rows * found.columns
    start, end = index * size, (index + 1) * size
    part = np.frombuffer(buffer, np.uint8, count=-(-end // 8) - start // 8, offset=start // 8)
    flat = np.unpackbits(part, bitorder="little")[start % 8 : start % 8 + size]
    return flat.reshape(found.rows, found.columns)


def _without_unused_bits(values: Pixels, found: Layout, out: Pixels | None = None) -> Pixels:
    """Old objects keep overlays above or below the stored bits (PS3.5 8.1.1)."""
    if found.stored == found.allocated or found.keyword != "PixelData":
        return values
    left = np.left_shift(values, found.allocated - 1 - found.high, out=out)
    return np.right_shift(left, found.allocated - found.stored, out=left)


def _encoded(dataset: Dataset, buffer: bytes, found: Layout) -> Sequence[bytes]:
    """Cut the pixel data into frames (PS3.5 A.4); the size that each says it decodes to must be the header's."""
    offsets = (dataset.get("ExtendedOffsetTable"), dataset.get("ExtendedOffsetTableLengths"))
    extended = offsets if all(offsets) else None
    parts = list(generate_frames(buffer, number_of_frames=found.frames, extended_offsets=extended))
    if len(parts) != found.frames:
        raise ValueError(f"says {found.frames} frames (NumberOfFrames) and holds {len(parts)}")
    for part in parts:
        size = codestream_size(part)
        if size is not None and size != (found.rows, found.columns):
            said = f"{found.rows} x {found.columns}"
            raise ValueError(f"says {said} pixels (Rows, Columns), and its compressed frame has {size[0]} x {size[1]}")
    return parts


def codestream_size(frame: bytes) -> tuple[int, int] | None:
    """Rows and columns that a JPEG, JPEG-LS or JPEG 2000 frame decodes to; None where it doesn't say (RLE)."""
    try:
        start = frame.find(b"\xff\x4f\xff\x51", 0, 512)  # SOC and SIZ (T.800, A.5.1), after any JP2 boxes
        if start >= 0:
            right, low, left, top = struct.unpack_from(">4I", frame, start + 8)
            return low - top, right - left
        if frame[:2] != b"\xff\xd8":
            return None
        at = 2
        while frame[at + 1] not in _START_OF_FRAME:
            if frame[at] != 0xFF:
                return None
            at += 1 if frame[at + 1] == 0xFF else 2 + struct.unpack_from(">H", frame, at + 2)[0]
        rows, columns = struct.unpack_from(">2H", frame, at + 5)
    except (IndexError, struct.error):
        return None
    return rows, columns


def decoded(part: bytes, found: Layout) -> Pixels:
    """Decode one compressed frame in this process, whatever that does to it."""
    if found.syntax == uid.JPEGExtended12Bit and _precision(part) == 12:
        return _by_gdcm(part, found)
    return _by_pydicom(encapsulate([part], has_bot=False), found, 0)


def _precision(part: bytes) -> int:
    """Bits a sample of a JPEG frame with extended sequential coding (SOF1)."""
    at = part.find(b"\xff\xc1")
    return part[at + 4] if 0 <= at < len(part) - 4 else 8


def _by_gdcm(part: bytes, found: Layout) -> Pixels:
    """Decode 12-bit lossy JPEG, which pydicom leaves to decoders under the GPL; GDCM's numbers are the same."""
    import gdcm

    if found.samples != 1 or found.allocated != 16:
        raise ValueError("is 12-bit lossy JPEG of several samples, which no decoder here reads; transcode it")
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(part)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((found.columns, found.rows, 1))
    image.SetDataElement(element)
    grey = gdcm.PhotometricInterpretation.GetPIType("MONOCHROME2")
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(grey))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(found.syntax)))
    image.SetPixelFormat(gdcm.PixelFormat(1, 12, 12, 11, int(found.signed)))  # 12 allocated: it complains of 16
    values = np.frombuffer(image.GetBuffer().encode("utf-8", "surrogateescape"), f"<{found.dtype.kind}2")
    return values.reshape(found.rows, found.columns)


def _by_pydicom(buffer: Buffer, found: Layout, index: int, **options: Any) -> Pixels:
    """Decode one frame by pydicom: compressed ones, colour, bytes written as big-endian words."""
    options |= {
        "rows": found.rows,
        "columns": found.columns,
        "samples_per_pixel": found.samples,
        "number_of_frames": 1 if found.encapsulated else found.frames,
        "bits_allocated": found.allocated,
        "bits_stored": 8 if found.syntax == uid.JPEGExtended12Bit else found.stored,
        "pixel_representation": int(found.signed),
        "photometric_interpretation": found.photometric,
        "planar_configuration": found.planar,
        "pixel_keyword": found.keyword,
    }
    plugin = PLUGINS.get(uid.UID(found.syntax), "")
    try:
        decoder = get_decoder(found.syntax)
        array, _ = decoder.as_array(buffer, index=index, validate=False, decoding_plugin=plugin, **options)
    except BaseException as error:
        if type(error).__name__ == "PanicException":  # of a decoder in Rust: no Exception
            raise ValueError("has a compressed frame that is broken") from None
        raise
    if array.shape[:2] != (found.rows, found.columns):
        raise ValueError(f"decodes to {array.shape[:2]}, not to Rows x Columns")
    return array if sys.byteorder == "little" else array.astype(found.dtype, copy=False)
