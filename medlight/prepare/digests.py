"""Digests of input files, remembered so that a file is read for it once."""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from medlight.errors import MedlightError
from medlight.scans.files import shown

_FRESH_NS = 2_000_000_000  # a file changed this lately may change again within the same tick of the clock
_Stamp = tuple[str, int, int]


def file_digests(files: Iterable[Path], memory: Path) -> dict[Path, str]:
    """Return the sha256 of each file's bytes; absent files are left out.

    memory: an SQLite file with the digests known so far, by path, size and time of change. Several processes may use
    it at once. A file that changed within the last two seconds is digested, and not remembered.
    """
    memory.parent.mkdir(parents=True, exist_ok=True)
    stamps = {path: _stamp(path) for path in dict.fromkeys(files) if path.is_file()}
    with closing(sqlite3.connect(memory, timeout=60)) as base:
        base.execute("CREATE TABLE IF NOT EXISTS digest (path TEXT PRIMARY KEY, size INT, time INT, sha256 TEXT)")
        known = {(p, size, when): digest for p, size, when, digest in base.execute("SELECT * FROM digest")}
        found: dict[Path, str] = {}
        fresh: list[tuple[str, int, int, str]] = []
        for path, stamp in stamps.items():
            found[path] = known.get(stamp) or _sha256(path)
            if stamp not in known and time.time_ns() - stamp[2] > _FRESH_NS:
                fresh.append((*stamp, found[path]))
        if fresh:
            with base:
                base.executemany("INSERT OR REPLACE INTO digest VALUES (?, ?, ?, ?)", fresh)
    return found


def _stamp(path: Path) -> _Stamp:
    facts = path.stat()
    name = hashlib.sha256(str(path.absolute()).encode()).hexdigest()  # folder names may name patients
    return name, facts.st_size, facts.st_mtime_ns


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise MedlightError(f"{shown(path)}: can't be read ({error.strerror}); check its permissions") from None
