"""What a run has to tell its tracking store, kept in order on disk until it got there."""

from __future__ import annotations

import itertools
import json
import logging
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from medlight.tracking.connection import cause
from medlight.tracking.delivery import Delivery, Operation, is_refusal

log = logging.getLogger("medlight.tracking")
_LONGEST = 30.0  # seconds between attempts to reach a server that is away


def owner_alive(pid: int, started: float) -> bool:
    """Whether the process that had this id and start time is still there."""
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def journals(folder: Path) -> Iterator[Path]:
    """Yield the journals of entries that did not reach their server."""
    yield from sorted(folder.glob("*.jsonl")) if folder.is_dir() else ()


class Spool:
    """An ordered queue of operations on one run; each is on disk (fsync) from ``put`` until it was delivered.

    A failed delivery is tried again with growing pauses, and nothing overtakes it; what the server refuses (a value it
    can't store) is left out with a warning, so that it does not block the rest. One line says that the server is away,
    one that it is back.
    """

    def __init__(self, run_id: str, uri: str, folder: Path, *, again: bool = False) -> None:
        self.run_id, self.uri, self.folder = run_id, uri, folder
        self.journal = folder / f"{run_id}.jsonl"
        self.files = folder / run_id
        self.away = False
        self.pause = 0.0
        self._delivery = Delivery(run_id, uri, ask=again)
        self._queue: deque[Operation] = deque()
        self._numbers = itertools.count(time.time_ns() // 1000)
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        if self.journal.exists():
            self._adopt()

    @classmethod
    def reopened(cls, journal: Path) -> Spool | None:
        """Return the spool of a process that is no more, or None where its owner lives (or nothing can be read)."""
        head = next(_entries(journal), None)
        if head is None or head["op"] != "owner" or owner_alive(head["pid"], head["started"]):
            return None
        return cls(head["run_id"], head["uri"], journal.parent, again=True)

    def _adopt(self) -> None:
        """Take over what an earlier process of this run left."""
        left = [entry for entry in _entries(self.journal) if entry["op"] != "owner"]
        fresh = self.journal.with_suffix(".partial")
        _append(fresh, [self._owner(), *left])
        fresh.replace(self.journal)
        self._queue.extend(left)

    @property
    def pending(self) -> int:
        """How many operations still wait."""
        return len(self._queue)

    def put(self, *operations: Operation) -> None:
        """Append operations, on disk before they are sent."""
        if not operations:
            return
        with self._lock:
            try:
                self._write(operations)
            except OSError as error:  # they are still sent if the process lives long enough
                log.warning("values can't be kept on disk for the tracking server: %s", cause(error))
            self._queue.extend(operations)

    def _write(self, operations: tuple[Operation, ...]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        _append(self.journal, operations if self.journal.exists() else (self._owner(), *operations))

    def keep(self, name: str) -> Path:
        """Return the path of a new file under the spool, for content that an operation needs."""
        with self._lock:  # the thread that sends removes `files` when nothing is left in it
            folder = self.files / str(next(self._numbers))
            folder.mkdir(parents=True)
        return folder / name

    def attempt(self) -> bool:
        """Deliver what waits, in order, until all is there (True) or the server fails (False)."""
        with self._sending:
            while self._queue:
                operation = self._queue[0]
                try:
                    self._delivery.send(operation)
                except Exception as error:
                    if not is_refusal(error):
                        self._failed(error)
                        return False
                    log.warning("MLflow refused a %s of run %s: %s", operation["op"], self.run_id, cause(error))
                self._delivered(operation)
            return True

    def _delivered(self, operation: Operation) -> None:
        if self.away:
            self.away, self.pause = False, 0.0
            log.warning("the tracking server is back; what waited is being delivered")
        kept = operation.get("file")
        if kept and self.files in Path(kept).parents:
            shutil.rmtree(Path(kept).parent, ignore_errors=True)
        with self._lock:
            self._queue.popleft()
            if not self._queue:
                self.journal.unlink(missing_ok=True)
                with suppress(OSError):  # not there, or it holds what keep() has just promised to another thread
                    self.files.rmdir()

    def _failed(self, error: Exception) -> None:
        if not self.away:
            where = os.path.relpath(self.folder)
            log.warning("the tracking server does not answer (%s); values wait in %s", cause(error), where)
        self.away = True
        self.pause = min(_LONGEST, 2 * self.pause or 1.0)

    def _owner(self) -> Operation:
        started = psutil.Process().create_time()
        return {"op": "owner", "run_id": self.run_id, "uri": self.uri, "pid": os.getpid(), "started": started}


class Sender:
    """The thread that empties a spool: every ``interval`` seconds, at once when asked, later while it is away."""

    def __init__(self, spool: Spool, collect: Callable[[], None], interval: float = 2.0) -> None:
        self.spool, self.interval = spool, interval
        self._collect = collect
        self._wake = threading.Event()
        self._rounds = 0
        self._round = threading.Condition()
        self._thread: threading.Thread | None = None
        self._pid = 0

    def start(self) -> None:
        """Start the thread unless it runs (a forked process has none)."""
        if self._pid == os.getpid():
            return
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name="medlight-tracking", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            self._wake.wait(max(self.interval, self.spool.pause))
            self._wake.clear()
            try:
                self._collect()
                self.spool.attempt()
            except Exception as error:  # a full disk must not end the thread
                log.warning("values can't be kept for the tracking server: %s", cause(error))
            with self._round:
                self._rounds += 1
                self._round.notify_all()

    def drain(self, timeout: float, *, patient: bool = False) -> bool:
        """Wait until all is delivered (True), an attempt failed (unless patient), or the time is over."""
        self.start()
        deadline = time.monotonic() + timeout
        with self._round:
            seen = self._rounds
            while self.spool.pending and time.monotonic() < deadline:
                if self._rounds > seen and self.spool.away and not patient:
                    break
                self._wake.set()
                self._round.wait(min(1.0, max(0.0, deadline - time.monotonic())))
                if patient and self.spool.away:
                    self._round.wait(0.5)
        return not self.spool.pending


def _entries(journal: Path) -> Iterator[Operation]:
    """Read a journal; a last line that was torn by a crash is left out."""
    try:
        lines = journal.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        try:
            entry: dict[str, Any] = json.loads(line)
        except ValueError:
            return
        yield entry


def _append(file: Path, entries: Sequence[Operation]) -> None:
    """Append lines and bring them to the disk."""
    with open(file, "a", opener=_private) as lines:
        lines.writelines(json.dumps(entry) + "\n" for entry in entries)
        lines.flush()
        os.fsync(lines.fileno())


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
