"""Stored values to the real quantity: Hounsfield units, becquerels a millilitre, grey levels (PS3.3 C.11.1).

The faults found here are ValueErrors of one sentence without the file's name: the caller knows the file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import Dataset

from medlight.scans.dicom.pixels import Layout

Pixels = npt.NDArray[Any]
_AIR_HU = -1024  # what most scanners write outside of their field of view
_COLOURS = ("Red", "Green", "Blue")


@dataclass(frozen=True, eq=False, slots=True)
class Lut:
    """A lookup table: ``first`` is the stored value of its first entry; values outside take the nearest entry's."""

    first: int
    table: Pixels

    def __call__(self, stored: Pixels) -> Pixels:
        """Look up integers of any shape (PS3.3 C.11.1.1)."""
        index = np.clip(stored.astype(np.int64) - self.first, 0, len(self.table) - 1)
        return self.table[index]


@dataclass(frozen=True, eq=False, slots=True)
class Scale:
    """From stored to real: a table, or ``slope * stored + intercept``."""

    slope: float = 1.0
    intercept: float = 0.0
    lut: Lut | None = None

    @property
    def identity(self) -> bool:
        """Whether the stored values are the real ones."""
        return self.lut is None and (self.slope, self.intercept) == (1.0, 0.0)

    @property
    def whole(self) -> bool:
        """Whether integers stay integers."""
        return self.lut is None and self.slope.is_integer() and self.intercept.is_integer()

    def __call__(self, stored: Pixels) -> Pixels:
        """Return real values: of the table's type, or double precision."""
        if self.lut is not None:
            return self.lut(stored)
        return stored.astype(np.float64) * self.slope + self.intercept

    def turned(self, found: Layout) -> Scale:
        """Swap bright and dark over the whole range that the values can have."""
        if self.lut is not None:
            most = np.iinfo(self.lut.table.dtype).max
            return Scale(lut=Lut(self.lut.first, most - self.lut.table))
        low, high = found.range
        return Scale(-self.slope, self.intercept + self.slope * (low + high))


def scale(dataset: Dataset, found: Layout, index: int = 0) -> Scale:
    """How the stored values of a frame become real ones.

    A modality LUT, the rescale slope and intercept of the frame, of all frames, or of the object (PS3.3 C.11.1,
    C.7.6.16.2.9), or the dose grid's scaling (C.8.8.3). MONOCHROME1 is turned, so that more is brighter, unless the
    object says that its values are a physical quantity: that stays what it is. Raises ValueError for junk.
    """
    holder = _transformation(dataset, index)
    sequence = dataset.get("ModalityLUTSequence") if holder is dataset else None
    if sequence:
        if found.keyword != "PixelData":
            raise ValueError("has a modality LUT for values that are not whole numbers")
        plain = Scale(lut=lut(sequence[0], found.signed))
    else:
        slope = _number(holder, "RescaleSlope", 1.0) * _number(dataset, "DoseGridScaling", 1.0)
        plain = Scale(slope, _number(holder, "RescaleIntercept", 0.0))
        if slope == 0:
            raise ValueError("RescaleSlope (0028,1053) is 0, so that every value is the same")
    return plain.turned(found) if turns(dataset, found, index) else plain


def turns(dataset: Dataset, found: Layout, index: int = 0) -> bool:
    """Whether bright and dark are swapped: MONOCHROME1 whose values have no unit."""
    return found.photometric == "MONOCHROME1" and found.keyword == "PixelData" and not unit(dataset, index)


def unit(dataset: Dataset, index: int = 0) -> str:
    """What the real values are, as the object says (Rescale Type, or Units of a PET image); empty where it doesn't."""
    said = _transformation(dataset, index).get("RescaleType") or dataset.get("Units") or ""
    text = str(said).strip().upper()
    known = text.isascii() and text.replace("/", "").replace("_", "").isalnum() and len(text) <= 16
    return text if known and text not in ("US", "NORMALIZED", "UNSPECIFIED") else ""


def facts(dataset: Dataset, found: Layout, index: int = 0) -> dict[str, Any]:
    """What a volume's meta says of its values: ``unit``, ``turned``, ``windows``, ``voi_luts``, each if there is one.

    windows: a list of centre, width and function (PS3.3 C.11.2.1.2). voi_luts: a list of ``first``, ``bits`` and
    ``values`` (C.11.2.1.1), for ``scans.window.apply_lut``. Both are of the frame that is asked for.
    """
    holder = _group(dataset, index, "FrameVOILUTSequence")
    said = {
        "unit": unit(dataset, index),
        "turned": turns(dataset, found, index),
        "windows": _windows(holder),
        "voi_luts": [_voi_lut(item, found.signed) for item in holder.get("VOILUTSequence") or []],
    }
    return {key: value for key, value in said.items() if value}


