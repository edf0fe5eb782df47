"""Compressed pixel data without the comments and camera data (EXIF) that its JPEG headers may hold."""

from __future__ import annotations

from collections.abc import Iterator

_ITEM = b"\xfe\xff\x00\xe0"
_BARE = {0x01, *range(0xD0, 0xDA)}  # markers without a length
# Comments and the application segments that say nothing of how to decode; 0 (JFIF), 2 (ICC profile), 8 (the colour
# transform of a JPEG-LS) and 14 (that of a JPEG) stay.
_JPEG_TEXT = {0xFE, *(0xE0 + n for n in range(16) if n not in (0, 2, 8, 14))}
_J2K_TEXT = {0x64}


def blanked(data: bytes) -> bytes:
    """Overwrite comments in the main headers of JPEG, JPEG-LS and JPEG 2000 frames with zeros; lengths stay.

    data: encapsulated pixel data (PS3.5 A.4). Anything that is not understood is left as it is.
    """
    result = bytearray(data)
    for start, end in _fragments(data):
        match data[start : start + 2]:
            case b"\xff\xd8":
                wanted, last = _JPEG_TEXT, 0xDA  # up to the scan
            case b"\xff\x4f":
                wanted, last = _J2K_TEXT, 0x90  # up to the first tile
            case _:
                continue
        for marker, low, high in _segments(data, start + 2, end, last):
            if marker in wanted:
                result[low:high] = bytes(high - low)
    return bytes(result)


def _fragments(data: bytes) -> Iterator[tuple[int, int]]:
    """Where each item's value lies; the first item is the offset table."""
    at = 0
    while data[at : at + 4] == _ITEM:
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        yield at + 8, min(at + 8 + length, len(data))
        at += 8 + length


def _segments(data: bytes, at: int, end: int, last: int) -> Iterator[tuple[int, int, int]]:
    """Marker codes and where their contents lie, up to a marker ``last``."""
    while at + 4 <= end and data[at] == 0xFF and data[at + 1] != last:
        if data[at + 1] == 0xFF or data[at + 1] in _BARE:  # filling; no length
            at += 1 if data[at + 1] == 0xFF else 2
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        yield data[at + 1], at + 4, min(at + 2 + length, end)
        at += 2 + max(length, 2)
