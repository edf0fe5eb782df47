"""MetaImage files, ``.mha`` and ``.mhd`` (https://docs.itk.org/en/latest/learn/metaio.html).

ITK's own reader has known memory faults that a malformed header reaches (github.com/Kitware/MetaIO, issue 150), and
takes a short packed file for a whole one: so the header is read here, and ITK is what the tests compare with.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from medlight.errors import MedlightError
from medlight.scans.files import shown
from medlight.scans.grid import LPS_TO_RAS, Affine, FileGrid, affine_fault, affine_from, bytes_needed
from medlight.scans.raw import Block, beside, read_block, reason
from medlight.scans.volume import Channel, Volume

_MOST_HEADER = 1 << 20
_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_MEND = "save it again, with SimpleITK or 3D Slicer"


def read_metaimage(path: Path) -> Volume:
    """Read a MetaImage file; its LPS axes are turned to RAS+, components and a fourth axis become channels.

    Raises MedlightError where the header is damaged, names a file outside its folder, or says more than there is.
    """
    grid, block = _parsed(path)
    grid.checked(path)
    array = read_block(block, path)
    components, spatial = block.sizes[0], grid.shape[1:]
    frames = array.reshape(components, *spatial, -1, order="F")
    array = np.moveaxis(frames, -1, 0).reshape(-1, *spatial)  # frame by frame, and component by component in each
    return Volume(array, grid.affine, (Channel(),) * len(array), grid.meta)


def metaimage_grid(path: Path) -> FileGrid:
    """Return where a MetaImage file's voxels lie, from its header; MedlightError where that can't be read."""
    return _parsed(path)[0]


def _parsed(path: Path) -> tuple[FileGrid, Block]:
    """Read the header: where voxels lie in the patient, and where they lie in the file (components first)."""
    try:
        fields, end = _fields(path)
        sizes = tuple(int(n) for n in fields["DimSize"].split())
        if not 2 <= len(sizes) == int(fields["NDims"]) <= 4:
            raise ValueError(f"{len(sizes)} sizes for {fields['NDims']} axes; two to four are read")
        components = int(fields.get("ElementNumberOfChannels", 1))
        block = _block(path, fields, end, (components, *sizes))
        bytes_needed(block.sizes, block.dtype, path)
        affine = _affine(fields, len(sizes))
    except MedlightError:
        raise
    except KeyError as error:
        raise MedlightError(f"{shown(path)}: is no MetaImage file, it has no {error.args[0]}; {_MEND}") from None
    except (OSError, ValueError, ArithmeticError) as error:
        raise MedlightError(f"{shown(path)}: can't be read as MetaImage ({reason(error)}); {_MEND}") from None
    i, j, k, frames = (*sizes, 1, 1)[:4]
    fault = affine_fault(affine, "correct its TransformMatrix and ElementSpacing")
    return FileGrid((components * frames, i, j, k), affine, fault), block


def _fields(path: Path) -> tuple[dict[str, str], int]:
    """Return the header's fields and where it ends: after ElementDataFile, always its last."""
    fields: dict[str, str] = {}
    for line, end in _lines(path):
        name, equals, value = line.partition("=")
        name = name.strip()
        if not equals or not name.isascii():
            raise ValueError("a line of its header is no 'Key = Value'")
        if name in fields:
            raise ValueError(f"{name} stands twice")
        fields[name] = value.strip()
        if name == "ElementDataFile":
            return fields, end
    raise KeyError("ElementDataFile")


def _lines(path: Path) -> Iterator[tuple[str, int]]:
    """Give the lines of a header that aren't empty, each with the byte it ends at."""
    with path.open("rb") as file:
        left = _MOST_HEADER
        while left > 0 and (line := file.readline(left)):
            left -= len(line)
            if line.strip():
                yield line.decode("latin-1"), file.tell()


def _block(path: Path, fields: dict[str, str], end: int, sizes: tuple[int, ...]) -> Block:
    name = fields["ElementDataFile"]
    if name.split()[:1] == ["LIST"] or "%" in name:
        raise MedlightError(f"{shown(path)}: its voxels lie in several files; save it as one, with SimpleITK say")
    kind = _TYPES.get(fields["ElementType"].removesuffix("_ARRAY"))
    if kind is None:
        raise ValueError(f"ElementType {fields['ElementType'][:40]} is not a number")
    big = any(_true(fields.get(key, "")) for key in ("BinaryDataByteOrderMSB", "ElementByteOrderMSB"))
    local = name.upper() == "LOCAL"
    skip = int(fields.get("HeaderSize", 0))
    block = Block(
        path if local else beside(path, name),
        -1 if skip == -1 else max(skip, end if local else 0),
        sizes,
        np.dtype((">" if big else "<") + kind),
    )
    if not _true(fields.get("BinaryData", "True")):
        return replace(block, encoding="text")
    return replace(block, encoding="zlib") if _true(fields.get("CompressedData", "")) else block


def _affine(fields: dict[str, str], axes: int) -> Affine:
    """Positions are in LPS; the matrix has a row for each axis of the image."""
    matrix = _numbers(fields, ("TransformMatrix", "Rotation", "Orientation"), np.eye(axes), axes * axes)
    spacing = _numbers(fields, ("ElementSpacing", "ElementSize"), np.ones(axes), axes)
    origin = _numbers(fields, ("Offset", "Position", "Origin"), np.zeros(axes), axes)
    with np.errstate(invalid="ignore"):  # what isn't finite is named afterwards
        return LPS_TO_RAS @ affine_from(matrix.reshape(axes, axes) * spacing[:, None], origin)


def _numbers(fields: dict[str, str], names: tuple[str, ...], default: Any, count: int) -> Any:
    text = next((fields[name] for name in names if name in fields), None)
    values = np.asarray(default, np.float64) if text is None else np.array(text.split(), np.float64)
    if values.size != count:
        raise ValueError(f"{names[0]} has {values.size} numbers, not {count}")
    return values


def _true(text: str) -> bool:
    return text[:1] in ("T", "t", "1")