def _windows(dataset: Dataset) -> list[dict[str, Any]]:
    """The windows that a file offers; what is no window is left out, for it only concerns the display."""
    try:
        centres, widths = (
            np.atleast_1d(np.asarray(dataset.get(f"Window{part}"), float)) for part in ("Center", "Width")
        )
    except (TypeError, ValueError):
        return []
    said = str(dataset.get("VOILUTFunction") or "LINEAR").strip().upper()
    function = said if said in ("LINEAR", "LINEAR_EXACT", "SIGMOID") else "LINEAR"
    pairs = zip(centres.tolist(), widths.tolist(), strict=False)
    return [
        {"centre": centre, "width": width, "function": function}
        for centre, width in pairs
        if math.isfinite(centre) and math.isfinite(width) and width > 0
    ]


def _voi_lut(item: Dataset, signed: bool) -> dict[str, Any]:
    table = lut(item, signed)
    return {"first": table.first, "bits": int(item.LUTDescriptor[2]), "values": table.table.tolist()}


def _transformation(dataset: Dataset, index: int) -> Dataset:
    """The part of an object that holds a frame's rescale."""
    return _group(dataset, index, "PixelValueTransformationSequence")


def _group(dataset: Dataset, index: int, keyword: str) -> Dataset:
    """The functional group that holds for a frame: its own, the shared one (PS3.3 C.7.6.16), or the object itself."""
    for sequence, place in (("PerFrameFunctionalGroupsSequence", index), ("SharedFunctionalGroupsSequence", 0)):
        groups = dataset.get(sequence)
        if groups and place < len(groups):
            items = groups[place].get(keyword)
            if items:
                return items[0]
    return dataset


def _number(dataset: Dataset, keyword: str, default: float) -> float:
    try:
        value = dataset.get(keyword)
        number = default if value is None or value == "" else float(value)
    except Exception:
        raise ValueError(f"{keyword} is no number") from None
    if not math.isfinite(number):
        raise ValueError(f"{keyword} is not finite")
    return number


def lut(item: Dataset, signed: bool) -> Lut:
    """A LUT of a Modality or VOI LUT Sequence (PS3.3 C.11.1.1.1). Raises ValueError where it is cut short."""
    entries, first, bits = _descriptor(item.get("LUTDescriptor"), signed)
    table = _table(item.get("LUTData"), bits, item.original_encoding[1] is not False)
    if len(table) < entries:
        raise ValueError(f"has a lookup table of {len(table)} entries where its descriptor says {entries}")
    return Lut(first, table[:entries])


def _descriptor(value: Any, signed: bool) -> tuple[int, int, int]:
    """Entries (0 stands for 65,536), the stored value of the first (in the pixels' sign), bits of an entry."""
    try:
        entries, first, bits = (int(part) for part in value)
    except Exception:
        raise ValueError("has a lookup table without a descriptor") from None
    if not (0 <= entries <= 65536 and 8 <= bits <= 16):
        raise ValueError(f"has a lookup table of {entries} entries of {bits} bits")
    if signed and first > 32767:
        first -= 65536
    if not signed and first < 0:
        first += 65536
    return entries or 65536, first, bits


