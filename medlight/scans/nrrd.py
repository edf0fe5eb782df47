"""NRRD files, ``.nrrd`` and ``.nhdr`` (https://teem.sourceforge.net/nrrd/format.html).

The header is a few lines of text; it is read here, within bounds, and ITK and pynrrd are what the tests compare with.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medlight.errors import MedlightError
from medlight.scans.files import shown
from medlight.scans.grid import LPS_TO_RAS, FileGrid, affine_fault, affine_from, bytes_needed
from medlight.scans.raw import Block, Encoding, beside, read_block, reason
from medlight.scans.volume import Channel, Volume

_MOST_HEADER = 4 << 20  # a diffusion scan's gradients and a segmentation's names stand in it
_TYPES = {
    "i1": "signed char, int8, int8_t",
    "u1": "uchar, unsigned char, uint8, uint8_t",
    "i2": "short, short int, signed short, signed short int, int16, int16_t",
    "u2": "ushort, unsigned short, unsigned short int, uint16, uint16_t",
    "i4": "int, signed int, int32, int32_t",
    "u4": "uint, unsigned int, uint32, uint32_t",
    "i8": "longlong, long long, long long int, signed long long, signed long long int, int64, int64_t",
    "u8": "ulonglong, unsigned long long, unsigned long long int, uint64, uint64_t",
    "f4": "float",
    "f8": "double",
}
_DTYPES = {name: code for code, names in _TYPES.items() for name in names.split(", ")}
_ENCODINGS: dict[str, Encoding] = {
    "raw": "raw",
    "gz": "gzip",
    "gzip": "gzip",
    "bz2": "bzip2",
    "bzip2": "bzip2",
    "txt": "text",
    "text": "text",
    "ascii": "text",
}
_SPACES = {  # what turns each to RAS+
    "right-anterior-superior": np.eye(4),
    "ras": np.eye(4),
    "left-anterior-superior": np.diag([-1.0, 1.0, 1.0, 1.0]),
    "las": np.diag([-1.0, 1.0, 1.0, 1.0]),
    "left-posterior-superior": LPS_TO_RAS,
    "lps": LPS_TO_RAS,
}
_DOMAIN = ("domain", "space", "time", "none", "???")  # kinds of axes that run through space or time
_PLACELESS = "names no anatomical space: left, posterior, superior is taken, as ITK does"
_MEND = "save it again, with SimpleITK or 3D Slicer"


def read_nrrd(path: Path) -> Volume:
    """Read an NRRD file; its space is turned to RAS+, every axis that doesn't run through space becomes channels.

    Raises MedlightError where the header is damaged, names a file outside its folder, or says more than there is.
    """
    grid, block, spatial = _parsed(path)
    grid.checked(path)
    array = read_block(block, path)
    others = [axis for axis in reversed(range(array.ndim)) if axis not in spatial]  # the fastest changes first
    array = array.transpose(*others, *spatial).reshape(grid.shape)
    return Volume(array, grid.affine, (Channel(),) * len(array), grid.meta)


def nrrd_grid(path: Path) -> FileGrid:
    """Return where an NRRD file's voxels lie, from its header; MedlightError where that can't be read."""
    return _parsed(path)[0]


def _parsed(path: Path) -> tuple[FileGrid, Block, list[int]]:
    """Read the header: where voxels lie in the patient and in the file, and which axes run through space."""
    try:
        fields, end = _fields(path)
        sizes = tuple(int(n) for n in fields["sizes"].split())
        if not 2 <= len(sizes) == int(fields["dimension"]) <= 8:
            raise ValueError(f"{len(sizes)} sizes for {fields['dimension']} axes; two to eight are read")
        block = _block(path, fields, end, sizes)
        bytes_needed(sizes, block.dtype, path)
        steps, origin = _steps(fields, len(sizes))
        placed = affine_from(np.array([step for step in steps if step is not None]), origin)
    except MedlightError:
        raise
    except KeyError as error:
        raise MedlightError(f"{shown(path)}: is no NRRD file, it has no {error.args[0]!r}; {_MEND}") from None
    except (OSError, ValueError, ArithmeticError) as error:
        raise MedlightError(f"{shown(path)}: can't be read as NRRD ({reason(error)}); {_MEND}") from None
    spatial = [axis for axis, step in enumerate(steps) if step is not None][:3]
    space = fields.get("space", "").lower().removesuffix("-time").removesuffix("t")
    affine = _SPACES.get(space, LPS_TO_RAS) @ placed
    i, j, k = (*(sizes[axis] for axis in spatial), 1)[:3]
    shape = (int(np.prod(sizes, dtype=np.int64)) // (i * j * k), i, j, k)
    fault = affine_fault(affine, "correct its space directions")
    return FileGrid(shape, affine, fault, () if space in _SPACES else (_PLACELESS,)), block, spatial


def _fields(path: Path) -> tuple[dict[str, str], int]:
    """Return the header's fields, names in lower case, and where it ends: at an empty line, or with the file.

    Lines with ``:=`` are a program's own; they may hold anything, a name too, and are passed over.
    """
    fields: dict[str, str] = {}
    with path.open("rb") as file:
        if not re.fullmatch(rb"NRRD\d{4}\r?\n", file.readline(16)):
            raise KeyError("NRRD000x in its first line")
        while (line := file.readline(_MOST_HEADER - file.tell())).strip():
            text = line.decode("latin-1").strip()
            if text.startswith("#") or re.match("[^:]*:=", text):
                continue
            name, colon, value = text.partition(":")
            name = name.strip().lower()
            if not colon:
                raise ValueError("a line of its header is no 'field: value'")
            if name in fields:
                raise ValueError(f"{name!r} stands twice")
            fields[name] = value.strip()
        if file.tell() >= _MOST_HEADER:
            raise ValueError("its header doesn't end")
        return fields, file.tell()


def _block(path: Path, fields: dict[str, str], end: int, sizes: tuple[int, ...]) -> Block:
    detached = fields.get("data file", fields.get("datafile", ""))
    if detached.split()[:1] == ["LIST"] or "%" in detached:
        raise MedlightError(f"{shown(path)}: its voxels lie in several files; save it as one, with SimpleITK say")
    encoding, dtype = _ENCODINGS.get(fields["encoding"].lower()), _DTYPES.get(fields["type"].lower())
    skip = int(fields.get("byte skip", fields.get("byteskip", 0)))
    lines = int(fields.get("line skip", fields.get("lineskip", 0)))
    if encoding is None or dtype is None or lines or skip < -1 or (skip and encoding != "raw"):
        said = f"type {fields['type'][:40]}, encoding {fields['encoding'][:40]}, {lines} lines and {skip} bytes skipped"
        raise ValueError(f"{said} is not read here")
    order = ">" if fields.get("endian", "little").lower() == "big" else "<"
    block = Block(beside(path, detached) if detached else path, 0 if detached else end, sizes, np.dtype(order + dtype))
    return replace(block, encoding=encoding, offset=-1 if skip == -1 else block.offset + skip)


def _steps(fields: dict[str, str], axes: int) -> tuple[list[npt.NDArray[np.float64] | None], npt.NDArray[np.float64]]:
    """Return what one step along each axis is in space (None where the axis runs elsewhere), and the first voxel."""
    kinds = fields.get("kinds", "").lower().split() or ["???"] * axes
    if "space directions" in fields:
        steps = [_vector(text) for text in re.findall(r"\([^)]*\)|none", fields["space directions"])]
    else:
        spacings = fields.get("spacings", "").split() or ["1"] * axes
        domain = [axis for axis, kind in enumerate(kinds) if kind in _DOMAIN][:3]
        sizes = [abs(float(text)) if text.lower() not in ("nan", "none") else 1.0 for text in spacings]
        steps = [np.eye(3)[domain.index(a)] * sizes[a] if a in domain else None for a in range(min(axes, len(sizes)))]
    if len(steps) != axes or len(kinds) != axes:
        raise ValueError(f"{len(steps)} directions or {len(kinds)} kinds for {axes} axes")
    known = [step for step in steps if step is not None]
    origin = _vector(fields.get("space origin", "none"))
    origin = np.zeros(len(known[0]) if known else 3) if origin is None else origin
    if any(len(step) != len(origin) for step in known):
        raise ValueError("its directions and its origin have other numbers of dimensions")
    return steps, origin


def _vector(text: str) -> npt.NDArray[np.float64] | None:
    """Read ``(x,y,z)``; None for ``none``."""
    if text.strip() == "none":
        return None
    return np.array([float(part) for part in text.strip().strip("()").split(",")])
