"""Digests of input files, remembered so that a file is read for it once."""

from __future__ import annotations

import hashlib
import os
import re
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

from medlight.errors import MedlightError
from medlight.scans.files import shown

_FRESH_NS = 2_000_000_000  # a file changed this lately may change again within the same tick of the clock
_LITTER = (".DS_Store", "Thumbs.db", "desktop.ini")  # what file managers leave behind, here and not there
_DETACHED = re.compile(rb"^\s*(?:ElementDataFile\s*=|data ?file:)\s*(\S.*?)\s*$", re.IGNORECASE | re.MULTILINE)
_HEADER = 65_536  # bytes; both formats have their text at the start
_KNOWN = "SELECT sha256 FROM digest WHERE path = ? AND size = ? AND time = ?"
_Stamp = tuple[str, int, int]


def file_digests(paths: Iterable[Path], memory: Path) -> dict[Path, str]:
    """Return one sha256 for the content of each file, or of all files in a folder; absent ones are left out.

    A folder's is that of its files' digests, sorted: names and order don't count, so that it is the same wherever the
    folder was copied to. The data file that a header names (.mhd, .nhdr) counts with it.
    memory: an SQLite file with the digests known so far, by path, size and time of change. Several processes may use
    it at once. A file that changed within the last two seconds is digested, and not remembered.
    """
    memory.parent.mkdir(parents=True, exist_ok=True)
    parts = {path: _parts(path) for path in dict.fromkeys(paths) if path.exists()}
    stamps = {file: _stamp(file) for files in parts.values() for file in files}
    with closing(sqlite3.connect(memory, timeout=60)) as base:
        base.execute("CREATE TABLE IF NOT EXISTS digest (path TEXT PRIMARY KEY, size INT, time INT, sha256 TEXT)")
        found: dict[Path, str] = {}
        fresh: list[tuple[str, int, int, str]] = []
        for file, stamp in stamps.items():
            known = base.execute(_KNOWN, stamp).fetchone()
            found[file] = str(known[0]) if known else _sha256(file)
            if not known and time.time_ns() - stamp[2] > _FRESH_NS:
                fresh.append((*stamp, found[file]))
        if fresh:
            with base:
                base.executemany("INSERT OR REPLACE INTO digest VALUES (?, ?, ?, ?)", fresh)
    return {path: _joined(path, [found[file] for file in files]) for path, files in parts.items()}


def content_digest(path: Path) -> str:
    """Return the same digest of one file or folder, with nothing remembered."""
    return _joined(path, [_sha256(file) for file in _parts(path)])


def _parts(path: Path) -> list[Path]:
    """The files whose content counts: those of a folder, or a file and what its header refers to."""
    if path.is_dir():
        return list(_files(path))
    if path.suffix.lower() not in (".mhd", ".mha", ".nhdr", ".nrrd"):
        return [path]
    with path.open("rb") as stream:
        named = [os.fsdecode(name) for name in _DETACHED.findall(stream.read(_HEADER)) if b"\0" not in name]
    return [path, *(file for name in named if (file := path.parent / name).is_file())]


def _files(folder: Path) -> Iterator[Path]:
    """All files of a folder and of those in it, each folder once; what a file manager left behind doesn't count."""
    seen: set[tuple[int, int]] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        facts = os.stat(root)
        if (facts.st_dev, facts.st_ino) in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add((facts.st_dev, facts.st_ino))
        for name in files:
            if not name.startswith("._") and name not in _LITTER and (file := Path(root, name)).is_file():
                yield file


def _joined(path: Path, digests: list[str]) -> str:
    if path.is_file() and len(digests) == 1:
        return digests[0]
    return hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()


def _stamp(path: Path) -> _Stamp:
    facts = path.stat()
    name = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()  # folder names may name patients
    return name, facts.st_size, facts.st_mtime_ns


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise MedlightError(f"{shown(path)}: can't be read ({error.strerror}); check its permissions") from None
