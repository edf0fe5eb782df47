"""Where an Optuna study lives, and how a trial that died with its machine is tried again.

Embedded: a journal file that one sweep at a time holds. A database (PostgreSQL by URL): any number of machines take
trials of one study; each keeps its own alive by a heartbeat, and any of them gives a silent one back to the queue.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import filelock
import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from medlight.config import nearest
from medlight.errors import MedlightError, UsageError

ROOT = Path("mlruns") / "optuna"
HEARTBEAT = 5  # seconds
SILENT = 60  # seconds after which a trial on a database counts as dead
ATTEMPTS = 3  # how often an interrupted trial is tried again
INTERRUPTED = "interrupted: its sweep or its machine died"

warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
optuna.logging.set_verbosity(optuna.logging.ERROR)
_retry = RetryHeartbeatStaleTrialCallback(max_retry=ATTEMPTS)


def journal(full_name: str) -> Path:
    """The file of an embedded study."""
    return ROOT / f"{full_name}.log"


@contextmanager
def opened(full_name: str, url: str | None) -> Iterator[BaseStorage]:
    """The storage of a study; an embedded one is held against a second sweep.

    Raises: UsageError where another sweep holds it; MedlightError where the database can't be reached.
    """
    if url:
        yield database(url)
        return
    file = journal(full_name)
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(f"{file}.held", timeout=0):
            _mend(file)
            yield JournalStorage(JournalFileBackend(str(file)))
    except filelock.Timeout:
        where = f"sweep {full_name} is running already ({file}.held)"
        raise UsageError(f"{where}; wait for it, or give another --name") from None


def _mend(file: Path) -> None:
    """Clear what a killed sweep left: the lock of a write, and half a line."""
    Path(f"{file}.lock").unlink(missing_ok=True)
    if file.exists():
        content = file.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with file.open("r+b") as stream:
                stream.truncate(whole)


def database(url: str) -> RDBStorage:
    """The studies in a database; ``postgresql://`` is reached through psycopg 3.

    Raises: MedlightError where it can't be reached.
    """
    if url.startswith(("postgresql://", "postgres://")):
        url = "postgresql+psycopg://" + url.split("://", 1)[1]
    try:
        return RDBStorage(
            url,
            engine_kwargs={"pool_pre_ping": True},
            heartbeat_interval=HEARTBEAT,
            grace_period=SILENT,
            heartbeat_stale_trial_callback=_retry,
        )
    except ImportError as error:
        raise UsageError(f"storage: {error}; mend: pip install 'medlight[postgres]'") from None
    except Exception as error:
        place = url.rsplit("@", 1)[-1]  # without the password
        cause = " ".join((str(error).splitlines() or [""])[0].split())
        mend = "start the server, or leave storage out"
        raise MedlightError(f"storage: can't use {place}: {type(error).__name__}: {cause}; {mend}") from error


def find(storage: BaseStorage, full_name: str) -> optuna.Study | None:
    """The study of this name, if it was started."""
    try:
        return optuna.load_study(study_name=full_name, storage=storage)
    except KeyError:
        return None


def history(trial: FrozenTrial) -> list[int]:
    """The interrupted trials that this one repeats, oldest first; Optuna's callback keeps them."""
    return list(trial.system_attrs.get("retry_history", []))


def ended(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that count: ended, and not tried again."""
    trials = study.get_trials(deepcopy=False)
    again = {number for trial in trials for number in history(trial)}
    return [trial for trial in trials if trial.state.is_finished() and trial.number not in again]


def interrupt(study: optuna.Study, trial: FrozenTrial) -> None:
    """End a trial through no fault of its own, and queue its parameters again."""
    again = copy.deepcopy(trial)
    again.user_attrs = {}
    optuna.Trial(study, trial._trial_id).set_user_attr("reason", INTERRUPTED)
    study.tell(trial.number, state=TrialState.FAIL)
    _retry(study, again)


def revive(study: optuna.Study, storage: BaseStorage) -> list[FrozenTrial]:
    """Interrupt every trial whose sweep is dead; returns them.

    An embedded study is held by the caller alone: all that run are dead. On a database silence says so, and for a
    trial that died before its first heartbeat, its age.
    """
    running = [trial for trial in study.get_trials(deepcopy=False) if trial.state == TrialState.RUNNING]
    if isinstance(storage, RDBStorage):
        optuna.storages.fail_stale_trials(study)
        silent = {trial.number for trial in study.get_trials(deepcopy=False) if trial.state == TrialState.FAIL}
        born = datetime.now() - timedelta(seconds=2 * SILENT)
        unborn = [
            t
            for t in running
            if t.user_attrs.get("started") != t.number and t.datetime_start and t.datetime_start < born
        ]
        for trial in unborn:
            if trial.number not in silent:
                interrupt(study, trial)
        return [trial for trial in running if trial.number in silent or trial in unborn]
    for trial in running:
        interrupt(study, trial)
    return running


def claim(storage: BaseStorage, trial: optuna.Trial) -> None:
    """Say that a trial which was just asked for has a sweep that looks after it."""
    beat(storage, trial)
    trial.set_user_attr("started", trial.number)  # a trial tried again has the attributes of the one that died


def beat(storage: BaseStorage, trial: Any) -> None:
    """Say that a trial is alive, where others may ask."""
    if isinstance(storage, RDBStorage):
        storage.record_heartbeat(trial._trial_id)


def named(text: str, url: str | None) -> optuna.Study:
    """The study that a user means: its whole name, or the sweep's name where one study has it.

    Raises: UsageError with the nearest name, or with those that fit.
    """
    if url:
        storage: BaseStorage = database(url)
        known = optuna.get_all_study_names(storage)
    else:
        known = sorted(file.stem for file in ROOT.glob("*.log"))
    fit = [text] if text in known else [name for name in known if name.endswith(f"-{text}")]
    if not fit:
        raise UsageError(f"no sweep {text!r} in {'the database' if url else ROOT}{nearest(text, known)}")
    if len(fit) > 1:
        raise UsageError(f"{text!r} is the name of several sweeps: {', '.join(fit)}")
    if not url:
        storage = JournalStorage(JournalFileBackend(str(journal(fit[0]))))
    return optuna.load_study(study_name=fit[0], storage=storage)