def _table(data: Any, bits: int, little: bool) -> Pixels:
    """Entries as uint8 or uint16; data: words, or their bytes; entries of 8 bits may fill a word or half of one."""
    kind = np.dtype(np.uint8 if bits == 8 else np.uint16)
    if isinstance(data, bytes):
        words = kind if bits == 8 else np.dtype("<u2" if little else ">u2")
        return np.frombuffer(data[: len(data) // words.itemsize * words.itemsize], words).astype(kind)
    try:
        return np.atleast_1d(np.asarray(data, dtype=np.int64)).astype(kind)
    except (TypeError, ValueError):
        raise ValueError("has a lookup table without data") from None


def padding(dataset: Dataset, found: Layout) -> tuple[int, int] | None:
    """Stored values that stand for nothing, as a range: Pixel Padding Value and Range Limit (PS3.3 C.7.5.1.1.2)."""
    if found.keyword != "PixelData" or found.samples > 1 or dataset.get("PixelPaddingValue") in (None, ""):
        return None
    value = _as_stored(dataset, "PixelPaddingValue", found)
    limit = value
    if dataset.get("PixelPaddingRangeLimit") not in (None, ""):
        limit = _as_stored(dataset, "PixelPaddingRangeLimit", found)
    return min(value, limit), max(value, limit)


def _as_stored(dataset: Dataset, keyword: str, found: Layout) -> int:
    """A value in the sign of the pixels: writers often get the value representation of these tags wrong."""
    number = int(_number(dataset, keyword, 0.0))
    span, high = 2**found.allocated, 2 ** (found.allocated - 1)
    if found.signed and high <= number < span:
        return number - span
    return number + span if not found.signed and number < 0 else number


def filling(modality: str, real_minimum: float) -> float:
    """What padding becomes: air for CT, else the least real value of the rest of the image."""
    return float(_AIR_HU) if modality == "CT" else real_minimum


def result_type(scales: Iterable[Scale], stored: np.dtype[Any], low: float, high: float) -> np.dtype[Any]:
    """The type of a volume of real values between ``low`` and ``high``: integers where nothing is lost by it."""
    kinds = list(scales)
    bounds = np.iinfo(stored) if stored.kind != "f" else np.finfo(stored)
    if all(one.identity for one in kinds) and bounds.min <= low and high <= bounds.max:
        return stored
    if stored.kind != "f" and all(one.whole or one.lut is not None for one in kinds):
        for name in (stored.name, "int16", "uint16", "int32"):
            if np.iinfo(name).min <= low and high <= np.iinfo(name).max:
                return np.dtype(name)
    return np.dtype(np.float32)


def to_real(stored: Pixels, out: Pixels, one: Scale) -> None:
    """Write the real values of a frame to ``out``, which may be the same memory: whole numbers are computed in place.

    The caller has seen to it that they fit (``result_type``), so that wrapping on the way does no harm.
    """
    if not one.whole or out.dtype.kind == "f" or stored.dtype.itemsize != out.dtype.itemsize:
        out[...] = one(stored)
        return
    bits = np.dtype(f"u{out.dtype.itemsize}")
    span = 2 ** (8 * bits.itemsize)
    result, source = out.view(bits), stored.view(bits)
    np.multiply(source, bits.type(int(one.slope) % span), out=result)
    np.add(result, bits.type(int(one.intercept) % span), out=result)


def palette(dataset: Dataset, found: Layout) -> tuple[Lut, Lut, Lut]:
    """The tables from an index to red, green and blue (PS3.3 C.7.6.3.1.5), plain or segmented (C.7.9.2)."""
    tables = [_colour_table(dataset, name, found.signed) for name in _COLOURS]
    if len({table.table.dtype for table in tables}) > 1:
        raise ValueError("has palettes of different depths")
    return tables[0], tables[1], tables[2]


def _colour_table(dataset: Dataset, name: str, signed: bool) -> Lut:
    entries, first, bits = _descriptor(dataset.get(f"{name}PaletteColorLookupTableDescriptor"), signed)
    little = dataset.original_encoding[1] is not False
    data = dataset.get(f"{name}PaletteColorLookupTableData")
    if data:
        # entries of 8 bits may be written as words (retired, but common)
        wide = bits > 8 or len(data) >= 2 * entries
        table = _table(data, 16 if wide else 8, little)
        if bits == 8 and wide:
            table = table.astype(np.uint8) if int(table.max(initial=0)) < 256 else (table >> 8).astype(np.uint8)
    else:
        words = _table(dataset.get(f"Segmented{name}PaletteColorLookupTableData"), bits, little)
        table = np.array(_expanded(words.tolist(), entries, bits), dtype=words.dtype)
    if len(table) < entries:
        raise ValueError(f"has a palette of {len(table)} entries where its descriptor says {entries}")
    return Lut(first, table[:entries])


def _expanded(words: Sequence[int], entries: int, bits: int) -> list[int]:
    """Expand a segmented palette: runs of values, of lines between values, and of earlier segments again."""
    out: list[int] = []
    at = 0
    while at + 1 < len(words) and len(out) < entries:
        kind, length = words[at], words[at + 1]
        at += 2
        if kind == 2:  # an indirect segment: the byte offset of `length` earlier segments
            parts = 4 if bits == 8 else 2
            offset = sum(word << (bits * place) for place, word in enumerate(words[at : at + parts]))
            _repeat(words, offset // (bits // 8), length, out, entries)
            at += parts
        else:
            at += _segment(words, at, kind, length, out)
    return out


def _repeat(words: Sequence[int], at: int, segments: int, out: list[int], entries: int) -> None:
    for _ in range(segments):
        if at + 1 >= len(words) or len(out) >= entries:
            return
        at += 2 + _segment(words, at + 2, words[at], words[at + 1], out)


def _segment(words: Sequence[int], at: int, kind: int, length: int, out: list[int]) -> int:
    """Append a discrete (0) or a linear (1) segment; return how many words it takes."""
    if kind == 0:
        out.extend(words[at : at + length])
        return length
    if kind != 1 or not out or at >= len(words):
        raise ValueError("has a segmented palette that is broken")
    out.extend(round(v) for v in np.linspace(out[-1], words[at], length + 1)[1:])
    return 1
