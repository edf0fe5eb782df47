"""What a client sends, into a folder of its own: as a form or as a plain body, counted while it comes in.

Files are called by what their first bytes say they are. Names that a client gives are read only for which contrast a
file is, and never become a path.
"""

from __future__ import annotations

import asyncio
import errno
import shutil
import zipfile
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from medlight.scans.dicom.archive import HEAD_BYTES, members
from medlight.scans.dicom.fileset import is_index

_MOST_FILES = 16  # contrasts of one examination
_MOST_FIELD = 1000  # bytes of a field that is no file
_MOST_MEMBERS = 100_000  # objects of a zip; long dynamic series have some ten thousand
_PATIENCE = 60.0  # seconds that nothing comes
_FREE = 1 << 30  # bytes of a disk that are left alone
_PIECE = 4 << 20
_PICTURES = ((b"\x89PNG\r\n", ".png"), (b"\xff\xd8\xff", ".jpg"), (b"II*\0", ".tif"), (b"MM\0*", ".tif"))
_NIFTI = (348).to_bytes(4, "little"), (348).to_bytes(4, "big"), (540).to_bytes(4, "little"), (540).to_bytes(4, "big")


class RefusedError(Exception):
    """An upload that is not taken. status: of the answer."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True)
class Limits:
    """upload: bytes of a request's body. unpacked: bytes of what a zip holds, all together."""

    upload: int = 2 << 30
    unpacked: int = 8 << 30


@dataclass
class _Form:
    """What comes out of a form's parts while they come in."""

    folder: Path
    files: dict[str, Path] = field(default_factory=dict)
    fields: dict[str, str] = field(default_factory=dict)
    whole: bool = False
    _header: list[bytes] = field(default_factory=lambda: [b"", b""])
    _disposition: bytes = b""
    _name: str = ""
    _out: BinaryIO | None = None

    def callbacks(self) -> Any:
        """What the parser calls."""
        return {name: getattr(self, name) for name in dir(self) if name.startswith("on_")}

    def on_part_begin(self) -> None:
        self._disposition, self._header = b"", [b"", b""]

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header[0] += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1] += data[start:end]

    def on_header_end(self) -> None:
        if self._header[0].lower() == b"content-disposition":
            self._disposition = self._header[1]
        self._header = [b"", b""]

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        if not self._name or self._name in self.files or self._name in self.fields:
            raise RefusedError(400, "a part of the form has no name, or two have the same")
        if len(self.files) + len(self.fields) >= _MOST_FILES:
            raise RefusedError(400, f"more than {_MOST_FILES} parts in a form")
        if b"filename" not in options:
            self.fields[self._name] = ""
            return
        self.files[self._name] = self.folder / f"upload{len(self.files)}"
        self._out = self.files[self._name].open("xb")

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._out is not None:
            self._out.write(data[start:end])
            return
        text = self.fields[self._name] + data[start:end].decode("utf-8", "replace")
        if len(text) > _MOST_FIELD:
            raise RefusedError(400, "a field of the form is too long; send scans as files (with curl: -F file=@SCAN)")
        self.fields[self._name] = text

    def on_part_end(self) -> None:
        self.close()

    def on_end(self) -> None:
        self.whole = True

    def close(self) -> None:
        if self._out is not None:
            self._out.close()
        self._out = None


async def receive(request: Request, folder: Path, limits: Limits) -> dict[str, Path]:
    """Write the files of a request into a folder, by the name of their field; a plain body is called ``file``.

    Raises RefusedError where it is too big, empty, cut off, malformed, or doesn't come on.
    """
    _check_length(request.headers.get("content-length"), folder, limits)
    try:
        kind, options = parse_options_header(request.headers.get("content-type", ""))
        if kind != b"multipart/form-data":
            return await _plain(request, folder, limits)
        form = _Form(folder)
        try:
            parser = MultipartParser(options.get(b"boundary", b""), form.callbacks())
            async for piece in _body(request, limits):
                parser.write(piece)
            parser.finalize()
        finally:
            form.close()
    except FormParserError:
        raise RefusedError(400, "a form that can't be read; send it as multipart/form-data (with curl: -F)") from None
    except OSError as error:
        raise _no_room(error) from None
    if not form.whole:
        raise RefusedError(400, "the form is cut off; send it again")
    if not form.files:
        raise RefusedError(400, "no file in the form; send one (with curl: -F file=@SCAN)")
    return form.files


