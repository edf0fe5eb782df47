"""Whether an object's pixel data can hold what its header says, by lengths alone: no pixel is read."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pydicom import Dataset

from medlight.scans.dicom.elements import TAG, number, text

# Transfer syntaxes whose pixels lie as they are (PS3.5 A.1 to A.5, and GE's private one); all others pack them.
_NATIVE = (
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.2",
    "1.2.840.113619.5.2",
)
_LITTLE, _BIG = b"\xe0\x7f", b"\x7f\xe0"
# The elements that hold pixels, in either byte order: floats, doubles, integers.
_ELEMENTS = {name for n in (8, 9, 16) for name in (bytes((0xE0, 0x7F, n, 0)), bytes((0x7F, 0xE0, 0, n)))}
_UNDEFINED = 0xFFFFFFFF
_MOST_PIXEL_BYTES = 64 << 30  # unpacked; no machine decodes more at once
_ITEM_BYTES = 8


@dataclass(frozen=True)
class PixelElement:
    """The element of the pixel data. start: its first 12 bytes, none where the object has no such element.

    size: bytes from its start to the end of the object. syntax: the transfer syntax, None where none is said.
    """

    start: bytes
    size: int
    syntax: str | None


def is_pixels(element: PixelElement) -> bool:
    """Whether there is pixel data, in whichever byte order."""
    return element.start[:4] in _ELEMENTS


def check_size(dataset: Dataset, element: PixelElement) -> None:
    """Compare the length of the pixel data with Rows, Columns, NumberOfFrames, and the bytes that are there.

    Raises ValueError that says what can't be.
    """
    shape = _shape(dataset)
    needed = _bytes(dataset, shape)
    start = element.start
    if len(start) < 8 or start[:2] not in (_LITTLE, _BIG):
        raise ValueError("holds no pixel data (7FE0,0010), or is cut off before it; copy it again")
    explicit = start[4:6] in (b"OB", b"OW", b"OF", b"OD", b"UN", b"OV")
    length = int.from_bytes(start[8:12] if explicit else start[4:8], "little" if start[:2] == _LITTLE else "big")
    left = element.size - (12 if explicit else 8)
    said = f"{shape[1]}x{shape[2]} pixels" + (f" in {shape[0]} frames" if shape[0] > 1 else "")
    if needed > _MOST_PIXEL_BYTES:
        raise ValueError(f"says that it holds {said}, {needed / 2**30:.0f} GiB; no object does")
    if element.syntax is not None and (length == _UNDEFINED) == (element.syntax in _NATIVE):
        raise ValueError("its pixel data doesn't lie as its transfer syntax (0002,0010) says; the syntax is wrong")
    if length == _UNDEFINED:
        if left < _ITEM_BYTES + shape[0] * _ITEM_BYTES:
            raise ValueError(f"says that it holds {said}, and its pixel data is {left} bytes; copy it again")
    elif length > left:
        raise ValueError(f"cut off: its pixel data is {length} bytes long, and {left} are left; copy it again")
    elif length not in (needed, needed + needed % 2):  # a zero makes it even (PS3.5 8.1.1); more, and the shape lies
        raise ValueError(f"says that it holds {said}, {needed} bytes, and its pixel data is {length} bytes long")


def _shape(dataset: Dataset) -> tuple[int, int, int]:
    """Frames, rows, columns."""
    found = [number(dataset, at) for at in (TAG.NumberOfFrames, TAG.Rows, TAG.Columns)]
    if found[1] is None or found[2] is None:
        raise ValueError("an image that says no Rows and Columns (0028,0010 and 0028,0011); it may be cut off")
    frames, rows, columns = (1 if found[0] is None else found[0], found[1], found[2])
    if min(frames, rows, columns) < 1:
        raise ValueError(f"says that it holds {rows:g}x{columns:g} pixels in {frames:g} frames")
    return int(frames), int(rows), int(columns)


def _bytes(dataset: Dataset, shape: tuple[int, int, int]) -> int:
    """Of the pixels as they would lie unpacked."""
    bits = int(number(dataset, TAG.BitsAllocated) or 0)
    samples = int(number(dataset, TAG.SamplesPerPixel) or 1)
    if not 1 <= bits <= 64 or not 1 <= samples <= 4:
        raise ValueError(f"says that a pixel is {samples} numbers of {bits} bits")
    if samples == 3 and text(dataset, TAG.PhotometricInterpretation) in ("YBR_FULL_422", "YBR_PARTIAL_422"):
        samples = 2  # two pixels share their colour (PS3.3 C.7.6.3.1.2)
    return -(-math.prod(shape) * samples * bits // 8)
