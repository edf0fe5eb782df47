"""DICOM objects in files and in zips. Members of a zip are read in memory and never written: none climbs anywhere."""

from __future__ import annotations

import io
import os
import stat
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from medlight.cgroups import free_memory
from medlight.errors import MedlightError
from medlight.scans.dicom.frames import Place

HEAD_BYTES = 512
MOST_BYTES = 4 << 30  # one object: the length of its pixel data has 32 bits (PS3.5 7.1)
_MEMBERS = 1_000_000
_SMALL = 64 << 20  # bytes for which nobody asks how much memory is free
# Deflate packs at most 1032 bytes into one (https://zlib.net/zlib_tech.html): more means members that share bytes.
_RATIO = 1032
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError, ValueError)


def open_place(place: Place, most: int = MOST_BYTES) -> BinaryIO:
    """Open an object for reading, with seek. Of a zip's member ``most`` bytes are inflated into memory.

    Raises MedlightError where the file or the member is absent, can't be opened, or takes more memory than is free.
    """
    if not place.member:
        try:
            return place.path.open("rb")
        except OSError as error:
            raise MedlightError(f"{place.title}: can't be opened ({error.strerror}); restore it") from None
    try:
        archive = _opened(place.path)
        info = archive.getinfo(place.member)
        reason = member_fault(info)
        if reason:
            raise MedlightError(f"{place.title}: {reason}")
        check_memory(place, min(info.file_size, most))
        with archive.open(info) as member:
            return io.BytesIO(member.read(most))
    except KeyError:
        raise MedlightError(f"{place.title}: the zip has no such member") from None
    except _BROKEN as error:
        raise MedlightError(f"{place.title}: can't be unpacked ({reason_of(error)}); make the zip again") from None


def size_of(place: Place) -> int:
    """Bytes of an object, unpacked. Raises OSError or KeyError where it is absent."""
    return _opened(place.path).getinfo(place.member).file_size if place.member else place.path.stat().st_size


def check_memory(place: Place, needed: int) -> None:
    """Raise MedlightError where an object takes more memory than is free."""
    if needed > _SMALL and needed > (free := free_memory()):
        amounts = f"{needed / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} are free"
        raise MedlightError(f"{place.title}: it takes {amounts}; use a machine with more, or leave it out")


def title(place: Place) -> str:
    """An object's name for a person."""
    return place.title


def reason_of(error: BaseException) -> str:
    """What an error says, in one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:200] or type(error).__name__


def _opened(path: Path) -> zipfile.ZipFile:
    state = path.stat()
    return _archive(path, state.st_mtime_ns, state.st_size, os.getpid())


@lru_cache(maxsize=4)
def _archive(path: Path, modified: int, size: int, process: int) -> zipfile.ZipFile:
    """Keep the last few open: each opening reads the whole list. Not over a fork, which would share file positions."""
    return zipfile.ZipFile(path)


def members(path: Path) -> tuple[list[tuple[str, bytes]], list[tuple[str, str]]]:
    """The members of a zip with their first bytes, and those that can't be read, each with its reason.

    A zip that can't be opened, or whose members together can't come out of its bytes, is one such, with no name.
    """
    try:
        archive = _opened(path)
        listed = [info for info in archive.infolist() if not info.is_dir()]
    except _BROKEN as error:
        return [], [("", f"a zip that can't be opened ({reason_of(error)}); make it again")]
    if len(listed) > _MEMBERS or sum(info.file_size for info in listed) > _RATIO * path.stat().st_size:
        return [], [("", f"a zip of {len(listed)} members that can't all come out of its bytes; it is refused whole")]
    found, faults = [], []
    for info in listed:
        reason = member_fault(info)
        try:
            if not reason:
                with archive.open(info) as member:
                    found.append((info.filename, member.read(HEAD_BYTES)))
        except _BROKEN as error:
            reason = f"can't be unpacked ({reason_of(error)}); make the zip again"
        if reason:
            faults.append((info.filename, reason))
    return found, faults


def member_fault(info: zipfile.ZipInfo) -> str:
    """Why a member of a zip is not opened; empty where it may be."""
    name = PurePosixPath(info.filename.replace("\\", "/"))
    if name.is_absolute() or ".." in name.parts or info.filename[1:2] == ":":
        return "its name climbs out of the zip; it is not read"
    if stat.S_ISLNK(info.external_attr >> 16):
        return "a link in a zip; it is not followed"
    if info.flag_bits & 1:
        return "encrypted; unpack the zip with its password first"
    if info.file_size > MOST_BYTES:
        return f"says that it is {info.file_size / 2**30:.0f} GiB; no DICOM object is"
    return ""
