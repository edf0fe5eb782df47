"""The prepared store: each case is prepared once, whatever reads it.

A prepared case is kept under the digest of what it was made from: the bytes of its files, the preparation and the
version of the store. Changed input or preparation means another name, so nothing in the store is ever out of date, and
processes that share it need no locks: each file is written beside its place and then renamed.
"""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from medlight.errors import CaseError, MedlightError
from medlight.prepare.case import BadCase, Case, CaseList, Label
from medlight.prepare.checks import check_values, named
from medlight.prepare.contents import identified, sha256
from medlight.prepare.preparation import Preparation
from medlight.prepare.prepared import PreparedCase, open_prepared, write_prepared
from medlight.prepare.reading import drawn, forget

VERSION = 1  # of what is written; a higher one leaves older files alone
_STALE_S = 3600.0
_Job = tuple[Case, Path]


@dataclass(frozen=True)
class PreparedSet:
    """What `Store.prepare` gives.

    cases: in the order asked for. bad: those left out, each with its reason. labels: the schema of the label maps, as
    given or as found in the data. computed, reused: how many were prepared now, and how many were there already.
    """

    cases: list[PreparedCase]
    bad: list[BadCase] = field(default_factory=list)
    labels: tuple[Label, ...] = ()
    computed: int = 0
    reused: int = 0


