"""A drop folder: what comes to rest in it is predicted once, and what goes away meanwhile ends nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from medlight.deploy.runtime.journal import Item
from medlight.deploy.runtime.studies import Asked, as_item, is_meant
from medlight.errors import UsageError
from medlight.prepare.folders import name_of
from medlight.scans import SUFFIXES
from medlight.scans.dicom.archive import HEAD_BYTES
from medlight.scans.dicom.fileset import is_index
from medlight.scans.dicom.survey import Survey, survey
from medlight.scans.dicom.tree import is_dicom
from medlight.scans.files import apart

QUIET_S = 5.0
_POLL_S = 1.0
_Stamp = tuple[int, int]  # size and time of change


@dataclass
class Drop:
    """Watches a folder.

    quiet: seconds that no file of a series may change before it counts as whole. A series that gets more files later is
    another one then, and is predicted again as a whole.
    """

    folder: Path
    asked: Asked
    quiet: float = QUIET_S
    _seen: dict[Path, tuple[_Stamp, float]] = field(default_factory=dict)  # and since when they are so
    _done: dict[Path, tuple[_Stamp, str]] = field(default_factory=dict)  # and of which series

    def __post_init__(self) -> None:
        apart(self.folder, self.asked.out / "any")

    def items(self, stopped: Callable[[], bool] = lambda: False) -> Iterator[Item]:
        """Give what comes, and wait for more until ``stopped`` says so."""
        while not stopped():
            yield from self.settled()
            time.sleep(min(_POLL_S, self.quiet / 2))

    def settled(self) -> Iterator[Item]:
        """Give what came to rest since the last time; with a fault, where its files went away while others ran."""
        fresh = [file for file in self._fresh() if _may_be_scan(file)]
        if not any(self._at_rest(file) for file in fresh):
            return
        found = _surveyed(fresh)
        if found is None:
            return
        again = {stack.series_uid for stack in found.stacks if stack.series_uid}
        earlier = [file for file, (_, series) in self._done.items() if series in again and file.exists()]
        whole = _surveyed([*fresh, *earlier]) if earlier else found
        if whole is None:
            return
        for stack in whole.stacks:
            files = {frame.place.path for frame in stack.frames}
            if all(self._at_rest(file) for file in files):
                self._note(files, stack.series_uid)
                if is_meant(stack):
                    yield as_item("", stack, self.asked)
        for file in filter(self._at_rest, found.others):
            self._note({file}, "")
            yield as_item(self._name(file), file, replace(self.asked, form="nifti"))

    def _name(self, file: Path) -> str:
        """What a file is called, with the folders that it lies in; where two are called alike, see `Batch.keeps`."""
        return "_".join([*file.relative_to(self.folder).parts[:-1], name_of(file)])

    def _fresh(self) -> list[Path]:
        """The files that are new or have changed; notes since when all are as they are."""
        now, found = time.monotonic(), []
        for root, folders, files in os.walk(self.folder):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(files):
                file = Path(root, name)
                try:
                    facts = file.stat()
                except OSError:  # gone again: a sender renames its files when they are whole
                    continue
                stamp = (facts.st_size, facts.st_mtime_ns)
                if self._seen.get(file, ((0, 0), 0.0))[0] != stamp:
                    self._seen[file] = (stamp, now)
                if not name.startswith(".") and self._done.get(file, ((-1, -1), ""))[0] != stamp:
                    found.append(file)
        return found

    def _at_rest(self, file: Path) -> bool:
        return file in self._seen and time.monotonic() - self._seen[file][1] >= self.quiet

    def _note(self, files: set[Path], series: str) -> None:
        self._done |= {file: (self._seen[file][0], series) for file in files if file in self._seen}


def _surveyed(files: list[Path]) -> Survey | None:
    """What lies in some files; None where one of them has just gone: the next time it is not listed any more."""
    try:
        return survey(files)
    except (UsageError, OSError):
        if all(os.path.exists(file) for file in files):
            raise
        return None


def _may_be_scan(file: Path) -> bool:
    try:
        with file.open("rb") as stream:
            head = stream.read(HEAD_BYTES)
    except OSError:
        return False
    return not is_index(head) and (is_dicom(head) or file.name.lower().endswith(SUFFIXES))
