"""Numbers in a file behind a header: read whole, in bounded memory, or refused."""

from __future__ import annotations

import bz2
import gzip
import io
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from medlight.errors import MedlightError
from medlight.scans.files import shown
from medlight.scans.grid import bytes_needed

Encoding = Literal["raw", "gzip", "zlib", "bzip2", "text"]
_PIECE = 16 << 20
_SPARE = 1 << 10  # bytes that a writer may leave behind the voxels; more are voxels that the header denies


@dataclass(frozen=True)
class Block:
    """Where numbers lie: ``file``, from byte ``offset`` (-1: what the file ends with), the fastest axis first."""

    file: Path
    offset: int
    sizes: tuple[int, ...]
    dtype: np.dtype[Any]
    encoding: Encoding = "raw"


def beside(header: Path, name: str) -> Path:
    """Return the data file that a header names; MedlightError where it isn't a file in the header's own folder.

    A header from elsewhere must not make the reader open any file it likes.
    """
    inside = Path(name)
    if not name or inside.is_absolute() or ".." in inside.parts or "\\" in name or "\0" in name:
        raise MedlightError(f"{shown(header)}: names {name!r} as its data, not in its own folder; put both in one")
    file = header.parent / inside
    if not file.is_file():
        raise MedlightError(f"{shown(header)}: its data file {name!r} is not there; copy it beside the header")
    return file


def read_block(block: Block, path: Path) -> npt.NDArray[Any]:
    """Return the numbers as an array of shape ``sizes`` in native byte order, writable.

    path: the file to name. Raises MedlightError where the file holds fewer or (packed) more numbers than that, or they
    don't fit in memory.
    """
    needed = bytes_needed(block.sizes, block.dtype, path)
    try:
        with block.file.open("rb") as file:
            size = file.seek(0, io.SEEK_END)
            start = size - needed if block.offset < 0 else block.offset
            file.seek(max(0, start))
            content = _content(file, block, needed)
    except (OSError, EOFError, ValueError, MemoryError, zlib.error) as error:
        raise MedlightError(f"{shown(path)}: its voxels can't be read ({reason(error)}); copy it again") from None
    if len(content) != needed or start < 0:
        raise MedlightError(f"{shown(path)}: is cut short, {len(content)} of {needed} bytes of voxels; copy it again")
    array = content.view(block.dtype).reshape(block.sizes, order="F")
    return array.astype(block.dtype.newbyteorder("="), copy=False)


def _content(file: BinaryIO, block: Block, needed: int) -> npt.NDArray[np.uint8]:
    match block.encoding:
        case "raw":
            return whole(file, needed)
        case "gzip":
            with gzip.GzipFile(fileobj=file) as stream:
                return whole(stream, needed)
        case "bzip2":
            with bz2.BZ2File(file) as stream:
                return whole(stream, needed)
        case "zlib":
            return _inflate(file, needed)
        case "text":
            numbers = np.fromstring(file.read().decode("ascii"), block.dtype, needed // block.dtype.itemsize, sep=" ")
            return numbers.view(np.uint8)


def _inflate(file: BinaryIO, needed: int) -> npt.NDArray[np.uint8]:
    """Unpack zlib's format (or gzip's: the stream says which) up to ``needed`` bytes, and see that it ends there."""
    packed = zlib.decompressobj(wbits=47)
    buffer, got = np.empty(needed, np.uint8), 0
    while got < needed and not packed.eof and (data := packed.unconsumed_tail or file.read(_PIECE)):
        part = packed.decompress(data, needed - got)
        buffer[got : got + len(part)] = np.frombuffer(part, np.uint8)
        got += len(part)
    left = packed.decompress(packed.unconsumed_tail + file.read(_SPARE), _SPARE + 1)  # the checksum comes last
    if got == needed and (not packed.eof or len(left) > _SPARE):
        raise ValueError("more data than the header says")
    return buffer[:got]


def whole(stream: Any, needed: int) -> npt.NDArray[np.uint8]:
    """Read up to ``needed`` bytes and see that the stream ends there: a packed one has its checksum last."""
    buffer = np.empty(needed, np.uint8)
    view, got = buffer.data, 0  # memory is taken as bytes come, so that a short file costs little
    while got < needed and (n := stream.readinto(view[got : got + _PIECE])):
        got += n
    if len(stream.read(_SPARE + 1)) > _SPARE:
        raise ValueError("more data than the header says")
    return buffer[:got]


def reason(error: BaseException) -> str:
    """An error's text on one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