class Store:
    """A folder of prepared cases; any number of processes may use it at once."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root).absolute()

    def prepare(
        self,
        cases: CaseList | Sequence[Case],
        preparation: Preparation,
        labels: Sequence[Label] = (),
        *,
        on_bad_case: Literal["error", "skip"] = "error",
        workers: int = 0,
        progress: bool = False,
    ) -> PreparedSet:
        """Prepare what is not there yet, and return all of it.

        cases: with a `CaseList`, its bad cases count too, and its labels are used where none are given.
        labels: where there are none, each value that the label maps hold gets a name, ``label 1`` and so on.
        workers: processes; 0 works in this one. progress: show a bar (on a terminal only).
        A DICOM case that no manifest names comes back with a digest of its content for an id.
        Raises CaseError for bad cases unless ``on_bad_case`` is ``skip``; what was prepared by then stays prepared.
        """
        listed = cases if isinstance(cases, CaseList) else CaseList(list(cases))
        schema = tuple(labels) or listed.labels
        bad = [*listed.bad, *_duplicates(listed.cases)]
        _refuse(bad, on_bad_case)
        unique = _unique(listed.cases)
        self._sweep()
        known, absent = identified(unique, self.root / "digests.sqlite")
        bad += absent
        contents = {case.id: content for case, content in known}
        jobs = [(case, self._path(case, content, preparation, schema)) for case, content in known]
        ready = {case.id: _ready(case, path, contents[case.id]) for case, path in jobs}
        missing = list({path: (case, path) for case, path in jobs if ready[case.id] is None}.values())
        faults = self._compute(missing, preparation, schema, workers, progress)
        bad += [BadCase(case.id, faults[path]) for case, path in jobs if path in faults]
        sound = [(case, path) for case, path in jobs if path not in faults]
        whole = [ready[case.id] or open_prepared(case, path, contents[case.id]) for case, path in sound]
        done = _with_known_values(whole, schema, bad)
        _refuse(bad, on_bad_case)
        computed, reused = len(missing) - len(faults), len(jobs) - len(missing)
        return PreparedSet(done, bad, schema or _found_labels(done), computed, reused)

    def _path(self, case: Case, content: str, preparation: Preparation, schema: Sequence[Label]) -> Path:
        parts: list[object] = [VERSION, content, preparation.to_dict()]
        if drawn(case.label):  # the schema says which of its segments becomes which value
            parts.append([[label.value, label.name, label.code, label.order] for label in schema])
        key = sha256(parts)
        return self.root / f"v{VERSION}" / key[:2] / f"{key}.safetensors"

    def _compute(
        self, jobs: Sequence[_Job], preparation: Preparation, schema: Sequence[Label], workers: int, progress: bool
    ) -> dict[Path, str]:
        """Prepare and write; returns the reason for each that could not be."""
        faults: dict[Path, str] = {}
        work = partial(_prepare_one, preparation, schema)
        with _bar(len(jobs), progress) as step, _mapper(min(workers, len(jobs))) as run:
            for (_, path), reason in zip(jobs, run(work, jobs), strict=True):
                step()
                if reason:
                    faults[path] = reason
        forget()
        return faults

    def _sweep(self) -> None:
        """Remove what killed processes left half written."""
        for path in self.root.glob(f"v{VERSION}/*/.*.tmp-*"):
            try:
                if time.time() - path.stat().st_mtime > _STALE_S:
                    path.unlink()
            except OSError:
                pass  # another process was quicker


def _ready(case: Case, path: Path, content: str) -> PreparedCase | None:
    """What is there already; a file that a crash of the machine left damaged counts as absent, and is made anew."""
    if not path.exists():
        return None
    try:
        return open_prepared(case, path, content)
    except MedlightError:
        return None


def _with_known_values(
    cases: Sequence[PreparedCase], schema: Sequence[Label], bad: list[BadCase]
) -> list[PreparedCase]:
    """The cases whose label maps hold only what the schema names; the others are added to ``bad``."""
    fine = []
    for prepared in cases:
        case = prepared.case
        try:
            if case.label is not None:
                check_values(case.id, named(case.label), prepared.values, schema)
            fine.append(prepared)
        except CaseError as error:
            bad.append(BadCase(case.id, str(error)))
    return fine


def _prepare_one(preparation: Preparation, schema: Sequence[Label], job: _Job) -> str | None:
    """Prepare and write one case; returns what is wrong with it, if anything is."""
    case, path = job
    try:
        write_prepared(preparation.prepare(case, schema if drawn(case.label) else ()), path)
    except CaseError as error:
        return str(error)
    except Exception as error:
        raise MedlightError(f"{named(next(iter(case.images.values())))}: {type(error).__name__}: {error}") from error
    return None


_Run = Callable[[Callable[[_Job], str | None], Sequence[_Job]], Iterator[str | None]]


@contextmanager
def _mapper(workers: int) -> Iterator[_Run]:
    """Map over jobs, in this process or in fresh ones (a fork would copy whatever threads are running here)."""
    if workers < 1:
        yield map
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        try:
            yield lambda work, jobs: pool.map(work, jobs, chunksize=max(1, min(32, len(jobs) // (8 * workers))))
        except BrokenProcessPool:
            raise MedlightError(
                "a process that prepares cases was killed (out of memory?); try fewer workers: what is done is kept"
            ) from None
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


@contextmanager
def _bar(total: int, wanted: bool) -> Iterator[Callable[[], None]]:
    console = Console(stderr=True)
    columns = (TextColumn("preparing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not (wanted and total and console.is_terminal)) as progress:
        task = progress.add_task("preparing", total=total)
        yield lambda: progress.advance(task)


def _unique(cases: Sequence[Case]) -> list[Case]:
    counts = Counter(case.id for case in cases)
    return [case for case in cases if counts[case.id] == 1]


def _duplicates(cases: Sequence[Case]) -> list[BadCase]:
    counts = Counter(case.id for case in cases)
    return [
        BadCase(name, f"{count} cases have the id {name!r}; give each case its own")
        for name, count in counts.items()
        if count > 1
    ]


def _refuse(bad: Sequence[BadCase], on_bad_case: Literal["error", "skip"]) -> None:
    """Raise one CaseError for all bad cases, unless they are to be skipped."""
    if not bad or on_bad_case == "skip":
        return
    more = f" (and {len(bad) - 1} more; on_bad_case: skip leaves them out and lists them)" if len(bad) > 1 else ""
    raise CaseError(bad[0].id, f"{bad[0].reason}{more}")


def _found_labels(cases: Sequence[PreparedCase]) -> tuple[Label, ...]:
    values = sorted({value for case in cases for value in case.values if value})
    if not any(case.has_label for case in cases):
        return ()
    return (Label(0, "background"), *(Label(value, f"label {value}") for value in values))