async def _plain(request: Request, folder: Path, limits: Limits) -> dict[str, Path]:
    file = folder / "upload0"
    with file.open("xb") as out:
        async for piece in _body(request, limits):
            out.write(piece)
    return {"file": file}


async def _body(request: Request, limits: Limits) -> AsyncIterator[bytes]:
    """Yield the pieces of a body; RefusedError where there are too many, or none comes for a while."""
    pieces, taken = aiter(request.stream()), 0
    while True:
        try:
            piece = await asyncio.wait_for(anext(pieces), _PATIENCE)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise RefusedError(408, f"nothing came for {_PATIENCE:.0f} s; send it again") from None
        taken += len(piece)
        if taken > limits.upload:
            raise _too_big(limits)
        yield piece


def _check_length(said: str | None, folder: Path, limits: Limits) -> None:
    length = int(said) if said and said.isdecimal() else 0
    if length > limits.upload:
        raise _too_big(limits)
    if length + _FREE > shutil.disk_usage(folder).free:
        raise RefusedError(507, "the server's disk is full; try again later")


def _too_big(limits: Limits) -> RefusedError:
    return RefusedError(413, f"too big: at most {limits.upload:,} bytes are taken")


def _no_room(error: OSError) -> RefusedError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return RefusedError(507, "the server's disk is full; try again later")
    return RefusedError(500, "the upload can't be written; see the server's log")


def as_scan(file: Path, limits: Limits) -> Path:
    """Give an upload the name of what it is; a zip becomes a folder of DICOM objects.

    Raises RefusedError for anything that is no scan, and for formats that name other files (NRRD and MetaImage may).
    """
    with file.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
    if not head:
        raise RefusedError(400, "the upload is empty (0 bytes); send a scan")
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return _unpacked(file, limits)
    if head[128:132] == b"DICM" and not is_index(head):
        return _called(file, ".dcm")
    for start, suffix in _PICTURES:
        if head.startswith(start):
            return _called(file, suffix)
    if head[:2] == b"\x1f\x8b":
        return _called(file, ".nii.gz")
    if head[:4] in _NIFTI:
        return _called(file, ".nii")
    raise RefusedError(415, "no scan that is read here; send NIfTI, DICOM, a zip of one DICOM series, or a picture")


def _called(file: Path, suffix: str) -> Path:
    return file.rename(file.with_name(f"{file.name}{suffix}"))


def _unpacked(file: Path, limits: Limits) -> Path:
    """Write the members of a zip into a folder, numbered; RefusedError where one climbs, or they are too much."""
    found, faults = members(file)
    if faults:
        raise RefusedError(400, f"the zip is refused: {faults[0][1]}")
    if len(found) > _MOST_MEMBERS:
        raise RefusedError(413, f"too many files in the zip: at most {_MOST_MEMBERS} are taken")
    folder = file.with_name(f"{file.name}-unpacked")
    folder.mkdir()
    left = limits.unpacked
    with zipfile.ZipFile(file) as archive:
        for number, (name, head) in enumerate(found):
            if is_index(head) or head[:2] == b"PK":  # a DICOMDIR names files; a zip in a zip is none of ours
                continue
            left -= _copied(archive, name, folder / f"{number:06}", left)
            if left < 0:
                raise RefusedError(413, f"the zip holds too much: at most {limits.unpacked:,} bytes unpacked are taken")
    file.unlink()
    return folder


def _copied(archive: zipfile.ZipFile, name: str, out: Path, most: int) -> int:
    """Write one member piece by piece, little more than ``most`` of it; returns how many bytes that is."""
    with out.open("xb") as target:
        try:
            with archive.open(name) as member:
                while target.tell() <= most and (piece := member.read(_PIECE)):
                    target.write(piece)
        except OSError as error:
            raise _no_room(error) from None
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, KeyError):
            raise RefusedError(400, "the zip can't be unpacked (a member is damaged); make it again") from None
        return target.tell()
