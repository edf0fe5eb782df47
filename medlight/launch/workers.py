"""Jobs as processes: each is a fork of a server that has the heavy imports loaded, and is watched until it ends.

The server makes a start cheap (a fork and not seconds of imports). A job that dies takes nothing with it: not its
siblings, not the process that started it. Jobs die with that process, whatever killed it.
"""

from __future__ import annotations

import faulthandler
import importlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing import connection, forkserver
from pathlib import Path
from typing import Any

import psutil

from medlight.errors import MedlightError, UsageError, one_line
from medlight.tracking.identity import scrub

PRELOAD = (
    "torch",
    "lightning",
    "monai.networks.nets",
    "torchio",
    "mlflow",
    "medlight.data",
    "medlight.tasks",
    "medlight.launch.fit",
)
GRACE = 10.0  # seconds between a job's result and its end
WATCH = 0.2  # seconds between two looks at a job's memory
GB = 1e9


@dataclass(frozen=True)
class Job:
    """What a worker runs.

    Args:
        target: import path of a function; it gets ``arguments`` and ``report``, a function (step, metrics) -> bool that
            says whether to stop. What it returns must pickle.
        log: file that takes the job's output; None leaves it on the terminal.
        threads: CPU threads of the job (OpenMP and torch); None takes OMP_NUM_THREADS, else every core.
        environment: variables set before the target runs.
        memory_limit: GB that the job and its own processes may use together; None sets no limit.
    """

    target: str
    arguments: dict[str, Any] = field(default_factory=dict)
    log: Path | None = None
    threads: int | None = None
    environment: dict[str, str] = field(default_factory=dict)
    memory_limit: float | None = None


@dataclass(frozen=True)
class Report:
    """A job's metrics on its way; the job waits for :meth:`Worker.answer`."""

    step: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Ended:
    """A job's end: its result, or one line that says why there is none (``usage``: the call was wrong)."""

    result: Any = None
    reason: str | None = None
    usage: bool = False


def warm_up(preload: Iterable[str] = PRELOAD) -> None:
    """Start the server, which imports in the background; a server that runs already is kept.

    Its libraries see one thread while they are imported: a library's pool of threads does not survive a fork.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    with _environment({"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}):
        forkserver.ensure_running()


class Worker:
    """One running job.

    Raises: MedlightError where the server could not start it.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.peak = 0.0  # GB
        self._ended: Ended | None = None
        self._ended_at = 0.0
        self._looked_at = 0.0
        self._silent = False
        self._connection, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("forkserver")
        job = replace(job, environment={**os.environ, **job.environment}, threads=job.threads or _default_threads())
        self._process = context.Process(target=_serve, args=(theirs, job), daemon=False)
        try:
            self._process.start()
        except (EOFError, OSError) as error:
            raise MedlightError(f"the server that starts jobs died while it imported its modules: {error!r}") from error
        theirs.close()
        self._watched: psutil.Process | None = None
        with suppress(psutil.NoSuchProcess):
            self._watched = psutil.Process(self._process.pid)

    @property
    def pid(self) -> int:
        """The job's process id."""
        return int(self._process.pid or 0)

    def poll(self) -> Report | Ended | None:
        """What happened since the last call: a report (answer it), the end, or nothing."""
        alive = self._process.is_alive()  # before the pipe is read: what a dead job sent is all there
        self._check_memory()
        while not self._silent and self._connection.poll():
            try:
                kind, *content = self._connection.recv()
            except (EOFError, OSError):
                self._silent = True
                break
            if kind == "report":
                return Report(*content)
            self._end(Ended(*content))
        if alive and self._ended and time.monotonic() - self._ended_at > GRACE:
            self.kill()
        if alive:
            return None
        self.kill()  # what it left behind
        return self._ended or Ended(reason=self._death())

    def answer(self, stop: bool) -> None:
        """Let a job that reported go on, or tell it to stop."""
        with suppress(OSError):  # it died meanwhile: the next poll says so
            self._connection.send(stop)

    def kill(self) -> None:
        """End the job and every process it started, now."""
        _kill_tree(self.pid, self._watched)
        self._process.join()

    def close(self) -> None:
        """End the job if it still runs, and give its pipe back."""
        if self._process.is_alive():
            self.kill()
        self._connection.close()
        self._process.close()

    @property
    def waitables(self) -> list[Any]:
        """What to hand to :func:`wait`."""
        return [self._process.sentinel, *([] if self._silent else [self._connection])]

    def _end(self, ended: Ended) -> None:
        self._ended = self._ended or ended
        self._ended_at = time.monotonic()

    def _check_memory(self) -> None:
        limit = self.job.memory_limit
        if limit is None or self._ended or self._watched is None or time.monotonic() - self._looked_at < WATCH:
            return
        self._looked_at = time.monotonic()
        used = tree_memory(self._watched, limit)
        self.peak = max(self.peak, used)
        if used > limit:
            self._end(Ended(reason=f"used {used:.2f} GB of memory, over its limit of {limit:g} GB (memory_limit_gb)"))
            self.kill()

    def _death(self) -> str:
        code = self._process.exitcode or 0
        where = f"; its output is in {self.job.log}" if self.job.log else ""
        if code >= 0:
            return f"ended with exit code {code} and no result{where}"
        name = signal.Signals(-code).name
        hint = ", as the kernel does where the machine's memory runs out" if name == "SIGKILL" else ""
        return f"killed by signal {-code} ({name}{hint}){where}"


