"""What was received and is not yet sent: folders that survive a restart.

    receiving/            objects that come in just now
    incoming/SERIES/      objects of a series; ``whole`` beside them once whoever sent them was done
    work/SERIES-NUMBER/   ``objects``, and ``result`` once it is predicted; deleted when the result is sent
    failed/SERIES-NUMBER/ ``objects``, ``reason.txt`` and a ``result`` that can't be sent; deleted after a week, or
                          earlier where room is needed

SERIES is a digest: no UID and no name of a patient is in a path or a log.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from medlight.errors import UsageError

WHOLE, OBJECTS, RESULT, REASON, TRIES = "whole", "objects", "result", "reason.txt", "tries"
_KEPT = 7 * 86400.0  # seconds that what failed is kept
_GIVEN_UP = 86400.0  # seconds until a series whose sender was cut off, and never came again, is dropped
_CUT = 600.0  # seconds until an object that comes in and doesn't grow is given up; connections are sooner
_FREE = 1 << 30  # bytes of the disk that are left alone
_MOST_TRIES = 3  # of a prediction during which the whole process ended


@dataclass
class _Series:
    """A series that comes in. senders: associations that it comes by and that are open. last: when it grew."""

    senders: set[object] = field(default_factory=set)
    last: float = field(default_factory=time.monotonic)


class Spool:
    """The folders of one listener.

    most: bytes that they may hold. quiet: seconds after which a series is taken for complete, once whoever sent it is
    done; six times that where the sender keeps its association open.
    """

    def __init__(self, root: Path, most: int, quiet: float) -> None:
        """Open a spool, made if it isn't there; UsageError where another listener has it, or it can't be written."""
        self.root, self._most, self._quiet = root, most, quiet
        self.receiving, self._incoming = root / "receiving", root / "incoming"
        self._work, self._failed = root / "work", root / "failed"
        try:
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
            for folder in (self.receiving, self._incoming, self._work, self._failed):
                folder.mkdir(exist_ok=True, mode=0o700)
            self._held = FileLock(root / ".lock")
            self._held.acquire(timeout=0)
        except Timeout:
            raise UsageError(f"--spool {root}: another listener uses it; give each its own") from None
        except OSError as error:
            raise UsageError(f"--spool {root}: can't be written to ({error.strerror}); give another") from None
        self._lock = threading.RLock()
        self._open: dict[str, _Series] = {folder.name: _Series() for folder in self._incoming.iterdir()}
        self._tidied = time.monotonic()
        for path in self.receiving.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for folder in self._work.iterdir():  # cut off while it was being made, or being deleted
            if not (folder / OBJECTS).is_dir():
                shutil.rmtree(folder, ignore_errors=True)
        self._held_bytes = sum(_size(folder) for folder in (self._incoming, self._work, self._failed))

    def close(self) -> None:
        """Let another listener have it."""
        self._held.release()

    def room(self) -> int:
        """Bytes that may still come in. What failed makes way, the oldest first."""
        with self._lock:
            if self._left() <= 0:
                for folder in sorted(self._failed.iterdir(), key=_age, reverse=True):
                    self._delete(folder)
                    if self._left() > 0:
                        break
            return self._left()

    def _left(self) -> int:
        free = shutil.disk_usage(self.root).free - _FREE
        return min(self._most - self._held_bytes, free)

    def add(self, file: Path, series: str, name: str, sender: object) -> None:
        """Take in an object that is whole. An object that comes again takes the place of the first."""
        with file.open("rb") as stream:
            os.fsync(stream.fileno())  # before the sender is told that it may forget it
        size = file.stat().st_size
        with self._lock:
            folder = self._incoming / series
            folder.mkdir(exist_ok=True, mode=0o700)
            (folder / WHOLE).unlink(missing_ok=True)
            place = folder / f"{name}.dcm"
            before = place.stat().st_size if place.exists() else 0
            os.replace(file, place)
            self._held_bytes += size - before
            entry = self._open.setdefault(series, _Series())
            entry.senders.add(sender)
            entry.last = time.monotonic()

    def done(self, sender: object, whole: bool) -> list[str]:
        """Say that a sender has gone; whole: after its last object, not in the middle. Returns the series it sent."""
        with self._lock:
            sent = [key for key, entry in self._open.items() if sender in entry.senders]
            for key in sent:
                entry = self._open[key]
                entry.senders.discard(sender)
                entry.last = time.monotonic()
                if whole and not entry.senders:
                    (self._incoming / key / WHOLE).touch()
            return sent

    def complete(self) -> list[Path]:
        """Move the series that are complete to ``work``; returns their folders there."""
        moved = []
        with self._lock:
            for key, entry in list(self._open.items()):
                folder, still = self._incoming / key, time.monotonic() - entry.last
                ended = not entry.senders and (folder / WHOLE).exists() and still >= self._quiet
                if ended or (entry.senders and still >= 6 * self._quiet):
                    del self._open[key]
                    moved.append(self._to_work(folder))
        return moved

    def _to_work(self, folder: Path) -> Path:
        work = self._work / f"{folder.name}-{uuid.uuid4().hex[:6]}"
        work.mkdir(mode=0o700)
        (folder / WHOLE).unlink(missing_ok=True)
        folder.rename(work / OBJECTS)
        return work

    def waiting(self) -> list[Path]:
        """Return the folders in ``work``, those that came first at first."""
        return sorted(self._work.iterdir(), key=lambda folder: -_age(folder / OBJECTS))

    def begin(self, work: Path) -> bool:
        """Note that a prediction begins; False where the process ended in its middle too often."""
        file = work / TRIES
        tries = len(file.read_bytes()) if file.exists() else 0
        with file.open("ab") as stream:
            stream.write(b".")
        return tries < _MOST_TRIES

    def not_begun(self, work: Path) -> None:
        """Take back that a prediction began: it was stopped in good order."""
        (work / TRIES).unlink(missing_ok=True)

    def predicted(self, work: Path, made: Path) -> None:
        """Put the folder of a result in its place, whole."""
        size = _size(made)
        made.rename(work / RESULT)
        (work / TRIES).unlink(missing_ok=True)
        with self._lock:
            self._held_bytes += size

    def fail(self, work: Path, reason: str) -> None:
        """Put aside what can't be predicted or sent."""
        (work / TRIES).unlink(missing_ok=True)
        (work / REASON).write_text(reason + "\n", encoding="utf-8")
        os.utime(work)
        work.rename(self._failed / work.name)

    def sent(self, work: Path) -> None:
        """Delete what is predicted and sent."""
        self._delete(work)

    def tidied(self) -> list[str]:
        """Once a minute, delete what nobody waits for; returns the series that were cut off and never came again.

        The others: what failed a week ago, and objects that were cut off while they came in.
        """
        if time.monotonic() - self._tidied < 60:
            return []
        self._tidied = time.monotonic()
        for file in self.receiving.iterdir():
            if file.is_file() and _age(file) > _CUT:
                file.unlink(missing_ok=True)
        for folder in self._failed.iterdir():
            if _age(folder) > _KEPT:
                self._delete(folder)
        with self._lock:
            cut = [k for k, e in self._open.items() if not e.senders and time.monotonic() - e.last > _GIVEN_UP]
            for key in cut:
                del self._open[key]
                self._delete(self._incoming / key)
        return cut

    def _delete(self, folder: Path) -> None:
        """Delete a folder. It is moved first: half a series must not be taken for a whole one after a restart."""
        with self._lock:
            size, away = _size(folder), self.receiving / f"{folder.name}-{uuid.uuid4().hex[:6]}.gone"
            with contextlib.suppress(OSError):
                folder.rename(away)
                self._held_bytes = max(0, self._held_bytes - size)
        shutil.rmtree(away, ignore_errors=True)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _age(path: Path) -> float:
    """Seconds since it was changed; 0 for what is gone by now."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0
