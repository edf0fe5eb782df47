"""A quick walk over a well-formed header: wanted elements are picked out, all else is stepped over.

It knows little endian data sets only, and gives up at anything odd (an unknown type, tags out of order, a length that
leads out of the bytes): pydicom then reads the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from struct import Struct, error

from pydicom.dataelem import DataElement, RawDataElement
from pydicom.tag import BaseTag

_EXPLICIT, _IMPLICIT, _LENGTH = Struct("<HH2sH"), Struct("<HHI"), Struct("<I")
_SHORT = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
_LONG = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_UNDEFINED = 0xFFFFFFFF
_DELIMITERS, _ITEM = 0xFFFE, 0xE000
_PIXELS, _LAST_PIXELS = 0x7FE00008, 0x7FE00010  # Float, Double Float, and Pixel Data
_IMPLICIT_SYNTAX = b"1.2.840.10008.1.2"
_OTHERS = (b"1.2.840.10008.1.2.2", b"1.2.840.10008.1.2.1.99", b"1.2.840.113619.5.2")  # big endian, deflated, GE's own

Elements = dict[BaseTag, DataElement | RawDataElement]


class TooShortError(Exception):
    """The bytes end before the pixel data."""


class _OddError(Exception):
    pass


def skim(data: bytes, wanted: Mapping[int, BaseTag]) -> tuple[Elements, str, int] | None:
    """Walk over the first bytes of a file; None where they are odd. Raises TooShortError where more are needed.

    wanted: tags by their number. Returns the elements as pydicom has them before it looks at their values, the transfer
    syntax, and where the element of the pixel data starts.
    """
    try:
        syntax, start = _meta(data)
        if syntax is None or syntax in _OTHERS:
            return None
        found, pixels = _walk(data, start, syntax != _IMPLICIT_SYNTAX, wanted)
    except _OddError:
        return None
    except error:
        raise TooShortError from None
    return found, syntax.decode("ascii", "replace"), pixels


def _meta(data: bytes) -> tuple[bytes | None, int]:
    """The transfer syntax of the file's meta information (PS3.10 7.1), and where the data set starts."""
    syntax, at = None, 132
    if data[128:132] != b"DICM":
        return None, 0
    while data[at : at + 2] == b"\x02\x00":
        _, number, kind, length = _EXPLICIT.unpack_from(data, at)
        at += 8
        if kind in _LONG:
            length = _LENGTH.unpack_from(data, at)[0]
            at += 4
        elif kind not in _SHORT:
            raise _OddError
        if number == 0x0010:
            syntax = data[at : at + length].rstrip(b"\0 ")
        at += length
    return syntax, at


def _walk(data: bytes, at: int, explicit: bool, wanted: Mapping[int, BaseTag]) -> tuple[Elements, int]:
    """The wanted elements, and where the pixel data starts."""
    found: Elements = {}
    last, end = 0, len(data)
    while True:
        start = at
        if explicit:
            group, number, kind, length = _EXPLICIT.unpack_from(data, at)
            at += 8
            if kind in _LONG:
                length = _LENGTH.unpack_from(data, at)[0]
                at += 4
            elif kind not in _SHORT:
                raise _OddError
        else:
            group, number, length = _IMPLICIT.unpack_from(data, at)
            kind = None
            at += 8
        tag = group << 16 | number
        if tag <= last or tag > _LAST_PIXELS:
            raise _OddError
        if tag >= _PIXELS:
            return found, start
        last = tag
        after = at + length
        if length == _UNDEFINED:
            if kind == b"UN":  # its items are implicit (PS3.5 6.2.2)
                raise _OddError
            after = _over(data, at, explicit)
        if after > end:
            raise TooShortError
        name = wanted.get(tag)
        if name is not None:
            text = None if kind is None else kind.decode("ascii")
            found[name] = RawDataElement(name, text, length, data[at:after], at, not explicit, True)
        at = after


def _over(data: bytes, at: int, explicit: bool) -> int:
    """Where a sequence of undefined length ends whose first item starts here, behind its delimiter."""
    depth = 1  # sequences and items that are open
    while depth:
        group, number, length = _IMPLICIT.unpack_from(data, at)
        if group == _DELIMITERS:
            at += 8
            if number != _ITEM:
                depth -= 1
            elif length == _UNDEFINED:
                depth += 1
            else:
                at += length
            continue
        at += 8
        if explicit:
            kind, length = data[at - 4 : at - 2], length >> 16
            if kind in _LONG:
                length = _LENGTH.unpack_from(data, at)[0]
                at += 4
            if kind not in _SHORT and (kind not in _LONG or (kind == b"UN" and length == _UNDEFINED)):
                raise _OddError
        if length == _UNDEFINED:
            depth += 1
        else:
            at += length
    return at