def wait(workers: Iterable[Worker], timeout: float) -> None:
    """Sleep until one of the workers has something to say, at most ``timeout`` seconds."""
    waitables = [item for worker in workers for item in worker.waitables]
    if waitables:
        connection.wait(waitables, timeout)
    else:
        time.sleep(timeout)


def run(job: Job) -> Any:
    """Run one job to its end and return its result (reports are not stopped).

    Raises: UsageError or MedlightError with the job's reason.
    """
    worker = Worker(job)
    try:
        while not isinstance(event := worker.poll(), Ended):
            if isinstance(event, Report):
                worker.answer(False)
            wait([worker], WATCH)
    finally:
        worker.close()
    if event.reason is not None:
        raise UsageError(event.reason) if event.usage else MedlightError(event.reason)
    return event.result


def tree_memory(process: psutil.Process, enough: float = 0.0) -> float:
    """GB that a process and its descendants use.

    The sum of their resident sets, which counts pages that they share several times and files that they have mapped;
    where that sum is above ``enough``, each process's own share of the pages that are no file's.
    """
    try:
        tree = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0.0
    resident = 0.0
    for each in tree:
        with suppress(psutil.NoSuchProcess):
            resident += each.memory_info().rss / GB
    if resident <= enough:
        return resident
    try:
        return sum(_own_share(each.pid) for each in tree) / GB
    except OSError:  # no smaps_rollup on this kernel
        return resident


def _own_share(pid: int) -> int:
    """Bytes of a process in anonymous and shared memory, pages shared by n processes counted as 1/n."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self/smaps_rollup").exists():
            return 0  # it has ended meanwhile
        raise
    fields = dict(line.split(":", 1) for line in text.splitlines()[1:])
    return sum(int(fields[name].split()[0]) * 1024 for name in ("Pss_Anon", "Pss_Shmem"))


def _kill_tree(pid: int, leader: psutil.Process | None) -> None:
    """Kill a process, its descendants, and what else is in the process group that it leads."""
    descendants: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        descendants = leader.children(recursive=True) if leader else []
    for process in descendants:  # first: the caller may be the leader, and the rest ends it
        with suppress(psutil.NoSuchProcess):
            process.kill()
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    with suppress(psutil.NoSuchProcess):
        if leader:
            leader.kill()


def _serve(pipe: connection.Connection, job: Job) -> None:
    """Run a job in its own process."""
    os.setpgid(0, 0)  # a Ctrl-C in the terminal is for the parent, which decides
    threading.Thread(target=_die_with_parent, daemon=True).start()
    os.environ.clear()  # the server's, which is as old as the server
    os.environ.update(job.environment)
    _set_threads(job.threads or 1)
    if job.log:
        _write_to(job.log)
    message: tuple[Any, ...]
    try:
        module, _, name = job.target.rpartition(".")
        result = getattr(importlib.import_module(module), name)(**job.arguments, report=Reporter(pipe))
        message = ("result", result)
    except BaseException as error:
        if job.log or not isinstance(error, MedlightError):
            print(_without_names(traceback.format_exc()), file=sys.stderr)
        message = ("failed", None, one_line(error), isinstance(error, UsageError))
    sys.stdout.flush()
    sys.stderr.flush()
    pipe.send(message)


@dataclass
class Reporter:
    """Asks the parent whether to stop; a plain object, so that it can be handed to a job's own processes."""

    pipe: connection.Connection

    def __call__(self, step: int, metrics: dict[str, float]) -> bool:
        """Send the metrics of a step; True where the job is to stop."""
        self.pipe.send(("report", step, metrics))
        return bool(self.pipe.recv())


def _without_names(report: str) -> str:
    """A traceback that may be kept: the places in the code stay, the files that its messages name don't."""
    return "\n".join(line if line.startswith("  ") else scrub(line) for line in report.splitlines())


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        _kill_tree(os.getpid(), psutil.Process())


def _default_threads() -> int:
    written = os.environ.get("OMP_NUM_THREADS", "")
    return int(written) if written.isdigit() else len(os.sched_getaffinity(0))


def _set_threads(count: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(count)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)


def _write_to(log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    faulthandler.enable()  # a crash in native code leaves its place in the log


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
